//! What is done about the difference between the table that an export needs and the one that is there. Pure.

use std::{collections::BTreeMap, fmt};

use penstock_crds::v1alpha1::Management;
use penstock_pipeline::events::table::{
    COLUMNS, Column, DEDUPLICATION_WINDOW, ORDER_BY, PARTITION_BY, SAMPLE_BY, VERSION_COLUMN, Value,
};

use super::{
    Observed, ObservedColumn, ObservedTable, TableAction, WantedTable,
    sql::{REPLICATED_WINDOW_SETTING, WINDOW_SETTING},
};
use crate::topics::Severity;

/// What is done, and what is refused or only reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablePlan {
    /// To be applied in this order, up to the first that fails.
    pub actions: Vec<TableAction>,
    /// For the conditions; the same on every pass until the spec or the world changes.
    pub findings: Vec<Finding>,
}

/// Something about a table that is not as the export needs it, and that the plan does not change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// `database.table`.
    pub table: String,
    /// What it is.
    pub what: Difference,
}

/// How a table differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// Somebody else manages it, and there is no such database.
    NoDatabase,
    /// Somebody else manages it, and there is no such table.
    NoTable,
    /// Its engine is not of the MergeTree family, so that an insert cannot be told from its repetition.
    NotMergeTree {
        /// The engine.
        engine: String,
    },
    /// A key or the engine differs. Changing it would mean writing the table anew.
    Structure {
        /// `ENGINE`, `ORDER BY`, `PARTITION BY` or `SAMPLE BY`.
        clause: &'static str,
        /// What the table has.
        has: String,
        /// What the export needs.
        wanted: String,
    },
    /// A column is of another type. Changing it could change or lose values.
    ColumnType {
        /// The column.
        column: String,
        /// Type that it has.
        has: String,
        /// Type that it needs.
        wanted: String,
    },
    /// The export fills this column, but the table computes it.
    NotInsertable {
        /// The column.
        column: String,
        /// `MATERIALIZED`, `ALIAS` or `EPHEMERAL`.
        kind: String,
    },
    /// Somebody else manages the table, and columns are missing.
    ColumnsMissing {
        /// The columns.
        columns: Vec<String>,
        /// Whether the export fills one of them.
        inserted: bool,
    },
    /// Somebody else manages the table, and the server remembers too few insert blocks.
    WindowTooSmall {
        /// Name of the setting.
        setting: &'static str,
        /// What the table sets.
        has: Option<u64>,
    },
}

impl Finding {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match &self.what {
            Difference::NoDatabase
            | Difference::NoTable
            | Difference::NotMergeTree { .. }
            | Difference::NotInsertable { .. }
            | Difference::ColumnsMissing { inserted: true, .. } => Severity::Broken,
            Difference::ColumnType { .. } | Difference::WindowTooSmall { .. } => Severity::Refused,
            Difference::Structure { clause, .. } if *clause == "ENGINE" || *clause == "ORDER BY" => {
                Severity::Refused
            }
            Difference::Structure { .. } | Difference::ColumnsMissing { inserted: false, .. } => {
                Severity::Notice
            }
        }
    }

    /// Reason for a condition or an Event: one word, stable.
    pub fn reason(&self) -> &'static str {
        match &self.what {
            Difference::NoDatabase => "DatabaseMissing",
            Difference::NoTable => "TableMissing",
            Difference::NotMergeTree { .. } => "TableEngineUnusable",
            Difference::Structure { .. } => "TableStructureDiffers",
            Difference::ColumnType { .. } => "ColumnTypeDiffers",
            Difference::NotInsertable { .. } => "ColumnNotInsertable",
            Difference::ColumnsMissing { .. } => "ColumnsMissing",
            Difference::WindowTooSmall { .. } => "DeduplicationWindowTooSmall",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = &self.table;
        match &self.what {
            Difference::NoDatabase => write!(
                f,
                "the database of {table} does not exist and management is External; create it, or set management to \
                 Managed"
            ),
            Difference::NoTable => write!(
                f,
                "table {table} does not exist and management is External; create it, or set management to Managed"
            ),
            Difference::NotMergeTree { engine } => write!(
                f,
                "table {table} has engine {engine}, into which events cannot be written exactly once; name a table of \
                 the MergeTree family, or another table and the operator creates it"
            ),
            Difference::Structure { clause, has, wanted } => write!(
                f,
                "table {table} has {clause} {has} where {wanted} is needed; this is not changed, since it means \
                 writing the table anew: name another table, or rename this one and copy its rows"
            ),
            Difference::ColumnType { column, has, wanted } => write!(
                f,
                "column {column} of table {table} has type {has} where {wanted} is needed; this is not changed, since \
                 it could change values: use ALTER TABLE … MODIFY COLUMN yourself, or name another table"
            ),
            Difference::NotInsertable { column, kind } => write!(
                f,
                "column {column} of table {table} is {kind}, but the export fills it; rename that column, or name \
                 another table"
            ),
            Difference::ColumnsMissing { columns, .. } => write!(
                f,
                "table {table} lacks the columns {} and management is External; add them, or set management to Managed",
                columns.join(", ")
            ),
            Difference::WindowTooSmall { setting, has } => write!(
                f,
                "table {table} has {setting} {} where {DEDUPLICATION_WINDOW} is needed and management is External; \
                 use ALTER TABLE … MODIFY SETTING {setting} = {DEDUPLICATION_WINDOW}",
                has.map_or("not set".to_owned(), |has| has.to_string())
            ),
        }
    }
}

