//! Reads the stage topics into a ledger.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use penstock_pipeline::events::dead_letter::header;
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
    error::KafkaError,
    message::{BorrowedMessage, Headers},
};

use super::{
    content::{self, Ignored, Reading, digest},
    ledger::{Ledger, Place, Stage, Step},
};

const PATIENCE: Duration = Duration::from_secs(10);
/// A broker that says nothing for so long is not going to.
const SILENCE: Duration = Duration::from_secs(60);
/// How often a long reading says how far it is.
const TELL: Duration = Duration::from_secs(5);

/// Reads topics.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Kafka's addresses.
    pub bootstrap_servers: String,
    /// Further properties of librdkafka.
    pub properties: Vec<(String, String)>,
    /// Whether what is read is told on stderr.
    pub progress: bool,
}

/// Names of the topics of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stages {
    /// Of capture.
    pub captured: String,
    /// Of the consumer.
    pub ingested: String,
    /// Of the transformation, if there is one.
    pub transformed: Option<String>,
    /// Dead letters.
    pub dead_letter: String,
}

/// How far a partition goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// Behind the last message.
    pub end: i64,
    /// Behind the last message that is not in an open transaction.
    pub stable: i64,
}

impl Reader {
    fn client(&self, isolation: &str) -> Result<BaseConsumer> {
        let mut config = ClientConfig::new();
        for (key, value) in &self.properties {
            config.set(key, value);
        }
        // It never joins the group and never commits.
        config
            .set("bootstrap.servers", &self.bootstrap_servers)
            .set("group.id", "penstock-auditor")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true");
        Ok(config.create()?)
    }

    /// The topics of this prefix that a pipeline has.
    ///
    /// # Errors
    /// Kafka does not answer, or one that every pipeline has is not there.
    pub fn stages(&self, prefix: &str) -> Result<Stages> {
        let client = self.client("read_committed")?;
        let exists = |name: &str| -> Result<bool> {
            let metadata = client
                .fetch_metadata(Some(name), PATIENCE)
                .with_context(|| format!("Kafka at {} does not answer", self.bootstrap_servers))?;
            Ok(metadata
                .topics()
                .iter()
                .any(|topic| topic.error().is_none() && !topic.partitions().is_empty()))
        };
        let name = |stage: &str| format!("{prefix}{stage}");
        for stage in ["captured", "ingested", "dead-letter"] {
            ensure!(exists(&name(stage))?, "there is no topic {}", name(stage));
        }
        let transformed = name("transformed");
        Ok(Stages {
            captured: name("captured"),
            ingested: name("ingested"),
            transformed: exists(&transformed)?.then_some(transformed),
            dead_letter: name("dead-letter"),
        })
    }

    fn partitions(client: &BaseConsumer, topic: &str) -> Result<Vec<i32>> {
        let metadata = client.fetch_metadata(Some(topic), PATIENCE)?;
        Ok(metadata
            .topics()
            .iter()
            .flat_map(|topic| topic.partitions())
            .map(rdkafka::metadata::MetadataPartition::id)
            .collect())
    }

    /// The ends of all partitions of all stage topics of a prefix.
    ///
    /// # Errors
    /// As [`Self::stages`].
    pub fn ends(&self, prefix: &str) -> Result<Vec<End>> {
        let stages = self.stages(prefix)?;
        let (all, committed) = (self.client("read_uncommitted")?, self.client("read_committed")?);
        let mut ends = Vec::new();
        let topics =
            [Some(stages.captured), Some(stages.ingested), stages.transformed, Some(stages.dead_letter)];
        for topic in topics.into_iter().flatten() {
            for partition in Self::partitions(&all, &topic)? {
                ends.push(End {
                    stable: committed.fetch_watermarks(&topic, partition, PATIENCE)?.1,
                    end: all.fetch_watermarks(&topic, partition, PATIENCE)?.1,
                });
            }
        }
        Ok(ends)
    }

