//! The Distributed table over the shards. Pure.

use std::collections::BTreeMap;

use penstock_crds::v1alpha1::Management;
use penstock_pipeline::events::table::COLUMNS;

use super::{Decision, Difference, compare};
use crate::tables::{ObservedTable, TableAction, sql::distributed_engine};

/// What is done about a table of that name that is there. It takes no rows of ours, so that a column which it computes
/// is none of our business.
pub(super) fn keep(
    table: &ObservedTable,
    cluster: &str,
    database: &str,
    local: &str,
    management: Management,
) -> Decision {
    if table.engine != "Distributed" {
        return Decision::differs(Difference::NotDistributed { engine: table.engine.clone() });
    }
    let mut decision = Decision::default();
    let wanted = distributed_engine(cluster, database, local);
    let (has, _) = table.engine_full.split_once(" SETTINGS ").unwrap_or((&table.engine_full, ""));
    if !is_engine(has, &wanted) {
        decision.differences.push(Difference::Distributed { has: has.to_owned(), wanted });
    }
    let has: BTreeMap<&str, _> = table.columns.iter().map(|column| (column.name.as_str(), column)).collect();
    let mut missing = Vec::new();
    for (index, column) in COLUMNS.iter().enumerate() {
        match has.get(column.name) {
            Some(has) => decision.differences.extend(compare::column_type(column, has)),
            None if management == Management::Managed => decision.actions.push(TableAction::AddColumn {
                column,
                after: index.checked_sub(1).map(|before| COLUMNS[before].name.to_owned()),
            }),
            None => missing.push(column.name.to_owned()),
        }
    }
    if !missing.is_empty() {
        decision.differences.push(Difference::ColumnsMissing { columns: missing, inserted: false });
    }
    decision
}

/// Whether the engine is the one that is wanted, quotes and blanks aside; a storage policy may follow the key.
fn is_engine(has: &str, wanted: &str) -> bool {
    let plain = |text: &str| -> String {
        text.chars().filter(|c| !c.is_whitespace() && !['\'', '`', '"'].contains(c)).collect()
    };
    let (has, wanted) = (plain(has), plain(wanted));
    match has.strip_prefix(wanted.trim_end_matches(')')) {
        // `)` closes the key's own parenthesis, and the next one, or a comma, follows.
        Some(rest) => rest.trim_start_matches(')').is_empty() || rest.starts_with("),"),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::rows, *};
    use Management::{External, Managed};

    fn ours() -> ObservedTable {
        ObservedTable {
            engine: "Distributed".to_owned(),
            engine_full: "Distributed('penstock', 'shop', 'events_local', sipHash64(distinct_id))".to_owned(),
            ..rows::tests::ours()
        }
    }

    fn decide(table: &ObservedTable, management: Management) -> Decision {
        keep(table, "penstock", "shop", "events_local", management)
    }

    #[test]
    fn a_distributed_table_of_ours_is_left_alone() {
        for engine in [
            "Distributed('penstock', 'shop', 'events_local', sipHash64(distinct_id))",
            "Distributed(penstock, `shop`, events_local, sipHash64(distinct_id)) SETTINGS fsync_after_insert = 1",
            "Distributed('penstock', 'shop', 'events_local', sipHash64(distinct_id), 'fast')",
        ] {
            let table = ObservedTable { engine_full: engine.to_owned(), ..ours() };
            assert_eq!(decide(&table, Managed), Decision::default(), "{engine}");
            assert_eq!(decide(&table, External), Decision::default(), "{engine}");
        }
    }

    #[test]
    fn one_that_places_rows_elsewhere_is_refused_and_not_touched() {
        for engine in [
            "Distributed('penstock', 'shop', 'events_local', rand())",
            "Distributed('penstock', 'shop', 'events_local', sipHash64(distinct_id, uuid))",
            "Distributed('penstock', 'shop', 'events_local')",
            "Distributed('penstock', 'shop', 'other', sipHash64(distinct_id))",
            "Distributed('other', 'shop', 'events_local', sipHash64(distinct_id))",
        ] {
            let table = ObservedTable { engine_full: engine.to_owned(), ..ours() };
            let decision = decide(&table, Managed);
            assert_eq!(decision.actions, [], "{engine}");
            assert!(matches!(decision.differences[..], [Difference::Distributed { .. }]), "{engine}");
        }
        let decision = decide(&rows::tests::ours(), Managed);
        assert_eq!(
            decision,
            Decision::differs(Difference::NotDistributed { engine: "ReplacingMergeTree".into() })
        );
    }

    #[test]
    fn a_missing_column_is_added_in_its_place() {
        let mut table = ours();
        table.columns.retain(|column| column.name != "event");
        let decision = decide(&table, Managed);
        assert_eq!(
            decision.actions,
            [TableAction::AddColumn { column: &COLUMNS[1], after: Some("uuid".to_owned()) }]
        );
        assert_eq!(
            decide(&table, External).differences,
            [Difference::ColumnsMissing { columns: vec!["event".to_owned()], inserted: false }]
        );
    }
}
