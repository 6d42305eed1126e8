//! How every client of the data plane is configured.
//!
//! All consumers read committed messages only, commit nothing by themselves, never reset an offset by themselves and
//! balance cooperatively. All producers are idempotent, wait for all in-sync replicas and place keys as Java clients and
//! PostHog do (`murmur2_random`).

use rdkafka::{ClientConfig, config::RDKafkaLogLevel};

use super::{Connection, message_size};
use crate::config::Source;

/// The context that clients of these configurations are made with: [`Connection::context`].
pub use super::connection::Context as LogContext;

/// What all clients share.
fn base(kafka: &Connection, client_id: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    kafka.apply(&mut config);
    config
        .set("client.id", client_id)
        // A recreated pod or broker comes back under another address: look again soon.
        .set("broker.address.ttl", "1000")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        .set("socket.keepalive.enable", "true")
        .set("allow.auto.create.topics", "false")
        .set("topic.metadata.refresh.interval.ms", "30000")
        .set("statistics.interval.ms", "0");
    config.set_log_level(RDKafkaLogLevel::Info);
    config
}

/// A consumer of one topic. Its memory is bounded: prefetched messages by `queued.max.messages.kbytes`, and one answer
/// of a broker on top, which may grow by decompression.
pub fn consumer(kafka: &Connection, source: &Source, client_id: &str) -> ClientConfig {
    let mut config = base(kafka, client_id);
    config
        .set("group.id", &source.group)
        .set("group.protocol", "classic")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", source.session_timeout_ms.to_string())
        .set("heartbeat.interval.ms", (source.session_timeout_ms / 3).clamp(1, 3000).to_string())
        .set("max.poll.interval.ms", source.max_poll_interval_ms.max(source.session_timeout_ms).to_string())
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .set("check.crcs", "true")
        .set("queued.max.messages.kbytes", "32768")
        // A full queue is looked at again soon; a second, the default, would starve the consumer.
        .set("fetch.queue.backoff.ms", "10")
        // What comes on top of the queue's bound: one answer.
        .set("fetch.max.bytes", "2097152")
        .set("max.partition.fetch.bytes", "2097152")
        .set("fetch.wait.max.ms", "500");
    config
}

/// An idempotent producer.
///
/// `delivery_timeout_ms` is `message.timeout.ms`; `queue_bytes` bounds what waits in memory; `max_message_bytes` is the
/// limit of the topic with the largest messages ([`super::message_size`]).
pub fn idempotent_producer(
    kafka: &Connection,
    client_id: &str,
    delivery_timeout_ms: u32,
    queue_bytes: u64,
    max_message_bytes: u32,
) -> ClientConfig {
    let mut config = base(kafka, client_id);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("partitioner", "murmur2_random")
        // As the topics keep it: another one would be compressed again by the brokers.
        .set("compression.type", "zstd")
        .set("message.timeout.ms", delivery_timeout_ms.to_string())
        .set("message.max.bytes", max_message_bytes.to_string())
        // Batches stay below the limit of every topic; only a single large message makes a larger one.
        .set("batch.size", "1000000")
        .set("queue.buffering.max.kbytes", (queue_bytes / 1024).clamp(1024, 2_000_000).to_string())
        .set("queue.buffering.max.messages", "0")
        .set("linger.ms", "5");
    config
}

/// A transactional producer. `timeout_ms` is how long an abandoned transaction holds back readers.
pub fn transactional_producer(
    kafka: &Connection,
    client_id: &str,
    transactional_id: &str,
    timeout_ms: u32,
    queue_bytes: u64,
) -> ClientConfig {
    // A message that is not delivered within the transaction's time can no longer belong to it.
    let mut config =
        idempotent_producer(kafka, client_id, timeout_ms, queue_bytes, message_size::DEAD_LETTER_TOPIC);
    config
        .set("transactional.id", transactional_id)
        .set("transaction.timeout.ms", timeout_ms.to_string())
        // The commit says whether all were delivered; a report for each would only cost.
        .set("delivery.report.only.error", "true")
        .set("linger.ms", "20");
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StartFrom;

    fn kafka() -> Connection {
        Connection::plaintext("localhost:1")
    }

    #[test]
    fn librdkafka_takes_the_consumer_configuration() {
        let source = Source {
            topic: "t".into(),
            group: "g".into(),
            start_from: StartFrom::Earliest,
            session_timeout_ms: 10_000,
            max_poll_interval_ms: 60_000,
        };
        let config = consumer(&kafka(), &source, "test");
        let client: Result<rdkafka::consumer::BaseConsumer<LogContext>, _> =
            config.create_with_context(kafka().context());
        assert!(client.is_ok(), "{:?}", client.err());
        assert_eq!(config.get("auto.offset.reset"), Some("error"));
        assert_eq!(config.get("isolation.level"), Some("read_committed"));
    }

    #[test]
    fn librdkafka_takes_the_producer_configuration() {
        let config = transactional_producer(&kafka(), "test", "id", 10_000, 64 << 20);
        let client: Result<rdkafka::producer::BaseProducer<LogContext>, _> =
            config.create_with_context(kafka().context());
        assert!(client.is_ok(), "{:?}", client.err());
        assert_eq!(config.get("partitioner"), Some("murmur2_random"));
    }
}
