//! ClickHouse as these tests use it: the server that everybody shares, or those of a cluster.

use penstock_pipeline::events::{sharding, table};
use penstock_platform::shards::Shards;

/// URL of the server that everybody shares.
pub fn clickhouse() -> String {
    std::env::var("PENSTOCK_TEST_CLICKHOUSE").unwrap_or_else(|_| "http://127.0.0.1:18123".into())
}

/// `host:port` of a URL.
pub fn authority(url: &str) -> String {
    url.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

/// Table of the rows on each shard.
pub const LOCAL: &str = "events_local";

/// The statement for a table of rows as the operator makes it.
pub fn rows_table(database: &str, name: &str) -> String {
    let columns: Vec<String> = table::COLUMNS
        .iter()
        .map(|column| {
            let value = match column.value {
                table::Value::Inserted => String::new(),
                table::Value::Default(expression) => format!(" DEFAULT {expression}"),
                table::Value::Materialized(expression) => format!(" MATERIALIZED {expression}"),
            };
            let codec = column.codec.map(|codec| format!(" CODEC({codec})")).unwrap_or_default();
            format!("`{}` {}{value}{codec}", column.name, column.type_)
        })
        .collect();
    format!(
        "CREATE TABLE {database}.{name} ({}) ENGINE = ReplacingMergeTree({}) PARTITION BY {} ORDER BY {} SAMPLE BY {} \
         SETTINGS non_replicated_deduplication_window = {}",
        columns.join(", "),
        table::VERSION_COLUMN,
        table::PARTITION_BY,
        table::ORDER_BY,
        table::SAMPLE_BY,
        table::DEDUPLICATION_WINDOW,
    )
}

/// The database of a test on one shard: the rows in `events_local`, and `events` distributed over all shards. Nothing is ever
/// merged, also after a restart, so that nothing hides a duplicate.
pub fn create_shard(url: &str, database: &str) {
    run_sql(url, &format!("CREATE DATABASE {database}"));
    run_sql(
        url,
        &format!(
            "{}, max_bytes_to_merge_at_max_space_in_pool = 1, max_bytes_to_merge_at_min_space_in_pool = 1, \
             parts_to_delay_insert = 100000, parts_to_throw_insert = 100000",
            rows_table(database, LOCAL)
        ),
    );
    run_sql(
        url,
        &format!(
            "CREATE TABLE {database}.events AS {database}.{LOCAL} ENGINE = Distributed({}, {database}, {LOCAL}, {})",
            Shards::CLUSTER,
            sharding::SHARDING_KEY
        ),
    );
}

/// What a server that may be away answers; `None`: it is.
pub fn try_sql(url: &str, sql: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(authority(url)).ok()?;
    write!(
        stream,
        "POST /?wait_end_of_query=1 HTTP/1.0\r\nHost: test\r\nContent-Length: {}\r\n\r\n{sql}",
        sql.len()
    )
    .ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{sql}: {body}");
    Some(body.to_owned())
}

/// What a server answers.
pub fn run_sql(url: &str, sql: &str) -> String {
    try_sql(url, sql).unwrap_or_else(|| panic!("no answer from {url} to {sql}"))
}
