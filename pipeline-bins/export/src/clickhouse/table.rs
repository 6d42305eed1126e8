//! The ClickHouse side: insert a block, read back what is there, and what an error means.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use clickhouse::error::Error;
use penstock_pipeline::config::ClickHouseDestination;

use super::{connection::Connection, row};
use crate::committed::OffsetRange;

/// Most bytes of one compressed chunk of an insert.
pub const CHUNK_BYTES: usize = 256 << 10;

/// UUIDs that one query names: 40 bytes each, and a query is at most 256 KiB (`max_query_size`).
const UUIDS_OF_A_QUERY: usize = 5000;

/// Errors of ClickHouse after which the same insert may succeed: of the network, of a busy or starting server, of Keeper.
/// The last is ours: the same block is being inserted by an earlier attempt that still runs.
const RETRYABLE_CODES: [u32; 16] =
    [3, 107, 159, 164, 202, 203, 209, 210, 241, 242, 252, 285, 319, 425, 999, QUERY_ALREADY_RUNS];

/// `QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING`.
const QUERY_ALREADY_RUNS: u32 = 216;

/// Why ClickHouse did not do what was asked. Whatever it is, nothing is known about the rows of an insert after it.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The same may succeed later without anybody doing anything.
    #[error("{0}")]
    Passing(String),
    /// Somebody has to change the table, the grants or the configuration.
    #[error("{0}")]
    Refused(String),
}

impl TableError {
    /// Whether somebody has to do something.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused(_))
    }

    /// The same, with the name of the server.
    pub fn of(self, url: &str) -> Self {
        match self {
            Self::Passing(text) => Self::Passing(format!("{url}: {text}")),
            Self::Refused(text) => Self::Refused(format!("{url}: {text}")),
        }
    }
}

impl From<Error> for TableError {
    fn from(error: Error) -> Self {
        match &error {
            Error::BadResponse(text) => {
                let text = excerpt(text);
                match exception_code(&text) {
                    Some(code) if !RETRYABLE_CODES.contains(&code) => Self::Refused(text),
                    _ => Self::Passing(text),
                }
            }
            Error::SchemaMismatch(_) | Error::Unsupported(_) | Error::InvalidParams(_) => {
                Self::Refused(error.to_string())
            }
            _ => Self::Passing(with_causes(&error)),
        }
    }
}

/// The code of `Code: 252. DB::Exception: …`.
pub(super) fn exception_code(text: &str) -> Option<u32> {
    let rest = text.strip_prefix("Code: ")?;
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
}

/// The first kilobyte: some messages of the server quote whole rows.
fn excerpt(text: &str) -> String {
    const MOST: usize = 1024;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// What was found out about the table at the start and after each refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableFacts {
    /// What tells this table from every other one: its UUID, or where replicas keep what they share.
    pub identity: String,
    /// Whether the server remembers the tokens of inserts.
    pub remembers_tokens: bool,
}

/// Which rows to look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Id of the topic.
    pub topic_id: String,
    /// Partition.
    pub partition: i32,
    /// Offsets.
    pub range: OffsetRange,
    /// Least and greatest `timestamp` of the rows, microseconds since 1970.
    pub timestamps_us: (i64, i64),
}

/// A table that takes blocks.
#[derive(Clone)]
pub struct Table {
    connection: Connection,
    database: String,
    table: String,
    timeout: Duration,
}

impl Table {
    /// The table of an export. Connects to nothing yet.
    pub fn new(destination: &ClickHouseDestination, connection: Connection) -> Self {
        Self {
            connection,
            database: destination.database.clone(),
            table: destination.table.clone(),
            timeout: Duration::from_millis(destination.insert_timeout_ms.into()),
        }
    }

    /// Reads what must be known about the table.
    pub async fn facts(&self) -> Result<TableFacts, TableError> {
        let query = self
            .connection
            .client()
            .query(
                "SELECT toString(uuid), engine_full, ifNull((SELECT any(zookeeper_path) FROM system.replicas \
                 WHERE database = ? AND table = ?), '') FROM system.tables WHERE database = ? AND name = ?",
            )
            .bind(&self.database)
            .bind(&self.table)
            .bind(&self.database)
            .bind(&self.table)
            .fetch_optional::<(String, String, String)>();
        let found = self.in_time(query).await?;
        let Some((uuid, engine_full, shared_path)) = found else {
            return Err(TableError::Refused(format!(
                "there is no table {}.{}, or it may not be seen",
                self.database, self.table
            )));
        };
        let remembers_tokens = engine_full.starts_with("Replicated")
            || engine_full.starts_with("Shared")
            || engine_full
                .split_once("non_replicated_deduplication_window = ")
                .is_some_and(|(_, rest)| !rest.starts_with('0'));
        // The UUIDs of replicas may differ, and what one of them remembers all of them do.
        let identity = if shared_path.is_empty() { uuid } else { shared_path };
        Ok(TableFacts { identity, remembers_tokens })
    }

