//! The auditor as a program: see docs/how-to/prove-delivery.md.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use penstock_e2e::audit::{self, Sources, content::Ignored, table::Table};

/// Holds what lies in Kafka and ClickHouse against each other, and against what a sender wrote down, and prints the account:
/// what was sent, acknowledged, refused and not answered; what lies in the topics and in the table; what is lost, doubled,
/// altered and out of order.
///
/// It only reads. It keeps about 250 bytes of memory for each event; two million take one to two minutes.
/// Exit code: 0 when nothing is wrong, 1 when something is, 2 when the account could not be made.
#[derive(Debug, Parser)]
#[command(name = "audit", version)]
struct Options {
    /// Kafka's addresses
    #[arg(long, value_name = "HOST:PORT,…")]
    bootstrap_servers: String,
    /// A property of librdkafka, for TLS and SASL; may be given more than once
    #[arg(long = "kafka", value_name = "KEY=VALUE")]
    kafka: Vec<String>,
    /// Prefix of the stage topics: `<namespace>.<name>.` unless the pipeline says otherwise
    #[arg(long)]
    topic_prefix: String,
    /// URL of ClickHouse's HTTP interface
    #[arg(long)]
    clickhouse: String,
    /// User of ClickHouse
    #[arg(long, env = "CLICKHOUSE_USER")]
    clickhouse_user: Option<String>,
    /// The user's password; better given in the environment than on the command line
    #[arg(long, env = "CLICKHOUSE_PASSWORD", hide_env_values = true)]
    clickhouse_password: Option<String>,
    /// The table, with its database: `analytics.events`
    #[arg(long)]
    table: String,
    /// What the sender wrote down; without it, topics and table are held against each other only
    #[arg(long)]
    journal: Option<PathBuf>,
    /// Others send as well: leave out what is not in the journal
    #[arg(long, requires = "journal")]
    others_send: bool,
    /// A property that is not compared, because a transformation adds or changes it; may be given more than once
    #[arg(long = "ignore-property", value_name = "NAME")]
    ignore_properties: Vec<String>,
    /// Partitions were added while events flowed: one person's events may lie in several
    #[arg(long)]
    partitions_grown: bool,
    /// Wait first until topics and table have not grown for so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    settle: u64,
    /// Say nothing of what is being read
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("no account could be made: {error:#}");
            ExitCode::from(2)
        }
    }
}

#[tokio::main]
async fn run(options: Options) -> anyhow::Result<bool> {
    let kafka_properties = options
        .kafka
        .iter()
        .map(|pair| match pair.split_once('=') {
            Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
            None => anyhow::bail!("--kafka {pair}: not KEY=VALUE"),
        })
        .collect::<anyhow::Result<_>>()?;
    let sources = Sources {
        bootstrap_servers: options.bootstrap_servers,
        kafka_properties,
        topic_prefix: options.topic_prefix,
        table: Table {
            url: options.clickhouse,
            user: options.clickhouse_user,
            password: options.clickhouse_password,
            name: options.table,
        },
        journal: options.journal,
        ignored: Ignored::default().and(options.ignore_properties),
        partitions_grown: options.partitions_grown,
        others_send: options.others_send,
        progress: !options.quiet,
    };
    if options.settle > 0 {
        let quiet = Duration::from_secs(options.settle);
        audit::settle(&sources, quiet, quiet + Duration::from_secs(600)).await?;
    }
    let account = audit::take(&sources).await?;
    print!("{account}");
    Ok(account.is_clean())
}
