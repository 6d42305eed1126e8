//! What the engine counts. Outcomes are counted when they are committed: what an abort takes back was never counted.

use std::{borrow::Cow, collections::BTreeMap};

use prometheus_client::{
    encoding::{EncodeLabel, EncodeLabelSet, LabelSetEncoder},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::events::dead_letter::Reason;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ByTopic {
    pub topic: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ByPartition {
    pub topic: String,
    pub partition: i32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ByReason {
    pub reason: Cow<'static, str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ByResult {
    pub result: &'static str,
}

macro_rules! labels {
    ($type:ty, $($field:ident),+) => {
        impl EncodeLabelSet for $type {
            fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> std::fmt::Result {
                $((stringify!($field), label_value(&self.$field)).encode(encoder.encode_label())?;)+
                Ok(())
            }
        }
    };
}

fn label_value(value: &impl ToString) -> String {
    value.to_string()
}

labels!(ByTopic, topic);
labels!(ByPartition, topic, partition);
labels!(ByReason, reason);
labels!(ByResult, result);

#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub read: Family<ByTopic, Counter>,
    pub read_bytes: Family<ByTopic, Counter>,
    pub written: Family<ByTopic, Counter>,
    pub dead_lettered: Family<ByReason, Counter>,
    pub dropped: Family<ByReason, Counter>,
    pub transactions: Family<ByResult, Counter>,
    pub transaction_messages: Histogram,
    pub transaction_seconds: Histogram,
    pub commit_seconds: Histogram,
    pub lag: Family<ByPartition, Gauge>,
    pub lag_seconds: Family<ByPartition, Gauge<f64, std::sync::atomic::AtomicU64>>,
    pub stalled_seconds: Family<ByPartition, Gauge<f64, std::sync::atomic::AtomicU64>>,
    pub held: Gauge,
    pub assigned: Gauge,
    pub rebalances: Counter,
    pub producers: Counter,
    pub consumers: Counter,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.002, 2.0, 14));
        let metrics = Self {
            read: Family::default(),
            read_bytes: Family::default(),
            written: Family::default(),
            dead_lettered: Family::default(),
            dropped: Family::default(),
            transactions: Family::default(),
            transaction_messages: Histogram::new(exponential_buckets(1.0, 4.0, 10)),
            transaction_seconds: seconds(),
            commit_seconds: seconds(),
            lag: Family::default(),
            lag_seconds: Family::default(),
            stalled_seconds: Family::default(),
            held: Gauge::default(),
            assigned: Gauge::default(),
            rebalances: Counter::default(),
            producers: Counter::default(),
            consumers: Counter::default(),
        };
        registry.register("messages_read", "Messages taken from a topic and committed", metrics.read.clone());
        registry.register_with_unit(
            "messages_read",
            "Bytes of key and value taken from a topic and committed",
            Unit::Bytes,
            metrics.read_bytes.clone(),
        );
        registry.register(
            "messages_written",
            "Messages written to a topic and committed",
            metrics.written.clone(),
        );
        registry.register(
            "messages_dead_lettered",
            "Messages written to the dead-letter topic and committed",
            metrics.dead_lettered.clone(),
        );
        registry.register("messages_dropped", "Messages dropped on purpose", metrics.dropped.clone());
        registry.register(
            "transactions",
            "Kafka transactions by result; unknown: the broker decided, and positions were read again",
            metrics.transactions.clone(),
        );
        registry.register(
            "transaction_messages",
            "Messages of a committed transaction",
            metrics.transaction_messages.clone(),
        );
        registry.register_with_unit(
            "transaction_duration",
            "From the first message of a transaction to its commit",
            Unit::Seconds,
            metrics.transaction_seconds.clone(),
        );
        registry.register_with_unit(
            "transaction_commit_duration",
            "Sending the offsets and committing",
            Unit::Seconds,
            metrics.commit_seconds.clone(),
        );
        registry.register(
            "source_lag_messages",
            "Messages that wait in a partition of this process",
            metrics.lag.clone(),
        );
        registry.register_with_unit(
            "source_lag_time",
            "Age of the last message taken while more wait; 0 when none waits",
            Unit::Seconds,
            metrics.lag_seconds.clone(),
        );
        registry.register_with_unit(
            "source_stalled_time",
            "Time since the last progress of a partition in which messages wait; 0 when none waits",
            Unit::Seconds,
            metrics.stalled_seconds.clone(),
        );
        registry.register(
            "source_partitions_held",
            "Partitions that are not read until somebody decides",
            metrics.held.clone(),
        );
        registry.register(
            "source_partitions_assigned",
            "Partitions that this process owns",
            metrics.assigned.clone(),
        );
        registry.register(
            "source_rebalances",
            "Assignments and revocations of partitions",
            metrics.rebalances.clone(),
        );
        registry.register(
            "transaction_producers",
            "Producers made: one at the start, another after a fatal error",
            metrics.producers.clone(),
        );
        registry.register(
            "source_consumers",
            "Consumers made: one at the start, another when one cannot be trusted or nothing goes through for long",
            metrics.consumers.clone(),
        );
        metrics
    }

    /// Takes the labels of a partition away, when it has gone.
    pub fn forget(&self, by: &ByPartition) {
        self.lag.remove(by);
        self.lag_seconds.remove(by);
        self.stalled_seconds.remove(by);
    }
}

/// What one transaction will have done when it is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub read: u64,
    pub read_bytes: u64,
    pub written: u64,
    pub dead_lettered: BTreeMap<Reason, u64>,
    pub dropped: BTreeMap<Cow<'static, str>, u64>,
}

impl Tally {
    pub fn count(&self, metrics: &Metrics, source: &str, sink: &str) {
        let source = ByTopic { topic: source.to_owned() };
        metrics.read.get_or_create(&source).inc_by(self.read);
        metrics.read_bytes.get_or_create(&source).inc_by(self.read_bytes);
        metrics.written.get_or_create(&ByTopic { topic: sink.to_owned() }).inc_by(self.written);
        for (reason, count) in &self.dead_lettered {
            let by = ByReason { reason: Cow::Borrowed(reason.code()) };
            metrics.dead_lettered.get_or_create(&by).inc_by(*count);
        }
        for (reason, count) in &self.dropped {
            metrics.dropped.get_or_create(&ByReason { reason: reason.clone() }).inc_by(*count);
        }
    }

    pub fn clear(&mut self) {
        self.read = 0;
        self.read_bytes = 0;
        self.written = 0;
        self.dead_lettered.clear();
        self.dropped.clear();
    }
}
