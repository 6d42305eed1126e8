//! VRL programs, compiled by the very code that runs them.

use penstock_pipeline::program::{Diagnostics, Predicate, Step};

/// Most characters of diagnostics that a condition's message repeats.
const MAX_DIAGNOSTICS: usize = 2_000;

/// Compiles a transformation step.
///
/// # Errors
/// The compiler's diagnostics, for people.
pub fn check_step(source: &str) -> Result<(), String> {
    Step::compile(source).map(drop).map_err(|diagnostics| told(&diagnostics))
}

/// Compiles an export's `where`.
///
/// # Errors
/// The compiler's diagnostics, for people.
pub fn check_condition(source: &str) -> Result<(), String> {
    Predicate::compile(source).map(drop).map_err(|diagnostics| told(&diagnostics))
}

/// The gist on the first line, which is all that `kubectl get events` shows; then every diagnostic with its place.
fn told(diagnostics: &Diagnostics) -> String {
    let mut text = format!("{}\n{diagnostics}", diagnostics.summary());
    if let Some((end, _)) = text.char_indices().nth(MAX_DIAGNOSTICS) {
        text.truncate(end);
        text.push('…');
    }
    text
}
