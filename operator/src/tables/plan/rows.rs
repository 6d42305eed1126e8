//! A table that takes rows: engine, keys, columns, deduplication window. Pure.

use std::collections::BTreeMap;

use penstock_crds::v1alpha1::Management;
use penstock_pipeline::events::table::{
    COLUMNS, Column, DEDUPLICATION_WINDOW, ORDER_BY, PARTITION_BY, SAMPLE_BY, VERSION_COLUMN, Value,
};

use super::{
    Decision, Difference,
    compare::{self, bare},
};
use crate::tables::{
    ObservedColumn, ObservedTable, Replication, TableAction,
    sql::{REPLICATED_WINDOW_SETTING, WINDOW_SETTING},
};

/// What is done about a table of the MergeTree family that is there.
pub(super) fn keep(table: &ObservedTable, replication: Replication, management: Management) -> Decision {
    if !table.engine.ends_with("MergeTree") {
        // A table of another kind is no table of ours: nothing of it is touched.
        return Decision::differs(Difference::NotMergeTree { engine: table.engine.clone() });
    }
    let mut actions = Vec::new();
    let mut differences = structure(table, replication);

    let has: BTreeMap<&str, &ObservedColumn> =
        table.columns.iter().map(|column| (column.name.as_str(), column)).collect();
    let mut missing: Vec<(usize, &'static Column)> = Vec::new();
    for (index, column) in COLUMNS.iter().enumerate() {
        match has.get(column.name) {
            None => missing.push((index, column)),
            Some(has) => differences.extend(compare::column(column, has)),
        }
    }
    match management {
        Management::Managed => actions.extend(missing.iter().map(|(index, column)| TableAction::AddColumn {
            column,
            after: index.checked_sub(1).map(|before| COLUMNS[before].name.to_owned()),
        })),
        Management::External if !missing.is_empty() => {
            differences.push(Difference::ColumnsMissing {
                columns: missing.iter().map(|(_, column)| column.name.to_owned()).collect(),
                inserted: missing.iter().any(|(_, column)| column.value == Value::Inserted),
            });
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
            Management::External => differences.push(Difference::WindowTooSmall { setting, has }),
        }
    }
    Decision { actions, differences }
}

/// Name of the setting that holds the deduplication window of a table with this engine.
pub(in crate::tables) fn window_setting(engine: &str) -> &'static str {
    if engine.starts_with("Replicated") || engine.starts_with("Shared") {
        REPLICATED_WINDOW_SETTING
    } else {
        WINDOW_SETTING
    }
}

fn structure(table: &ObservedTable, replication: Replication) -> Vec<Difference> {
    let mut differences = Vec::new();
    let replicated = table.engine.starts_with("Replicated") || table.engine.starts_with("Shared");
    // One server may well have a table that some Keeper replicates; a replica must.
    let wanted = match replication {
        Replication::Keeper => "ReplicatedReplacingMergeTree",
        Replication::None => "ReplacingMergeTree",
    };
    if !table.engine.ends_with("ReplacingMergeTree") || (replication == Replication::Keeper && !replicated) {
        differences.push(Difference::Structure {
            clause: "ENGINE",
            has: table.engine.clone(),
            wanted: format!("{wanted}({VERSION_COLUMN})"),
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

#[cfg(test)]
pub(in crate::tables) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{tables::plan::Finding, topics::Severity};

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

    /// A table as the operator creates it on one server.
    pub fn ours() -> ObservedTable {
        ObservedTable {
            engine: "ReplacingMergeTree".to_owned(),
            engine_full: String::new(),
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

    fn plan_for(table: ObservedTable, management: Management) -> Decision {
        keep(&table, Replication::None, management)
    }

    fn finding(what: &Difference) -> Finding {
        Finding { table: "shop.events".to_owned(), what: what.clone() }
    }

    fn severity(what: &Difference) -> Severity {
        finding(what).severity()
    }

    use Management::{External, Managed};

    #[test]
    fn a_table_of_ours_is_left_alone() {
        for management in [Managed, External] {
            assert_eq!(plan_for(ours(), management), Decision::default());
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
            external.differences,
            [Difference::ColumnsMissing {
                columns: vec!["uuid".to_owned(), "$session_id".to_owned(), "$window_id".to_owned()],
                inserted: true,
            }]
        );
        assert_eq!(severity(&external.differences[0]), Severity::Broken);
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
        assert_eq!(plan_for(table, Managed), Decision::default());
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
            plan.differences,
            [Difference::ColumnType {
                column: "team_id".to_owned(),
                has: "UInt32".to_owned(),
                wanted: "Int64".to_owned(),
            }],
            "another time zone is the same type"
        );
        assert_eq!(severity(&plan.differences[0]), Severity::Refused);
    }

    #[test]
    fn a_computed_column_where_the_export_inserts_breaks_it() {
        let mut table = ours();
        table.columns[1].default_kind = "MATERIALIZED".to_owned();
        let plan = plan_for(table, Managed);
        assert_eq!(
            plan.differences,
            [Difference::NotInsertable { column: "event".to_owned(), kind: "MATERIALIZED".to_owned() }]
        );
        assert_eq!(severity(&plan.differences[0]), Severity::Broken);
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
            .differences
            .iter()
            .map(|what| match what {
                Difference::Structure { clause, .. } => (*clause, severity(what)),
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
    fn a_replica_that_is_none_is_refused_and_a_single_server_may_have_one() {
        let plain = ours();
        let replicated = ObservedTable { engine: "ReplicatedReplacingMergeTree".to_owned(), ..ours() };
        assert_eq!(keep(&replicated, Replication::Keeper, Managed), Decision::default());
        assert_eq!(keep(&replicated, Replication::None, Managed), Decision::default());
        let decision = keep(&plain, Replication::Keeper, Managed);
        assert_eq!(decision.actions, []);
        assert!(matches!(&decision.differences[..], [what @ Difference::Structure { clause: "ENGINE", .. }]
            if severity(what) == Severity::Refused));
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
            assert_eq!(plan.differences, [Difference::NotMergeTree { engine: engine.to_owned() }]);
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
                plan_for(table, External).differences,
                [Difference::WindowTooSmall { setting, has: window }]
            );
        }
        let mut table = ours();
        table.deduplication_window = Some(1_000_000);
        assert_eq!(plan_for(table, Managed), Decision::default());
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
        assert_eq!(plan.differences.len(), 5);
        for what in plan.differences {
            let text = finding(&what).to_string();
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
            prop_assert_eq!(plan_for(table.clone(), Managed), Decision::default());
            prop_assert_eq!(table.columns, ours().columns);
        }
    }
}
