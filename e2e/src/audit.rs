//! The auditor: what was sent, held against what lies in Kafka and ClickHouse.
//!
//! It reads nothing but a [journal](journal) of the sender, the stage topics and the table, and makes an
//! [account](account::Account) of them: what is lost, doubled, altered, out of order. It keeps digests, never bodies: about
//! 250 bytes for each event, so that two million fit into 600 MB.

pub mod account;
pub mod content;
pub mod journal;
pub mod kafka;
pub mod ledger;
pub mod table;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use self::{account::Account, content::Ignored, ledger::Ledger, table::Table};

/// What is to be audited.
#[derive(Clone, Debug)]
pub struct Sources {
    /// Kafka's addresses.
    pub bootstrap_servers: String,
    /// Further properties of librdkafka, for TLS and SASL.
    pub kafka_properties: Vec<(String, String)>,
    /// Prefix of the stage topics, with its dot.
    pub topic_prefix: String,
    /// The table of the export.
    pub table: Table,
    /// What the sender wrote down. Without it the topics and the table are held against each other only.
    pub journal: Option<PathBuf>,
    /// Properties that are not compared, because the pipeline adds or changes them.
    pub ignored: Ignored,
    /// Whether partitions were added meanwhile: then a distinct id may lie in several.
    pub partitions_grown: bool,
    /// Whether others send as well: then events that are not in the journal are left out of the account.
    pub others_send: bool,
    /// Whether what is being read is told on stderr.
    pub progress: bool,
}

impl Sources {
    fn reader(&self) -> kafka::Reader {
        kafka::Reader {
            bootstrap_servers: self.bootstrap_servers.clone(),
            properties: self.kafka_properties.clone(),
            progress: self.progress,
        }
    }
}

/// Waits until neither the topics nor the table have grown for `quiet`, and no transaction is open.
///
/// # Errors
/// Something still grows after `patience`, or a server does not answer.
pub async fn settle(sources: &Sources, quiet: Duration, patience: Duration) -> Result<()> {
    let began = tokio::time::Instant::now();
    let mut before = None;
    let mut since = began;
    loop {
        let (reader, prefix) = (sources.reader(), sources.topic_prefix.clone());
        let ends = tokio::task::spawn_blocking(move || reader.ends(&prefix)).await??;
        let now =
            (ends.iter().map(|end| (end.end, end.stable)).collect::<Vec<_>>(), sources.table.count().await?);
        let open = ends.iter().any(|end| end.end != end.stable);
        if open || before.as_ref() != Some(&now) {
            since = tokio::time::Instant::now();
            before = Some(now);
        } else if since.elapsed() >= quiet {
            return Ok(());
        }
        ensure!(
            began.elapsed() < patience,
            "after {} s topics or table still grow, or a transaction is still open",
            patience.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(500).min(quiet)).await;
    }
}

/// Reads everything and makes the account. Two million events take one to two minutes.
///
/// # Errors
/// The journal is not one, a topic or the table does not exist, or a server stops answering.
pub async fn take(sources: &Sources) -> Result<Account> {
    let read = sources.clone();
    let mut ledger = tokio::task::spawn_blocking(move || -> Result<Ledger> {
        let reader = read.reader();
        let stages = reader.stages(&read.topic_prefix)?;
        let mut ledger = Ledger::new(ledger::Rules {
            transformed: stages.transformed.is_some(),
            journal: read.journal.is_some(),
            others_send: read.others_send,
            partitions_grown: read.partitions_grown,
        });
        if let Some(path) = &read.journal {
            if read.progress {
                eprintln!("reading the journal {}", path.display());
            }
            journal::read(path, |line| ledger.journal(line))?;
        }
        kafka::read_stages(&reader, &stages, &read.ignored, &mut ledger)?;
        Ok(ledger)
    })
    .await??;
    sources
        .table
        .each_row(sources.progress, |row| ledger.row(row, &sources.ignored))
        .await
        .with_context(|| format!("reading the table {}", sources.table.name))?;
    Ok(ledger.close(sources.table.merged_parts().await?))
}
