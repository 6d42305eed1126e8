//! Reads database, table and columns. Decides nothing.

use clickhouse::Row;
use serde::Deserialize;

use super::{
    Observation, Observed, ObservedColumn, ObservedTable, Servers, WantedTable,
    plan::window_setting,
    server::{QueryError, within_time},
    sql,
};

#[derive(Row, Deserialize)]
struct TableRow {
    engine: String,
    engine_full: String,
    partition_key: String,
    sorting_key: String,
    sampling_key: String,
}

#[derive(Row, Deserialize)]
struct ColumnRow {
    name: String,
    #[serde(rename = "type")]
    type_: String,
    default_kind: String,
}

/// What the server says of the table. Takes some milliseconds, at most about 20 s. Never fails: that nobody answers is
/// [`Observation::Unreachable`].
pub async fn observe(servers: &Servers, wanted: &WantedTable) -> Observation {
    match ask(servers, wanted).await {
        Ok(observed) => Observation::Reachable(observed),
        Err(error) => Observation::Unreachable { why: error.to_string() },
    }
}

pub(super) async fn ask(servers: &Servers, wanted: &WantedTable) -> Result<Observed, QueryError> {
    let client = servers.at(&wanted.url);
    let what = format!("read the definition of table {}.{}", wanted.database, wanted.table);
    let of_table = |query: &str| {
        client.query_raw(query).param("database", &wanted.database).param("table", &wanted.table)
    };
    let query = "SELECT engine, engine_full, partition_key, sorting_key, sampling_key FROM system.tables \
                 WHERE database = {database:String} AND name = {table:String}";
    let Some(table) = within_time(&what, &wanted.url, of_table(query).fetch_optional::<TableRow>()).await?
    else {
        let query = "SELECT count() FROM system.databases WHERE name = {database:String}";
        let databases = within_time(&what, &wanted.url, of_table(query).fetch_one::<u64>()).await?;
        return Ok(if databases == 0 { Observed::NoDatabase } else { Observed::NoTable });
    };
    let query = "SELECT name, type, default_kind FROM system.columns \
                 WHERE database = {database:String} AND table = {table:String} ORDER BY position";
    let columns = within_time(&what, &wanted.url, of_table(query).fetch_all::<ColumnRow>()).await?;
    Ok(Observed::Table(ObservedTable {
        deduplication_window: sql::setting_of(&table.engine_full, window_setting(&table.engine)),
        engine: table.engine,
        partition_key: table.partition_key,
        sorting_key: table.sorting_key,
        sampling_key: table.sampling_key,
        columns: columns
            .into_iter()
            .map(|ColumnRow { name, type_, default_kind }| ObservedColumn { name, type_, default_kind })
            .collect(),
    }))
}
