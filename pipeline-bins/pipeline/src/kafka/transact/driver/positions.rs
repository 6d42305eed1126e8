//! Positions: where the committed offsets are, and bringing the consumer there.

use std::collections::BTreeMap;

use rdkafka::{Offset, TopicPartitionList, consumer::Consumer, error::KafkaError};
use tracing::{debug, error, warn};

use super::{CALL, Driver};
use crate::{
    config::Source,
    kafka::{
        admin, topic_ids,
        transact::{
            Faults, Process,
            lifecycle::{Event, Remedy, State},
            starts::{CommittedOffset, Hold, Origin, Seen, Start, start},
        },
    },
};

impl<P: Process, F: Faults> Driver<'_, P, F> {
    /// Reads the committed offsets and puts the consumer there.
    pub(super) fn rewind(&mut self) -> Result<(), KafkaError> {
        self.back_off()?;
        if self.stop.is_cancelled() || !matches!(self.state, State::Rewinding) {
            return Ok(());
        }
        let mut partitions = self.partitions.consuming();
        partitions.extend(self.partitions.unplaced());
        match self.place(&partitions) {
            Ok(()) => self.happened(Event::Rewound),
            Err(reason) => {
                warn!(reason, "cannot put the consumer at its committed offsets yet");
                self.failures = self.failures.saturating_add(1);
                self.trouble(format!("reading positions: {reason}"));
                return Ok(());
            }
        }
        if self.partitions.has_to_commit() {
            self.happened(Event::Moved);
        }
        Ok(())
    }

    /// Decides where partitions begin, and moves the consumer there.
    pub(super) fn place(&mut self, partitions: &[i32]) -> Result<(), String> {
        let starts = self.starts(partitions)?;
        let mut seek = TopicPartitionList::with_capacity(starts.len());
        for (partition, start) in &starts {
            if let Start::At { offset, .. } = start {
                seek.add_partition_offset(&self.options.source.topic, *partition, Offset::Offset(*offset))
                    .map_err(|error| error.to_string())?;
            }
        }
        if seek.count() > 0 {
            let sought =
                self.consumer.client().seek_partitions(seek, CALL).map_err(|error| error.to_string())?;
            for element in sought.elements() {
                element.error().map_err(|error| format!("partition {}: {error}", element.partition()))?;
            }
        }
        let mut resume = TopicPartitionList::new();
        for (partition, start) in starts {
            match start {
                Start::Held(hold) => self.hold(partition, hold),
                Start::At { .. } => {
                    resume.add_partition(&self.options.source.topic, partition);
                    self.partitions.place(partition, start);
                }
            }
        }
        if resume.count() > 0 {
            self.consumer.client().resume(&resume).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Asks the brokers where partitions begin.
    pub(super) fn starts(&mut self, partitions: &[i32]) -> Result<Vec<(i32, Start)>, String> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let source = self.options.source.clone();
        let client = self.consumer.client();
        let topic_id = topic_ids::topic_id(client.client(), &source.topic, CALL)
            .map_err(|error| format!("asking for the id of {}: {error}", source.topic))?
            .ok_or_else(|| format!("there is no topic {}", source.topic))?
            .to_string();
        let metadata = client.fetch_metadata(Some(&source.topic), CALL).map_err(|error| error.to_string())?;
        let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        let first_known = self.topic.as_ref().filter(|topic| topic.topic_id == topic_id);
        let mut first_partitions = match first_known {
            Some(topic) => topic.first_partitions,
            None => count.min(self.first_partitions(&source, count, &topic_id)?),
        };
        // Only those that are to be placed: the offset of another one may belong to a transaction that its owner has not
        // decided yet, and the broker does not answer before.
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition(&source.topic, partition);
        }
        let committed = client
            .committed_offsets(list, CALL)
            .map_err(|error| format!("reading the offsets of group {}: {error}", source.group))?;
        let mut offsets = BTreeMap::new();
        for element in committed.elements() {
            element
                .error()
                .map_err(|error| format!("offset of partition {}: {error}", element.partition()))?;
            if let Offset::Offset(offset) = element.offset() {
                let origin = Origin::parse(element.metadata());
                if let Some(origin) = origin.as_ref().filter(|origin| origin.topic_id == topic_id) {
                    first_partitions = first_partitions.min(origin.first_partitions);
                }
                offsets.insert(element.partition(), CommittedOffset { offset, origin });
            }
        }
        let topic = Origin { topic_id, first_partitions };
        let mut starts = Vec::with_capacity(partitions.len());
        for &partition in partitions {
            let (low, high) = client
                .fetch_watermarks(&source.topic, partition, CALL)
                .map_err(|error| format!("asking for the range of partition {partition}: {error}"))?;
            let seen = Seen { committed: offsets.remove(&partition), low, high };
            starts.push((partition, start(partition, &seen, &topic, source.start_from)));
        }
        let is = topic.topic_id.clone();
        if let Some(was) = self.topic.replace(topic).map(|was| was.topic_id).filter(|was| *was != is) {
            // Those that are read already have positions in the topic of before.
            for partition in self.partitions.consuming() {
                if !partitions.contains(&partition) {
                    self.hold(partition, Hold::OtherTopic { was: was.clone(), is: is.clone() });
                }
            }
        }
        Ok(starts)
    }

    /// How many partitions the topic of this id had when the group began to read it, by what the group has committed; the
    /// most there can be when it has committed nothing. An offset that is not decided yet says the same as the one before.
    fn first_partitions(&self, source: &Source, count: i32, topic_id: &str) -> Result<i32, String> {
        let all: Vec<(&str, i32)> = (0..count).map(|partition| (source.topic.as_str(), partition)).collect();
        let answers = admin::committed_offsets(self.consumer.client().client(), &source.group, &all, CALL)
            .map_err(|error| error.to_string())?;
        let mut first = i32::MAX;
        for answer in answers.into_values() {
            let Some(committed) = answer.map_err(|error| error.to_string())? else { continue };
            let origin = std::str::from_utf8(&committed.metadata).ok().and_then(Origin::parse);
            if let Some(origin) = origin.filter(|origin| origin.topic_id == topic_id) {
                first = first.min(origin.first_partitions);
            }
        }
        Ok(first)
    }

    pub(super) fn hold(&mut self, partition: i32, hold: Hold) {
        error!(topic = self.options.source.topic, partition, reason = %hold, "the partition is held");
        self.pause(&[partition]);
        self.status.facts().held.insert(partition, hold.to_string());
        if self.partitions.hold(partition, hold) && matches!(self.state, State::Open { .. }) {
            self.happened(Event::Failed(Remedy::Abort));
        }
        self.metrics.held.set(self.partitions.held().count() as i64);
    }

    pub(super) fn pause(&self, partitions: &[i32]) {
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            list.add_partition(&self.options.source.topic, partition);
        }
        if let Err(error) = self.consumer.client().pause(&list) {
            // What comes from it is ignored all the same.
            debug!(%error, "cannot pause");
        }
    }
}
