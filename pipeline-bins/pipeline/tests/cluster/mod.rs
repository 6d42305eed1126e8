//! A real Kafka for tests: topics of a test's own, and what a reader with `isolation.level=read_committed` finds in them.

#![allow(dead_code)] // each test file uses a part of it

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use penstock_pipeline::{
    config::{Source, StartFrom, TransactionConfig},
    kafka::{
        Connection,
        admin::{self, NewTopic},
        client::{self, LogContext},
    },
};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::KafkaError,
    message::Headers as _,
    producer::{BaseProducer, BaseRecord, Producer},
};

pub const TIMEOUT: Duration = Duration::from_secs(30);

/// One record as a reader finds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
    pub headers: Vec<(String, Option<Vec<u8>>)>,
}

impl Record {
    pub fn text(&self) -> &str {
        std::str::from_utf8(self.value.as_deref().unwrap_or_default()).expect("UTF-8")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().rev().find(|(other, _)| other == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }
}

/// Topics and a group of one test. They are deleted when it ends.
pub struct Cluster {
    pub kafka: Connection,
    pub prefix: String,
    topics: Vec<String>,
    admin: BaseConsumer,
}

impl Cluster {
    pub fn new(test: &str) -> Self {
        Self::existing(format!("test-{test}-{}.", uuid::Uuid::now_v7().simple()))
    }

    /// The topics and the group of another test, which are left alone.
    pub fn existing(prefix: String) -> Self {
        let bootstrap_servers =
            std::env::var("PENSTOCK_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:19092".to_owned());
        let admin = ClientConfig::new()
            .set("bootstrap.servers", &bootstrap_servers)
            // Ends of partitions are those of the log: the default would stop before open transactions.
            .set("isolation.level", "read_uncommitted")
            .create()
            .expect("a client for administration");
        Self { kafka: Connection::plaintext(bootstrap_servers), prefix, topics: Vec::new(), admin }
    }

    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    pub fn group(&self) -> String {
        self.name("group")
    }

    /// Creates a topic and gives its full name.
    pub fn topic(&mut self, name: &str, partitions: i32) -> String {
        let name = self.name(name);
        self.create(&name, partitions);
        self.topics.push(name.clone());
        name
    }

    pub fn create(&self, name: &str, partitions: i32) {
        let topic = NewTopic {
            name: name.to_owned(),
            partitions,
            replication_factor: Some(1),
            config: BTreeMap::from([("max.message.bytes".to_owned(), (5 * 1024 * 1024).to_string())]),
        };
        let deadline = Instant::now() + TIMEOUT;
        // A name that was deleted a moment ago may be taken for a little longer.
        while let Err(error) = admin::create_topic(self.admin.client(), &topic, TIMEOUT) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    pub fn delete(&self, name: &str) {
        admin::delete_topic(self.admin.client(), name, TIMEOUT).expect("the topic is deleted");
    }

    pub fn source(&self, topic: &str) -> Source {
        Source {
            topic: topic.to_owned(),
            group: self.group(),
            start_from: StartFrom::Earliest,
            session_timeout_ms: 6_000,
            max_poll_interval_ms: 60_000,
        }
    }

    pub fn transaction(&self) -> TransactionConfig {
        TransactionConfig {
            id_prefix: self.name("engine."),
            timeout_ms: 10_000,
            max_messages: 500,
            max_bytes: 4 << 20,
            max_wait_ms: 50,
        }
    }

    /// A producer as capture has one.
    pub fn producer(&self) -> BaseProducer<LogContext> {
        let mut config = client::idempotent_producer(&self.kafka, "test", 30_000, 512 << 20, 5 * 1024 * 1024);
        config.set("delivery.report.only.error", "true");
        config.create_with_context(self.kafka.context()).expect("a producer")
    }

    /// Writes records, and waits until they are there.
    pub fn produce<'a>(&self, topic: &str, records: impl IntoIterator<Item = (&'a str, String)>) {
        let producer = self.producer();
        for (key, value) in records {
            send(&producer, BaseRecord::to(topic).key(key).payload(&value));
        }
        producer.flush(TIMEOUT).expect("everything is acknowledged");
    }

