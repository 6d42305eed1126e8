//! Reads topics, configuration, offsets and lag from one cluster. Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use penstock_pipeline::kafka::admin::{
    self, AdminError, Isolation, OffsetSpec, Operation, PartitionResult, TopicDescription,
};

use super::{
    Access, Cluster, Clusters, GroupReading, Observation, Observed, ObservedTopic, WantedTopic,
    cluster::REQUEST_TIMEOUT,
    lag::{self, GroupLag, Oldest, PartitionLag, PartitionOffsets, Place, Unknown},
    probe,
};
use crate::failure::{Cause, Failure};

/// Longest time for all requests of one observation.
const OBSERVATION_BUDGET: Duration = Duration::from_secs(15);

/// Longest time for looking at the oldest messages of one pipeline.
const LOOKING_BUDGET: Duration = Duration::from_secs(2);

/// Partitions of one topic that are looked at in one pass.
const LOOKED_AT: usize = 256;

/// What Kafka says of `wanted` and of the lag of `groups`.
///
/// Takes some hundred milliseconds; at most about 20 s when brokers are slow or away. Never fails: that nobody answers is
/// [`Observation::Unreachable`], and what is not known of a group is unknown.
pub async fn observe(
    clusters: &Clusters,
    access: &Access,
    wanted: &[WantedTopic],
    groups: &[GroupReading],
) -> Observation {
    let unreachable = |why: String| Observation::Unreachable {
        why: format!("Kafka at {}: {why}", access.bootstrap_servers).into(),
    };
    let cluster = match clusters.get(access) {
        Ok(cluster) => cluster,
        Err(why) => return unreachable(format!("cannot make a client: {why}")),
    };
    let _leave = cluster.enter().await;
    if let Some(why) = cluster.recent_failure() {
        return Observation::Unreachable { why };
    }
    let names: Vec<String> = wanted.iter().map(|topic| topic.name.clone()).collect();
    let groups = groups.to_vec();
    let asked = cluster.clone();
    match tokio::task::spawn_blocking(move || ask(&asked, &names, &groups)).await {
        Ok(Ok(observed)) => {
            cluster.note(None);
            Observation::Reachable(observed)
        }
        Ok(Err((error, operation))) => {
            let why = access.failure(&error, operation, cluster.seen());
            if error.is_unreachable() {
                cluster.note(Some(&why));
            }
            Observation::Unreachable { why }
        }
        Err(error) => unreachable(format!("the request was broken off: {error}")),
    }
}

/// What was asked failed, and the operation that an ACL has to allow for it.
type Refusal = (AdminError, &'static str);

fn ask(cluster: &Arc<Cluster>, names: &[String], groups: &[GroupReading]) -> Result<Observed, Refusal> {
    cluster.drain();
    let deadline = Instant::now() + OBSERVATION_BUDGET;
    let client = cluster.client();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let described =
        admin::describe_topics(client, &names, REQUEST_TIMEOUT).map_err(|error| (error, "Describe"))?;
    let existing: Vec<&str> = described.keys().map(String::as_str).collect();
    let mut configs = admin::describe_configs(client, &existing, REQUEST_TIMEOUT)
        .map_err(|error| (error, "DescribeConfigs"))?;

    // A client that may not fetch is told so once at most, and the age of what waits would just not be known.
    let unreadable: BTreeSet<&str> = groups
        .iter()
        .map(|reading| reading.topic.as_str())
        .filter(|topic| described.get(*topic).is_some_and(|topic| topic.allowed.denies(Operation::Read)))
        .collect();
    let mut denied: Vec<Failure> =
        unreadable.iter().map(|topic| cluster.access().may_not_read(topic)).collect();
    let topics: BTreeMap<String, ObservedTopic> = described
        .into_iter()
        .map(|(name, description)| {
            let config = configs.remove(&name).unwrap_or_default();
            let topic = observed_topic(&description, config);
            (name, topic)
        })
        .collect();
    let groups = lags(cluster, &topics, groups, &unreadable, deadline, &mut denied);
    Ok(Observed { topics, groups, denied })
}

fn observed_topic(
    description: &TopicDescription,
    config: BTreeMap<String, admin::ConfigValue>,
) -> ObservedTopic {
    let replicas = description.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0);
    ObservedTopic {
        id: description.id,
        partitions: i32::try_from(description.partitions.len()).unwrap_or(i32::MAX),
        replication_factor: i16::try_from(replicas).unwrap_or(i16::MAX),
        leaderless: description
            .partitions
            .iter()
            .filter(|partition| partition.leader.is_none())
            .map(|partition| partition.partition)
            .collect(),
        config,
    }
}

