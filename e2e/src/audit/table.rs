//! Reads the table, row by row, over ClickHouse's HTTP interface.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use penstock_pipeline::events::ingested::IngestedEvent;
use serde::Deserialize;

use super::ledger::Place;

/// A ClickHouse that is silent for so long is not going to answer.
const SILENCE: Duration = Duration::from_secs(120);
const TELL: Duration = Duration::from_secs(5);

/// A table, and how it is reached.
#[derive(Clone, Debug)]
pub struct Table {
    /// `http://` or `https://`, host and port.
    pub url: String,
    /// User; the server's default without one.
    pub user: Option<String>,
    /// The user's password.
    pub password: Option<String>,
    /// Database and table, in back-quotes where they need them.
    pub name: String,
}

/// A row: an event, and where in Kafka it comes from.
#[derive(Clone, Debug, Deserialize)]
pub struct Row {
    /// The columns that are in a message too.
    #[serde(flatten)]
    pub event: IngestedEvent,
    /// Id of the topic.
    #[serde(rename = "_topic_id")]
    pub topic_id: String,
    #[serde(rename = "_partition")]
    partition: u32,
    #[serde(rename = "_offset")]
    offset: i64,
}

impl Row {
    /// Partition and offset.
    pub fn place(&self) -> Place {
        Place { partition: self.partition, offset: self.offset }
    }
}

const COLUMNS: &str = "uuid, event, properties, timestamp, team_id, project_id, distinct_id, elements_chain, \
    created_at, captured_at, person_id, person_created_at, person_properties, person_mode, historical_migration, \
    _topic_id, _partition, _offset";

impl Table {
    async fn ask(&self, sql: &str) -> Result<reqwest::Response> {
        // Only an https URL needs it, and only the first call does anything.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().read_timeout(SILENCE).build()?;
        let mut request = http
            .post(&self.url)
            .query(&[("output_format_json_quote_64bit_integers", "0")])
            .body(sql.to_owned());
        if let Some(user) = &self.user {
            request = request.header("X-ClickHouse-User", user);
        }
        if let Some(password) = &self.password {
            request = request.header("X-ClickHouse-Key", password);
        }
        let response =
            request.send().await.with_context(|| format!("ClickHouse at {} does not answer", self.url))?;
        if !response.status().is_success() {
            bail!("ClickHouse refuses {sql:?}: {}", response.text().await.unwrap_or_default());
        }
        Ok(response)
    }

    async fn number(&self, sql: &str) -> Result<u64> {
        let text = self.ask(sql).await?.text().await?;
        text.trim().parse().with_context(|| format!("{sql:?} gave {text:?}, not a number"))
    }

    /// Rows, repeated ones included.
    ///
    /// # Errors
    /// ClickHouse does not answer, or has no such table.
    pub async fn count(&self) -> Result<u64> {
        self.number(&format!("SELECT count() FROM {}", self.name)).await
    }

    /// Parts that a merge has made; rows that were there twice may have been folded in them.
    ///
    /// # Errors
    /// ClickHouse does not answer.
    pub async fn merged_parts(&self) -> Result<u64> {
        self.number(&format!(
            "SELECT uniqExactIf(_part, toUInt32OrZero(splitByChar('_', _part)[4]) > 0) FROM {}",
            self.name
        ))
        .await
    }

    /// Gives every row.
    ///
    /// # Errors
    /// ClickHouse does not answer, the answer breaks off, or a row has not the columns of the table that the operator makes.
    pub async fn each_row(&self, progress: bool, mut each: impl FnMut(&Row)) -> Result<()> {
        let mut response =
            self.ask(&format!("SELECT {COLUMNS} FROM {} FORMAT JSONEachRow", self.name)).await?;
        let (mut rest, mut read, mut told) = (Vec::new(), 0_u64, Instant::now());
        while let Some(chunk) = response.chunk().await.context("the answer broke off")? {
            rest.extend_from_slice(&chunk);
            let mut from = 0;
            while let Some(length) = rest[from..].iter().position(|byte| *byte == b'\n') {
                let line = &rest[from..from + length];
                // An error in the middle of an answer is a line of it.
                let row: Row = serde_json::from_slice(line)
                    .with_context(|| format!("not a row: {}", String::from_utf8_lossy(line)))?;
                each(&row);
                read += 1;
                from += length + 1;
            }
            rest.drain(..from);
            if progress && told.elapsed() > TELL {
                told = Instant::now();
                eprintln!("reading {}: {read} rows", self.name);
            }
        }
        if !rest.is_empty() {
            bail!("the answer breaks off: {}", String::from_utf8_lossy(&rest));
        }
        if progress {
            eprintln!("reading {}: {read} rows", self.name);
        }
        Ok(())
    }
}
