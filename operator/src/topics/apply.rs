//! Does to the topics what was decided. Decides nothing.

use std::time::Duration;

use penstock_pipeline::kafka::admin::{self, AdminError, ConfigChange, NewTopic};
use rdkafka::error::RDKafkaErrorCode;

use super::{Access, Clusters, ConfigRepair, TopicAction};
use crate::failure::{Cause, Failure};

/// Longest time of one change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A change, and what became of it.
#[derive(Debug)]
pub struct Applied {
    /// The change.
    pub action: TopicAction,
    /// Whether it was made, or why not.
    pub result: Result<(), ApplyError>,
}

/// Why a change was not made. When nobody answered, it may have been made all the same; the next observation tells.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ApplyError(Failure);

impl From<ApplyError> for Failure {
    fn from(error: ApplyError) -> Self {
        error.0
    }
}

/// Makes the changes in their order, each for itself: one that fails does not keep the others from being made.
pub async fn apply(clusters: &Clusters, access: &Access, actions: Vec<TopicAction>) -> Vec<Applied> {
    let mut applied = Vec::with_capacity(actions.len());
    for action in actions {
        let work = action.clone();
        let result =
            on_cluster(clusters, access, operation(&action), move |client| perform(client, &work)).await;
        applied.push(Applied { action, result });
    }
    applied
}

/// Deletes those of `topics` that exist, asking again what exists just before, and says which they were. Everything in
/// them is lost, and so are the committed offsets of their readers.
pub async fn delete(
    clusters: &Clusters,
    access: &Access,
    topics: Vec<String>,
) -> Result<Vec<String>, ApplyError> {
    on_cluster(clusters, access, "Delete", move |client| {
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        let existing = admin::describe_topics(client, &names, CHANGE_TIMEOUT)?;
        let mut deleted = Vec::new();
        for name in existing.into_keys() {
            match admin::delete_topic(client, &name, CHANGE_TIMEOUT) {
                Ok(()) => deleted.push(name),
                Err(error) if error.is_unknown_topic() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    })
    .await
}

type Client = rdkafka::client::Client<super::cluster::Silent>;

async fn on_cluster<T: Send + 'static>(
    clusters: &Clusters,
    access: &Access,
    operation: &str,
    work: impl FnOnce(&Client) -> Result<T, AdminError> + Send + 'static,
) -> Result<T, ApplyError> {
    let failed = |why: String| {
        ApplyError(Failure::new(
            Cause::Unreachable,
            format!("cannot make a client for Kafka at {}: {why}", access.bootstrap_servers),
        ))
    };
    let cluster = clusters.get(access).map_err(failed)?;
    let _leave = cluster.enter().await;
    let asked = cluster.clone();
    tokio::task::spawn_blocking(move || work(asked.client()))
        .await
        .map_err(|error| failed(format!("the request was broken off: {error}")))?
        .map_err(|error| ApplyError(access.failure(&error, operation, cluster.seen())))
}

/// The operation that an ACL has to allow for a change.
fn operation(action: &TopicAction) -> &'static str {
    match action {
        TopicAction::Create(_) => "Create",
        TopicAction::Grow { .. } => "Alter",
        TopicAction::ChangeConfig { .. } => "AlterConfigs",
    }
}

fn perform(client: &Client, action: &TopicAction) -> Result<(), AdminError> {
    match action {
        TopicAction::Create(wanted) => {
            let new = NewTopic {
                name: wanted.name.clone(),
                partitions: wanted.partitions,
                replication_factor: wanted.replication_factor,
                config: wanted.config.clone(),
            };
            match admin::create_topic(client, &new, CHANGE_TIMEOUT) {
                // Somebody was faster; the next pass compares.
                Err(error) if error.code() == RDKafkaErrorCode::TopicAlreadyExists => Ok(()),
                result => result,
            }
        }
        TopicAction::Grow { topic, to, .. } => admin::create_partitions(client, topic, *to, CHANGE_TIMEOUT),
        TopicAction::ChangeConfig { topic, repairs } => {
            let changes: Vec<ConfigChange> =
                repairs.iter().map(|ConfigRepair { change, .. }| change.clone()).collect();
            admin::change_config(client, topic, &changes, CHANGE_TIMEOUT)
        }
    }
}