/// The lag of every group; without the age of what waits in topics that are `unreadable` to us. The committed offsets are read before the ends, as [`PartitionOffsets`] asks for.
fn lags(
    cluster: &Arc<Cluster>,
    topics: &BTreeMap<String, ObservedTopic>,
    groups: &[GroupReading],
    unreadable: &BTreeSet<&str>,
    deadline: Instant,
    denied: &mut Vec<Failure>,
) -> BTreeMap<String, GroupLag> {
    let client = cluster.client();
    let committed: Vec<_> = groups
        .iter()
        .filter_map(|reading| {
            let partitions = partitions_of(&reading.topic, topics.get(&reading.topic)?.partitions);
            let answer = remaining(deadline).and_then(|timeout| {
                let answer = admin::committed_offsets(client, &reading.group, &partitions, timeout);
                let silent = answer.as_ref().is_err_and(AdminError::is_unreachable);
                cluster.note_group(&reading.group, !silent);
                answer.map_err(|error| {
                    let why = cluster.access().failure(&error, "Describe", None);
                    if why.cause == Cause::NotAuthorized {
                        denied.push(why);
                    }
                    error.to_string()
                })
            });
            Some((reading, answer))
        })
        .collect();

    let read: BTreeSet<&str> = committed.iter().map(|(reading, _)| reading.topic.as_str()).collect();
    let partitions: Vec<(&str, i32)> =
        read.iter().flat_map(|topic| partitions_of(topic, topics[*topic].partitions)).collect();
    let end_of = |spec| {
        remaining(deadline).and_then(|timeout| {
            admin::list_offsets(client, &partitions, spec, Isolation::ReadCommitted, timeout)
                .map_err(|error| error.to_string())
        })
    };
    let (starts, ends) = (end_of(OffsetSpec::Earliest), end_of(OffsetSpec::Latest));

    let mut by_group: BTreeMap<String, GroupLag> = groups
        .iter()
        .filter(|reading| !topics.contains_key(&reading.topic))
        .map(|reading| (reading.group.clone(), GroupLag::unknown(Unknown::NoTopic)))
        .collect();
    let looking_until = deadline.min(Instant::now() + LOOKING_BUDGET);
    for (reading, committed) in committed {
        let lag = match (&committed, &starts, &ends) {
            (Ok(committed), Ok(starts), Ok(ends)) => {
                let topic = &topics[&reading.topic];
                let partitions: Vec<(i32, PartitionLag, i64)> = (0..topic.partitions)
                    .map(|partition| {
                        let key = (reading.topic.clone(), partition);
                        match offsets_of(&key, committed, starts, ends) {
                            Ok(offsets) => (
                                partition,
                                lag::partition_lag(partition, offsets, reading.start_from),
                                offsets.log_start,
                            ),
                            Err(why) => (partition, PartitionLag::Unknown(Unknown::Unanswered { why }), 0),
                        }
                    })
                    .collect();
                let oldest = if unreadable.contains(reading.topic.as_str()) {
                    BTreeMap::new()
                } else {
                    look(cluster, reading, topic, &partitions, looking_until)
                };
                lag::group_lag(
                    partitions.iter().map(|(partition, lag, _)| {
                        (lag, oldest.get(partition).copied().unwrap_or(Oldest::NotSeen))
                    }),
                    now_ms(),
                )
            }
            (Err(why), _, _) | (_, Err(why), _) | (_, _, Err(why)) => {
                GroupLag::unknown(Unknown::Unanswered { why: why.clone() })
            }
        };
        // A group that reads several topics has the lag of all of them.
        match by_group.remove(&reading.group) {
            None => by_group.insert(reading.group.clone(), lag),
            Some(other) => by_group.insert(reading.group.clone(), together(&other, &lag)),
        };
    }
    by_group
}

