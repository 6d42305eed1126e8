//! What every export counts, whatever its destination.

use penstock_pipeline::{events::dead_letter::Reason, telemetry::Metrics};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartitionLabels {
    topic: String,
    partition: i32,
}

/// The metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct SourceMetrics {
    /// Events that `where` left out.
    pub filtered: Counter,
    /// Memory of events that wait, bytes.
    pub buffered_bytes: Gauge,
    /// Partitions that stand still until somebody acts.
    pub held_partitions: Gauge,
    topic: String,
    dead_letters: Family<ReasonLabel, Counter>,
    failures: Family<ReasonLabel, Counter>,
    committed: Family<PartitionLabels, Gauge>,
    lag: Family<PartitionLabels, Gauge>,
}

impl SourceMetrics {
    /// Registers them. `topic` is the source, for the labels.
    pub fn new(metrics: &Metrics, topic: &str) -> Self {
        let this = Self {
            filtered: Counter::default(),
            buffered_bytes: Gauge::default(),
            held_partitions: Gauge::default(),
            topic: topic.to_owned(),
            dead_letters: Family::default(),
            failures: Family::default(),
            committed: Family::default(),
            lag: Family::default(),
        };
        metrics.register(|registry| {
            registry.register("export_filtered_messages", "Events left out by where", this.filtered.clone());
            registry.register("export_buffered_bytes", "Events in memory", this.buffered_bytes.clone());
            registry.register(
                "source_partitions_held",
                "Partitions that stand still until somebody acts",
                this.held_partitions.clone(),
            );
            registry.register(
                "messages_dead_lettered",
                "Events put aside for good, by reason",
                this.dead_letters.clone(),
            );
            registry.register("export_failures", "Failed attempts, by what failed", this.failures.clone());
            registry.register("export_committed_offset", "Committed offset", this.committed.clone());
            registry.register(
                "source_lag_messages",
                "Offsets from the committed one to the end of the partition",
                this.lag.clone(),
            );
        });
        this
    }

    /// An event was put aside.
    pub fn dead_letter(&self, reason: Reason) {
        self.dead_letters.get_or_create(&ReasonLabel { reason: reason.code() }).inc();
    }

    /// An attempt failed.
    pub fn failure(&self, reason: &'static str) {
        self.failures.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// An offset was committed.
    pub fn committed(&self, partition: i32, offset: i64) {
        self.committed.get_or_create(&self.labels(partition)).set(offset);
    }

    /// How far behind a partition is.
    pub fn lag(&self, partition: i32, messages: i64) {
        self.lag.get_or_create(&self.labels(partition)).set(messages);
    }

    /// These partitions belong to another process now.
    pub fn forget(&self, partitions: &[i32]) {
        for &partition in partitions {
            self.committed.remove(&self.labels(partition));
            self.lag.remove(&self.labels(partition));
        }
    }

    fn labels(&self, partition: i32) -> PartitionLabels {
        PartitionLabels { topic: self.topic.clone(), partition }
    }
}
