//! How much CPU time the steps of a configuration take per event, without Kafka.
//!
//! `cargo run --release -p penstock-transformation --example measure -- STEPS.yaml MESSAGES.jsonl [EVENTS]`
//!
//! STEPS is the list `steps` of a configuration; MESSAGES holds one message of `ingested` per line, repeated until there
//! are EVENTS (default one million).

use std::{collections::BTreeMap, fs, time::Duration};

use nix::time::{ClockId, clock_gettime};
use penstock_pipeline::config::StepConfig;
use penstock_transformation::chain::{Chain, Verdict};

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [steps, messages, rest @ ..] = arguments.as_slice() else {
        panic!("usage: measure STEPS.yaml MESSAGES.jsonl [EVENTS]")
    };
    let events: usize = rest.first().map_or(1_000_000, |text| text.parse().expect("EVENTS is a number"));
    let steps: Vec<StepConfig> =
        serde_yaml_ng::from_str(&fs::read_to_string(steps).expect("STEPS can be read"))
            .expect("STEPS is a list");
    let chain = Chain::compile(&steps).unwrap_or_else(|error| panic!("{error}"));
    let text = fs::read_to_string(messages).expect("MESSAGES can be read");
    let messages: Vec<&str> = text.lines().collect();

    let mut verdicts = BTreeMap::new();
    let mut bytes = 0;
    let began = cpu();
    for message in messages.iter().cycle().take(events) {
        let verdict = chain.apply(message.as_bytes(), Duration::from_secs(1), |_| {});
        let name = match &verdict {
            Verdict::Write(Some(changed)) => {
                bytes += changed.len();
                "changed"
            }
            Verdict::Write(None) => "untouched",
            Verdict::Drop(_) => "dropped",
            Verdict::DeadLetter { .. } => "dead letter",
        };
        *verdicts.entry(name).or_insert(0_usize) += 1;
    }
    let spent = (cpu() - began).as_secs_f64();
    println!("{events} events, {:.2} CPU-seconds per million; {verdicts:?}, {bytes} bytes written anew", {
        spent / events as f64 * 1e6
    });
}

fn cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map(Duration::from).expect("the clock exists")
}
