//! A batch whose checksum is wrong is read again, not passed over: what librdkafka does, and what its next version must do as
//! well. The broker is librdkafka's mock, which keeps what it is sent as it is.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use penstock_pipeline::{
    config::{Source, StartFrom},
    kafka::{
        Connection,
        client::{self, LogContext},
        poll::{Polled, PolledConsumer},
    },
};
use rdkafka::{
    Offset, TopicPartitionList,
    config::ClientConfig,
    consumer::{BaseConsumer, Consumer},
    error::RDKafkaErrorCode,
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, Producer},
};

const TOPIC: &str = "damaged";

/// CRC-32C, as batches have it.
fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| {
                if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 }
            },
        )
    })
}

/// A batch of one record; `damage` is added to its checksum.
fn batch(offset: i64, value: &[u8], damage: u32) -> Vec<u8> {
    let short = |length: usize| u8::try_from(length * 2).expect("a varint of one byte");
    // Attributes, times, no key, value, no headers.
    let mut record = vec![0, 0, 0, 1, short(value.len())];
    record.extend_from_slice(value);
    record.push(0);
    let mut content = Vec::new();
    content.extend(0_i16.to_be_bytes()); // attributes
    content.extend(0_i32.to_be_bytes()); // last offset delta
    content.extend(1_700_000_000_000_i64.to_be_bytes()); // first time
    content.extend(1_700_000_000_000_i64.to_be_bytes()); // last time
    content.extend((-1_i64).to_be_bytes()); // producer id
    content.extend((-1_i16).to_be_bytes()); // producer epoch
    content.extend((-1_i32).to_be_bytes()); // first sequence number
    content.extend(1_i32.to_be_bytes()); // records
    content.push(short(record.len()));
    content.extend(record);

    let mut batch = Vec::new();
    batch.extend(offset.to_be_bytes());
    let length = i32::try_from(4 + 1 + 4 + content.len()).expect("a small batch");
    batch.extend(length.to_be_bytes());
    batch.extend(0_i32.to_be_bytes()); // leader epoch
    batch.push(2); // format
    batch.extend(checksum(&content).wrapping_add(damage).to_be_bytes());
    batch.extend(content);
    batch
}

/// Sends batches as one ProduceRequest (version 7). The broker counts the records of the first only.
fn produce_raw(broker: &str, batches: &[u8]) {
    let text = |text: &str| {
        let mut bytes = i16::try_from(text.len()).expect("a short text").to_be_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    };
    let mut request = Vec::new();
    request.extend(0_i16.to_be_bytes()); // Produce
    request.extend(7_i16.to_be_bytes()); // version
    request.extend(1_i32.to_be_bytes()); // correlation id
    request.extend(text("test"));
    request.extend((-1_i16).to_be_bytes()); // no transactional id
    request.extend((-1_i16).to_be_bytes()); // acks
    request.extend(5_000_i32.to_be_bytes()); // time-out
    request.extend(1_i32.to_be_bytes()); // topics
    request.extend(text(TOPIC));
    request.extend(1_i32.to_be_bytes()); // partitions
    request.extend(0_i32.to_be_bytes()); // partition
    request.extend(i32::try_from(batches.len()).expect("few bytes").to_be_bytes());
    request.extend(batches);
    let mut stream = TcpStream::connect(broker).expect("the broker answers");
    stream.write_all(&i32::try_from(request.len()).expect("few bytes").to_be_bytes()).expect("sent");
    stream.write_all(&request).expect("sent");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).expect("a length")];
    stream.read_exact(&mut answer).expect("an answer");
    // Correlation id, topics, name, partitions, partition, error code.
    let error = 4 + 4 + 2 + TOPIC.len() + 4 + 4;
    assert_eq!(answer[error..error + 2], [0, 0], "the broker took it: {answer:?}");
}

#[test]
fn a_batch_that_was_damaged_on_its_way_is_read_again() {
    let cluster = MockCluster::new(1).expect("a broker");
    let broker = cluster.bootstrap_servers();
    cluster.create_topic(TOPIC, 1, 1).expect("a topic");
    // One answer has all three: the second is damaged. What is asked for anew is whole.
    produce_raw(&broker, &[batch(0, b"one", 0), batch(1, b"two", 1), batch(2, b"three", 0)].concat());
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", &broker).create().expect("a producer");
    for value in ["two", "three"] {
        producer.send(BaseRecord::<(), str>::to(TOPIC).partition(0).payload(value)).expect("queued");
        producer.flush(Duration::from_secs(10)).expect("acknowledged");
    }

    let kafka = Connection::plaintext(broker);
    let source = Source {
        topic: TOPIC.into(),
        group: "g".into(),
        start_from: StartFrom::Earliest,
        session_timeout_ms: 10_000,
        max_poll_interval_ms: 60_000,
    };
    let consumer: BaseConsumer<LogContext> =
        client::consumer(&kafka, &source, "test").create_with_context(kafka.context()).expect("a consumer");
    let mut start = TopicPartitionList::new();
    start.add_partition_offset(TOPIC, 0, Offset::Offset(0)).expect("an offset");
    consumer.assign(&start).expect("assigned");
    let consumer = PolledConsumer::new(consumer).expect("a queue");

    let (mut values, mut errors) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + Duration::from_secs(20);
    while values.len() < 3 && Instant::now() < deadline {
        let Some(event) = consumer.poll(Duration::from_millis(100)) else { continue };
        match consumer.read(&event) {
            Polled::Message(message) => {
                let value = String::from_utf8_lossy(message.value.unwrap_or_default()).into_owned();
                values.push((message.offset, value));
            }
            Polled::PartitionError { code, .. } => errors.push(code),
            _ => {}
        }
    }
    assert_eq!(values, [(0, "one".into()), (1, "two".into()), (2, "three".into())]);
    assert_eq!(errors, [RDKafkaErrorCode::BadMessage], "and somebody was told");
}
