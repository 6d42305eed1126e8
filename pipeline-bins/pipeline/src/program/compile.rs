//! From source to a checked program.

use vrl::{
    compiler::{CompileConfig, Program, compile_with_external, state::ExternalEnv},
    path::{OwnedSegment, OwnedTargetPath, OwnedValuePath, PathPrefix},
    value::{
        Kind,
        kind::{Collection, Field as FieldName},
    },
};

use super::{
    diagnostics::{Diagnostic, Diagnostics},
    fields::{self, Access, FIELDS, event_kind},
    functions, limits,
};

/// What a program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Changes or drops an event.
    Step,
    /// Says yes or no to an event.
    Predicate,
}

/// A program that may run.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) program: Program,
    pub(super) warnings: Diagnostics,
}

/// Compiles and checks.
pub(super) fn compile(source: &str, purpose: Purpose) -> Result<Compiled, Diagnostics> {
    if let Some(problem) = limits::broken(source) {
        return Err(Diagnostics::from_iter([problem]));
    }

    let external = ExternalEnv::new_with_kind(event_kind(), Kind::object(Collection::empty()));
    let result = compile_with_external(source, functions::available(), &external, configuration(purpose))
        .map_err(|list| Diagnostics::from_vrl(source, list))?;

    let mut problems = check_paths(source, &result.program);
    match purpose {
        Purpose::Step => problems.extend(check_result(source, &result.program)),
        Purpose::Predicate => problems.extend(check_answer(&result.program)),
    }
    if !problems.is_empty() {
        return Err(Diagnostics::from_iter(problems));
    }
    Ok(Compiled { program: result.program, warnings: Diagnostics::from_vrl(source, result.warnings) })
}

fn configuration(purpose: Purpose) -> CompileConfig {
    let mut config = CompileConfig::default();
    match purpose {
        Purpose::Predicate => config.set_read_only(),
        Purpose::Step => {
            config.set_read_only_path(OwnedTargetPath::metadata_root(), true);
            for field in FIELDS.iter().filter(|field| field.access == Access::ReadOnly) {
                config.set_read_only_path(field_path(field.name), true);
            }
        }
    }
    config
}

fn field_path(name: &str) -> OwnedTargetPath {
    OwnedTargetPath::event(OwnedValuePath::single_field(name))
}

/// Every path must begin with a field of the event: anything else is a slip of the pen, and would be lost.
fn check_paths(source: &str, program: &Program) -> Vec<Diagnostic> {
    let info = program.info();
    let mut problems: Vec<Diagnostic> = Vec::new();
    let mut add = |problem: Diagnostic| {
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    };
    for path in info.target_queries.iter().chain(&info.target_assignments) {
        if path.prefix == PathPrefix::Metadata {
            add(Diagnostic::error("events have no metadata (%)", "use a field of the event, or a variable"));
            continue;
        }
        match path.path.segments.first() {
            Some(OwnedSegment::Field(name)) if fields::position(name).is_none() => {
                let text = format!(".{name}");
                add(Diagnostic::error(
                    format!("an event has no field {text}"),
                    format!(
                        "custom data is in .properties.{name}; fields are {}",
                        FIELDS.map(|field| field.name).join(", ")
                    ),
                )
                .at_text(source, &text));
            }
            Some(OwnedSegment::Index(_)) => {
                add(Diagnostic::error(
                    "an event is an object, not an array",
                    "name a field, for example .event",
                ));
            }
            _ => {}
        }
    }
    problems
}

/// What a step leaves behind must be able to be an event.
fn check_result(source: &str, program: &Program) -> Vec<Diagnostic> {
    let info = program.final_type_info();
    let Some(result) = info.state.external.target_kind().as_object().cloned() else {
        return vec![Diagnostic::error(
            "the step does not leave an event behind",
            "change single fields, or abort",
        )];
    };
    FIELDS
        .iter()
        .filter_map(|field| {
            let kind =
                result.known().get(&FieldName::from(field.name)).cloned().unwrap_or_else(Kind::undefined);
            if field.type_.accepts(&kind) {
                return None;
            }
            let text = format!(".{}", field.name);
            let left = if kind.contains_undefined() || kind.is_never() {
                "without it".to_owned()
            } else {
                format!("with this in it: {kind}")
            };
            Some(
                Diagnostic::error(
                    format!(
                        "{text} must stay a {}, but the step leaves the event {left}",
                        field.type_.name()
                    ),
                    "to drop the event use abort; to convert a value use for example to_string",
                )
                .at_text(source, &text),
            )
        })
        .collect()
}

/// A predicate must say true or false, for every event.
fn check_answer(program: &Program) -> Vec<Diagnostic> {
    let mut problems = Vec::new();
    if program.info().abortable {
        problems
            .push(Diagnostic::error("a condition cannot abort", "say false for events that are not wanted"));
        return problems;
    }
    let answer = program.final_type_info().result;
    let kind = answer.kind().union(answer.returns().clone());
    if !kind.is_boolean() {
        problems.push(Diagnostic::error(
            format!("a condition must be true or false, but this is: {kind}"),
            "compare it with something, for example .event == \"order completed\" or exists(.properties.total)",
        ));
    }
    problems
}
