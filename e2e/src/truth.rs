//! What lies in Kafka: the truth against which ClickHouse is held.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
};

/// One message, as a `read_committed` reader sees it.
#[derive(Clone, Debug)]
pub struct Record {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Key, empty when there is none.
    pub key: Vec<u8>,
    /// Value.
    pub value: Vec<u8>,
    /// Headers that are text.
    pub headers: BTreeMap<String, String>,
}

impl Record {
    /// The value as JSON.
    ///
    /// # Errors
    /// It is not JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.value)
            .with_context(|| format!("partition {} offset {} is not JSON", self.partition, self.offset))
    }
}

/// Every committed message of a topic, up to its present end, in order of partition and offset.
///
/// # Errors
/// The topic does not exist, Kafka is not reached, or reading takes longer than two minutes.
pub fn read_topic(bootstrap_servers: &str, topic: &str) -> Result<Vec<Record>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap_servers)
        .set("group.id", "penstock-auditor")
        .set("enable.auto.commit", "false")
        .set("auto.offset.reset", "error")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()?;
    let metadata = consumer
        .fetch_metadata(Some(topic), Duration::from_secs(10))
        .with_context(|| format!("Kafka at {bootstrap_servers} does not answer"))?;
    let partitions: Vec<i32> = metadata
        .topics()
        .iter()
        .flat_map(|t| t.partitions())
        .map(rdkafka::metadata::MetadataPartition::id)
        .collect();
    if partitions.is_empty() {
        bail!("topic {topic} does not exist");
    }
    let mut assignment = TopicPartitionList::new();
    for &partition in &partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
    }
    consumer.assign(&assignment)?;

    let mut records = Vec::new();
    let mut ended = std::collections::BTreeSet::new();
    let deadline = Instant::now() + Duration::from_secs(120);
    while ended.len() < partitions.len() {
        if Instant::now() > deadline {
            bail!(
                "{topic} was not read to its end in two minutes: {} of {} partitions",
                ended.len(),
                partitions.len()
            );
        }
        match consumer.poll(Duration::from_millis(500)) {
            None => {}
            Some(Err(rdkafka::error::KafkaError::PartitionEOF(partition))) => {
                ended.insert(partition);
            }
            Some(Err(error)) => return Err(error).with_context(|| format!("reading {topic}")),
            Some(Ok(message)) => records.push(Record {
                partition: message.partition(),
                offset: message.offset(),
                key: message.key().unwrap_or_default().to_vec(),
                value: message.payload().unwrap_or_default().to_vec(),
                headers: message
                    .headers()
                    .map(|headers| {
                        headers
                            .iter()
                            .filter_map(|h| {
                                Some((h.key.to_owned(), String::from_utf8(h.value?.to_vec()).ok()?))
                            })
                            .collect()
                    })
                    .unwrap_or_default(),
            }),
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    Ok(records)
}

/// Creates a topic.
///
/// # Errors
/// Kafka is not reached, or refuses.
pub fn create_topic(bootstrap_servers: &str, topic: &str, partitions: i32) -> Result<()> {
    use rdkafka::admin::{AdminOptions, NewTopic, TopicReplication};
    let admin = admin(bootstrap_servers)?;
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(-1));
    for result in futures::executor::block_on(admin.create_topics(&[new], &options))? {
        if let Err((topic, code)) = result {
            bail!("topic {topic} was not created: {code}");
        }
    }
    Ok(())
}

/// Deletes every topic whose name begins so.
///
/// # Errors
/// Kafka is not reached, or refuses.
pub fn delete_topics(bootstrap_servers: &str, prefix: &str) -> Result<()> {
    let admin = admin(bootstrap_servers)?;
    let metadata = admin.inner().fetch_metadata(None, Duration::from_secs(10))?;
    let topics: Vec<&str> = metadata
        .topics()
        .iter()
        .map(rdkafka::metadata::MetadataTopic::name)
        .filter(|name| name.starts_with(prefix))
        .collect();
    if topics.is_empty() {
        return Ok(());
    }
    let options = rdkafka::admin::AdminOptions::new().operation_timeout(Some(Duration::from_secs(10)));
    for result in futures::executor::block_on(admin.delete_topics(&topics, &options))? {
        if let Err((topic, code)) = result {
            bail!("topic {topic} was not deleted: {code}");
        }
    }
    Ok(())
}

fn admin(
    bootstrap_servers: &str,
) -> Result<rdkafka::admin::AdminClient<rdkafka::client::DefaultClientContext>> {
    Ok(ClientConfig::new().set("bootstrap.servers", bootstrap_servers).create()?)
}

/// Number of partitions of a topic.
///
/// # Errors
/// Kafka is not reached.
pub fn partitions(bootstrap_servers: &str, topic: &str) -> Result<usize> {
    let metadata = admin(bootstrap_servers)?.inner().fetch_metadata(Some(topic), Duration::from_secs(10))?;
    Ok(metadata.topics().iter().map(|topic| topic.partitions().len()).sum())
}

/// Sets configuration of a topic, and leaves the rest of it alone.
///
/// # Errors
/// Kafka is not reached, or refuses.
pub fn set_topic_config(bootstrap_servers: &str, topic: &str, entries: &[(&str, &str)]) -> Result<()> {
    use penstock_pipeline::kafka::admin::{ConfigChange, change_config};
    let changes: Vec<ConfigChange> = entries
        .iter()
        .map(|(key, value)| ConfigChange::Set { key: (*key).to_owned(), value: (*value).to_owned() })
        .collect();
    Ok(change_config(admin(bootstrap_servers)?.inner(), topic, &changes, Duration::from_secs(10))?)
}

/// The value in effect of one configuration key of a topic.
///
/// # Errors
/// Kafka is not reached, or has no such topic.
pub async fn topic_config(bootstrap_servers: &str, topic: &str, key: &str) -> Result<Option<String>> {
    use rdkafka::admin::{AdminOptions, ResourceSpecifier};
    let admin = admin(bootstrap_servers)?;
    let results = admin
        .describe_configs(
            [&ResourceSpecifier::Topic(topic)],
            &AdminOptions::new().request_timeout(Some(Duration::from_secs(10))),
        )
        .await?;
    let resource = results
        .into_iter()
        .next()
        .context("no answer")?
        .map_err(|code| anyhow::anyhow!("{topic}: {code}"))?;
    Ok(resource.get(key).and_then(|entry| entry.value.clone()))
}
