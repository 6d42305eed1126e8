//! JSON objects whose members stay text until somebody needs them.

use std::{borrow::Cow, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use vrl::value::{ObjectMap, Value};

/// A JSON object: its text, and where in it the members are, in their order.
#[derive(Clone, Debug)]
pub(super) struct Object<'a> {
    text: Cow<'a, str>,
    members: Vec<Member>,
}

/// Ranges in the text of the object.
#[derive(Clone, Debug)]
struct Member {
    /// With its quotes.
    name: Range<usize>,
    value: Range<usize>,
}

/// Members as they are read.
struct Members<'a>(Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MembersVisitor;
        impl<'de> Visitor<'de> for MembersVisitor {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(32);
                while let Some(member) = map.next_entry::<&RawValue, &RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(MembersVisitor)
    }
}

impl<'a> Object<'a> {
    /// Finds the members; does not look into their values.
    pub(super) fn parse(text: Cow<'a, str>) -> Result<Self, serde_json::Error> {
        let start = text.as_ptr() as usize;
        // Borrowed raw values are slices of the text.
        let range = |raw: &RawValue| {
            let from = raw.get().as_ptr() as usize - start;
            from..from + raw.get().len()
        };
        let members = serde_json::from_str::<Members<'_>>(&text)?
            .0
            .into_iter()
            .map(|(name, value)| Member { name: range(name), value: range(value) })
            .collect();
        Ok(Self { text, members })
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// Name of the member at this place.
    pub(super) fn name(&self, place: usize) -> Cow<'_, str> {
        unquote(&self.text[self.members[place].name.clone()])
    }

    /// Name of the member at this place, in quotes, as it was written.
    pub(super) fn raw_name(&self, place: usize) -> &str {
        &self.text[self.members[place].name.clone()]
    }

    /// Value of the member at this place, as it was written.
    pub(super) fn raw_value(&self, place: usize) -> &str {
        &self.text[self.members[place].value.clone()]
    }
}

/// Content of a JSON string.
pub(super) fn unquote(quoted: &str) -> Cow<'_, str> {
    let inner = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    if inner.contains('\\') {
        // A lone surrogate is the only thing that can be wrong with a string that was found to be JSON.
        serde_json::from_str(quoted).map_or(Cow::Borrowed(inner), Cow::Owned)
    } else {
        Cow::Borrowed(inner)
    }
}

/// Appends a string, quoted and escaped.
pub(super) fn write_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("writing a string to memory cannot fail");
}

/// Appends an object whose members are `current` where they were decoded from `original` into `decoded`, and otherwise
/// as they are. What is equal to what was decoded keeps its text. Names keep their order; new ones come last. Of a
/// name that is there more than once, only the last stays: it is the one that was decoded.
pub(super) fn write_object(
    out: &mut Vec<u8>,
    current: &ObjectMap,
    decoded: &ObjectMap,
    original: Option<&Object<'_>>,
) {
    let mut separator = b'{';
    let mut next = |out: &mut Vec<u8>| out.push(std::mem::replace(&mut separator, b','));
    if let Some(object) = original {
        for place in 0..object.len() {
            let name = object.name(place);
            let Some(was) = decoded.get(name.as_ref()) else {
                next(out);
                write_member(out, object.raw_name(place));
                out.extend_from_slice(object.raw_value(place).as_bytes());
                continue;
            };
            let Some(is) = current.get(name.as_ref()) else { continue };
            if (place + 1..object.len()).any(|later| object.name(later) == name) {
                continue;
            }
            next(out);
            write_member(out, object.raw_name(place));
            write_value(out, is, was, object.raw_value(place));
        }
    }
    for (name, value) in current.iter().filter(|(name, _)| !decoded.contains_key(*name)) {
        next(out);
        write_string(out, name);
        out.push(b':');
        write_plain(out, value);
    }
    if separator == b'{' {
        out.push(b'{');
    }
    out.push(b'}');
}

fn write_member(out: &mut Vec<u8>, raw_name: &str) {
    out.extend_from_slice(raw_name.as_bytes());
    out.push(b':');
}

/// Appends a value that was decoded from `raw` into `was`, keeping as much of the text as did not change.
fn write_value(out: &mut Vec<u8>, is: &Value, was: &Value, raw: &str) {
    if is == was {
        out.extend_from_slice(raw.as_bytes());
        return;
    }
    match (is, was) {
        (Value::Object(is), Value::Object(was)) => {
            // The text was decoded before, so it is an object.
            write_object(out, is, was, Object::parse(Cow::Borrowed(raw)).ok().as_ref());
        }
        (Value::Array(is), Value::Array(was)) => {
            let raw: Vec<&RawValue> = serde_json::from_str(raw).unwrap_or_default();
            out.push(b'[');
            for (place, element) in is.iter().enumerate() {
                if place > 0 {
                    out.push(b',');
                }
                match (was.get(place), raw.get(place)) {
                    (Some(was), Some(raw)) => write_value(out, element, was, raw.get()),
                    _ => write_plain(out, element),
                }
            }
            out.push(b']');
        }
        _ => write_plain(out, is),
    }
}

fn write_plain(out: &mut Vec<u8>, value: &Value) {
    serde_json::to_writer(out, value).expect("a VRL value is JSON: its names are strings");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes all of an object, lets `change` at it and writes it again.
    fn rewritten(text: &str, change: impl FnOnce(&mut ObjectMap)) -> String {
        let object = Object::parse(Cow::Borrowed(text)).unwrap();
        let decoded: ObjectMap = serde_json::from_str(text).unwrap();
        let mut current = decoded.clone();
        change(&mut current);
        let mut out = Vec::new();
        write_object(&mut out, &current, &decoded, Some(&object));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_did_not_change_keeps_its_text() {
        let text = r#"{"big": 123456789012345678901234567890, "price":1.10, "e":1E2, "t":"\u00e9", "x":1}"#;
        assert_eq!(
            rewritten(text, |object| {
                object.insert("x".into(), 2.into());
            }),
            r#"{"big":123456789012345678901234567890,"price":1.10,"e":1E2,"t":"\u00e9","x":2}"#
        );
    }

    #[test]
    fn neighbours_deep_inside_keep_their_text() {
        let text = r#"{"a":{"n":1.10,"list":[1.0,{"m":9999999999999999999,"x":0}]}}"#;
        assert_eq!(
            rewritten(text, |object| {
                let a = object.get_mut("a").unwrap();
                a.insert(&vrl::path::parse_value_path("list[1].x").unwrap(), 5);
            }),
            r#"{"a":{"n":1.10,"list":[1.0,{"m":9999999999999999999,"x":5}]}}"#
        );
    }

    #[test]
    fn a_repeated_name_is_removed_and_replaced_as_one() {
        let text = r#"{"email":"a@example.com","b":1,"em\u0061il":"c@example.com"}"#;
        assert_eq!(rewritten(text, |object| drop(object.remove("email"))), r#"{"b":1}"#);
        assert_eq!(
            rewritten(text, |object| {
                object.insert("email".into(), "-".into());
            }),
            r#"{"b":1,"em\u0061il":"-"}"#
        );
    }

    #[test]
    fn an_object_may_become_empty_and_begin_empty() {
        assert_eq!(rewritten(r#"{"a":1}"#, ObjectMap::clear), "{}");
        assert_eq!(
            rewritten("{ }", |object| {
                object.insert("a\"b".into(), Value::from_f64_or_zero(1.5));
            }),
            r#"{"a\"b":1.5}"#
        );
    }
}
