//! Looks at the first message at an offset: whether there is one, and how old it is.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
};

use super::lag::Oldest;

/// What is at, or first after, the given offset of each of these partitions of `topic`. Partitions that did not answer
/// before the deadline are [`Oldest::NotSeen`].
///
/// Takes the consumer's assignment and leaves it without one; nobody else may poll it meanwhile.
pub(super) fn oldest_waiting<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    positions: &BTreeMap<i32, i64>,
    deadline: Instant,
) -> KafkaResult<BTreeMap<i32, Oldest>> {
    let mut answers: BTreeMap<i32, Oldest> =
        positions.keys().map(|partition| (*partition, Oldest::NotSeen)).collect();
    let mut assignment = TopicPartitionList::with_capacity(positions.len());
    for (partition, offset) in positions {
        assignment.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    consumer.assign(&assignment)?;
    let outcome = collect(consumer, topic, &mut answers, deadline);
    // A pause outlives the assignment: without this the partition would never be fetched again.
    let resumed = consumer.resume(&assignment);
    consumer.unassign()?;
    resumed?;
    outcome.map(|()| answers)
}

fn collect<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    topic: &str,
    answers: &mut BTreeMap<i32, Oldest>,
    deadline: Instant,
) -> KafkaResult<()> {
    let mut open = answers.len();
    while open > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let (partition, answer) = match consumer.poll(left.min(Duration::from_millis(200))) {
            None => continue,
            Some(Ok(message)) if message.topic() == topic => (
                message.partition(),
                Oldest::Message {
                    offset: message.offset(),
                    timestamp_ms: message.timestamp().to_millis().filter(|time| *time >= 0),
                },
            ),
            Some(Ok(_)) => continue,
            Some(Err(KafkaError::PartitionEOF(partition))) => (partition, Oldest::Nothing),
            // Of the client as a whole, or of a partition whose offset is not there: the deadline ends it.
            Some(Err(error)) => {
                tracing::debug!(%error, topic, "looking at the oldest message");
                continue;
            }
        };
        if let Some(seen @ Oldest::NotSeen) = answers.get_mut(&partition) {
            *seen = answer;
            open -= 1;
            let mut done = TopicPartitionList::with_capacity(1);
            done.add_partition(topic, partition);
            consumer.pause(&done)?;
        }
    }
    Ok(())
}
