//! Topic ids: what tells a topic from another one of the same name that was created after it was deleted.
//!
//! librdkafka follows names, and does not notice a recreated topic whose log is longer than the committed offset. Whoever
//! keeps offsets compares the id at assignment and from time to time.

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rdkafka::client::{Client, ClientContext};

use super::admin::{self, AdminError};

/// Identity of a topic, given by the brokers at its creation. Written as Kafka's own tools write it: base64 with the
/// URL-safe alphabet and no padding, 22 characters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicId([u8; 16]);

impl TopicId {
    /// From the two halves of a UUID, as librdkafka gives them.
    pub fn from_bits(most_significant: i64, least_significant: i64) -> Self {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&most_significant.to_be_bytes());
        bytes[8..].copy_from_slice(&least_significant.to_be_bytes());
        Self(bytes)
    }

    /// The sixteen bytes, most significant first.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// All zero: a broker that knows no topic ids (older than 2.8).
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&URL_SAFE_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicId({self})")
    }
}

/// A text that is no topic id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a topic id: expected 22 characters of URL-safe base64, as kafka-topics --describe prints"
)]
pub struct InvalidTopicId(String);

impl FromStr for TopicId {
    type Err = InvalidTopicId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| InvalidTopicId(text.to_owned()))
    }
}

/// The id of `topic`; `None` when there is no such topic. Asks the brokers, never a cache; blocks for at most `timeout`
/// and a second.
pub fn topic_id<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<Option<TopicId>, AdminError> {
    Ok(admin::describe_topics(client, &[topic], timeout)?.get(topic).map(|description| description.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_id_is_written_as_kafka_writes_it_and_read_back() {
        // Uuid.toString() of Kafka for these two halves.
        let id = TopicId::from_bits(0x0123_4567_89ab_cdef, -1);
        assert_eq!(id.to_string(), "ASNFZ4mrze___________w");
        assert_eq!(id.to_string().parse::<TopicId>(), Ok(id));
        assert_eq!(TopicId::from_bits(0, 0).to_string(), "AAAAAAAAAAAAAAAAAAAAAA");
        assert!(TopicId::from_bits(0, 0).is_zero());
    }

    #[test]
    fn texts_that_are_no_topic_id_are_refused() {
        for text in
            ["", "abc", "ASNFZ4mrze///////////w", "ASNFZ4mrze___________w==", "ASNFZ4mrze___________wAA"]
        {
            assert!(text.parse::<TopicId>().is_err(), "{text:?} was taken");
        }
    }
}
