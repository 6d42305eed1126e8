//! ClickHouse: the table of a run, what is in it, and what the server uses.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use penstock_pipeline::events::table::{
    COLUMNS, DEDUPLICATION_WINDOW, ORDER_BY, PARTITION_BY, SAMPLE_BY, VERSION_COLUMN, Value,
};
use serde::de::DeserializeOwned;

/// Name of the table in the run's database.
pub const TABLE: &str = "events";
/// Without a merge for so long, the server is done with what it was given.
const QUIET: Duration = Duration::from_secs(3);

/// A ClickHouse server, and the database of this run in it.
pub struct Warehouse {
    url: String,
    database: String,
    http: reqwest::Client,
}

impl Warehouse {
    /// The server at this URL.
    pub fn new(url: &str, database: &str) -> Self {
        Self { url: url.to_owned(), database: database.to_owned(), http: reqwest::Client::new() }
    }

    /// URL of the server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Database of the run.
    pub fn database(&self) -> &str {
        &self.database
    }

    /// Runs a statement and gives the text of the answer.
    ///
    /// # Errors
    /// The server is not reached, or refuses.
    pub async fn text(&self, sql: &str) -> Result<String> {
        let response = self
            .http
            .post(&self.url)
            .query(&[("output_format_json_quote_64bit_integers", "0")])
            .body(sql.to_owned())
            .timeout(Duration::from_secs(60))
            .send()
            .await
            .with_context(|| format!("ClickHouse at {} does not answer", self.url))?;
        let status = response.status();
        let text = response.text().await?;
        ensure!(status.is_success(), "ClickHouse refuses {sql:?}: {text}");
        Ok(text)
    }

    /// Runs a query and reads its rows.
    ///
    /// # Errors
    /// As [`Self::text`], or a row is not of the type.
    pub async fn rows<T: DeserializeOwned>(&self, sql: &str) -> Result<Vec<T>> {
        let text = self.text(&format!("{sql} FORMAT JSONCompactEachRow")).await?;
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    async fn number(&self, sql: &str) -> Result<u64> {
        Ok(self.text(sql).await?.trim().parse()?)
    }

    /// Makes the table anew, empty, as the operator makes it.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub async fn create_table(&self) -> Result<()> {
        self.drop_all().await?;
        self.text(&format!("CREATE DATABASE {}", self.database)).await?;
        self.text(&create_table(&self.database)).await?;
        Ok(())
    }

