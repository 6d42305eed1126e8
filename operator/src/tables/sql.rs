//! The statements, as text. Names come from users: every one is quoted. Pure.

use penstock_pipeline::events::table::{
    COLUMNS, Column, DEDUPLICATION_WINDOW, ORDER_BY, PARTITION_BY, SAMPLE_BY, VERSION_COLUMN, Value,
};

use super::{TableAction, WantedTable};

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

/// `database`.`table`.
pub(super) fn full_name(wanted: &WantedTable) -> String {
    format!("{}.{}", identifier(&wanted.database), identifier(&wanted.table))
}

/// The statement that does it. Each can be repeated without harm.
pub(super) fn statement(wanted: &WantedTable, action: &TableAction) -> String {
    match action {
        TableAction::CreateDatabase => {
            format!("CREATE DATABASE IF NOT EXISTS {}", identifier(&wanted.database))
        }
        TableAction::CreateTable => create_table(wanted),
        TableAction::AddColumn { column, after } => format!(
            "ALTER TABLE {} ADD COLUMN IF NOT EXISTS {} {}",
            full_name(wanted),
            definition(column),
            match after {
                Some(after) => format!("AFTER {}", identifier(after)),
                None => "FIRST".to_owned(),
            }
        ),
        TableAction::SetDeduplicationWindow { setting, .. } => {
            format!("ALTER TABLE {} MODIFY SETTING {setting} = {DEDUPLICATION_WINDOW}", full_name(wanted))
        }
    }
}

/// Takes the table away with all its rows, and waits until it is gone.
pub(super) fn drop_table(wanted: &WantedTable) -> String {
    format!("DROP TABLE IF EXISTS {} SYNC", full_name(wanted))
}

fn create_table(wanted: &WantedTable) -> String {
    let columns: Vec<String> = COLUMNS.iter().map(|column| format!("    {}", definition(column))).collect();
    format!(
        "CREATE TABLE IF NOT EXISTS {} (\n{}\n)\nENGINE = ReplacingMergeTree({})\nPARTITION BY {PARTITION_BY}\n\
         ORDER BY {ORDER_BY}\nSAMPLE BY {SAMPLE_BY}\nSETTINGS {WINDOW_SETTING} = {DEDUPLICATION_WINDOW}",
        full_name(wanted),
        columns.join(",\n"),
        identifier(VERSION_COLUMN),
    )
}

fn definition(column: &Column) -> String {
    let mut text = format!("{} {}", identifier(column.name), column.type_);
    match column.value {
        Value::Inserted => {}
        Value::Default(expression) => text.push_str(&format!(" DEFAULT {expression}")),
        Value::Materialized(expression) => text.push_str(&format!(" MATERIALIZED {expression}")),
    }
    if let Some(codec) = column.codec {
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

    fn wanted(database: &str, table: &str) -> WantedTable {
        WantedTable {
            url: "http://localhost:8123".to_owned(),
            database: database.to_owned(),
            table: table.to_owned(),
        }
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
