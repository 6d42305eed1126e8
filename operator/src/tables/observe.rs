//! Reads databases, tables, columns and clusters. Decides nothing.

use std::collections::BTreeMap;

use clickhouse::Row;
use futures::future::join_all;
use serde::Deserialize;

use super::{
    Access, Answer, Member, Observation, Observed, ObservedColumn, ObservedTable, Seen, Server, ServerTable,
    Servers, WantedTable,
    plan::window_setting,
    server::{QueryError, within_time},
    sql,
};
use crate::failure::Failure;

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

#[derive(Row, Deserialize)]
struct MemberRow {
    shard: u32,
    weight: u32,
    replica: u32,
    host: String,
    port: u16,
    is_local: bool,
    internal_replication: bool,
}

/// What the servers say of the table; those of `silent`, by URL, are not asked, and the reason given there is theirs. All
/// are asked at once: this takes some milliseconds, at most about a minute. Never fails: a server that does not answer is
/// [`Answer::Unreachable`].
pub async fn observe(
    servers: &Servers,
    wanted: &WantedTable,
    access: &Access,
    silent: &BTreeMap<String, Failure>,
) -> Observation {
    let asked = wanted.servers().into_iter().map(|server| async move {
        let answer = match silent.get(&server.url) {
            Some(why) => Answer::Unreachable { why: why.clone() },
            None => match seen(servers, wanted, access, &server).await {
                Ok(seen) => Answer::Reachable(seen),
                Err(error) => Answer::Unreachable { why: error.into() },
            },
        };
        (server.url, answer)
    });
    join_all(asked).await.into_iter().collect()
}

async fn seen(
    servers: &Servers,
    wanted: &WantedTable,
    access: &Access,
    server: &Server,
) -> Result<Seen, QueryError> {
    let mut seen = Seen::default();
    if let Some(cluster) = &wanted.cluster {
        seen.members = members(servers, &server.url, access, &cluster.name).await?;
    }
    for table in &server.tables {
        seen.tables.insert(table.table.clone(), ask(servers, &server.url, access, table).await?);
    }
    Ok(seen)
}

async fn members(
    servers: &Servers,
    url: &str,
    access: &Access,
    cluster: &str,
) -> Result<Vec<Member>, QueryError> {
    let what = format!("read cluster {cluster} from system.clusters");
    let client = servers.at(url, access);
    let query = "SELECT toUInt32(shard_num) AS shard, toUInt32(shard_weight) AS weight, \
                 toUInt32(replica_num) AS replica, host_name AS host, toUInt16(port) AS port, \
                 is_local != 0 AS is_local, internal_replication != 0 AS internal_replication \
                 FROM system.clusters WHERE cluster = {cluster:String} ORDER BY shard_num, replica_num";
    let query = client.query_raw(query).param("cluster", cluster).fetch_all::<MemberRow>();
    let rows = within_time(&what, url, access, query).await?;
    Ok(rows
        .into_iter()
        .map(|row| Member {
            shard: row.shard,
            weight: row.weight,
            replica: row.replica,
            address: format!("{}:{}", row.host, row.port),
            is_local: row.is_local,
            internal_replication: row.internal_replication,
        })
        .collect())
}

pub(super) async fn ask(
    servers: &Servers,
    url: &str,
    access: &Access,
    table: &ServerTable,
) -> Result<Observed, QueryError> {
    let client = servers.at(url, access);
    let what = format!("read the definition of table {}.{}", table.database, table.table);
    let of_table =
        |query: &str| client.query_raw(query).param("database", &table.database).param("table", &table.table);
    let query = "SELECT engine, engine_full, partition_key, sorting_key, sampling_key FROM system.tables \
                 WHERE database = {database:String} AND name = {table:String}";
    let Some(found) = within_time(&what, url, access, of_table(query).fetch_optional::<TableRow>()).await?
    else {
        let query = "SELECT count() FROM system.databases WHERE name = {database:String}";
        let databases = within_time(&what, url, access, of_table(query).fetch_one::<u64>()).await?;
        return Ok(if databases == 0 { Observed::NoDatabase } else { Observed::NoTable });
    };
    let query = "SELECT name, type, default_kind FROM system.columns \
                 WHERE database = {database:String} AND table = {table:String} ORDER BY position";
    let columns = within_time(&what, url, access, of_table(query).fetch_all::<ColumnRow>()).await?;
    Ok(Observed::Table(ObservedTable {
        deduplication_window: sql::setting_of(&found.engine_full, window_setting(&found.engine)),
        engine: found.engine,
        engine_full: found.engine_full,
        partition_key: found.partition_key,
        sorting_key: found.sorting_key,
        sampling_key: found.sampling_key,
        columns: columns
            .into_iter()
            .map(|ColumnRow { name, type_, default_kind }| ObservedColumn { name, type_, default_kind })
            .collect(),
    }))
}
