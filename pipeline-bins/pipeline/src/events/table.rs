//! The ClickHouse `events` table: PostHog's columns, and where in Kafka each row comes from.
//!
//! One definition for both sides: the operator creates the table from it, the export inserts into it. Source of the
//! PostHog columns and keys: their public `events` schema (facts, 2026-11).

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Name.
    pub name: &'static str,
    /// ClickHouse type.
    pub type_: &'static str,
    /// Compression codec, as in `CODEC(…)`.
    pub codec: Option<&'static str>,
    /// Who fills it.
    pub value: Value,
}

/// Who fills a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The export; every row has it.
    Inserted,
    /// `DEFAULT <expression>`; not inserted.
    Default(&'static str),
    /// `MATERIALIZED <expression>`.
    Materialized(&'static str),
}

const fn inserted(name: &'static str, type_: &'static str) -> Column {
    Column { name, type_, codec: None, value: Value::Inserted }
}

const fn defaulted(name: &'static str, type_: &'static str, expression: &'static str) -> Column {
    Column { name, type_, codec: None, value: Value::Default(expression) }
}

const fn materialized(name: &'static str, type_: &'static str, expression: &'static str) -> Column {
    Column { name, type_, codec: None, value: Value::Materialized(expression) }
}

const fn json(name: &'static str, value: Value) -> Column {
    Column { name, type_: "String", codec: Some("ZSTD(3)"), value }
}

/// Columns, in the order of the table. The inserted ones are inserted in this order.
pub const COLUMNS: &[Column] = &[
    inserted("uuid", "UUID"),
    inserted("event", "String"),
    json("properties", Value::Inserted),
    inserted("timestamp", "DateTime64(6, 'UTC')"),
    inserted("team_id", "Int64"),
    inserted("project_id", "Int64"),
    inserted("distinct_id", "String"),
    inserted("elements_chain", "String"),
    inserted("created_at", "DateTime64(6, 'UTC')"),
    inserted("captured_at", "DateTime64(6, 'UTC')"),
    inserted("person_id", "UUID"),
    inserted("person_created_at", "DateTime64(3)"),
    json("person_properties", Value::Inserted),
    json("group0_properties", Value::Default("''")),
    json("group1_properties", Value::Default("''")),
    json("group2_properties", Value::Default("''")),
    json("group3_properties", Value::Default("''")),
    json("group4_properties", Value::Default("''")),
    defaulted("group0_created_at", "DateTime64(3)", "toDateTime64(0, 3)"),
    defaulted("group1_created_at", "DateTime64(3)", "toDateTime64(0, 3)"),
    defaulted("group2_created_at", "DateTime64(3)", "toDateTime64(0, 3)"),
    defaulted("group3_created_at", "DateTime64(3)", "toDateTime64(0, 3)"),
    defaulted("group4_created_at", "DateTime64(3)", "toDateTime64(0, 3)"),
    inserted("person_mode", "Enum8('full' = 0, 'propertyless' = 1, 'force_upgrade' = 2)"),
    inserted("historical_migration", "Bool"),
    materialized("$session_id", "String", "JSONExtractString(properties, '$session_id')"),
    materialized("$window_id", "String", "JSONExtractString(properties, '$window_id')"),
    materialized("$group_0", "String", "JSONExtractString(properties, '$group_0')"),
    materialized("$group_1", "String", "JSONExtractString(properties, '$group_1')"),
    materialized("$group_2", "String", "JSONExtractString(properties, '$group_2')"),
    materialized("$group_3", "String", "JSONExtractString(properties, '$group_3')"),
    materialized("$group_4", "String", "JSONExtractString(properties, '$group_4')"),
    inserted("_timestamp", "DateTime"),
    inserted("_topic_id", "LowCardinality(String)"),
    inserted("_partition", "UInt64"),
    inserted("_offset", "UInt64"),
    defaulted("inserted_at", "Nullable(DateTime64(6, 'UTC'))", "now64()"),
];

/// `PARTITION BY`.
pub const PARTITION_BY: &str = "toYYYYMM(timestamp)";

/// `ORDER BY`: events that a client repeats fold when project, day, event, distinct id and UUID agree.
pub const ORDER_BY: &str = "(team_id, toDate(timestamp), event, cityHash64(distinct_id), cityHash64(uuid))";

/// `SAMPLE BY`.
pub const SAMPLE_BY: &str = "cityHash64(distinct_id)";

/// Version column of the ReplacingMergeTree.
pub const VERSION_COLUMN: &str = "_timestamp";

/// `non_replicated_deduplication_window` of the table: insert blocks whose tokens the server remembers.
pub const DEDUPLICATION_WINDOW: u32 = 10_000;
