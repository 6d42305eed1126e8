//! What an export into ClickHouse counts.

use penstock_pipeline::{events::dead_letter::Reason, telemetry::Metrics};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
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
pub struct ExportMetrics {
    /// Rows that ClickHouse acknowledged; a block that is sent twice counts twice.
    pub rows: Counter,
    /// Inserts that ClickHouse acknowledged.
    pub blocks: Counter,
    /// Rows that were inserted because a read-back did not find them.
    pub repaired: Counter,
    /// Events that `where` left out.
    pub filtered: Counter,
    /// Duration of inserts, seconds.
    pub insert_seconds: Histogram,
    /// Bytes of blocks in memory.
    pub buffered_bytes: Gauge,
    /// Partitions that stand still until somebody acts.
    pub held_partitions: Gauge,
    dead_letters: Family<ReasonLabel, Counter>,
    failures: Family<ReasonLabel, Counter>,
    committed: Family<PartitionLabels, Gauge>,
    lag: Family<PartitionLabels, Gauge>,
}

impl ExportMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self {
            rows: Counter::default(),
            blocks: Counter::default(),
            repaired: Counter::default(),
            filtered: Counter::default(),
            insert_seconds: Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
            buffered_bytes: Gauge::default(),
            held_partitions: Gauge::default(),
            dead_letters: Family::default(),
            failures: Family::default(),
            committed: Family::default(),
            lag: Family::default(),
        };
        metrics.register(|registry| {
            registry.register("export_rows", "Rows that ClickHouse acknowledged", this.rows.clone());
            registry.register("export_blocks", "Inserts that ClickHouse acknowledged", this.blocks.clone());
            registry.register(
                "export_repaired_rows",
                "Rows inserted because a read-back did not find them",
                this.repaired.clone(),
            );
            registry.register("export_filtered_events", "Events left out by where", this.filtered.clone());
            registry.register("export_insert_seconds", "Duration of inserts", this.insert_seconds.clone());
            registry.register("export_buffered_bytes", "Blocks in memory", this.buffered_bytes.clone());
            registry.register(
                "export_held_partitions",
                "Partitions that stand still until somebody acts",
                this.held_partitions.clone(),
            );
            registry.register(
                "export_dead_letters",
                "Events put aside for good, by reason",
                this.dead_letters.clone(),
            );
            registry.register("export_failures", "Failed attempts, by what failed", this.failures.clone());
            registry.register("export_committed_offset", "Committed offset", this.committed.clone());
            registry.register(
                "export_lag_messages",
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
    pub fn committed(&self, topic: &str, partition: i32, offset: i64) {
        self.committed.get_or_create(&PartitionLabels { topic: topic.to_owned(), partition }).set(offset);
    }

    /// How far behind a partition is.
    pub fn lag(&self, topic: &str, partition: i32, messages: i64) {
        self.lag.get_or_create(&PartitionLabels { topic: topic.to_owned(), partition }).set(messages);
    }

    /// These partitions belong to another process now.
    pub fn forget(&self, topic: &str, partitions: &[i32]) {
        for &partition in partitions {
            let labels = PartitionLabels { topic: topic.to_owned(), partition };
            self.committed.remove(&labels);
            self.lag.remove(&labels);
        }
    }
}
