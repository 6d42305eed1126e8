//! `capture`: takes events over HTTP and writes them to Kafka.

use std::process::ExitCode;

use penstock_capture::{check, serve, shutdown_deadline};
use penstock_pipeline::command::Binary;

fn main() -> ExitCode {
    Binary::new("capture", "Takes events over HTTP and writes them to the `captured` topic")
        .check(check)
        .shutdown_deadline(shutdown_deadline)
        .run(serve)
}
