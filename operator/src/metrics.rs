//! Metrics of the operator. Names begin with `penstock_operator_`.

use std::{sync::atomic::AtomicU64, time::Duration};

use penstock_pipeline::telemetry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Unit,
};

/// Phase of a pass.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

/// What was changed outside Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SystemLabel {
    system: &'static str,
}

/// Kind of a Kubernetes object, and what was done to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: String,
    operation: &'static str,
}

/// State of a pipeline's `Ready` condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadyLabel {
    ready: &'static str,
}

/// Counters and gauges. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    passes: Counter,
    pass_seconds: Histogram,
    failures: Family<PhaseLabel, Counter>,
    writes: Family<WriteLabels, Counter>,
    outside_changes: Family<SystemLabel, Counter>,
    pipelines: Family<ReadyLabel, Gauge<i64>>,
    last_pass_timestamp: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Registers everything.
    pub fn new(process: &telemetry::Metrics) -> Self {
        let metrics = Self {
            passes: Counter::default(),
            pass_seconds: Histogram::new(exponential_buckets(0.005, 2.0, 13)),
            failures: Family::default(),
            writes: Family::default(),
            outside_changes: Family::default(),
            pipelines: Family::default(),
            last_pass_timestamp: Gauge::default(),
        };
        process.register(|registry| {
            let registry = registry.sub_registry_with_prefix("operator");
            registry.register("reconcile", "Passes over a pipeline", metrics.passes.clone());
            registry.register_with_unit(
                "reconcile_duration",
                "Time of a pass",
                Unit::Seconds,
                metrics.pass_seconds.clone(),
            );
            registry.register(
                "reconcile_failures",
                "Passes in which a phase failed, by phase",
                metrics.failures.clone(),
            );
            registry.register(
                "writes",
                "Writes to the API server, by kind and operation",
                metrics.writes.clone(),
            );
            registry.register(
                "outside_changes",
                "Changes made to Kafka topics and ClickHouse tables",
                metrics.outside_changes.clone(),
            );
            registry.register(
                "pipelines",
                "Pipelines by the state of their Ready condition",
                metrics.pipelines.clone(),
            );
            registry.register_with_unit(
                "last_reconcile_timestamp",
                "When the last pass ended",
                Unit::Seconds,
                metrics.last_pass_timestamp.clone(),
            );
        });
        metrics
    }

    /// A pass has ended.
    pub fn passed(&self, took: Duration, now_seconds: f64) {
        self.passes.inc();
        self.pass_seconds.observe(took.as_secs_f64());
        self.last_pass_timestamp.set(now_seconds);
    }

    /// A phase has failed.
    pub fn failed(&self, phase: &'static str) {
        self.failures.get_or_create(&PhaseLabel { phase }).inc();
    }

    /// Something was written to the API server.
    pub fn wrote(&self, kind: &str, operation: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind: kind.to_owned(), operation }).inc();
    }

    /// Something was changed in Kafka (`kafka`) or ClickHouse (`clickhouse`).
    pub fn changed_outside(&self, system: &'static str) {
        self.outside_changes.get_or_create(&SystemLabel { system }).inc();
    }

    /// How many pipelines there are, by the state of `Ready`.
    pub fn set_pipelines(&self, ready: i64, not_ready: i64, unknown: i64) {
        for (label, number) in [("true", ready), ("false", not_ready), ("unknown", unknown)] {
            self.pipelines.get_or_create(&ReadyLabel { ready: label }).set(number);
        }
    }
}
