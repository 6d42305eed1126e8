//! Kafka's admin requests that are not, or not well, wrapped by rdkafka: topic ids, incremental changes of configuration,
//! offsets by isolation level, the committed offsets of a group with their metadata, and what we are allowed.
//!
//! All are plain functions that take a client handle which exists already (`consumer.client()`, `producer.client()`),
//! block for at most their time-out and a second, and may be called from any thread; from asynchronous code call
//! them on a thread for blocking work. Errors say what was asked of which topic.
//!
//! rdkafka's own `alter_configs` is not used anywhere: it resets every key that it is not given.

mod configs;
mod native;
mod offsets;
mod rights;
mod topics;

use rdkafka::error::RDKafkaErrorCode;

pub use configs::{ConfigChange, ConfigSource, ConfigValue, change_config, describe_configs};
pub use offsets::{Committed, Isolation, OffsetSpec, PartitionResult, committed_offsets, list_offsets};
pub use rights::{Allowed, Operation, allowed_on_group, allowed_on_topics};
pub use topics::{
    NewTopic, PartitionDescription, TopicDescription, create_partitions, create_topic, delete_topic,
    describe_topics,
};

/// Why an admin request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {what}: {text} ({code:?})")]
pub struct AdminError {
    what: String,
    code: RDKafkaErrorCode,
    text: String,
}

impl AdminError {
    fn new(what: &str, code: RDKafkaErrorCode, text: &str) -> Self {
        let text = if text.is_empty() { code.to_string() } else { text.to_owned() };
        Self { what: what.to_owned(), code, text }
    }

    /// Kafka's or librdkafka's code.
    pub fn code(&self) -> RDKafkaErrorCode {
        self.code
    }

    /// Whether nobody answered, as opposed to a broker that answered no.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self.code,
            RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::TimedOutQueue
                | RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::WaitingForCoordinator
        )
    }

    /// Whether the topic or partition does not exist.
    pub fn is_unknown_topic(&self) -> bool {
        is_unknown_topic(self.code)
    }
}

fn is_unknown_topic(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition
    )
}

/// `"a", "b" and 3 more`: names for a message, bounded.
fn naming(topics: &[&str]) -> String {
    const SHOWN: usize = 5;
    let mut text = topics.iter().take(SHOWN).map(|topic| format!("{topic:?}")).collect::<Vec<_>>().join(", ");
    if topics.len() > SHOWN {
        text.push_str(&format!(" and {} more", topics.len() - SHOWN));
    }
    text
}
