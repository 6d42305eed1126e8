//! What the steps count. The engine counts events that were written, dropped (by step) and dead-lettered, once they are
//! committed; these count as it happens, and again when a transaction is repeated.

use penstock_pipeline::{config::OnError, events::dead_letter::Reason};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::chain::Failure;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepFailure {
    step: String,
    reason: &'static str,
    on_error: &'static str,
}

/// Counters by step.
#[derive(Clone, Debug)]
pub struct Metrics {
    failures: Family<StepFailure, Counter>,
    steps: Vec<String>,
}

impl Metrics {
    /// Registers the counters; `steps` are the names in order.
    pub fn register<'a>(registry: &mut Registry, steps: impl Iterator<Item = &'a str>) -> Self {
        let failures = Family::default();
        registry.register(
            "step_failures",
            "Events on which a step failed, by step, reason and what then happened to the event",
            failures.clone(),
        );
        let steps: Vec<_> = steps.map(str::to_owned).collect();
        Self { failures, steps }
    }

    /// Counts a failure.
    pub fn failed(&self, failure: &Failure) {
        let labels = StepFailure {
            step: self.steps.get(failure.step).cloned().unwrap_or_default(),
            reason: Reason::code(failure.error.reason()),
            on_error: match failure.then {
                OnError::DeadLetter => "dead_letter",
                OnError::Pass => "pass",
            },
        };
        self.failures.get_or_create(&labels).inc();
    }
}
