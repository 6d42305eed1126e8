//! Dead letters of an export: keyed by topic, partition and offset, so that a repetition is recognised.

use std::time::Duration;

use penstock_pipeline::{
    config::KafkaConnection,
    events::dead_letter::{Reason, header},
    kafka::{
        Message,
        client::{self, LogContext},
        message_size::DEAD_LETTER_TOPIC,
    },
};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
    util::Timeout,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::warn;

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

/// Writes dead letters. Clones share one producer.
#[derive(Clone)]
pub struct DeadLetters {
    producer: FutureProducer<LogContext>,
    topic: String,
    step: String,
    source_topic: String,
}

impl DeadLetters {
    /// A producer for `topic`. `step` is the component's name, for the headers.
    pub fn new(
        kafka: &KafkaConnection,
        topic: &str,
        step: &str,
        source_topic: &str,
    ) -> Result<Self, KafkaError> {
        let producer = client::idempotent_producer(
            kafka,
            &format!("{step}.dead-letters"),
            DELIVERY_TIMEOUT_MS,
            QUEUE_BYTES,
            DEAD_LETTER_TOPIC,
        )
        .create_with_context(LogContext)?;
        Ok(Self {
            producer,
            topic: topic.to_owned(),
            step: step.to_owned(),
            source_topic: source_topic.to_owned(),
        })
    }

    /// The producer, whose client can ask the brokers things.
    pub fn producer(&self) -> &FutureProducer<LogContext> {
        &self.producer
    }

    /// Ends when the dead letter is acknowledged; until then it is tried again and again.
    pub async fn put(&self, letter: &DeadLetter) {
        let mut pause = Duration::from_millis(500);
        let mut parts = 1;
        loop {
            match self.put_in_parts(letter, parts).await {
                Ok(()) => return,
                Err(error) if parts == 1 && is_too_large(&error) => {
                    parts = letter
                        .message
                        .value
                        .as_ref()
                        .map_or(1, |value| value.len().div_ceil(PART_BYTES))
                        .max(2);
                    continue;
                }
                Err(error) => warn!(
                    topic = self.topic,
                    source = %self.key(letter),
                    %error,
                    "a dead letter is not acknowledged; trying again"
                ),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(30));
        }
    }

    async fn put_in_parts(&self, letter: &DeadLetter, parts: usize) -> Result<(), KafkaError> {
        if parts == 1 {
            return self.send(letter, letter.message.value.as_deref(), None).await;
        }
        for (index, part) in
            letter.message.value.as_deref().unwrap_or_default().chunks(PART_BYTES).enumerate()
        {
            self.send(letter, Some(part), Some(format!("{}/{parts}", index + 1))).await?;
        }
        Ok(())
    }

    async fn send(
        &self,
        letter: &DeadLetter,
        value: Option<&[u8]>,
        part: Option<String>,
    ) -> Result<(), KafkaError> {
        let mut headers = OwnedHeaders::new_with_capacity(letter.message.headers.len() + 8);
        for (name, value) in &letter.message.headers {
            headers = headers.insert(Header { key: name, value: value.as_ref() });
        }
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        for (key, value) in [
            (header::REASON, letter.reason.code()),
            (header::STEP, &self.step),
            (header::TIMESTAMP, &now),
            (header::DETAIL, &letter.detail),
            (header::SOURCE_TOPIC, &self.source_topic),
            (header::SOURCE_PARTITION, &letter.message.partition.to_string()),
            (header::SOURCE_OFFSET, &letter.message.offset.to_string()),
        ] {
            headers = headers.insert(Header { key, value: Some(value) });
        }
        if let Some(part) = &part {
            headers = headers.insert(Header { key: header::PART, value: Some(part) });
        }
        let key = self.key(letter);
        let mut record =
            FutureRecord::to(&self.topic).key(&key).timestamp(letter.message.timestamp_ms).headers(headers);
        if let Some(value) = value {
            record = record.payload(value);
        }
        self.producer.send(record, Timeout::Never).await.map(|_| ()).map_err(|(error, _)| error)
    }

    fn key(&self, letter: &DeadLetter) -> String {
        format!("{}/{}/{}", self.source_topic, letter.message.partition, letter.message.offset)
    }
}

fn is_too_large(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize)
    )
}
