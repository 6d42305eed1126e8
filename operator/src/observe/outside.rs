//! Kafka and ClickHouse as they are. That nobody answers is a value here, and who did not answer is asked more and more
//! seldom.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::Instant,
};

use penstock_crds::v1alpha1::Management;
use penstock_pipeline::config::StartFrom;

use crate::{
    failure::Failure,
    memory::Backoff,
    tables::{self, WantedTable},
    topics::{self, GroupReading},
    validate::{Component, Destination, ValidatedPipeline},
};

/// Clients that all pipelines share.
pub struct Outside {
    /// Kafka clusters.
    pub clusters: topics::Clusters,
    /// ClickHouse servers.
    pub servers: tables::Servers,
}

/// Who owns a table, and how the operator reaches its servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOwner {
    /// Who owns it.
    pub management: Management,
    /// How its servers are reached.
    pub access: tables::Access,
}

/// The tables of a pipeline, with their owners.
pub type Tables = BTreeMap<WantedTable, TableOwner>;

/// The tables of a pipeline. A table that several exports share is managed when one of them says so, and then it is that
/// one whose access is used.
pub fn tables(pipeline: &ValidatedPipeline) -> Tables {
    let mut tables = Tables::new();
    for export in &pipeline.exports {
        if let Destination::ClickHouse { table, management, access, .. } = &export.destination {
            let owner = TableOwner { management: *management, access: access.clone() };
            match tables.entry(table.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert(owner);
                }
                Entry::Occupied(mut entry) => {
                    if *management == Management::Managed && entry.get().management != Management::Managed {
                        entry.insert(owner);
                    }
                }
            }
        }
    }
    tables
}

/// What the pipeline's consumer groups read.
pub fn groups(pipeline: &ValidatedPipeline) -> Vec<GroupReading> {
    pipeline
        .components()
        .into_iter()
        .filter_map(|component| {
            let (group, topic) = pipeline.reads(&component)?;
            let start_from = match &component {
                Component::Export(name) => {
                    pipeline.export(name).map_or(StartFrom::Earliest, |export| export.start_from)
                }
                _ => StartFrom::Earliest,
            };
            Some(GroupReading { group, topic, start_from })
        })
        .collect()
}

/// Topics and lag.
pub async fn kafka(
    outside: &Outside,
    pipeline: &ValidatedPipeline,
    backoff: &mut Backoff,
) -> topics::Observation {
    if let Some(why) = backoff.holds(Instant::now()) {
        return topics::Observation::Unreachable { why: why.clone() };
    }
    let kafka = &pipeline.kafka;
    let observation =
        topics::observe(&outside.clusters, &kafka.access, &kafka.topics, &groups(pipeline)).await;
    match &observation {
        topics::Observation::Reachable(_) => backoff.succeeded(),
        topics::Observation::Unreachable { why } => {
            backoff.failed(why.clone(), Instant::now());
        }
    }
    observation
}

/// Tables. A server is asked more and more seldom while it does not answer; the others of its cluster are asked as ever.
pub async fn clickhouse(
    outside: &Outside,
    tables: &Tables,
    backoffs: &mut BTreeMap<(WantedTable, String), Backoff>,
) -> BTreeMap<WantedTable, tables::Observation> {
    let mut observations = BTreeMap::new();
    // Servers that did not answer in this pass: their other tables are not asked for.
    let mut silent: BTreeSet<String> = BTreeSet::new();
    backoffs.retain(|(table, _), _| tables.contains_key(table));
    for (table, owner) in tables {
        let mut held: BTreeMap<String, Failure> = BTreeMap::new();
        for server in table.servers() {
            let backoff = backoffs.get(&(table.clone(), server.url.clone()));
            if let Some(why) = backoff.and_then(|backoff| backoff.holds(Instant::now())) {
                held.insert(server.url, why.clone());
            } else if silent.contains(&server.url) {
                let why = format!("ClickHouse at {} did not answer a moment ago", server.url);
                held.insert(server.url, Failure::from(why));
            }
        }
        let observation = tables::observe(&outside.servers, table, &owner.access, &held).await;
        for (url, answer) in &observation {
            let backoff = backoffs.entry((table.clone(), url.clone())).or_default();
            match answer {
                tables::Answer::Reachable(_) => backoff.succeeded(),
                tables::Answer::Unreachable { why } => {
                    if backoff.holds(Instant::now()).is_none() {
                        backoff.failed(why.clone(), Instant::now());
                    }
                    silent.insert(url.clone());
                }
            }
        }
        observations.insert(table.clone(), observation);
    }
    observations
}
