//! Does to database and table what was decided. Decides nothing.

use super::{
    Observed, Servers, TableAction, WantedTable,
    observe::ask,
    server::{QueryError, within_time},
    sql,
};

/// A change, and what became of it.
#[derive(Debug)]
pub struct Applied {
    /// The change.
    pub action: TableAction,
    /// Whether it was made, or why not.
    pub result: Result<(), QueryError>,
}

/// Makes the changes in their order. Each needs the ones before it, so that the first that fails is the last.
pub async fn apply(servers: &Servers, wanted: &WantedTable, actions: Vec<TableAction>) -> Vec<Applied> {
    let client = servers.at(&wanted.url);
    let mut applied = Vec::with_capacity(actions.len());
    for action in actions {
        let what = describe(wanted, &action);
        let statement = sql::statement(wanted, &action);
        let result = within_time(&what, &wanted.url, client.query_raw(&statement).execute()).await;
        let failed = result.is_err();
        applied.push(Applied { action, result });
        if failed {
            break;
        }
    }
    applied
}

/// Drops the table with all its rows and says whether there was one, asking just before. The database stays, and so does
/// anything of that name that is not of the MergeTree family, since no export has ever written into it.
pub async fn drop_table(servers: &Servers, wanted: &WantedTable) -> Result<bool, QueryError> {
    match ask(servers, wanted).await? {
        Observed::NoDatabase | Observed::NoTable => Ok(false),
        Observed::Table(table) if !table.engine.ends_with("MergeTree") => Ok(false),
        Observed::Table(_) => {
            let what = format!("drop table {}.{}", wanted.database, wanted.table);
            let statement = sql::drop_table(wanted);
            let client = servers.at(&wanted.url);
            within_time(&what, &wanted.url, client.query_raw(&statement).execute()).await?;
            Ok(true)
        }
    }
}

fn describe(wanted: &WantedTable, action: &TableAction) -> String {
    let WantedTable { database, table, .. } = wanted;
    match action {
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