    /// Everything in a topic that is committed, in the order of its partitions. Waits until no transaction is open in it.
    pub fn read(&self, topic: &str) -> Vec<Record> {
        let deadline = Instant::now() + TIMEOUT;
        let reader = self.group_client();
        for partition in 0..self.partitions(topic) {
            loop {
                let stable = reader.fetch_watermarks(topic, partition, TIMEOUT).expect("watermarks").1;
                let end = self.admin.fetch_watermarks(topic, partition, TIMEOUT).expect("watermarks").1;
                if stable == end {
                    break;
                }
                assert!(Instant::now() < deadline, "a transaction in {topic} stays open");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        self.read_now(topic)
    }

    /// What a reader of committed messages can see of a topic now: what lies before the first open transaction.
    pub fn read_now(&self, topic: &str) -> Vec<Record> {
        self.read_as("read_committed", topic)
    }

    /// Everything in a topic, also of transactions that are open or were aborted.
    pub fn read_uncommitted(&self, topic: &str) -> Vec<Record> {
        self.read_as("read_uncommitted", topic)
    }

    fn read_as(&self, isolation: &str, topic: &str) -> Vec<Record> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.kafka.bootstrap_servers())
            .set("group.id", self.name("reader"))
            .set("isolation.level", isolation)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("fetch.wait.max.ms", "50")
            .create()
            .expect("a reader");
        let partitions = self.partitions(topic);
        let mut list = TopicPartitionList::new();
        for partition in 0..partitions {
            list.add_partition_offset(topic, partition, Offset::Beginning).expect("a start");
        }
        consumer.assign(&list).expect("assigned");
        let mut records = Vec::new();
        let mut ended = std::collections::BTreeSet::new();
        let deadline = Instant::now() + TIMEOUT;
        while ended.len() < usize::try_from(partitions).expect("a count") {
            assert!(Instant::now() < deadline, "{topic} cannot be read to its end");
            match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => records.push(Record {
                    partition: message.partition(),
                    offset: message.offset(),
                    timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    headers: message.headers().map_or_else(Vec::new, |headers| {
                        headers
                            .iter()
                            .map(|header| (header.key.to_owned(), header.value.map(<[u8]>::to_vec)))
                            .collect()
                    }),
                }),
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    ended.insert(partition);
                }
                Some(Err(error)) => panic!("reading {topic}: {error}"),
                None => {}
            }
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }

    pub fn partitions(&self, topic: &str) -> i32 {
        let metadata = self.admin.fetch_metadata(Some(topic), TIMEOUT).expect("metadata");
        i32::try_from(metadata.topics()[0].partitions().len()).expect("a count")
    }

    /// Waits until something was written to a topic, committed or not.
    pub fn wait_for_growth(&self, topic: &str, from: i64) -> i64 {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let end = self.end(topic);
            if end > from {
                return end;
            }
            assert!(Instant::now() < deadline, "{topic} does not grow");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sum of the ends of all partitions, open transactions included.
    pub fn end(&self, topic: &str) -> i64 {
        let end = |partition| self.admin.fetch_watermarks(topic, partition, TIMEOUT).expect("watermarks").1;
        (0..self.partitions(topic)).map(end).sum()
    }

    /// End of each partition, and what the group has committed for it.
    pub fn progress(&self, topic: &str) -> Vec<(i64, Option<i64>)> {
        let group: BaseConsumer = self.group_client();
        let partitions = self.partitions(topic);
        let mut list = TopicPartitionList::new();
        list.add_partition_range(topic, 0, partitions - 1);
        let committed = group.committed_offsets(list, TIMEOUT).expect("offsets");
        committed
            .elements()
            .iter()
            .map(|element| {
                let (_, high) =
                    self.admin.fetch_watermarks(topic, element.partition(), TIMEOUT).expect("watermarks");
                let offset = match element.offset() {
                    Offset::Offset(offset) => Some(offset),
                    _ => None,
                };
                (high, offset)
            })
            .collect()
    }

    /// What the group has still to read, markers included. A partition without an offset counts as a whole.
    pub fn lag(&self, topic: &str) -> i64 {
        self.progress(topic).iter().map(|(high, committed)| high - committed.unwrap_or(0)).sum()
    }

    /// Waits until nothing waits in a topic.
    pub fn wait_for_no_lag(&self, topic: &str, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.lag(topic) > 0 {
            assert!(Instant::now() < deadline, "{topic} still has lag: {:?}", self.progress(topic));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the group has committed for a partition, and what is written beside it.
    pub fn committed(&self, topic: &str, partition: i32) -> (i64, String) {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        let list = self.group_client().committed_offsets(list, TIMEOUT).expect("offsets");
        let elements = list.elements();
        let Offset::Offset(offset) = elements[0].offset() else { panic!("nothing is committed") };
        (offset, elements[0].metadata().to_owned())
    }

    /// Sets an offset of the group, as an operator would with Kafka's tools.
    pub fn commit(&self, topic: &str, partition: i32, offset: i64) {
        self.commit_with_metadata(topic, partition, offset, "");
    }

    /// The same with text beside it.
    pub fn commit_with_metadata(&self, topic: &str, partition: i32, offset: i64, metadata: &str) {
        let mut list = TopicPartitionList::new();
        let mut element = list.add_partition(topic, partition);
        element.set_offset(Offset::Offset(offset)).expect("an offset");
        element.set_metadata(metadata);
        self.group_client().commit(&list, CommitMode::Sync).expect("committed");
    }

    /// Deletes what lies before an offset.
    pub async fn delete_records_before(&self, topic: &str, partition: i32, offset: i64) {
        let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
            .set("bootstrap.servers", self.kafka.bootstrap_servers())
            .create()
            .expect("a client for administration");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).expect("an offset");
        admin.delete_records(&list, &AdminOptions::new()).await.expect("deleted");
    }

    fn group_client(&self) -> BaseConsumer {
        ClientConfig::new()
            .set("bootstrap.servers", self.kafka.bootstrap_servers())
            .set("group.id", self.group())
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .create()
            .expect("a client of the group")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.topics.is_empty() {
            return;
        }
        for topic in &self.topics {
            // Of a test that failed something may be missing already.
            let _ = admin::delete_topic(self.admin.client(), topic, TIMEOUT);
        }
        let (servers, group) = (self.kafka.bootstrap_servers().to_owned(), self.group());
        // A runtime cannot be dropped inside the runtime of an asynchronous test.
        let deleted = std::thread::spawn(move || {
            let admin: AdminClient<DefaultClientContext> =
                ClientConfig::new().set("bootstrap.servers", &servers).create().expect("a client");
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            // A group with a member that has not left yet stays for its seven days.
            let _ = runtime.block_on(admin.delete_groups(&[&group], &AdminOptions::new()));
        });
        let _ = deleted.join();
    }
}

/// Sends one record and waits for room.
pub fn send(producer: &BaseProducer<LogContext>, record: BaseRecord<'_, str, String>) {
    let mut record = record;
    while let Err((error, back)) = producer.send(record) {
        assert_eq!(error.rdkafka_error_code(), Some(rdkafka::error::RDKafkaErrorCode::QueueFull), "{error}");
        producer.poll(Duration::from_millis(10));
        record = back;
    }
}
