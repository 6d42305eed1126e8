//! The long run under fire as a program: see docs/how-to/prove-delivery.md.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use penstock_e2e::{
    chaos::{
        ordeal::{self, Size},
        plan::plan,
        strike::{Striker, Struck},
    },
    load::Pace,
    servers,
};

/// Sends events through a pipeline of its own while faults strike it and its servers every few seconds, in an order that
/// follows from a seed, and prints the account at the end: every acknowledged event must be there once, unaltered and in
/// order.
///
/// Needs the local platform and the installed operator (`make install-operator`); `make test-chaos` sees to both. The
/// pipeline, its Kafka and its ClickHouse live in namespaces of this run, and are taken away at the end.
/// Exit code: 0 when nothing is wrong, 1 when something is.
#[derive(Debug, Parser)]
#[command(name = "chaos", version)]
struct Options {
    /// What the faults and their order follow from; from the clock when it is not given, and printed
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults strike
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=24 * 60))]
    minutes: u64,
    /// Events that are to be acknowledged at least; sent evenly over the time
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1_000..=100_000_000))]
    events: u64,
    /// Say which faults would strike, and do nothing
    #[arg(long)]
    plan: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or_else(|| {
        // Short, so that it can be read out to somebody.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() % 1_000_000)
    });
    let again = format!("--seed {seed} --minutes {} --events {}", options.minutes, options.events);
    println!("{again}");
    match run(&options, seed) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}\nthe same faults again, in the same order: {again}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(options: &Options, seed: u64) -> Result<()> {
    let length = Duration::from_secs(options.minutes * 60);
    let faults = plan(seed, length);
    let count = faults.len();
    if options.plan {
        for (pause, fault) in faults {
            println!("after {:4.1} s: {fault}", pause.as_secs_f64());
        }
        return Ok(());
    }
    servers::remove_leftovers("chaos").await.context("what an earlier run has left")?;
    let size = Size {
        events: options.events,
        rate: options.events.div_ceil(length.as_secs()).max(100),
        // The backlog of a long outage, on a slow machine.
        patience: Duration::from_secs(600),
    };
    println!("{count} faults in about {} minutes, {} events a second", options.minutes, size.rate);
    let trouble = async |striker: &mut Striker<'_>, pace: &Pace| {
        let mut missed = 0;
        let began = tokio::time::Instant::now();
        for (number, (pause, fault)) in faults.into_iter().enumerate() {
            tokio::time::sleep(pause).await;
            let what = striker.strike(fault).await.with_context(|| format!("fault {}", number + 1))?;
            missed += usize::from(matches!(what, Struck::Missed(_)));
            println!(
                "{:6.1} s, {:>9} events, fault {:>3} of {count}: {what}",
                began.elapsed().as_secs_f64(),
                pace.acknowledged(),
                number + 1,
            );
        }
        println!("{missed} of {count} faults struck nothing");
        // Some do, behind others; were it many, the run would prove little.
        ensure!(missed * 3 <= count, "{missed} of {count} faults struck nothing");
        Ok(())
    };
    ordeal::run("chaos", size, trouble, async |_, account| {
        let sent = account.sent.context("there is a journal")?;
        ensure!(sent.acknowledged >= options.events, "only {} events are acknowledged", sent.acknowledged);
        ensure!(sent.refused == 0, "{} good events were refused", sent.refused);
        Ok(())
    })
    .await
}
