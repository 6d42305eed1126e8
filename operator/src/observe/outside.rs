//! Kafka and ClickHouse as they are. That nobody answers is a value here, and who did not answer is asked more and more
//! seldom.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use penstock_crds::v1alpha1::Management;
use penstock_pipeline::config::StartFrom;

use crate::{
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

/// A table of a pipeline, and who owns it.
pub type Tables = BTreeMap<WantedTable, Management>;

/// The tables of a pipeline. A table that several exports share is managed when one of them says so.
pub fn tables(pipeline: &ValidatedPipeline) -> Tables {
    let mut tables = Tables::new();
    for export in &pipeline.exports {
        if let Destination::ClickHouse { table, management, .. } = &export.destination {
            let entry = tables.entry(table.clone()).or_insert(*management);
            if *management == Management::Managed {
                *entry = Management::Managed;
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
        return topics::Observation::Unreachable { why: why.to_owned() };
    }
    let kafka = &pipeline.kafka;
    let observation =
        topics::observe(&outside.clusters, &kafka.bootstrap_servers, &kafka.topics, &groups(pipeline)).await;
    match &observation {
        topics::Observation::Reachable(_) => backoff.succeeded(),
        topics::Observation::Unreachable { why } => {
            backoff.failed(why, Instant::now());
        }
    }
    observation
}

/// Tables.
pub async fn clickhouse(
    outside: &Outside,
    tables: &Tables,
    backoffs: &mut BTreeMap<WantedTable, Backoff>,
) -> BTreeMap<WantedTable, tables::Observation> {
    let mut observations = BTreeMap::new();
    // Servers that did not answer in this pass: their other tables are not asked for.
    let mut silent: BTreeSet<&str> = BTreeSet::new();
    backoffs.retain(|table, _| tables.contains_key(table));
    for table in tables.keys() {
        let backoff = backoffs.entry(table.clone()).or_default();
        let held = backoff.holds(Instant::now()).map(str::to_owned);
        let observation = match held {
            Some(why) => tables::Observation::Unreachable { why },
            None if silent.contains(table.url.as_str()) => tables::Observation::Unreachable {
                why: format!("ClickHouse at {} did not answer a moment ago", table.url),
            },
            None => tables::observe(&outside.servers, table).await,
        };
        match &observation {
            tables::Observation::Reachable(_) => backoff.succeeded(),
            tables::Observation::Unreachable { why } => {
                if backoff.holds(Instant::now()).is_none() {
                    backoff.failed(why, Instant::now());
                }
                silent.insert(&table.url);
            }
        }
        observations.insert(table.clone(), observation);
    }
    observations
}
