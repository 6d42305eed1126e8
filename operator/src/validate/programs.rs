//! VRL programs, compiled by the very code that runs them.

use penstock_pipeline::program::{Predicate, Step};

/// Most characters of diagnostics that a condition's message repeats.
const MAX_DIAGNOSTICS: usize = 2_000;

/// Compiles a transformation step.
///
/// # Errors
/// The compiler's diagnostics, for people.
pub fn check_step(source: &str) -> Result<(), String> {
    Step::compile(source).map(drop).map_err(|diagnostics| shorten(diagnostics.to_string()))
}

/// Compiles an export's `where`.
///
/// # Errors
/// The compiler's diagnostics, for people.
pub fn check_condition(source: &str) -> Result<(), String> {
    Predicate::compile(source).map(drop).map_err(|diagnostics| shorten(diagnostics.to_string()))
}

fn shorten(mut text: String) -> String {
    if let Some((end, _)) = text.char_indices().nth(MAX_DIAGNOSTICS) {
        text.truncate(end);
        text.push('…');
    }
    text
}
