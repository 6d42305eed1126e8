//! From what happened to what is done, and the commits.

use std::time::{Duration, Instant};

use penstock_pipeline::kafka::topic_ids;
use rdkafka::{
    consumer::{CommitMode, Consumer},
    error::KafkaError,
    topic_partition_list::{Offset, TopicPartitionList},
};
use tracing::{error, warn};

use super::{Driver, now_ms};
use crate::{
    backoff,
    clickhouse::{
        block::{Collector, Extent},
        protocol::{Action, Input},
        steps::Moment,
    },
    committed::Metadata,
    takeover::Epoch,
};

/// How long the brokers may take to say a topic's id.
const TOPIC_PATIENCE: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) fn input(&mut self, partition: i32, epoch: Epoch, input: Input) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        let action = assigned.machine.on(epoch, input, now_ms());
        self.act(partition, epoch, action);
    }

    pub(super) fn act(&mut self, partition: i32, epoch: Epoch, action: Action) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        match action {
            Action::Nothing | Action::Collect | Action::CollectExactly(_) => {}
            Action::Pause { failures } => {
                let failures = if assigned.refused.is_some() { u32::MAX } else { failures };
                let pause = backoff::pause(&self.retry, failures, rand::random());
                assigned.resume_at = Some(Instant::now() + pause);
            }
            Action::Hold(reason) => {
                error!(partition, %reason, "partition held");
                assigned.blocks.clear();
                assigned.waiting.clear();
                assigned.known = 0;
                assigned.collector = Collector::new(assigned.machine.committed(), Extent::Open(self.limits));
                self.set_paused(partition, true);
                self.tell();
            }
            Action::Commit { offset, .. } => {
                // What lies before the new offset is in the table, or is no row.
                while assigned.blocks.front().is_some_and(|block| block.range.end() <= offset) {
                    assigned.blocks.pop_front();
                    assigned.known = assigned.known.saturating_sub(1);
                }
                assigned.collector.skip_to(offset);
                self.outbox.push_back((partition, epoch, action));
            }
            Action::Insert { .. } | Action::ReadBack { .. } => {
                self.outbox.push_back((partition, epoch, action));
            }
        }
    }

    /// Does what was decided, if this process may still speak for the group. Looked at before each deed: between two of them
    /// the process may have stood still, and a partition may have gone to another.
    pub(super) fn work_off(&mut self) {
        let mut is_same_topic = false;
        while !self.outbox.is_empty() {
            let now = self.turn();
            if self.distrust_until.is_some_and(|until| now < until)
                || self.consumer.client().assignment_lost()
            {
                return;
            }
            self.distrust_until = None;
            let plans = self.outbox.front().is_some_and(|(_, _, action)| {
                matches!(action, Action::Commit { metadata: Metadata::Planned { .. }, .. })
            });
            // Looked at after the messages of a block were read and before it is planned: librdkafka goes on in a topic
            // that was made anew, and its offsets would pass for those of the old one. No message is read in this loop, so that
            // one look is for all.
            if plans && !is_same_topic {
                is_same_topic = self.is_same_topic();
                if !is_same_topic {
                    return;
                }
            }
            let Some((partition, epoch, action)) = self.outbox.pop_front() else { return };
            let stands = self.partitions.get(&partition).is_some_and(|assigned| {
                assigned.machine.epoch() == epoch && assigned.machine.held().is_none()
            });
            if !stands {
                continue;
            }
            match action {
                Action::Commit { offset, metadata } => {
                    self.commit_and_go_on(partition, epoch, offset, &metadata);
                }
                Action::Insert { plan, content, token } => {
                    self.insert(partition, epoch, plan, content, token);
                }
                Action::ReadBack { plan, allow_folded } => {
                    self.read_back(partition, epoch, plan, allow_folded);
                }
                _ => {}
            }
        }
    }

    /// Whether the topic could be looked at. Partitions that count another one are held by that. If nobody answers, it is
    /// asked again later.
    fn is_same_topic(&mut self) -> bool {
        let client = self.consumer.client().client();
        match topic_ids::topic_id(client, &self.config.source.topic, TOPIC_PATIENCE) {
            Ok(Some(id)) => {
                self.compare_topic_id(&id.to_string());
                true
            }
            Ok(None) => self.ask_later("the topic is not there"),
            Err(error) => self.ask_later(&error.to_string()),
        }
    }

    fn ask_later(&mut self, trouble: &str) -> bool {
        warn!(trouble, "cannot compare the topic's id; planning nothing meanwhile");
        self.last_trouble = Some(format!("Kafka: {trouble}"));
        self.distrust_until = Some(Instant::now() + Duration::from_secs(1));
        false
    }

    /// Holds the partitions that count another topic.
    pub(super) fn compare_topic_id(&mut self, id: &str) {
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            if let Some(epoch) = self.epoch_of(partition) {
                self.input(partition, epoch, Input::TopicId(id.to_owned()));
            }
        }
    }

    fn commit_and_go_on(&mut self, partition: i32, epoch: Epoch, offset: i64, metadata: &Metadata) {
        let input = match self.commit(partition, offset, metadata) {
            Ok(()) => {
                if let Some(assigned) = self.partitions.get_mut(&partition) {
                    assigned.last_progress = Instant::now();
                }
                self.last_trouble.take_if(|trouble| trouble.starts_with("Kafka"));
                match metadata {
                    Metadata::Planned { .. } => self.observer.at(Moment::Planned, partition, offset),
                    _ => self.observer.at(Moment::Advanced, partition, offset),
                }
                self.metrics.committed(partition, offset);
                Input::Committed
            }
            Err(error) => {
                warn!(partition, offset, %error, "a commit failed; trying again");
                self.metrics.failure("commit");
                self.last_trouble = Some(format!(
                    "Kafka: offset {offset} of partition {partition} was not committed: {error}"
                ));
                self.observer.at(Moment::CommitFailed, partition, offset);
                Input::CommitFailed
            }
        };
        self.input(partition, epoch, input);
        self.hand_over(partition);
    }

    /// One partition at a time: a synchronous commit of several hides the failure of some.
    pub(super) fn commit(&self, partition: i32, offset: i64, metadata: &Metadata) -> Result<(), KafkaError> {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(&self.config.source.topic, partition, Offset::Offset(offset))?;
        if let Some(mut element) = list.find_partition(&self.config.source.topic, partition) {
            element.set_metadata(metadata.to_string());
        }
        self.consumer.client().commit(&list, CommitMode::Sync)
    }
}
