//! The consumer as a member of its group: partitions that come and go, errors, and making a new consumer.

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{Consumer, RebalanceProtocol},
    error::{KafkaError, RDKafkaErrorCode},
};
use tracing::{error, info, warn};

use super::{CALL, Driver, Other, connect};
use crate::kafka::transact::{
    Faults, Process,
    lifecycle::{self, Action, Event},
    metrics::ByPartition,
    partitions::Accept,
    starts::{Hold, Start},
};

impl<P: Process, F: Faults> Driver<'_, P, F> {
    pub(super) fn handle(&mut self, other: Other) -> Result<(), KafkaError> {
        match other {
            Other::Nothing => {}
            Other::End { partition, offset } => match self.partitions.end(partition, offset) {
                Accept::Take => self.happened(Event::Moved),
                Accept::Ignore => {}
                Accept::Broken { expected } => {
                    error!(
                        partition,
                        offset, expected, "the consumer skipped a message; making a new consumer"
                    );
                    self.replace_consumer();
                }
            },
            Other::Assign(partitions) => self.assigned(&partitions)?,
            Other::Revoke(partitions) => self.revoked(&partitions)?,
            Other::PartitionError { partition, code, reason } => {
                self.partition_error(partition, code, &reason)
            }
            Other::Error { code, fatal, reason } => {
                if fatal {
                    error!(?code, reason, "the consumer cannot go on; making a new one");
                    self.replace_consumer();
                } else {
                    info!(?code, reason, "the consumer reports an error; it tries again by itself");
                    if matches!(
                        code,
                        RDKafkaErrorCode::AllBrokersDown
                            | RDKafkaErrorCode::UnknownTopicOrPartition
                            | RDKafkaErrorCode::UnknownTopic
                            | RDKafkaErrorCode::TopicAuthorizationFailed
                            | RDKafkaErrorCode::GroupAuthorizationFailed
                            | RDKafkaErrorCode::SaslAuthenticationFailed
                    ) {
                        self.trouble(format!("{code:?}: {reason}"));
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn assigned(&mut self, partitions: &[i32]) -> Result<(), KafkaError> {
        info!(topic = self.options.source.topic, ?partitions, "partitions assigned");
        self.metrics.rebalances.inc();
        self.partitions.assign(partitions);
        // Explicit places, so that no position is ever chosen by librdkafka. A partition without a place waits, paused,
        // at its end, where nothing can be mistaken for a message to process.
        let starts = match self.starts(partitions) {
            Ok(starts) => starts,
            Err(reason) => {
                warn!(reason, "positions are not known yet");
                self.trouble(format!("reading positions: {reason}"));
                Vec::new()
            }
        };
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        let mut waiting = Vec::new();
        for &partition in partitions {
            let offset = match starts.iter().find(|(other, _)| *other == partition) {
                Some((_, Start::At { offset, .. })) => Offset::Offset(*offset),
                _ => {
                    waiting.push(partition);
                    Offset::End
                }
            };
            list.add_partition_offset(&self.options.source.topic, partition, offset)?;
        }
        let client = self.consumer.client();
        match client.rebalance_protocol() {
            RebalanceProtocol::Eager => client.assign(&list)?,
            _ => client.incremental_assign(&list)?,
        }
        // A pause outlives the assignment that it was made in.
        client.resume(&list)?;
        if !waiting.is_empty() {
            self.pause(&waiting);
        }
        for (partition, start) in starts {
            match start {
                Start::Held(hold) => self.hold(partition, hold),
                start @ Start::At { .. } => self.partitions.place(partition, start),
            }
        }
        self.metrics.assigned.set(self.partitions.owned().len() as i64);
        if self.partitions.has_to_commit() {
            self.happened(Event::Moved);
        }
        Ok(())
    }

    pub(super) fn revoked(&mut self, partitions: &[i32]) -> Result<(), KafkaError> {
        let lost = self.consumer.client().assignment_lost();
        info!(topic = self.options.source.topic, ?partitions, lost, "partitions revoked");
        self.metrics.rebalances.inc();
        // Ends: every step either finishes the transaction or takes it nearer to its end.
        while let Some(action) = lifecycle::before_revocation(self.state, lost) {
            match action {
                Action::Commit => self.commit(),
                Action::CommitPositions => self.commit_positions(),
                _ => self.abort(),
            }
        }
        self.partitions.revoke(partitions);
        for partition in partitions {
            self.forget(*partition);
        }
        self.metrics.held.set(self.partitions.held().count() as i64);
        self.metrics.assigned.set(self.partitions.owned().len() as i64);
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition(&self.options.source.topic, partition);
        }
        let client = self.consumer.client();
        match client.rebalance_protocol() {
            RebalanceProtocol::Eager => client.unassign()?,
            _ => client.incremental_unassign(&list)?,
        }
        Ok(())
    }

    /// What is told about a partition that this process does not own any more.
    fn forget(&mut self, partition: i32) {
        self.last_timestamp_ms.remove(&partition);
        self.progress.forget(partition);
        {
            let mut facts = self.status.facts();
            facts.held.remove(&partition);
            facts.stalls.remove(&partition);
        }
        self.metrics.forget(&ByPartition { topic: self.options.source.topic.clone(), partition });
    }

    pub(super) fn partition_error(&mut self, partition: i32, code: RDKafkaErrorCode, reason: &str) {
        use RDKafkaErrorCode as E;
        match code {
            E::AutoOffsetReset | E::OffsetOutOfRange => {
                let Some(offset) = self.partitions.position(partition) else { return };
                let topic = &self.options.source.topic;
                match self.consumer.client().fetch_watermarks(topic, partition, CALL) {
                    Ok((low, high)) => self.hold(partition, Hold::OutOfRange { offset, low, high }),
                    // The broker said so; the range is only for people.
                    Err(_) => self.hold(partition, Hold::OutOfRange { offset, low: -1, high: -1 }),
                }
            }
            E::UnknownTopicOrPartition
            | E::UnknownTopic
            | E::UnknownPartition
            | E::TopicAuthorizationFailed
            | E::BadMessage => {
                warn!(partition, ?code, reason, "the partition cannot be read at the moment");
                self.progress.trouble(partition, reason, self.status.now());
                self.trouble(format!("partition {partition}: {reason}"));
            }
            _ => info!(partition, ?code, reason, "the partition reports an error; it is tried again"),
        }
    }

    /// Gives the consumer up and joins the group again with a new one.
    pub(super) fn replace_consumer(&mut self) {
        match connect(&self.options) {
            Ok(consumer) => {
                for partition in self.partitions.owned() {
                    self.forget(partition);
                }
                self.partitions.clear();
                self.happened(Event::ConsumerReplaced);
                self.metrics.consumers.inc();
                // Closes the old one, which leaves the group.
                self.consumer = consumer;
            }
            Err(error) => self.trouble(format!("making a consumer: {error}")),
        }
    }
}
