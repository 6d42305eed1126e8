//! What is done about the difference between the tables that an export needs and those that are there. Pure.

mod compare;
mod distributed;
mod finding;
mod rows;
mod topology;

use std::collections::BTreeSet;

use penstock_crds::v1alpha1::Management;
use penstock_pipeline::events::table::DEDUPLICATION_WINDOW;

pub use finding::{Difference, Finding};
pub(super) use rows::window_setting;

use super::{
    Answer, Kind, Observation, Observed, Place, Replication, Seen, Server, ServerTable, TableAction,
    WantedTable,
};

/// What is done, and what is refused or only reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TablePlan {
    /// To be applied in this order.
    pub changes: Vec<Change>,
    /// For the conditions; the same on every pass until the spec or the world changes.
    pub findings: Vec<Finding>,
}

/// A change on one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// URL of the server.
    pub url: String,
    /// The server for people; empty for the only one.
    pub server: String,
    /// The table.
    pub table: ServerTable,
    /// What is done to it.
    pub action: TableAction,
}

impl Change {
    /// What it does, for the Event that tells of it.
    pub fn note(&self) -> String {
        let ServerTable { database, table, .. } = &self.table;
        let what = match &self.action {
            TableAction::CreateDatabase => format!("created database {database}"),
            TableAction::CreateTable => format!("created table {database}.{table}"),
            TableAction::AddColumn { column, .. } => {
                format!("added column {} {} to table {database}.{table}", column.name, column.type_)
            }
            TableAction::SetDeduplicationWindow { setting, from } => format!(
                "set {setting} of table {database}.{table} to {DEDUPLICATION_WINDOW} (was {})",
                from.map_or("not set".to_owned(), |from| from.to_string())
            ),
        };
        if self.server.is_empty() { what } else { format!("{what} on {}", self.server) }
    }
}

/// What is decided about one table of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Decision {
    actions: Vec<TableAction>,
    differences: Vec<Difference>,
}

impl Decision {
    fn does(actions: &[TableAction]) -> Self {
        Self { actions: actions.to_vec(), differences: vec![] }
    }

    fn differs(what: Difference) -> Self {
        Self { actions: vec![], differences: vec![what] }
    }
}

/// Decides. With [`Management::External`] there are no changes. A server that did not answer is left out: what the others
/// lack is done all the same, except that a Distributed table gets no column that a shard may not have.
pub fn plan(wanted: &WantedTable, observation: &Observation, management: Management) -> TablePlan {
    let mut plan = TablePlan::default();
    let servers = wanted.servers();
    let seen: Vec<(&Server, &Seen)> = servers
        .iter()
        .filter_map(|server| match observation.get(&server.url) {
            Some(Answer::Reachable(seen)) => Some((server, seen)),
            Some(Answer::Unreachable { .. }) | None => None,
        })
        .collect();
    let complete = seen.len() == servers.len();

    let mut unknown: BTreeSet<&str> = BTreeSet::new();
    if let Some(cluster) = &wanted.cluster {
        for (server, seen) in &seen {
            for what in topology::compare(cluster, server.place, &seen.members) {
                if matches!(what, Difference::NoCluster { .. }) {
                    unknown.insert(&server.url);
                }
                plan.findings.push(finding(server, &wanted.full_name(), what));
            }
        }
    }

    // Rows first: the Distributed table stands on them.
    let mut on_its_way = BTreeSet::new();
    for (server, seen) in &seen {
        for table in server.tables.iter().filter(|table| !is_distributed(table)) {
            let mut decision = decide(table, seen, management);
            if let (Place::Replica { shard, .. }, Kind::ReplicatedRows { .. }) = (server.place, &table.kind) {
                // One replica is told, and the Keeper tells the others; two at once would collide.
                decision.actions.retain(|action| match action {
                    TableAction::AddColumn { column, .. } => on_its_way.insert((shard, column.name)),
                    _ => true,
                });
            }
            plan.add(server, table, decision);
        }
    }
    for (server, seen) in &seen {
        for table in server.tables.iter().filter(|table| is_distributed(table)) {
            let mut decision = decide(table, seen, management);
            if unknown.contains(server.url.as_str()) {
                decision.actions.clear();
            }
            if !complete {
                decision.actions.retain(|action| !matches!(action, TableAction::AddColumn { .. }));
            }
            // The table of the rows, which is before it, has brought the database.
            if server.tables.len() > 1 {
                decision.actions.retain(|action| *action != TableAction::CreateDatabase);
            }
            plan.add(server, table, decision);
        }
    }
    plan
}

impl TablePlan {
    fn add(&mut self, server: &Server, table: &ServerTable, decision: Decision) {
        let name = format!("{}.{}", table.database, table.table);
        self.changes.extend(decision.actions.into_iter().map(|action| Change {
            url: server.url.clone(),
            server: server.label(),
            table: table.clone(),
            action,
        }));
        self.findings.extend(decision.differences.into_iter().map(|what| finding(server, &name, what)));
    }
}

fn finding(server: &Server, name: &str, what: Difference) -> Finding {
    let table = match server.place {
        Place::Alone => name.to_owned(),
        Place::Replica { .. } | Place::Entry => format!("{name} on {}", server.label()),
    };
    Finding { table, what }
}

fn is_distributed(table: &ServerTable) -> bool {
    matches!(table.kind, Kind::Distributed { .. })
}

fn decide(table: &ServerTable, seen: &Seen, management: Management) -> Decision {
    let observed = seen.tables.get(&table.table).unwrap_or(&Observed::NoTable);
    match (observed, management) {
        (Observed::NoDatabase, Management::Managed) => {
            Decision::does(&[TableAction::CreateDatabase, TableAction::CreateTable])
        }
        (Observed::NoTable, Management::Managed) => Decision::does(&[TableAction::CreateTable]),
        (Observed::NoDatabase, Management::External) => Decision::differs(Difference::NoDatabase),
        (Observed::NoTable, Management::External) => Decision::differs(Difference::NoTable),
        (Observed::Table(found), _) => match &table.kind {
            Kind::Rows => rows::keep(found, Replication::None, management),
            Kind::ReplicatedRows { .. } => rows::keep(found, Replication::Keeper, management),
            Kind::Distributed { cluster, local } => {
                distributed::keep(found, cluster, &table.database, local, management)
            }
        },
    }
}

#[cfg(test)]
mod tests;
