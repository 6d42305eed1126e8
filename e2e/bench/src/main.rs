//! Measures what the data plane needs for an event, beside what others need in the same run, and holds it against what is
//! aimed at. `docs/benchmarks.md` explains the figures.

mod capture;
mod configs;
mod events;
mod kafka;
mod latency;
mod load;
mod process;
mod reference;
mod report;
mod stages;
mod table;
mod warehouse;

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use penstock_platform::{info::PlatformInfo, layout::Layout};

use crate::{configs::Setup, kafka::Kafka, report::busy, warehouse::Warehouse};

/// Measures the data plane beside a bare HTTP handler and ClickHouse's own Kafka engine.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure. Everything that it makes in Kafka and ClickHouse is taken away at the end.
    Run(Options),
    /// Serve as the bare handler that capture is held against.
    Reference {
        /// Address to listen on.
        #[arg(long)]
        listen: SocketAddr,
    },
}

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Capture, beside the bare handler.
    Capture,
    /// The consumer.
    Consumer,
    /// The transformation.
    Transformation,
    /// The export into ClickHouse, beside its Kafka engine.
    Export,
    /// From the acknowledgement to the row.
    Latency,
}

#[derive(Args)]
struct Options {
    /// Kafka, for this machine; by default that of the platform.
    #[arg(long)]
    kafka: Option<String>,
    /// Kafka, as ClickHouse reaches it; by default that of the platform.
    #[arg(long)]
    kafka_of_clickhouse: Option<String>,
    /// ClickHouse, which must run on this machine; by default that of the platform.
    #[arg(long)]
    clickhouse: Option<String>,
    /// Folder of the measured programs; by default that of this one.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Events of one pass.
    #[arg(long, default_value_t = 500_000)]
    events: u64,
    /// Passes of each kind.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..100))]
    repeats: u16,
    /// Partitions of the topics; 12 is what the operator makes by itself.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..1000))]
    partitions: i32,
    /// Seconds of the steady rate.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..3600))]
    seconds: u64,
    /// Only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
}

/// A run and what all its parts need.
struct Run {
    setup: Setup,
    kafka: Kafka,
    /// Kafka, as ClickHouse reaches it.
    kafka_of_clickhouse: String,
    warehouse: Warehouse,
    /// Events of one pass.
    events: u64,
    /// Passes of each kind.
    repeats: usize,
    began: Instant,
}

impl Run {
    fn say(&self, what: &str) {
        eprintln!("{:>5.0} s  {what}", self.began.elapsed().as_secs_f64());
    }

    fn filling(&self, name: &str, done: u64) {
        if done.is_multiple_of(250_000) || done == self.events {
            self.say(&format!("{name}: {done} of {} messages written", self.events));
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Reference { listen } => reference::serve(listen).await,
        Command::Run(options) => run(options).await,
    }
}

async fn run(options: Options) -> Result<()> {
    // The HTTP client wants one also where it speaks no TLS. An error says that there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let directory = configs::directory()?;
    // Addresses that are given need no platform.
    let platform = || PlatformInfo::read(&Layout::from_env()?);
    let kafka = options.kafka.clone().map_or_else(|| platform().map(|info| info.kafka_on_host()), Ok)?;
    let kafka_of_clickhouse = options
        .kafka_of_clickhouse
        .clone()
        .map_or_else(|| platform().map(|info| info.kafka_bootstrap), Ok)?;
    let clickhouse =
        options.clickhouse.clone().map_or_else(|| platform().map(|info| info.clickhouse_on_host()), Ok)?;
    // Two runs at once would measure each other, but they would not take each other's topics away.
    let id = format!("penstock-bench-{}", std::process::id());
    let run = Run {
        setup: Setup {
            binaries: options.binaries.clone().map_or_else(configs::own_folder, Ok)?,
            directory: directory.path().to_owned(),
            kafka: kafka.clone(),
        },
        kafka: Kafka::new(&kafka, &format!("{id}."), options.partitions),
        kafka_of_clickhouse,
        warehouse: Warehouse::new(&clickhouse, &id.replace('-', "_")),
        events: options.events,
        repeats: options.repeats.into(),
        began: Instant::now(),
    };
    let outcome = tokio::select! {
        outcome = measure(&run, &options) => outcome,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            Err(anyhow::anyhow!("interrupted"))
        }
    };
    run.say("taking topics, groups and tables of the run away");
    let cleaned = run.kafka.delete_all().await.and(run.warehouse.drop_all().await);
    let report = outcome?;
    cleaned.context("something of the run is left behind")?;
    println!("{report}");
    Ok(())
}

async fn measure(run: &Run, options: &Options) -> Result<String> {
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let (date, busy_before) = (report::now(), busy());
    let (mut ratios, mut series) = (Vec::new(), Vec::new());
    if wanted(Part::Capture) {
        let (more, figures) = capture::measure(run).await?;
        ratios.extend(more);
        series.extend(figures);
    }
    if wanted(Part::Consumer) {
        let captured = stages::fill_captured(run).await?;
        series.push(stages::consumer(run, &captured).await?);
        run.kafka.delete(&captured).await?;
    }
    if wanted(Part::Transformation) || wanted(Part::Export) {
        let (ingested, kept) = stages::fill_ingested(run).await?;
        if wanted(Part::Transformation) {
            let (ratio, figures) = stages::transformation(run, &ingested, kept).await?;
            ratios.push(ratio);
            series.push(figures);
        }
        if wanted(Part::Export) {
            let (ratio, figures) = table::measure(run, &ingested).await?;
            ratios.push(ratio);
            series.extend(figures);
        }
        run.kafka.delete(&ingested).await?;
    }
    if wanted(Part::Latency) {
        let latency = latency::measure(run, Duration::from_secs(options.seconds)).await?;
        ratios.extend(latency.ratios());
    }
    Ok(format!(
        "{date}, {}\n{} passes of {} events, {} partitions; load average {busy_before} before, {} after\n\n{}\n{}",
        report::machine(),
        run.repeats,
        run.events,
        options.partitions,
        busy(),
        report::ratios(&ratios),
        report::figures(&series)
    ))
}