impl TableAction {
    /// What it does, for the Event that tells of it.
    pub fn note(&self, wanted: &WantedTable) -> String {
        let WantedTable { database, table, .. } = wanted;
        match self {
            Self::CreateDatabase => format!("created database {database}"),
            Self::CreateTable => format!("created table {database}.{table}"),
            Self::AddColumn { column, .. } => {
                format!("added column {} {} to table {database}.{table}", column.name, column.type_)
            }
            Self::SetDeduplicationWindow { setting, from } => format!(
                "set {setting} of table {database}.{table} to {DEDUPLICATION_WINDOW} (was {})",
                from.map_or("not set".to_owned(), |from| from.to_string())
            ),
        }
    }
}

/// Decides. With [`Management::External`] there are no actions.
pub fn plan(wanted: &WantedTable, observed: &Observed, management: Management) -> TablePlan {
    let name = format!("{}.{}", wanted.database, wanted.table);
    let missing = |what| TablePlan { actions: vec![], findings: vec![Finding { table: name.clone(), what }] };
    match (observed, management) {
        (Observed::NoDatabase, Management::Managed) => TablePlan {
            actions: vec![TableAction::CreateDatabase, TableAction::CreateTable],
            findings: vec![],
        },
        (Observed::NoTable, Management::Managed) => {
            TablePlan { actions: vec![TableAction::CreateTable], findings: vec![] }
        }
        (Observed::NoDatabase, Management::External) => missing(Difference::NoDatabase),
        (Observed::NoTable, Management::External) => missing(Difference::NoTable),
        (Observed::Table(table), _) => keep(&name, table, management),
    }
}

fn keep(name: &str, table: &ObservedTable, management: Management) -> TablePlan {
    let finding = |what| Finding { table: name.to_owned(), what };
    if !table.engine.ends_with("MergeTree") {
        // A table of another kind is no table of ours: nothing of it is touched.
        return TablePlan {
            actions: vec![],
            findings: vec![finding(Difference::NotMergeTree { engine: table.engine.clone() })],
        };
    }
    let mut actions = Vec::new();
    let mut findings: Vec<Finding> = structure(table).into_iter().map(finding).collect();

    let has: BTreeMap<&str, &ObservedColumn> =
        table.columns.iter().map(|column| (column.name.as_str(), column)).collect();
    let mut missing: Vec<(usize, &'static Column)> = Vec::new();
    for (index, column) in COLUMNS.iter().enumerate() {
        match has.get(column.name) {
            None => missing.push((index, column)),
            Some(has) => findings.extend(compare(column, has).map(finding)),
        }
    }
    match management {
        Management::Managed => actions.extend(missing.iter().map(|(index, column)| TableAction::AddColumn {
            column,
            after: index.checked_sub(1).map(|before| COLUMNS[before].name.to_owned()),
        })),
        Management::External if !missing.is_empty() => {
            findings.push(finding(Difference::ColumnsMissing {
                columns: missing.iter().map(|(_, column)| column.name.to_owned()).collect(),
                inserted: missing.iter().any(|(_, column)| column.value == Value::Inserted),
            }));
        }
        Management::External => {}
    }

    let setting = window_setting(&table.engine);
    if table.deduplication_window.is_none_or(|window| window < u64::from(DEDUPLICATION_WINDOW)) {
        let has = table.deduplication_window;
        match management {
            Management::Managed => {
                actions.push(TableAction::SetDeduplicationWindow { setting, from: has });
            }
            Management::External => findings.push(finding(Difference::WindowTooSmall { setting, has })),
        }
    }
    TablePlan { actions, findings }
}

/// Name of the setting that holds the deduplication window of a table with this engine.
pub(super) fn window_setting(engine: &str) -> &'static str {
    if engine.starts_with("Replicated") || engine.starts_with("Shared") {
        REPLICATED_WINDOW_SETTING
    } else {
        WINDOW_SETTING
    }
}

