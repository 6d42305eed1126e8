//! Ingestion as the engine's process.

use penstock_pipeline::{
    events::dead_letter::Reason,
    kafka::{
        Message,
        transact::{Outcome, Process},
    },
    projects::LiveProjects,
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};

use crate::ingest::{Buffers, ingest};

/// What the consumer counts besides the engine.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    replaced_times: Counter,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "consumer_replaced_times",
            "Events whose time could not be read or stored, and which got the time of their receipt",
            metrics.replaced_times.clone(),
        );
        metrics
    }
}

/// Ingests every message.
#[derive(Debug)]
pub struct Ingestion {
    projects: LiveProjects,
    metrics: Metrics,
    buffers: Buffers,
}

impl Ingestion {
    /// With this list of projects, as it is at each message.
    pub fn new(projects: LiveProjects, metrics: Metrics) -> Self {
        Self { projects, metrics, buffers: Buffers::default() }
    }
}

impl Process for Ingestion {
    fn process(&mut self, message: &Message<'_>, value: &mut Vec<u8>) -> Outcome {
        let Some(bytes) = message.value else {
            return Outcome::dead_letter(Reason::Malformed, "the message has no value");
        };
        let headers = message.headers;
        match ingest(bytes, message.timestamp_ms, &headers, &self.projects.load(), &mut self.buffers, value) {
            Ok(notes) => {
                self.metrics.replaced_times.inc_by(u64::from(notes.time_replaced));
                Outcome::Write
            }
            Err(refusal) => Outcome::dead_letter(refusal.reason, refusal.detail),
        }
    }
}