    /// Inserts these rows, in RowBinary, under a token. A success is an acknowledgement of all of them; after an error
    /// anything from none to all of them may be there, now or later.
    pub async fn insert(
        &self,
        rows: impl IntoIterator<Item = Bytes>,
        token: &str,
        query_id: &str,
    ) -> Result<(), TableError> {
        let columns: Vec<String> = row::column_names().map(quoted).collect();
        let sql = format!(
            "INSERT INTO {}.{} ({}) FORMAT RowBinaryWithNamesAndTypes",
            quoted(&self.database),
            quoted(&self.table),
            columns.join(", ")
        );
        let mut insert = self
            .connection
            .client()
            .insert_formatted_with(sql)
            .with_timeouts(Some(self.timeout), Some(self.timeout))
            .with_setting("query_id", query_id)
            .with_setting("insert_deduplication_token", token)
            .with_setting("async_insert", "0")
            .with_setting("insert_deduplicate", "1")
            .with_setting("deduplicate_insert", "enable")
            // Folding equal keys inside a block would make rows look lost that are there.
            .with_setting("optimize_on_insert", "0")
            // One insert block: what exceeds it would get tokens of its own.
            .with_setting("max_insert_block_size", "1048449")
            .with_setting("min_insert_block_size_rows", "1048449")
            .with_setting("min_insert_block_size_bytes", "0")
            .with_setting("max_partitions_per_insert_block", "100")
            // Into a Distributed table only what has reached the shards is acknowledged.
            .with_setting("distributed_foreground_insert", "1");
        let mut header = Vec::with_capacity(1024);
        row::write_header(&mut header);
        let send = async {
            insert.send(header.into()).await?;
            for rows in rows {
                let mut rest = rows;
                while !rest.is_empty() {
                    let chunk = rest.split_to(rest.len().min(CHUNK_BYTES));
                    insert.send(chunk).await?;
                }
            }
            insert.end().await
        };
        self.in_time(send).await
    }

    /// Which of the wanted offsets the table has. Asked under the query id of the inserts: as long as an earlier attempt runs
    /// on the server there is no answer, so that none can end between the answer and the next attempt.
    pub async fn present(&self, wanted: &Wanted, query_id: &str) -> Result<BTreeSet<i64>, TableError> {
        let query = self
            .connection
            .client()
            .query(&format!(
                "SELECT DISTINCT _offset FROM {}.{} WHERE _topic_id = ? AND _partition = ? \
                 AND _offset BETWEEN ? AND ? \
                 AND timestamp BETWEEN fromUnixTimestamp64Micro(?) AND fromUnixTimestamp64Micro(?)",
                quoted(&self.database),
                quoted(&self.table),
            ))
            .bind(&wanted.topic_id)
            .bind(wanted.partition)
            .bind(wanted.range.start())
            .bind(wanted.range.end() - 1)
            .bind(wanted.timestamps_us.0)
            .bind(wanted.timestamps_us.1)
            .with_setting("query_id", query_id)
            .fetch_all::<u64>();
        let found = self.in_time(query).await?;
        Ok(found.into_iter().filter_map(|offset| i64::try_from(offset).ok()).collect())
    }

    /// Which of these events the table has, at whatever offset.
    pub async fn present_events(
        &self,
        uuids: &[uuid::Uuid],
        timestamps_us: (i64, i64),
    ) -> Result<BTreeSet<uuid::Uuid>, TableError> {
        let mut present = BTreeSet::new();
        for part in uuids.chunks(UUIDS_OF_A_QUERY) {
            let texts: Vec<String> = part.iter().map(ToString::to_string).collect();
            let query = self
                .connection
                .client()
                .query(&format!(
                    "SELECT DISTINCT toString(uuid) FROM {}.{} WHERE uuid IN (SELECT arrayJoin(?)::UUID) \
                     AND timestamp BETWEEN fromUnixTimestamp64Micro(?) AND fromUnixTimestamp64Micro(?)",
                    quoted(&self.database),
                    quoted(&self.table),
                ))
                .bind(texts)
                .bind(timestamps_us.0)
                .bind(timestamps_us.1)
                .fetch_all::<String>();
            let found = self.in_time(query).await?;
            present.extend(found.iter().filter_map(|text| uuid::Uuid::try_parse(text).ok()));
        }
        Ok(present)
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, TableError> {
        match tokio::time::timeout(self.timeout, work).await {
            Ok(result) => result.map_err(|error| self.connection.failure(error)),
            Err(_) => Err(TableError::Passing(format!("no answer within {:?}", self.timeout))),
        }
    }
}

/// An identifier in SQL.
fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_a_busy_server_pass_and_codes_of_a_wrong_table_do_not() {
        for code in RETRYABLE_CODES {
            let error = Error::BadResponse(format!("Code: {code}. DB::Exception: …"));
            assert!(!TableError::from(error).is_refusal(), "{code}");
        }
        for code in [16, 60, 53, 27, 117, 497, 516] {
            let error = Error::BadResponse(format!("Code: {code}. DB::Exception: …"));
            assert!(TableError::from(error).is_refusal(), "{code}");
        }
        assert!(!TableError::from(Error::BadResponse("502 Bad Gateway".into())).is_refusal());
        assert!(!TableError::from(Error::TimedOut).is_refusal());
        assert!(!TableError::from(Error::Network("reset".into())).is_refusal());
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quoted("a`b\\c"), "`a\\`b\\\\c`");
    }
}
