//! The chain as the engine's process.

use std::time::{Duration, Instant};

use penstock_pipeline::{
    config::OnError,
    events::dead_letter::Reason,
    kafka::{
        Message,
        transact::{Outcome, Process},
    },
};

use crate::{
    chain::{Chain, Failure, Verdict},
    metrics::Metrics,
};

/// Pause between two log lines about one step that passes events on which it failed.
const LOG_PAUSE: Duration = Duration::from_secs(10);

/// Applies a chain to every message.
#[derive(Debug)]
pub struct Transformation {
    chain: Chain,
    budget: Duration,
    metrics: Metrics,
    /// By step: when it was last logged, and how many failures were not.
    silence: Vec<(Option<Instant>, u64)>,
}

impl Transformation {
    /// `budget` is CPU time of all steps together, for one event.
    pub fn new(chain: Chain, budget: Duration, metrics: Metrics) -> Self {
        let silence = chain.names().map(|_| (None, 0)).collect();
        Self { chain, budget, metrics, silence }
    }
}

impl Process for Transformation {
    fn process(&mut self, message: &Message<'_>, value: &mut Vec<u8>) -> Outcome {
        let Some(original) = message.value else {
            return Outcome::dead_letter(Reason::Malformed, "the message has no value");
        };
        let Self { chain, budget, metrics, silence } = self;
        let verdict = chain.apply(original, *budget, |failure| {
            metrics.failed(failure);
            if failure.then == OnError::Pass {
                log_passed(chain, &mut silence[failure.step], message, failure);
            }
        });
        match verdict {
            Verdict::Write(Some(changed)) => {
                *value = changed;
                Outcome::Write
            }
            Verdict::Write(None) => {
                value.extend_from_slice(original);
                Outcome::Write
            }
            Verdict::Drop(step) => Outcome::drop(chain.name(step).to_owned()),
            Verdict::DeadLetter { reason, detail } => Outcome::dead_letter(reason, detail),
        }
    }
}

/// A dead letter tells its reason; an event that is passed on tells nobody, so the log does, now and then.
fn log_passed(
    chain: &Chain,
    (logged, unlogged): &mut (Option<Instant>, u64),
    message: &Message<'_>,
    failure: &Failure,
) {
    if logged.is_some_and(|at| at.elapsed() < LOG_PAUSE) {
        *unlogged += 1;
        return;
    }
    tracing::warn!(
        step = chain.name(failure.step),
        partition = message.partition,
        offset = message.offset,
        error = %failure.error,
        unlogged = *unlogged,
        "a step failed; the event is passed on as it was before it"
    );
    (*logged, *unlogged) = (Some(Instant::now()), 0);
}