fn structure(table: &ObservedTable) -> Vec<Difference> {
    let mut differences = Vec::new();
    if !table.engine.ends_with("ReplacingMergeTree") {
        differences.push(Difference::Structure {
            clause: "ENGINE",
            has: table.engine.clone(),
            wanted: format!("ReplacingMergeTree({VERSION_COLUMN})"),
        });
    }
    for (clause, has, wanted) in [
        ("ORDER BY", &table.sorting_key, ORDER_BY),
        ("PARTITION BY", &table.partition_key, PARTITION_BY),
        ("SAMPLE BY", &table.sampling_key, SAMPLE_BY),
    ] {
        if bare(has) != bare(wanted) {
            differences.push(Difference::Structure {
                clause,
                has: if has.is_empty() { "nothing".to_owned() } else { has.clone() },
                wanted: wanted.to_owned(),
            });
        }
    }
    differences
}

/// An expression list without blanks, back-quotes and the parentheses around all of it.
fn bare(expression: &str) -> String {
    let text: String =
        expression.chars().filter(|character| !character.is_whitespace() && *character != '`').collect();
    match text.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) if balanced(inner) => inner.to_owned(),
        _ => text,
    }
}

/// Whether no parenthesis of `text` closes one that was opened before it.
fn balanced(text: &str) -> bool {
    let mut depth = 0_i32;
    for character in text.chars() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}

fn compare(wanted: &Column, has: &ObservedColumn) -> Option<Difference> {
    let computed = matches!(has.default_kind.as_str(), "MATERIALIZED" | "ALIAS" | "EPHEMERAL");
    if wanted.value == Value::Inserted && computed {
        return Some(Difference::NotInsertable {
            column: wanted.name.to_owned(),
            kind: has.default_kind.clone(),
        });
    }
    if value_type(&has.type_) != value_type(wanted.type_) {
        return Some(Difference::ColumnType {
            column: wanted.name.to_owned(),
            has: has.type_.clone(),
            wanted: wanted.type_.to_owned(),
        });
    }
    None
}

