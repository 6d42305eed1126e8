//! What an export into ClickHouse counts besides.

use penstock_pipeline::telemetry::Metrics;
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

/// The metrics. Clones share them.
#[derive(Clone, Debug)]
pub struct TableMetrics {
    /// Rows that ClickHouse acknowledged; a block that is sent twice counts twice.
    pub rows: Counter,
    /// Inserts that ClickHouse acknowledged.
    pub blocks: Counter,
    /// Rows that were inserted because a read-back did not find them.
    pub repaired: Counter,
    /// Duration of inserts, seconds.
    pub insert_seconds: Histogram,
}

impl TableMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self {
            rows: Counter::default(),
            blocks: Counter::default(),
            repaired: Counter::default(),
            insert_seconds: Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
        };
        metrics.register(|registry| {
            registry.register("export_rows", "Rows that ClickHouse acknowledged", this.rows.clone());
            registry.register("export_blocks", "Inserts that ClickHouse acknowledged", this.blocks.clone());
            registry.register(
                "export_repaired_rows",
                "Rows inserted because a read-back did not find them",
                this.repaired.clone(),
            );
            registry.register("export_insert_seconds", "Duration of inserts", this.insert_seconds.clone());
        });
        this
    }
}
