//! The command line of [`penstock_transformation`].

use std::process::ExitCode;

use penstock_pipeline::command::Binary;

fn main() -> ExitCode {
    Binary::new("transformation", "Runs VRL steps on every event between the topics ingested and transformed")
        .check(penstock_transformation::check)
        .run(penstock_transformation::serve)
}
