//! Plans over several servers.

use std::collections::BTreeMap;

use super::{super::layout::tests::clustered, *};
use crate::{
    tables::{ObservedTable, sql},
    topics::Severity,
};
use Management::{External, Managed};

fn single() -> WantedTable {
    WantedTable { cluster: None, ..clustered(Replication::None, 1) }
}

fn replication(wanted: &WantedTable) -> Replication {
    wanted.cluster.as_ref().map_or(Replication::None, |cluster| cluster.replication)
}

/// A table as the operator creates it.
fn as_created(table: &ServerTable) -> ObservedTable {
    let ours = rows::tests::ours();
    match &table.kind {
        Kind::Rows => ours,
        Kind::ReplicatedRows { .. } => {
            ObservedTable { engine: "ReplicatedReplacingMergeTree".to_owned(), ..ours }
        }
        Kind::Distributed { cluster, local } => ObservedTable {
            engine: "Distributed".to_owned(),
            engine_full: sql::distributed_engine(cluster, &table.database, local),
            ..ours
        },
    }
}

/// What is seen when this of every table is seen, and every server sees its cluster as it is.
fn seen(wanted: &WantedTable, of: impl Fn(&ServerTable) -> Observed) -> Observation {
    wanted
        .servers()
        .into_iter()
        .map(|server| {
            let local = match server.place {
                Place::Replica { shard, .. } => u32::try_from(shard).ok(),
                Place::Alone | Place::Entry => None,
            };
            let replicas = wanted.cluster.as_ref().map_or(0, |cluster| cluster.shards[0].replicas.len());
            let seen = Seen {
                tables: server.tables.iter().map(|table| (table.table.clone(), of(table))).collect(),
                members: topology::tests::members(u32::try_from(replicas).unwrap(), local),
            };
            (server.url, Answer::Reachable(seen))
        })
        .collect()
}

fn at_rest(wanted: &WantedTable) -> Observation {
    seen(wanted, |table| Observed::Table(as_created(table)))
}

fn table<'a>(observation: &'a mut Observation, url: &str, table: &str) -> &'a mut ObservedTable {
    let Some(Answer::Reachable(seen)) = observation.get_mut(url) else { panic!("no answer of {url}") };
    match seen.tables.get_mut(table) {
        Some(Observed::Table(table)) => table,
        other => panic!("{other:?}"),
    }
}

fn silence(observation: &mut Observation, url: &str) {
    let why = "it is away".into();
    *observation.get_mut(url).unwrap() = Answer::Unreachable { why };
}

/// Each change as one line.
fn lines(plan: &TablePlan) -> Vec<String> {
    plan.changes.iter().map(Change::note).collect()
}

#[test]
fn what_is_missing_is_created_when_managed_and_reported_when_external() {
    let wanted = single();
    let nothing = |observed: Observed| seen(&wanted, move |_| observed.clone());
    assert_eq!(
        lines(&plan(&wanted, &nothing(Observed::NoDatabase), Managed)),
        ["created database shop", "created table shop.events"]
    );
    assert_eq!(lines(&plan(&wanted, &nothing(Observed::NoTable), Managed)), ["created table shop.events"]);
    for (observed, what) in
        [(Observed::NoDatabase, Difference::NoDatabase), (Observed::NoTable, Difference::NoTable)]
    {
        let plan = plan(&wanted, &nothing(observed), External);
        assert_eq!(plan.changes, []);
        assert_eq!(plan.findings, [Finding { table: "shop.events".to_owned(), what }]);
        assert_eq!(plan.findings[0].severity(), Severity::Broken);
    }
}

#[test]
fn what_is_as_wanted_is_left_alone() {
    for wanted in [single(), clustered(Replication::None, 1), clustered(Replication::Keeper, 2)] {
        for management in [Managed, External] {
            assert_eq!(plan(&wanted, &at_rest(&wanted), management), TablePlan::default());
        }
    }
}

#[test]
fn on_every_shard_the_rows_come_before_what_is_distributed_over_them() {
    let wanted = clustered(Replication::None, 1);
    let plan = plan(&wanted, &seen(&wanted, |_| Observed::NoDatabase), Managed);
    assert_eq!(
        lines(&plan),
        [
            "created database shop on shard 1 (ch-0-0:8123)",
            "created table shop.events_local on shard 1 (ch-0-0:8123)",
            "created database shop on shard 2 (ch-1-0:8123)",
            "created table shop.events_local on shard 2 (ch-1-0:8123)",
            "created table shop.events on shard 1 (ch-0-0:8123)",
            "created table shop.events on shard 2 (ch-1-0:8123)",
            "created database shop on url (ch:8123)",
            "created table shop.events on url (ch:8123)",
        ]
    );
}

