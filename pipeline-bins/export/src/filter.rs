//! `where`: which events an export delivers.

use std::time::Duration;

use penstock_pipeline::{
    events::dead_letter::Reason,
    program::{Predicate, PredicateError},
};

/// CPU time that the condition may take for one event.
const LIMIT: Duration = Duration::from_millis(100);

/// The condition of an export.
#[derive(Debug)]
pub struct Filter(Predicate);

impl Filter {
    /// Compiles `where`. The error is what the compiler says.
    pub fn compile(source: &str) -> Result<Self, String> {
        Predicate::compile(source).map(Self).map_err(|diagnostics| diagnostics.summary())
    }

    /// Whether the event is to be delivered, or why that cannot be said.
    pub fn admits(&self, message: &[u8]) -> Result<bool, (Reason, String)> {
        self.0.test(message, LIMIT).map_err(|error| {
            let reason = match &error {
                PredicateError::NotAnEvent(_) => Reason::Malformed,
                PredicateError::Run(_) => Reason::FilterFailed,
            };
            (reason, error.to_string())
        })
    }
}
