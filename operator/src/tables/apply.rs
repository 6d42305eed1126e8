//! Does to databases and tables what was decided. Decides nothing.

use std::{collections::BTreeSet, fmt};

use super::{
    Access, Change, Kind, Observed, ServerTable, Servers, TableAction, WantedTable,
    observe::ask,
    server::{QueryError, within_time},
    sql,
};

/// A change, and what became of it.
#[derive(Debug)]
pub struct Applied {
    /// The change.
    pub change: Change,
    /// Whether it was made, or why not.
    pub result: Result<(), QueryError>,
}

/// Makes the changes in their order. On one server each needs the ones before it, so the first that fails is the last
/// there; the other servers go on. A Distributed table gets no column that a table below it could not be given.
pub async fn apply(servers: &Servers, access: &Access, changes: Vec<Change>) -> Vec<Applied> {
    let mut applied = Vec::with_capacity(changes.len());
    let mut failed: BTreeSet<String> = BTreeSet::new();
    for change in changes {
        let widens_distributed = matches!(
            (&change.table.kind, &change.action),
            (Kind::Distributed { .. }, TableAction::AddColumn { .. })
        );
        if failed.contains(&change.url) || (widens_distributed && !failed.is_empty()) {
            continue;
        }
        let what = describe(&change);
        let statement = sql::statement(&change.table, &change.action);
        let client = servers.at(&change.url, access);
        let result = within_time(&what, &change.url, access, client.query_raw(&statement).execute()).await;
        if result.is_err() {
            failed.insert(change.url.clone());
        }
        applied.push(Applied { change, result });
    }
    applied
}

/// Why not all of a table could be dropped: one error per server.
#[derive(Debug)]
pub struct DropError(Vec<QueryError>);

impl std::error::Error for DropError {}

impl fmt::Display for DropError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&texts.join("; "))
    }
}

/// Drops the table with all its rows from all its servers and says whether there was any of it, asking each just before.
/// The Distributed table goes first, so that nobody reads a part for the whole. Databases stay, and so does anything of
/// that name that is of another kind, since no export has ever written into it.
///
/// # Errors
/// What could not be dropped. All the rest was.
pub async fn drop_table(servers: &Servers, wanted: &WantedTable, access: &Access) -> Result<bool, DropError> {
    let mut dropped = false;
    let mut errors = Vec::new();
    let all = wanted.servers();
    let mut tables: Vec<(&str, &ServerTable)> = Vec::new();
    for server in &all {
        tables.extend(server.tables.iter().map(|table| (server.url.as_str(), table)));
    }
    tables.sort_by_key(|(_, table)| !matches!(table.kind, Kind::Distributed { .. }));
    for (url, table) in tables {
        match drop_on_server(servers, url, access, table).await {
            Ok(was_there) => dropped |= was_there,
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(dropped) } else { Err(DropError(errors)) }
}

async fn drop_on_server(
    servers: &Servers,
    url: &str,
    access: &Access,
    table: &ServerTable,
) -> Result<bool, QueryError> {
    let Observed::Table(found) = ask(servers, url, access, table).await? else { return Ok(false) };
    let is_ours = match table.kind {
        Kind::Distributed { .. } => found.engine == "Distributed",
        Kind::Rows | Kind::ReplicatedRows { .. } => found.engine.ends_with("MergeTree"),
    };
    if !is_ours {
        return Ok(false);
    }
    let what = format!("drop table {}.{}", table.database, table.table);
    let client = servers.at(url, access);
    within_time(&what, url, access, client.query_raw(&sql::drop_table(table)).execute()).await?;
    Ok(true)
}

fn describe(change: &Change) -> String {
    let ServerTable { database, table, .. } = &change.table;
    match &change.action {
        TableAction::CreateDatabase => format!("create database {database}"),
        TableAction::CreateTable => format!("create table {database}.{table}"),
        TableAction::AddColumn { column, .. } => {
            format!("add column {} to table {database}.{table}", column.name)
        }
        TableAction::SetDeduplicationWindow { setting, .. } => {
            format!("set {setting} of table {database}.{table}")
        }
    }
}