fn together(a: &GroupLag, b: &GroupLag) -> GroupLag {
    use lag::LagTime;
    GroupLag {
        lag: lag::total([&a.lag, &b.lag]),
        time: match (a.time, b.time) {
            (LagTime::Known(a), LagTime::Known(b)) => LagTime::Known(a.max(b)),
            (LagTime::Idle, time) | (time, LagTime::Idle) => time,
            _ => LagTime::Unknown,
        },
    }
}

fn offsets_of(
    key: &(String, i32),
    committed: &PartitionResult<Option<admin::Committed>>,
    starts: &PartitionResult<i64>,
    ends: &PartitionResult<i64>,
) -> Result<PartitionOffsets, String> {
    fn answer<'a, T>(answers: &'a PartitionResult<T>, key: &(String, i32)) -> Result<&'a T, String> {
        match answers.get(key) {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(error.to_string()),
            None => Err(format!("no answer for partition {} of topic {:?}", key.1, key.0)),
        }
    }
    Ok(PartitionOffsets {
        committed: answer(committed, key)?.as_ref().map(|committed| committed.offset),
        log_start: *answer(starts, key)?,
        end: *answer(ends, key)?,
    })
}

/// What is at the position of each partition where something seems to wait.
fn look(
    cluster: &Arc<Cluster>,
    reading: &GroupReading,
    topic: &ObservedTopic,
    partitions: &[(i32, PartitionLag, i64)],
    deadline: Instant,
) -> BTreeMap<i32, Oldest> {
    let places: Vec<Place<'_>> = partitions
        .iter()
        .filter_map(|(partition, lag, log_start)| match lag {
            PartitionLag::Waiting { position, end } if position < end => Some(Place {
                group: &reading.group,
                topic: &reading.topic,
                topic_id: topic.id,
                partition: *partition,
                position: *position,
                end: *end,
                log_start: *log_start,
            }),
            _ => None,
        })
        .collect();
    if places.is_empty() {
        return BTreeMap::new();
    }
    let mut memory = cluster.look();
    let mut oldest: BTreeMap<i32, Oldest> =
        places.iter().map(|place| (place.partition, memory.recall(place))).collect();
    let unseen: BTreeMap<i32, i64> = places
        .iter()
        .filter(|place| oldest[&place.partition] == Oldest::NotSeen)
        .take(LOOKED_AT)
        .map(|place| (place.partition, place.position))
        .collect();
    if unseen.is_empty() || Instant::now() >= deadline {
        return oldest;
    }
    match probe::oldest_waiting(cluster.consumer(), &reading.topic, &unseen, deadline) {
        Ok(seen) => {
            for place in &places {
                if let Some(found) = seen.get(&place.partition) {
                    memory.keep(place, *found);
                    oldest.insert(place.partition, *found);
                }
            }
        }
        Err(error) => tracing::debug!(%error, topic = reading.topic, "looking at the oldest messages"),
    }
    oldest
}

fn partitions_of(topic: &str, count: i32) -> Vec<(&str, i32)> {
    (0..count).map(|partition| (topic, partition)).collect()
}

fn remaining(deadline: Instant) -> Result<Duration, String> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err("Kafka answered too slowly; asked again in the next pass".to_owned());
    }
    Ok(left.min(REQUEST_TIMEOUT))
}

fn now_ms() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_millis()).ok())
        .unwrap_or(0)
}
