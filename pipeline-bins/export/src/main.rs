//! `export`: delivers the events of one topic to one destination.

use std::{process::ExitCode, sync::Arc};

use penstock_export::{check, clickhouse::steps::Unobserved, run};
use penstock_pipeline::command::Binary;

fn main() -> ExitCode {
    Binary::new("export", "Delivers the events of one topic to ClickHouse or to a webhook")
        .check(check)
        .run(|config, context| run(config, context, Arc::new(Unobserved)))
}
