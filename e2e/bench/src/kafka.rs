//! Topics of a run: made, filled, read to their end, and taken away.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};

use crate::{events::Message, process::Process};

const ANSWER: Duration = Duration::from_secs(15);

/// Kafka, and the names of this run in it.
pub struct Kafka {
    servers: String,
    prefix: String,
    partitions: i32,
}

impl Kafka {
    /// The brokers at `servers`. All topics and groups of the run begin with `prefix`.
    pub fn new(servers: &str, prefix: &str, partitions: i32) -> Self {
        Self { servers: servers.to_owned(), prefix: prefix.to_owned(), partitions }
    }

    /// The whole name of a topic or group.
    pub fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.servers).set("client.id", "penstock-bench");
        config
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.client().create()?)
    }

    /// Makes a topic as the operator makes those of a pipeline.
    ///
    /// # Errors
    /// Kafka is not reached, or refuses.
    pub async fn create(&self, name: &str) -> Result<String> {
        let name = self.name(name);
        let topic = NewTopic::new(&name, self.partitions, TopicReplication::Fixed(1))
            .set("compression.type", "zstd")
            .set("max.message.bytes", "4194304");
        let results = self.admin()?.create_topics([&topic], &AdminOptions::new()).await?;
        for result in results {
            result.map_err(|(topic, code)| anyhow::anyhow!("Kafka makes no topic {topic}: {code}"))?;
        }
        Ok(name)
    }

    /// Takes one topic away.
    ///
    /// # Errors
    /// Kafka is not reached.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.admin()?.delete_topics(&[name], &AdminOptions::new()).await?;
        Ok(())
    }

    /// Takes away every topic and group of the run.
    ///
    /// # Errors
    /// Kafka is not reached.
    pub async fn delete_all(&self) -> Result<()> {
        let admin = self.admin()?;
        let metadata = admin.inner().fetch_metadata(None, ANSWER)?;
        let topics = metadata.topics().iter().map(rdkafka::metadata::MetadataTopic::name);
        let topics: Vec<&str> = topics.filter(|name| name.starts_with(&self.prefix)).collect();
        if !topics.is_empty() {
            admin.delete_topics(&topics, &AdminOptions::new()).await?;
        }
        let groups = admin.inner().fetch_group_list(None, ANSWER)?;
        let groups = groups.groups().iter().map(rdkafka::groups::GroupInfo::name);
        let groups: Vec<&str> = groups.filter(|name| name.starts_with(&self.prefix)).collect();
        if !groups.is_empty() {
            admin.delete_groups(&groups, &AdminOptions::new()).await?;
        }
        Ok(())
    }

    /// Writes so many messages, in large batches, as a backlog has them. Gives how many of them are kept by the
    /// transformation that is measured.
    ///
    /// # Errors
    /// Kafka does not take them.
    pub fn fill(
        &self,
        topic: &str,
        count: u64,
        mut next: impl FnMut() -> Result<Message>,
        mut progress: impl FnMut(u64),
    ) -> Result<u64> {
        let producer: ThreadedProducer<DefaultProducerContext> = self
            .client()
            .set("acks", "all")
            .set("compression.type", "zstd")
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "100")
            .set("batch.size", "1000000")
            .set("queue.buffering.max.messages", "0")
            .set("queue.buffering.max.kbytes", "131072")
            .create()?;
        let mut kept = 0;
        for number in 0..count {
            let message = next()?;
            kept += u64::from(message.kept);
            let headers = message.headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
                all.insert(Header { key, value: Some(value) })
            });
            let mut record = BaseRecord::to(topic).key(&message.key).payload(&message.value).headers(headers);
            loop {
                match producer.send(record) {
                    Ok(()) => break,
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                        record = back;
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    Err((error, _)) => {
                        return Err(error).with_context(|| format!("filling {topic}"));
                    }
                }
            }
            if number % 50_000 == 49_999 {
                progress(number + 1);
            }
        }
        producer.flush(Duration::from_secs(120)).with_context(|| format!("filling {topic}"))?;
        let there = self.length(topic)?;
        ensure!(there == count, "{topic} has {there} messages instead of {count}");
        Ok(kept)
    }

    fn reader(&self, group: &str) -> Result<BaseConsumer> {
        Ok(self
            .client()
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed")
            .create()?)
    }

    /// The offset behind the last message of each partition.
    fn ends(&self, topic: &str) -> Result<Vec<i64>> {
        let reader = self.reader(&self.name("reader"))?;
        (0..self.partitions)
            .map(|partition| Ok(reader.fetch_watermarks(topic, partition, ANSWER)?.1))
            .collect()
    }

    /// Messages of a topic that nobody writes to in transactions.
    ///
    /// # Errors
    /// Kafka is not reached.
    pub fn length(&self, topic: &str) -> Result<u64> {
        Ok(u64::try_from(self.ends(topic)?.iter().sum::<i64>())?)
    }

    /// Committed messages of a topic, transactions' markers not counted: read to the end.
    ///
    /// # Errors
    /// Kafka is not reached, or the end is not in two minutes.
    pub fn count(&self, topic: &str) -> Result<u64> {
        let reader = self.reader(&self.name("reader"))?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..self.partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        reader.assign(&assignment)?;
        let deadline = Instant::now() + Duration::from_secs(120);
        let (mut count, mut ended) = (0, BTreeSet::new());
        while ended.len() < usize::try_from(self.partitions)? {
            ensure!(Instant::now() < deadline, "{topic} was not read to its end in two minutes");
            match reader.poll(Duration::from_millis(500)) {
                None => {}
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    ended.insert(partition);
                }
                Some(Err(error)) => return Err(error).with_context(|| format!("reading {topic}")),
                Some(Ok(message)) => count += u64::from(message.payload_len() > 0),
            }
        }
        Ok(count)
    }

    /// Waits until a group has committed the end of every partition of a topic.
    ///
    /// # Errors
    /// The process that does the work ends, or it takes longer than `patience`.
    pub async fn wait_committed(
        &self,
        topic: &str,
        group: &str,
        worker: &mut Process,
        patience: Duration,
    ) -> Result<()> {
        let ends = self.ends(topic)?;
        let reader = self.reader(group)?;
        let mut partitions = TopicPartitionList::new();
        for partition in 0..self.partitions {
            partitions.add_partition(topic, partition);
        }
        let deadline = Instant::now() + patience;
        loop {
            worker.check()?;
            // Fails while the group has no coordinator yet.
            let committed = reader.committed_offsets(partitions.clone(), ANSWER);
            let done = committed.as_ref().is_ok_and(|committed| {
                committed.elements().iter().zip(&ends).all(|(element, end)| match element.offset() {
                    Offset::Offset(offset) => offset >= *end,
                    _ => *end == 0,
                })
            });
            if done {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{group} is not through {topic} after {} s: {committed:?}", patience.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