/// A type without what only concerns how values are shown: blanks, and the time zone of times.
fn value_type(text: &str) -> String {
    let mut bare: String = text.chars().filter(|character| !character.is_whitespace()).collect();
    for (with_zone, without) in [("DateTime64(", true), ("DateTime(", false)] {
        let mut from = 0;
        while let Some(start) = bare[from..].find(with_zone).map(|at| from + at + with_zone.len()) {
            let Some(end) = bare[start..].find(')').map(|at| start + at) else { break };
            let precision: String = if without {
                bare[start..end].split(',').next().unwrap_or("").to_owned()
            } else {
                String::new()
            };
            bare.replace_range(start..end, &precision);
            from = start;
        }
    }
    bare.replace("DateTime()", "DateTime")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wanted() -> WantedTable {
        WantedTable {
            url: "http://localhost:8123".to_owned(),
            database: "shop".to_owned(),
            table: "events".to_owned(),
        }
    }

    fn column(column: &Column) -> ObservedColumn {
        ObservedColumn {
            name: column.name.to_owned(),
            type_: column.type_.to_owned(),
            default_kind: match column.value {
                Value::Inserted => "",
                Value::Default(_) => "DEFAULT",
                Value::Materialized(_) => "MATERIALIZED",
            }
            .to_owned(),
        }
    }

    fn ours() -> ObservedTable {
        ObservedTable {
            engine: "ReplacingMergeTree".to_owned(),
            partition_key: PARTITION_BY.to_owned(),
            sorting_key: bare_list(ORDER_BY),
            sampling_key: SAMPLE_BY.to_owned(),
            deduplication_window: Some(u64::from(DEDUPLICATION_WINDOW)),
            columns: COLUMNS.iter().map(column).collect(),
        }
    }

    /// As `system.tables` writes it: without the outer parentheses.
    fn bare_list(text: &str) -> String {
        text.trim_start_matches('(').strip_suffix(')').unwrap().to_owned()
    }

    fn plan_for(table: ObservedTable, management: Management) -> TablePlan {
        plan(&wanted(), &Observed::Table(table), management)
    }

    fn differences(plan: &TablePlan) -> Vec<Difference> {
        plan.findings.iter().map(|finding| finding.what.clone()).collect()
    }

    use Management::{External, Managed};

    #[test]
    fn a_table_of_ours_is_left_alone() {
        for management in [Managed, External] {
            assert_eq!(plan_for(ours(), management), TablePlan::default());
        }
    }

    #[test]
    fn what_is_missing_is_created_when_managed_and_reported_when_external() {
        assert_eq!(
            plan(&wanted(), &Observed::NoDatabase, Managed).actions,
            [TableAction::CreateDatabase, TableAction::CreateTable]
        );
        assert_eq!(plan(&wanted(), &Observed::NoTable, Managed).actions, [TableAction::CreateTable]);
        for (observed, what) in
            [(Observed::NoDatabase, Difference::NoDatabase), (Observed::NoTable, Difference::NoTable)]
        {
            let plan = plan(&wanted(), &observed, External);
            assert_eq!(plan.actions, []);
            assert_eq!(differences(&plan), [what]);
            assert_eq!(plan.findings[0].severity(), Severity::Broken);
        }
    }

    #[test]
    fn missing_columns_are_added_each_in_its_place() {
        let mut table = ours();
        table.columns.retain(|column| !["uuid", "$session_id", "$window_id"].contains(&column.name.as_str()));
        let plan = plan_for(table.clone(), Managed);
        let added: Vec<_> = plan
            .actions
            .iter()
            .map(|action| match action {
                TableAction::AddColumn { column, after } => (column.name, after.as_deref()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            added,
            [
                ("uuid", None),
                ("$session_id", Some("historical_migration")),
                ("$window_id", Some("$session_id"))
            ]
        );

        let external = plan_for(table, External);
        assert_eq!(external.actions, []);
        assert_eq!(
            differences(&external),
            [Difference::ColumnsMissing {
                columns: vec!["uuid".to_owned(), "$session_id".to_owned(), "$window_id".to_owned()],
                inserted: true,
            }]
        );
        assert_eq!(external.findings[0].severity(), Severity::Broken);
    }

    #[test]
    fn columns_of_the_users_own_are_left_alone() {
        let mut table = ours();
        table.columns.insert(
            3,
            ObservedColumn {
                name: "mine".to_owned(),
                type_: "String".to_owned(),
                default_kind: String::new(),
            },
        );
        assert_eq!(plan_for(table, Managed), TablePlan::default());
    }

    #[test]
    fn a_column_of_another_type_is_refused_and_nothing_is_done_to_it() {
        let mut table = ours();
        for column in &mut table.columns {
            match column.name.as_str() {
                "team_id" => column.type_ = "UInt32".to_owned(),
                "timestamp" => column.type_ = "DateTime64(6, 'Europe/Vienna')".to_owned(),
                "_timestamp" => column.type_ = "DateTime('UTC')".to_owned(),
                _ => {}
            }
        }
        let plan = plan_for(table, Managed);
        assert_eq!(plan.actions, []);
        assert_eq!(
            differences(&plan),
            [Difference::ColumnType {
                column: "team_id".to_owned(),
                has: "UInt32".to_owned(),
                wanted: "Int64".to_owned(),
            }],
            "another time zone is the same type"
        );
        assert_eq!(plan.findings[0].severity(), Severity::Refused);
    }

    #[test]
    fn a_computed_column_where_the_export_inserts_breaks_it() {
        let mut table = ours();
        table.columns[1].default_kind = "MATERIALIZED".to_owned();
        let plan = plan_for(table, Managed);
        assert_eq!(
            differences(&plan),
            [Difference::NotInsertable { column: "event".to_owned(), kind: "MATERIALIZED".to_owned() }]
        );
        assert_eq!(plan.findings[0].severity(), Severity::Broken);
    }

    #[test]
    fn other_keys_and_engines_are_refused() {
        let mut table = ours();
        table.engine = "MergeTree".to_owned();
        table.sorting_key = "team_id, timestamp".to_owned();
        table.partition_key = "toDate(timestamp)".to_owned();
        table.sampling_key = String::new();
        let plan = plan_for(table, Managed);
        assert_eq!(plan.actions, []);
        let clauses: Vec<_> = plan
            .findings
            .iter()
            .map(|finding| match &finding.what {
                Difference::Structure { clause, .. } => (*clause, finding.severity()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(
            clauses,
            [
                ("ENGINE", Severity::Refused),
                ("ORDER BY", Severity::Refused),
                ("PARTITION BY", Severity::Notice),
                ("SAMPLE BY", Severity::Notice),
            ]
        );
    }

    #[test]
    fn a_view_or_a_distributed_table_is_not_touched_at_all() {
        for engine in ["View", "Distributed", "Log", "Kafka"] {
            let mut table = ours();
            table.engine = engine.to_owned();
            table.columns.clear();
            table.deduplication_window = None;
            let plan = plan_for(table, Managed);
            assert_eq!(plan.actions, [], "{engine}");
            assert_eq!(differences(&plan), [Difference::NotMergeTree { engine: engine.to_owned() }]);
        }
    }

    #[test]
    fn a_window_that_shrank_is_widened_and_a_wider_one_is_kept() {
        for (window, engine, setting) in [
            (None, "ReplacingMergeTree", WINDOW_SETTING),
            (Some(100), "ReplacingMergeTree", WINDOW_SETTING),
            (Some(100), "ReplicatedReplacingMergeTree", REPLICATED_WINDOW_SETTING),
            (None, "SharedReplacingMergeTree", REPLICATED_WINDOW_SETTING),
        ] {
            let mut table = ours();
            table.engine = engine.to_owned();
            table.deduplication_window = window;
            assert_eq!(
                plan_for(table.clone(), Managed).actions,
                [TableAction::SetDeduplicationWindow { setting, from: window }]
            );
            assert_eq!(
                differences(&plan_for(table, External)),
                [Difference::WindowTooSmall { setting, has: window }]
            );
        }
        let mut table = ours();
        table.deduplication_window = Some(1_000_000);
        assert_eq!(plan_for(table, Managed), TablePlan::default());
    }

    #[test]
    fn types_are_compared_by_their_values() {
        for (a, b) in [
            ("DateTime64(3)", "DateTime64(3, 'UTC')"),
            ("DateTime", "DateTime('UTC')"),
            ("Nullable(DateTime64(6, 'UTC'))", "Nullable(DateTime64(6))"),
            ("Enum8('a' = 0, 'b' = 1)", "Enum8('a'=0,'b'=1)"),
        ] {
            assert_eq!(value_type(a), value_type(b), "{a} {b}");
        }
        for (a, b) in [
            ("DateTime64(3)", "DateTime64(6)"),
            ("DateTime", "DateTime64(3)"),
            ("String", "LowCardinality(String)"),
            ("String", "Nullable(String)"),
        ] {
            assert_ne!(value_type(a), value_type(b), "{a} {b}");
        }
    }

    #[test]
    fn every_refusal_says_what_to_do() {
        let mut table = ours();
        table.engine = "MergeTree".to_owned();
        table.columns[0].type_ = "String".to_owned();
        table.columns[1].default_kind = "ALIAS".to_owned();
        table.columns.pop();
        table.deduplication_window = Some(1);
        let plan = plan_for(table, External);
        assert_eq!(plan.findings.len(), 5);
        for finding in plan.findings {
            let text = finding.to_string();
            assert!(text.contains("shop.events"), "{text}");
            assert!(
                ["name another table", "set management to Managed", "MODIFY SETTING"]
                    .iter()
                    .any(|way_out| text.contains(way_out)),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_columns_are_missing_one_application_reaches_rest(
            kept in proptest::collection::vec(any::<bool>(), COLUMNS.len()),
            window in proptest::option::of(0..20_000_u64),
        ) {
            let mut table = ours();
            let mut keep = kept.iter();
            table.columns.retain(|_| *keep.next().unwrap());
            table.deduplication_window = window;
            let first = plan_for(table.clone(), Managed);
            for action in &first.actions {
                match action {
                    TableAction::AddColumn { column: added, after } => {
                        let place = match after {
                            None => 0,
                            // The server refuses a place after a column that is not there.
                            Some(after) => 1 + table
                                .columns
                                .iter()
                                .position(|column| column.name == *after)
                                .expect("the place exists"),
                        };
                        table.columns.insert(place, column(added));
                    }
                    TableAction::SetDeduplicationWindow { .. } => {
                        table.deduplication_window = Some(u64::from(DEDUPLICATION_WINDOW));
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert_eq!(plan_for(table.clone(), Managed), TablePlan::default());
            prop_assert_eq!(table.columns, ours().columns);
        }
    }
}
