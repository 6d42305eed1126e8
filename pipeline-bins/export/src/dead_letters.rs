//! Dead letters of an export: keyed by topic, partition and offset, so that a repetition is recognised.

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use penstock_pipeline::{
    events::dead_letter::{Reason, header},
    kafka::{
        Connection, Message,
        client::{self, LogContext},
        message_size::DEAD_LETTER_TOPIC,
    },
};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, Producer},
    util::Timeout,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{error, warn};

/// Longest text of [`header::DETAIL`], bytes.
const MOST_DETAIL: usize = 1024;

/// `message.timeout.ms`: after it the delivery is tried again from the start.
const DELIVERY_TIMEOUT_MS: u32 = 30_000;

/// Memory of the producer's queue, bytes.
const QUEUE_BYTES: u64 = 16 << 20;

/// Bytes of each part of a value that does not fit into one message.
const PART_BYTES: usize = 512 << 10;

/// A message that can never be delivered.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    message: Kept,
    reason: Reason,
    detail: String,
}

impl DeadLetter {
    /// The message as it is, with the reason.
    pub fn new(message: &Message<'_>, reason: Reason, detail: impl Into<String>) -> Self {
        Kept::new(message).dead_letter(reason, detail)
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Partition of the source.
    pub fn partition(&self) -> i32 {
        self.message.partition
    }

    /// Offset in that partition.
    pub fn offset(&self) -> i64 {
        self.message.offset
    }

    /// Memory that it holds, bytes, roughly.
    pub fn held_bytes(&self) -> usize {
        let headers = self.message.headers.iter();
        let headers = headers.map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len) + 48);
        256 + self.detail.len() + self.message.value.as_ref().map_or(0, Vec::len) + headers.sum::<usize>()
    }
}

/// A message in memory of its own, that may become a dead letter.
#[derive(Clone, Debug)]
pub struct Kept {
    partition: i32,
    offset: i64,
    timestamp_ms: i64,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Kept {
    /// A copy of the message.
    pub fn new(message: &Message<'_>) -> Self {
        Self {
            partition: message.partition,
            offset: message.offset,
            timestamp_ms: message.timestamp_ms,
            value: message.value.map(<[u8]>::to_vec),
            headers: message
                .headers
                .iter()
                .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.map(<[u8]>::to_vec)))
                .collect(),
        }
    }

    /// Partition of the source.
    pub fn partition(&self) -> i32 {
        self.partition
    }

    /// Offset in that partition.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// The value; empty for a tombstone.
    pub fn value(&self) -> &[u8] {
        self.value.as_deref().unwrap_or_default()
    }

    /// The message as it is, with the reason. A detail that is too long is cut.
    pub fn dead_letter(self, reason: Reason, detail: impl Into<String>) -> DeadLetter {
        let mut detail = detail.into();
        if detail.len() > MOST_DETAIL {
            let mut end = MOST_DETAIL;
            while !detail.is_char_boundary(end) {
                end -= 1;
            }
            detail.truncate(end);
        }
        DeadLetter { message: self, reason, detail }
    }
}

/// In how many messages a dead letter is written. Each is tried when the one before was refused as too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// In one, as it was.
    Whole,
    /// Its value in parts.
    Parts,
    /// Its value in parts, and without the headers that it had.
    PartsWithoutHeaders,
}

impl Shape {
    /// What to try when this one is too large. Nothing is smaller than the last.
    fn smaller(self, value: Option<&[u8]>) -> Option<Self> {
        match self {
            Self::Whole if value.is_some_and(|value| value.len() > PART_BYTES) => Some(Self::Parts),
            Self::Whole | Self::Parts => Some(Self::PartsWithoutHeaders),
            Self::PartsWithoutHeaders => None,
        }
    }

    /// The values of the messages, with the number of each if there are several. Always at least one, also for a tombstone
    /// and for an empty value.
    fn pieces(self, value: Option<&[u8]>) -> Vec<(Option<&[u8]>, Option<String>)> {
        let Some(long) = value.filter(|value| self != Self::Whole && value.len() > PART_BYTES) else {
            return vec![(value, None)];
        };
        let parts = long.len().div_ceil(PART_BYTES);
        let chunks = long.chunks(PART_BYTES).enumerate();
        chunks.map(|(index, part)| (Some(part), Some(format!("{}/{parts}", index + 1)))).collect()
    }
}

/// Writes dead letters. Clones share one producer.
#[derive(Clone)]
pub struct DeadLetters {
    shared: Arc<Shared>,
}

/// The producer of the moment.
#[derive(Clone)]
struct Current {
    /// How many were given up before it.
    number: u64,
    producer: FutureProducer<LogContext>,
    /// Its context, which the producer itself does not give back.
    context: LogContext,
}

struct Shared {
    kafka: Connection,
    topic: String,
    step: String,
    source_topic: String,
    producer: RwLock<Current>,
}