    /// Gives every committed message of a topic up to its present end, in order within each partition.
    ///
    /// # Errors
    /// The topic does not exist, a transaction in it stays open, or Kafka stops answering.
    pub fn each(&self, topic: &str, mut each: impl FnMut(&BorrowedMessage<'_>)) -> Result<()> {
        let client = self.client("read_committed")?;
        let uncommitted = self.client("read_uncommitted")?;
        let partitions = Self::partitions(&client, topic)
            .with_context(|| format!("Kafka at {} does not answer", self.bootstrap_servers))?;
        if partitions.is_empty() {
            bail!("topic {topic} does not exist");
        }
        let mut assignment = TopicPartitionList::new();
        let mut total = 0;
        for &partition in &partitions {
            self.closed(&client, &uncommitted, topic, partition)?;
            let (from, to) = client.fetch_watermarks(topic, partition, PATIENCE)?;
            if from > 0 && self.progress {
                eprintln!(
                    "{topic} partition {partition} begins at {from}: what was before is not in the account"
                );
            }
            total += to - from;
            assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
        }
        client.assign(&assignment)?;

        let (mut read, mut ended) = (0_u64, BTreeSet::new());
        let (mut heard, mut told) = (Instant::now(), Instant::now());
        while ended.len() < partitions.len() {
            match client.poll(Duration::from_millis(500)) {
                None => {
                    ensure!(heard.elapsed() < SILENCE, "{topic}: Kafka has said nothing for a minute");
                    continue;
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    ended.insert(partition);
                }
                Some(Err(error)) => return Err(error).with_context(|| format!("reading {topic}")),
                Some(Ok(message)) => {
                    read += 1;
                    each(&message);
                }
            }
            heard = Instant::now();
            if self.progress && told.elapsed() > TELL {
                told = heard;
                eprintln!("reading {topic}: {read} messages of at most {total}");
            }
        }
        if self.progress {
            eprintln!("reading {topic}: {read} messages");
        }
        Ok(())
    }

    /// Waits until no transaction is open in a partition: what lies behind it would not be read.
    fn closed(
        &self,
        committed: &BaseConsumer,
        uncommitted: &BaseConsumer,
        topic: &str,
        partition: i32,
    ) -> Result<()> {
        let began = Instant::now();
        loop {
            let end = uncommitted.fetch_watermarks(topic, partition, PATIENCE)?.1;
            // Asked second: it only grows.
            if committed.fetch_watermarks(topic, partition, PATIENCE)?.1 >= end {
                return Ok(());
            }
            ensure!(
                began.elapsed() < SILENCE,
                "{topic} partition {partition}: a transaction has been open for a minute"
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Reads the topics of a pipeline, in its order, into the ledger.
///
/// # Errors
/// As [`Reader::each`].
pub fn read_stages(reader: &Reader, stages: &Stages, ignored: &Ignored, ledger: &mut Ledger) -> Result<()> {
    fn write(ledger: &mut Ledger, stage: Stage, message: &BorrowedMessage<'_>, reading: Result<Reading>) {
        match reading {
            Ok(reading) => {
                ledger.message(stage, place(message), message.key().unwrap_or_default(), &reading);
            }
            Err(error) => ledger.unreadable(stage, place(message), &format!("{error:#}")),
        }
    }
    reader.each(&stages.captured, |message| {
        let reading = content::captured(message.payload().unwrap_or_default(), ignored);
        write(ledger, Stage::Captured, message, reading);
    })?;
    reader.each(&stages.dead_letter, |message| dead_letter(message, ignored, ledger))?;
    reader.each(&stages.ingested, |message| {
        let reading = content::ingested(message.payload().unwrap_or_default(), ignored);
        write(ledger, Stage::Ingested, message, reading);
    })?;
    if let Some(topic) = &stages.transformed {
        reader.each(topic, |message| {
            let reading = content::ingested(message.payload().unwrap_or_default(), ignored);
            write(ledger, Stage::Transformed, message, reading);
        })?;
    }
    Ok(())
}

fn place(message: &BorrowedMessage<'_>) -> Place {
    // Partitions are counted from 0.
    Place { partition: message.partition().unsigned_abs(), offset: message.offset() }
}

fn dead_letter(message: &BorrowedMessage<'_>, ignored: &Ignored, ledger: &mut Ledger) {
    let text = |name: &str| -> String {
        // The last of a name counts.
        message
            .headers()
            .and_then(|headers| headers.iter().filter(|header| header.key == name).last()?.value)
            .map(|value| String::from_utf8_lossy(value).into_owned())
            .unwrap_or_default()
    };
    // The further parts of a letter belong to the first.
    let part = text(header::PART);
    if !part.is_empty() && !part.starts_with("1/") {
        return;
    }
    let (step, reason) = (text(header::STEP), text(header::REASON));
    let value = message.payload().unwrap_or_default();
    let reading = match Step::of(&step) {
        Some(Step::Consumer) => content::captured(value, ignored).ok(),
        Some(Step::Transformation | Step::Export) => content::ingested(value, ignored).ok(),
        Some(Step::Capture) | None => None,
    };
    let uuid = reading.map(|reading| reading.uuid).or_else(|| content::uuid_of(value));
    ledger.dead_letter(
        place(message),
        (&step, &reason),
        message.key().unwrap_or_default(),
        (uuid, digest(value), reading.map(|reading| reading.content)),
    );
}
