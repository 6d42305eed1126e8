//! What must be known about partitions before they are read.

use std::{collections::BTreeMap, time::Duration};

use penstock_pipeline::{
    kafka::{
        admin::{self, AdminError, Isolation, OffsetSpec},
        client::LogContext,
        poll::PolledConsumer,
    },
    lifecycle::Shutdown,
};
use rdkafka::{
    client::{Client, ClientContext},
    consumer::Consumer,
    error::KafkaError,
    producer::Producer,
    topic_partition_list::{Offset, TopicPartitionList},
};

use crate::{
    committed::{Metadata, Origin},
    dead_letters::DeadLetters,
};

/// Longest time that one question to the brokers takes.
const QUESTION: Duration = Duration::from_secs(5);

/// How often the topic is looked at.
const WATCH_INTERVAL: Duration = Duration::from_secs(10);

/// The consumer of an export.
pub type SourceConsumer = PolledConsumer<LogContext>;

/// What the brokers say about one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Partition.
    pub partition: i32,
    /// What the group has committed: offset and metadata.
    pub committed: Option<(i64, Metadata)>,
    /// Offset of the oldest message that is there.
    pub log_start: i64,
    /// Offset after the newest message, committed or not.
    pub log_end: i64,
}

/// Why partitions could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// An admin request failed.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The committed offsets could not be read.
    #[error("cannot read the committed offsets of the group: {0}")]
    Committed(#[source] KafkaError),
    /// The topic is not there.
    #[error("there is no topic {0}")]
    NoTopic(String),
    /// A partition is not there.
    #[error("there is no partition {1} of topic {0}")]
    NoPartition(String, i32),
}

/// The topic and what there is to know about `partitions`. Blocks for some seconds at most. A commit that belongs to
/// an open transaction or is on its way is waited for.
pub fn observe(
    consumer: &SourceConsumer,
    topic: &str,
    partitions: &[i32],
) -> Result<(Origin, Vec<Observed>), SourceError> {
    let description = admin::describe_topics(consumer.client().client(), &[topic], QUESTION)?
        .remove(topic)
        .ok_or_else(|| SourceError::NoTopic(topic.to_owned()))?;
    let ends = log_ends(consumer, topic, partitions)?;
    // Of all partitions: any of them may say how many there were when the group began.
    let mut list = TopicPartitionList::with_capacity(description.partitions.len());
    for partition in &description.partitions {
        list.add_partition(topic, partition.partition);
    }
    let list = consumer.client().committed_offsets(list, QUESTION).map_err(SourceError::Committed)?;
    let mut origin = Origin {
        topic_id: description.id.to_string(),
        first_partitions: i32::try_from(description.partitions.len()).unwrap_or(i32::MAX),
    };
    let mut observed = Vec::with_capacity(partitions.len());
    for element in list.elements_for_topic(topic) {
        element.error().map_err(SourceError::Committed)?;
        let partition = element.partition();
        let committed = match element.offset() {
            Offset::Offset(offset) => Some((offset, Metadata::parse(element.metadata()))),
            _ => None,
        };
        if let Some(was) = committed.as_ref().and_then(|(_, metadata)| metadata.origin())
            && was.topic_id == origin.topic_id
        {
            origin.first_partitions = origin.first_partitions.min(was.first_partitions);
        }
        if !partitions.contains(&partition) {
            continue;
        }
        let &(log_start, log_end) =
            ends.get(&partition).ok_or_else(|| SourceError::NoPartition(topic.to_owned(), partition))?;
        observed.push(Observed { partition, committed, log_start, log_end });
    }
    Ok((origin, observed))
}

/// The topic as it is at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicNow {
    /// Its id.
    pub id: String,
    /// Offset after the newest message of each partition. A consumer that is paused does not learn it by itself.
    pub ends: BTreeMap<i32, i64>,
}

/// Looks at the topic again and again until asked to stop, and tells what it sees. A topic that cannot be seen is not
/// told of.
pub async fn watch(
    letters: DeadLetters,
    topic: String,
    stop: Shutdown,
    tell: impl Fn(TopicNow) + Send + 'static,
) {
    loop {
        tokio::select! {
            () = stop.requested() => return,
            () = tokio::time::sleep(WATCH_INTERVAL) => {}
        }
        let (letters, name) = (letters.clone(), topic.clone());
        let seen = tokio::task::spawn_blocking(move || look(letters.producer().client(), &name)).await;
        if let Ok(Ok(now)) = seen {
            tell(now);
        }
    }
}

fn look<C: ClientContext>(client: &Client<C>, topic: &str) -> Result<TopicNow, SourceError> {
    let description = admin::describe_topics(client, &[topic], QUESTION)?
        .remove(topic)
        .ok_or_else(|| SourceError::NoTopic(topic.to_owned()))?;
    let named: Vec<(&str, i32)> = description.partitions.iter().map(|p| (topic, p.partition)).collect();
    let ends = admin::list_offsets(client, &named, OffsetSpec::Latest, Isolation::ReadUncommitted, QUESTION)?;
    let ends = ends.into_iter().filter_map(|((_, partition), end)| Some((partition, end.ok()?))).collect();
    Ok(TopicNow { id: description.id.to_string(), ends })
}

/// Oldest offset and end of each partition.
pub fn log_ends(
    consumer: &SourceConsumer,
    topic: &str,
    partitions: &[i32],
) -> Result<BTreeMap<i32, (i64, i64)>, AdminError> {
    let named: Vec<(&str, i32)> = partitions.iter().map(|&partition| (topic, partition)).collect();
    let client = consumer.client().client();
    let list = |spec| admin::list_offsets(client, &named, spec, Isolation::ReadUncommitted, QUESTION);
    let (mut starts, ends) = (list(OffsetSpec::Earliest)?, list(OffsetSpec::Latest)?);
    let mut both = BTreeMap::new();
    for (place, end) in ends {
        if let Some(start) = starts.remove(&place) {
            both.insert(place.1, (start?, end?));
        }
    }
    Ok(both)
}