impl DeadLetters {
    /// A producer for `topic`. `step` is the component's name, for the headers.
    pub fn new(kafka: Connection, topic: &str, step: &str, source_topic: &str) -> Result<Self, KafkaError> {
        let current = make_producer(&kafka, step, 0)?;
        Ok(Self {
            shared: Arc::new(Shared {
                kafka,
                topic: topic.to_owned(),
                step: step.to_owned(),
                source_topic: source_topic.to_owned(),
                producer: RwLock::new(current),
            }),
        })
    }

    /// The producer of the moment, whose client can ask the brokers things.
    pub fn producer(&self) -> FutureProducer<LogContext> {
        self.current().producer
    }

    /// A reason for people, with what is known to be in the way of the connection.
    pub fn explain(&self, reason: impl Into<String>) -> String {
        self.shared.kafka.explain(reason)
    }

    /// With the newest credentials.
    fn current(&self) -> Current {
        let current = self.shared.producer.read().unwrap_or_else(PoisonError::into_inner).clone();
        current.context.refresh(current.producer.client());
        current
    }

    /// Ends when the dead letter is acknowledged; until then it is tried again and again.
    pub async fn put(&self, letter: &DeadLetter) {
        let mut pause = Duration::from_millis(500);
        let mut shape = Shape::Whole;
        let value = letter.message.value.as_deref();
        loop {
            let Current { number, producer, .. } = self.current();
            match self.put_as(&producer, letter, shape).await {
                Ok(()) => return,
                Err(error) => {
                    if is_too_large(&error)
                        && let Some(smaller) = shape.smaller(value)
                    {
                        shape = smaller;
                        continue;
                    }
                    warn!(
                        topic = self.shared.topic,
                        source = %self.key(letter),
                        %error,
                        "a dead letter is not acknowledged; trying again"
                    );
                }
            }
            if producer.client().fatal_error().is_some() {
                self.replace(number);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    }

    /// A producer that lost its idempotence refuses everything from then on: makes another, unless somebody has.
    fn replace(&self, number: u64) {
        let mut current = self.shared.producer.write().unwrap_or_else(PoisonError::into_inner);
        if current.number != number {
            return;
        }
        match make_producer(&self.shared.kafka, &self.shared.step, number + 1) {
            Ok(fresh) => {
                warn!("the producer of dead letters cannot go on; made another");
                let old = std::mem::replace(&mut *current, fresh);
                // Its end waits for what it had under way.
                std::thread::spawn(move || drop(old));
            }
            Err(error) => error!(%error, "cannot make another producer of dead letters"),
        }
    }

    async fn put_as(
        &self,
        producer: &FutureProducer<LogContext>,
        letter: &DeadLetter,
        shape: Shape,
    ) -> Result<(), KafkaError> {
        for (value, part) in shape.pieces(letter.message.value.as_deref()) {
            let headers = match shape {
                Shape::Whole | Shape::Parts => &*letter.message.headers,
                Shape::PartsWithoutHeaders => &[],
            };
            self.send(producer, letter, value, headers, part).await?;
        }
        Ok(())
    }

    async fn send(
        &self,
        producer: &FutureProducer<LogContext>,
        letter: &DeadLetter,
        value: Option<&[u8]>,
        kept_headers: &[(String, Option<Vec<u8>>)],
        part: Option<String>,
    ) -> Result<(), KafkaError> {
        let mut headers = OwnedHeaders::new_with_capacity(kept_headers.len() + 8);
        for (name, value) in kept_headers {
            headers = headers.insert(Header { key: name, value: value.as_ref() });
        }
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        for (key, value) in [
            (header::REASON, letter.reason.code()),
            (header::STEP, &self.shared.step),
            (header::TIMESTAMP, &now),
            (header::DETAIL, &letter.detail),
            (header::SOURCE_TOPIC, &self.shared.source_topic),
            (header::SOURCE_PARTITION, &letter.message.partition.to_string()),
            (header::SOURCE_OFFSET, &letter.message.offset.to_string()),
        ] {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        if let Some(part) = &part {
            headers = headers.insert(Header { key: header::PART, value: Some(part) });
        }
        let key = self.key(letter);
        let mut record = FutureRecord::to(&self.shared.topic)
            .key(&key)
            .timestamp(letter.message.timestamp_ms)
            .headers(headers);
        if let Some(value) = value {
            record = record.payload(value);
        }
        producer.send(record, Timeout::Never).await.map(|_| ()).map_err(|(error, _)| error)
    }

    fn key(&self, letter: &DeadLetter) -> String {
        format!("{}/{}/{}", self.shared.source_topic, letter.message.partition, letter.message.offset)
    }
}

/// The only place where the producer is made.
fn make_producer(kafka: &Connection, step: &str, number: u64) -> Result<Current, KafkaError> {
    let context = kafka.context();
    let producer: FutureProducer<LogContext> = client::idempotent_producer(
        kafka,
        &format!("{step}.dead-letters"),
        DELIVERY_TIMEOUT_MS,
        QUEUE_BYTES,
        DEAD_LETTER_TOPIC,
    )
    .create_with_context(context.clone())?;
    context.refresh(producer.client());
    Ok(Current { number, producer, context })
}

fn is_too_large(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_has_a_piece_and_keeps_the_value() {
        let long = vec![7; PART_BYTES * 2 + 1];
        for value in [None, Some(&[][..]), Some(&[1, 2][..]), Some(&long[..])] {
            for shape in [Shape::Whole, Shape::Parts, Shape::PartsWithoutHeaders] {
                let pieces = shape.pieces(value);
                assert!(!pieces.is_empty());
                if value.is_none() {
                    assert_eq!(pieces, [(None, None)], "a tombstone stays one");
                }
                let whole: Vec<u8> =
                    pieces.iter().flat_map(|(value, _)| value.unwrap_or_default()).copied().collect();
                assert_eq!(whole, value.unwrap_or_default());
                let is_numbered = pieces.iter().all(|(_, part)| part.is_some());
                assert_eq!(is_numbered, pieces.len() > 1);
            }
        }
        assert_eq!(Shape::Parts.pieces(Some(&long)).len(), 3);
        assert_eq!(Shape::Parts.pieces(Some(&long))[2].1.as_deref(), Some("3/3"));
    }

    #[test]
    fn what_is_too_large_gets_smaller_until_nothing_can_be_left_out() {
        let long = vec![7; PART_BYTES + 1];
        assert_eq!(Shape::Whole.smaller(Some(&long)), Some(Shape::Parts));
        assert_eq!(Shape::Parts.smaller(Some(&long)), Some(Shape::PartsWithoutHeaders));
        // Its headers are what is large.
        assert_eq!(Shape::Whole.smaller(None), Some(Shape::PartsWithoutHeaders));
        assert_eq!(Shape::Whole.smaller(Some(&[1])), Some(Shape::PartsWithoutHeaders));
        assert_eq!(Shape::PartsWithoutHeaders.smaller(Some(&long)), None);
    }

    fn kept(value: Option<Vec<u8>>, headers: Vec<(String, Option<Vec<u8>>)>) -> Kept {
        Kept { partition: 3, offset: 4, timestamp_ms: 5, value, headers }
    }

    #[test]
    fn a_letter_knows_its_memory() {
        let small = kept(None, Vec::new()).dead_letter(Reason::Malformed, "x");
        let value = kept(Some(vec![0; 10_000]), vec![("a".into(), Some(vec![0; 5_000]))]);
        let large = value.dead_letter(Reason::Malformed, "x");
        assert!((14_999..15_200).contains(&(large.held_bytes() - small.held_bytes())));
    }

    #[tokio::test]
    async fn a_producer_that_cannot_go_on_is_replaced() {
        let kafka = rdkafka::mocking::MockCluster::new(1).unwrap();
        kafka.create_topic("letters", 1, 1).unwrap();
        let connection = Connection::plaintext(kafka.bootstrap_servers());
        let letters = DeadLetters::new(connection, "letters", "export-test", "source").unwrap();
        let letter = kept(Some(b"one".to_vec()), Vec::new()).dead_letter(Reason::Malformed, "x");
        letters.put(&letter).await;

        let first = letters.producer();
        // SAFETY: the client lives as long as `first`; the text is a C string.
        unsafe {
            rdkafka_sys::rd_kafka_test_fatal_error(
                first.client().native_ptr(),
                rdkafka_sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
                c"planted".as_ptr(),
            );
        }
        assert!(first.client().fatal_error().is_some());
        tokio::time::timeout(Duration::from_secs(60), letters.put(&letter)).await.unwrap();
        assert!(letters.producer().client().fatal_error().is_none());
    }

    #[tokio::test]
    async fn a_tombstone_with_headers_that_are_too_large_is_kept_without_them() {
        let kafka = rdkafka::mocking::MockCluster::new(1).unwrap();
        kafka.create_topic("letters", 1, 1).unwrap();
        let connection = Connection::plaintext(kafka.bootstrap_servers());
        let letters = DeadLetters::new(connection, "letters", "export-test", "source").unwrap();
        let headers = vec![("h".to_owned(), Some(vec![0; DEAD_LETTER_TOPIC as usize + 1]))];
        let letter = kept(None, headers).dead_letter(Reason::Malformed, "x");
        tokio::time::timeout(Duration::from_secs(60), letters.put(&letter)).await.unwrap();
        let producer = letters.producer();
        let ends = tokio::task::spawn_blocking(move || {
            producer.client().fetch_watermarks("letters", 0, Duration::from_secs(10)).unwrap()
        });
        assert_eq!(ends.await.unwrap(), (0, 1), "the letter was written once");
    }
}
