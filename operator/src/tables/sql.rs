//! The statements, as text. Names come from users: every one is quoted. Pure.

use penstock_pipeline::events::{
    sharding::SHARDING_KEY,
    table::{
        COLUMNS, Column, DEDUPLICATION_WINDOW, ORDER_BY, PARTITION_BY, SAMPLE_BY, VERSION_COLUMN, Value,
    },
};

use super::{Kind, ServerTable, TableAction};

/// Setting of a table that is not replicated.
pub(super) const WINDOW_SETTING: &str = "non_replicated_deduplication_window";

/// Setting of a replicated table.
pub(super) const REPLICATED_WINDOW_SETTING: &str = "replicated_deduplication_window";

/// A name between back-quotes, in which ClickHouse reads escapes as in a text.
pub(super) fn identifier(name: &str) -> String {
    let mut quoted = String::with_capacity(name.len() + 2);
    quoted.push('`');
    for character in name.chars() {
        match character {
            '`' | '\\' => {
                quoted.push('\\');
                quoted.push(character);
            }
            '\0' => quoted.push_str("\\0"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('`');
    quoted
}

/// A text between single quotes.
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// `database`.`table`.
fn full_name(table: &ServerTable) -> String {
    format!("{}.{}", identifier(&table.database), identifier(&table.table))
}

/// The statement that does it on the server of the table. Each can be repeated without harm.
pub(super) fn statement(table: &ServerTable, action: &TableAction) -> String {
    match action {
        TableAction::CreateDatabase => {
            format!("CREATE DATABASE IF NOT EXISTS {}", identifier(&table.database))
        }
        TableAction::CreateTable => create_table(table),
        TableAction::AddColumn { column, after } => format!(
            "ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}",
            full_name(table),
            definition(column, &table.kind),
            match after {
                Some(after) => format!("AFTER {}", identifier(after)),
                None => "FIRST".to_owned(),
            }
        ),
        TableAction::SetDeduplicationWindow { setting, .. } => {
            format!("ALTER TABLE {} MODIFY SETTING {setting} = {DEDUPLICATION_WINDOW}", full_name(table))
        }
    }
}

/// Takes the table away with all its rows, and waits until it is gone.
pub(super) fn drop_table(table: &ServerTable) -> String {
    format!("DROP TABLE IF EXISTS {} SYNC", full_name(table))
}

fn create_table(table: &ServerTable) -> String {
    let columns: Vec<String> =
        COLUMNS.iter().map(|column| format!("    {}", definition(column, &table.kind))).collect();
    let (engine, window) = match &table.kind {
        Kind::Rows => (format!("ReplacingMergeTree({})", identifier(VERSION_COLUMN)), WINDOW_SETTING),
        Kind::ReplicatedRows { path } => (
            format!(
                "ReplicatedReplacingMergeTree({}, '{{replica}}', {})",
                literal(path),
                identifier(VERSION_COLUMN)
            ),
            REPLICATED_WINDOW_SETTING,
        ),
        Kind::Distributed { cluster, local } => {
            return format!(
                "CREATE TABLE IF NOT EXISTS {} (\n{}\n)\nENGINE = {}",
                full_name(table),
                columns.join(",\n"),
                distributed_engine(cluster, &table.database, local)
            );
        }
    };
    format!(
        "CREATE TABLE IF NOT EXISTS {} (\n{}\n)\nENGINE = {engine}\nPARTITION BY {PARTITION_BY}\n\
         ORDER BY {ORDER_BY}\nSAMPLE BY {SAMPLE_BY}\nSETTINGS {window} = {DEDUPLICATION_WINDOW}",
        full_name(table),
        columns.join(",\n"),
    )
}

/// Engine of a table over the shards' tables. Who inserts into it gets rows where the export puts them.
pub(super) fn distributed_engine(cluster: &str, database: &str, local: &str) -> String {
    format!("Distributed({}, {}, {}, {SHARDING_KEY})", literal(cluster), literal(database), literal(local))
}

fn definition(column: &Column, kind: &Kind) -> String {
    let mut text = format!("{} {}", identifier(column.name), column.type_);
    match column.value {
        Value::Inserted => {}
        Value::Default(expression) => text.push_str(&format!(" DEFAULT {expression}")),
        Value::Materialized(expression) => text.push_str(&format!(" MATERIALIZED {expression}")),
    }
    // A Distributed table stores nothing, so there is nothing to compress.
    if let Some(codec) = column.codec
        && !matches!(kind, Kind::Distributed { .. })
    {
        text.push_str(&format!(" CODEC({codec})"));
    }
    text
}

/// The value of a numeric setting in `system.tables.engine_full`; `None` where the table does not set it.
pub(super) fn setting_of(engine_full: &str, name: &str) -> Option<u64> {
    let (_, settings) = engine_full.rsplit_once(" SETTINGS ")?;
    settings.split(',').find_map(|setting| {
        let (key, value) = setting.split_once('=')?;
        (key.trim() == name).then(|| value.trim().trim_matches('\'').parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::tables::{Replication, layout::tests::clustered};

    fn wanted(database: &str, table: &str) -> ServerTable {
        ServerTable { database: database.to_owned(), table: table.to_owned(), kind: Kind::Rows }
    }

    #[test]
    fn names_cannot_leave_their_quotes() {
        for (name, quoted) in [
            ("events", "`events`"),
            ("a b", "`a b`"),
            ("a`; DROP TABLE b; --", "`a\\`; DROP TABLE b; --`"),
            ("a\\`b", "`a\\\\\\`b`"),
            ("a\\", "`a\\\\`"),
            ("a'\"b", "`a'\"b`"),
            ("a\nb\0", "`a\\nb\\0`"),
            ("події", "`події`"),
        ] {
            assert_eq!(identifier(name), quoted);
        }
    }

    #[test]
    fn statements_read_as_the_server_takes_them() {
        let wanted = wanted("shop", "ev`ents");
        assert_eq!(statement(&wanted, &TableAction::CreateDatabase), "CREATE DATABASE IF NOT EXISTS `shop`");
        let session = COLUMNS.iter().find(|column| column.name == "$session_id").unwrap();
        assert_eq!(
            statement(
                &wanted,
                &TableAction::AddColumn { column: session, after: Some("historical_migration".to_owned()) }
            ),
            "ALTER TABLE `shop`.`ev\\`ents` ADD COLUMN IF NOT EXISTS `$session_id` String MATERIALIZED \
             JSONExtractString(properties, '$session_id') AFTER `historical_migration`"
        );
        assert_eq!(
            statement(&wanted, &TableAction::AddColumn { column: &COLUMNS[0], after: None }),
            "ALTER TABLE `shop`.`ev\\`ents` ADD COLUMN IF NOT EXISTS `uuid` UUID FIRST"
        );
        assert_eq!(
            statement(
                &wanted,
                &TableAction::SetDeduplicationWindow { setting: WINDOW_SETTING, from: Some(1) }
            ),
            format!(
                "ALTER TABLE `shop`.`ev\\`ents` MODIFY SETTING non_replicated_deduplication_window = \
                 {DEDUPLICATION_WINDOW}"
            )
        );
        assert_eq!(drop_table(&wanted), "DROP TABLE IF EXISTS `shop`.`ev\\`ents` SYNC");
    }

    #[test]
    fn the_table_is_created_with_every_column_its_keys_and_its_window() {
        insta::assert_snapshot!(statement(&wanted("shop", "events"), &TableAction::CreateTable));
    }

    #[test]
    fn a_shard_without_a_keeper_has_a_table_as_a_single_server_has_it() {
        let server = &clustered(Replication::None, 1).servers()[0];
        assert_eq!(
            statement(&server.tables[0], &TableAction::CreateTable),
            statement(&wanted("shop", "events_local"), &TableAction::CreateTable)
        );
    }

    #[test]
    fn a_replica_is_created_with_the_path_that_it_shares_and_the_window_of_the_keeper() {
        let server = &clustered(Replication::Keeper, 2).servers()[0];
        insta::assert_snapshot!(statement(&server.tables[0], &TableAction::CreateTable));
    }

    #[test]
    fn the_distributed_table_has_every_column_and_the_key_that_the_export_places_rows_by() {
        let server = &clustered(Replication::Keeper, 2).servers()[0];
        insta::assert_snapshot!(statement(&server.tables[1], &TableAction::CreateTable));
    }

    #[test]
    fn texts_cannot_leave_their_quotes() {
        assert_eq!(literal("a'b\\"), "'a\\'b\\\\'");
    }

    #[test]
    fn a_setting_is_found_by_its_whole_name() {
        let full = "ReplacingMergeTree(_timestamp) ORDER BY (a, b) SETTINGS index_granularity = 8192, \
                    non_replicated_deduplication_window = 10000";
        assert_eq!(setting_of(full, WINDOW_SETTING), Some(10_000));
        assert_eq!(setting_of(full, REPLICATED_WINDOW_SETTING), None);
        assert_eq!(setting_of("MergeTree ORDER BY tuple()", WINDOW_SETTING), None);
        assert_eq!(
            setting_of(
                "MergeTree ORDER BY a SETTINGS storage_policy = 'x', replicated_deduplication_window = '7'",
                REPLICATED_WINDOW_SETTING
            ),
            Some(7)
        );
    }
}