#[test]
fn drift_of_one_shard_is_repaired_there() {
    let wanted = clustered(Replication::None, 1);
    let mut observation = at_rest(&wanted);
    let drifted = table(&mut observation, "http://ch-1-0:8123", "events_local");
    drifted.columns.retain(|column| column.name != "event");
    drifted.deduplication_window = Some(7);
    assert_eq!(
        lines(&plan(&wanted, &observation, Managed)),
        [
            "added column event String to table shop.events_local on shard 2 (ch-1-0:8123)",
            "set non_replicated_deduplication_window of table shop.events_local to 10000 (was 7) on shard 2 \
             (ch-1-0:8123)",
        ]
    );
}

#[test]
fn one_replica_is_told_of_a_column_and_the_keeper_tells_the_others() {
    let wanted = clustered(Replication::Keeper, 2);
    let mut observation = at_rest(&wanted);
    for server in wanted.servers().iter().filter(|server| server.place != Place::Entry) {
        let table = table(&mut observation, &server.url, "events_local");
        table.columns.retain(|column| column.name != "event");
        table.deduplication_window = None;
    }
    let lines = lines(&plan(&wanted, &observation, Managed));
    let columns: Vec<&String> = lines.iter().filter(|line| line.starts_with("added")).collect();
    assert_eq!(
        columns,
        [
            "added column event String to table shop.events_local on shard 1, replica 1 (ch-0-0:8123)",
            "added column event String to table shop.events_local on shard 2, replica 1 (ch-1-0:8123)",
        ]
    );
    assert_eq!(lines.len() - columns.len(), 4, "settings are each replica's own: {lines:?}");
}

#[test]
fn a_shard_that_is_away_keeps_nobody_from_being_repaired_but_readers_get_no_column_that_it_may_lack() {
    let wanted = clustered(Replication::None, 1);
    let mut observation = at_rest(&wanted);
    for name in ["events_local", "events"] {
        table(&mut observation, "http://ch-0-0:8123", name).columns.retain(|column| column.name != "event");
    }
    let local = "added column event String to table shop.events_local on shard 1 (ch-0-0:8123)";
    let distributed = "added column event String to table shop.events on shard 1 (ch-0-0:8123)";
    assert_eq!(lines(&plan(&wanted, &observation, Managed)), [local, distributed]);
    silence(&mut observation, "http://ch-1-0:8123");
    let plan = plan(&wanted, &observation, Managed);
    assert_eq!(lines(&plan), [local]);
    assert_eq!(plan.findings, []);
}

#[test]
fn a_refusal_names_the_shard() {
    let wanted = clustered(Replication::None, 1);
    let mut observation = at_rest(&wanted);
    table(&mut observation, "http://ch-1-0:8123", "events_local").sorting_key = "team_id".to_owned();
    let plan = plan(&wanted, &observation, Managed);
    assert_eq!(plan.changes, []);
    let text = plan.findings[0].to_string();
    assert!(text.contains("shop.events_local on shard 2 (ch-1-0:8123) has ORDER BY team_id"), "{text}");
}

#[test]
fn a_server_that_does_not_know_the_cluster_gets_its_rows_table_and_no_distributed_one() {
    let wanted = clustered(Replication::None, 1);
    let mut observation = seen(&wanted, |_| Observed::NoTable);
    let Some(Answer::Reachable(seen)) = observation.get_mut("http://ch-0-0:8123") else { panic!() };
    seen.members.clear();
    let plan = plan(&wanted, &observation, Managed);
    let here: Vec<String> =
        lines(&plan).into_iter().filter(|line| line.contains("shard 1 (ch-0-0:8123)")).collect();
    assert_eq!(here, ["created table shop.events_local on shard 1 (ch-0-0:8123)"]);
    assert!(plan.findings.iter().any(|finding| finding.what.disputes_topology()), "{:?}", plan.findings);
}

#[test]
fn whatever_was_there_before_one_application_reaches_rest() {
    for wanted in [single(), clustered(Replication::None, 1), clustered(Replication::Keeper, 2)] {
        let first = plan(&wanted, &seen(&wanted, |_| Observed::NoDatabase), Managed);
        // What the changes make, by server and table.
        let mut made: BTreeMap<(String, String), Observed> = BTreeMap::new();
        for change in first.changes {
            if change.action == TableAction::CreateTable {
                made.insert(
                    (change.url, change.table.table.clone()),
                    Observed::Table(as_created(&change.table)),
                );
            }
        }
        let mut observation = at_rest(&wanted);
        for (url, answer) in &mut observation {
            let Answer::Reachable(seen) = answer else { panic!() };
            for (name, observed) in &mut seen.tables {
                *observed = made.remove(&(url.clone(), name.clone())).unwrap_or(Observed::NoTable);
            }
        }
        assert_eq!(plan(&wanted, &observation, Managed), TablePlan::default(), "{:?}", replication(&wanted));
    }
}