    /// Takes the database away.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub async fn drop_all(&self) -> Result<()> {
        self.text(&format!("DROP DATABASE IF EXISTS {} SYNC", self.database)).await?;
        Ok(())
    }

    /// Has the server load a topic into the table by itself, with its Kafka engine and a materialized view.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub async fn load_by_engine(&self, servers: &str, topic: &str, group: &str) -> Result<()> {
        for statement in engine(&self.database, servers, topic, group) {
            self.text(&statement).await?;
        }
        Ok(())
    }

    /// Rows of the table.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub async fn count(&self) -> Result<u64> {
        self.number(&format!("SELECT count() FROM {}.{TABLE}", self.database)).await
    }

    /// Waits until the table has so many rows.
    ///
    /// # Errors
    /// It has not after `patience`, or it has more.
    pub async fn wait_rows(&self, rows: u64, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let now = self.count().await?;
            ensure!(now <= rows, "the table has {now} rows instead of {rows}");
            if now == rows {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("the table has {now} of {rows} rows after {} s", patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until the server has merged what it wants to merge by itself.
    ///
    /// # Errors
    /// It still does after `patience`.
    pub async fn wait_merged(&self, patience: Duration) -> Result<()> {
        let sql = format!("SELECT count() FROM system.merges WHERE database = '{}'", self.database);
        let deadline = Instant::now() + patience;
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < QUIET {
            if self.number(&sql).await? > 0 {
                quiet_since = Instant::now();
            }
            ensure!(Instant::now() < deadline, "ClickHouse still merges after {} s", patience.as_secs());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// How the rows came in: inserted parts and the parts that are left.
    ///
    /// # Errors
    /// As [`Self::text`].
    pub async fn parts(&self) -> Result<u64> {
        self.number(&format!(
            "SELECT count() FROM system.parts WHERE active AND database = '{}'",
            self.database
        ))
        .await
    }

    /// The process of the server on this machine, also when it runs in a container: the one named after ClickHouse that
    /// sees the folder of our table.
    ///
    /// # Errors
    /// There is none: the server runs on another machine, or this process may not look at others.
    pub async fn pid(&self) -> Result<u32> {
        let sql = format!(
            "SELECT arrayElement(data_paths, 1) FROM system.tables WHERE database = '{}' AND name = '{TABLE}'",
            self.database
        );
        let (folder,) = self.rows::<(String,)>(&sql).await?.pop().context("the table has no folder")?;
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc")? {
            let process = entry?.path();
            let Some(pid) = process.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok()) else {
                continue;
            };
            let command = fs::read_to_string(process.join("cmdline")).unwrap_or_default();
            let sees = process.join("root").join(folder.trim_start_matches('/')).is_dir();
            if sees && command.split('\0').take(2).any(|word| word.contains("clickhouse")) {
                found.push((resident_pages(&process), pid));
            }
        }
        let (_, pid) = found.into_iter().max().with_context(|| {
            format!("no process named clickhouse on this machine has {folder}: its CPU time cannot be told")
        })?;
        Ok(pid)
    }
}

fn resident_pages(process: &Path) -> u64 {
    let statm = fs::read_to_string(process.join("statm")).unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default()
}

fn create_table(database: &str) -> String {
    let columns: Vec<String> = COLUMNS
        .iter()
        .map(|column| {
            let value = match column.value {
                Value::Inserted => String::new(),
                Value::Default(expression) => format!(" DEFAULT {expression}"),
                Value::Materialized(expression) => format!(" MATERIALIZED {expression}"),
            };
            let codec = column.codec.map(|codec| format!(" CODEC({codec})")).unwrap_or_default();
            format!("`{}` {}{value}{codec}", column.name, column.type_)
        })
        .collect();
    format!(
        "CREATE TABLE {database}.{TABLE} ({}) ENGINE = ReplacingMergeTree(`{VERSION_COLUMN}`) \
         PARTITION BY {PARTITION_BY} ORDER BY {ORDER_BY} SAMPLE BY {SAMPLE_BY} \
         SETTINGS non_replicated_deduplication_window = {DEDUPLICATION_WINDOW}",
        columns.join(", ")
    )
}

/// A queue and a view into the table. The columns of the message are those that the export inserts; the place in Kafka
/// comes from the engine, and the id of the topic, which it does not know, stays empty.
fn engine(database: &str, servers: &str, topic: &str, group: &str) -> [String; 2] {
    let of_message =
        COLUMNS.iter().filter(|column| column.value == Value::Inserted && !column.name.starts_with('_'));
    let (names, columns): (Vec<_>, Vec<_>) = of_message
        .map(|column| (format!("`{}`", column.name), format!("`{}` {}", column.name, column.type_)))
        .unzip();
    let queue = format!(
        "CREATE TABLE {database}.queue ({}) ENGINE = Kafka SETTINGS kafka_broker_list = '{servers}', \
         kafka_topic_list = '{topic}', kafka_group_name = '{group}', kafka_format = 'JSONEachRow', \
         kafka_num_consumers = 1, kafka_max_block_size = 65536",
        columns.join(", ")
    );
    let view = format!(
        "CREATE MATERIALIZED VIEW {database}.queue_to_{TABLE} TO {database}.{TABLE} AS SELECT {}, \
         assumeNotNull(_timestamp) AS _timestamp, '' AS _topic_id, toUInt64(_partition) AS _partition, \
         toUInt64(_offset) AS _offset FROM {database}.queue",
        names.join(", ")
    );
    [queue, view]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_reads_what_the_export_inserts() {
        let [queue, view] = engine("d", "kafka:9092", "t", "g");
        for column in COLUMNS.iter().filter(|column| column.value == Value::Inserted) {
            assert!(view.contains(column.name), "{}", column.name);
        }
        assert!(queue.contains("`properties` String, `timestamp` DateTime64(6, 'UTC')"), "{queue}");
        assert!(!queue.contains("_offset"), "{queue}");
    }
}
