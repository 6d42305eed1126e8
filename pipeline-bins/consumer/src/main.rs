//! The command line of [`penstock_consumer`].

use std::process::ExitCode;

use penstock_pipeline::command::Binary;

fn main() -> ExitCode {
    Binary::new("consumer", "Validates captured events and writes them to the topic ingested")
        .check(penstock_consumer::check)
        .run(penstock_consumer::serve)
}
