//! What of an event a program reads or writes, so that only that is decoded.

use vrl::{
    compiler::ProgramInfo,
    path::{OwnedSegment, OwnedTargetPath, PathPrefix},
};

use super::fields::{FIELDS, FieldType, position};

/// What of an event a program reads or writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// By position in [`FIELDS`].
    pub(super) fields: [Members; FIELDS.len()],
}

/// How much of a field.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Members {
    /// Nothing.
    #[default]
    None,
    /// Members of an object with these names, sorted.
    Some(Vec<String>),
    /// All of it.
    All,
}

impl Members {
    fn add(&mut self, name: &str) {
        match self {
            Self::None => *self = Self::Some(vec![name.to_owned()]),
            Self::Some(names) => {
                if let Err(place) = names.binary_search_by(|known| known.as_str().cmp(name)) {
                    names.insert(place, name.to_owned());
                }
            }
            Self::All => {}
        }
    }

    /// Whether the member of this name is needed.
    pub(super) fn include(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::Some(names) => names.binary_search_by(|known| known.as_str().cmp(name)).is_ok(),
            Self::All => true,
        }
    }
}

impl Needs {
    /// From what the compiler found. Deleting counts as a query there, and so does every path handed to a function;
    /// `get` counts as a query of everything.
    pub(super) fn of(info: &ProgramInfo) -> Self {
        let mut needs = Self::default();
        for path in info.target_queries.iter().chain(&info.target_assignments) {
            needs.add(path);
        }
        needs
    }

    fn add(&mut self, path: &OwnedTargetPath) {
        if path.prefix != PathPrefix::Event {
            return;
        }
        let mut segments = path.path.segments.iter();
        let Some(OwnedSegment::Field(name)) = segments.next() else {
            self.fields = std::array::from_fn(|_| Members::All);
            return;
        };
        let Some(place) = position(name) else { return };
        let field = &mut self.fields[place];
        match segments.next() {
            Some(OwnedSegment::Field(member)) if FIELDS[place].type_ == FieldType::Object => {
                field.add(member)
            }
            _ => *field = Members::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::compile::{self, Purpose};

    fn needs(source: &str) -> Vec<(&'static str, Members)> {
        let compiled = compile::compile(source, Purpose::Step).expect("compiles");
        let needs = Needs::of(compiled.program.info());
        FIELDS
            .iter()
            .zip(needs.fields)
            .filter(|(_, members)| *members != Members::None)
            .map(|(field, members)| (field.name, members))
            .collect()
    }

    fn some(names: &[&str]) -> Members {
        Members::Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn only_what_a_program_names_is_needed() {
        assert_eq!(needs("abort"), []);
        assert_eq!(needs(r#"if .event == "x" { abort }"#), [("event", Members::All)]);
        assert_eq!(needs(r#"del(.properties."$ip")"#), [("properties", some(&["$ip"]))]);
        assert_eq!(needs(".properties.b = .properties.a.c"), [("properties", some(&["a", "b"]))]);
        assert_eq!(needs("exists(.properties.a)"), [("properties", some(&["a"]))]);
        assert_eq!(
            needs(".properties.a = object!(.properties.a)\n.properties.a |= {\"b\": 1}"),
            [("properties", some(&["a"]))]
        );
    }

    #[test]
    fn a_program_that_takes_the_object_needs_all_of_it() {
        assert_eq!(needs(".properties.n = length(.properties)"), [("properties", Members::All)]);
        assert_eq!(needs(".properties = {}"), [("properties", Members::All)]);
        assert_eq!(
            needs("for_each(.properties) -> |k, v| { .properties.last = k }"),
            [("properties", Members::All)]
        );
    }

    #[test]
    fn the_whole_event_and_dynamic_paths_need_everything() {
        assert_eq!(needs("x = encode_json(.)\n.event = x").len(), FIELDS.len());
        assert_eq!(needs(r#".event = to_string!(get!(.properties, ["a"]))"#).len(), FIELDS.len());
    }
}
