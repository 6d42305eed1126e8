//! Partitions that come and go.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use rdkafka::{consumer::Consumer, error::RDKafkaErrorCode, topic_partition_list::TopicPartitionList};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::{Assigned, Driver};
use crate::{
    ExportError,
    clickhouse::{
        block::{Collector, Extent},
        protocol::{Action, Input, Partition},
        steps::Moment,
    },
    committed::Metadata,
    source, takeover,
};

/// How long a revocation may wait for inserts under way.
const REVOKE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a stop may wait for inserts under way.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

impl Driver {
    pub(super) fn assign(&mut self, partitions: &[i32]) -> Result<(), ExportError> {
        let taken = self.take_over.observe(
            &self.consumer,
            &self.config.source,
            partitions,
            &self.stop,
            &self.heart,
        )?;
        // Partitions that are here already and count another topic are held.
        self.compare_topic_id(&taken.topic_id);
        self.last_turn = Instant::now();
        let mut positions = Vec::with_capacity(partitions.len());
        let mut actions = Vec::with_capacity(partitions.len());
        for assignment in taken.assignments {
            let (partition, epoch) = (assignment.partition, assignment.epoch);
            let topology = self.topology.fingerprint().map(ToOwned::to_owned);
            let (machine, action) = Partition::assign(assignment, topology);
            let start = machine.committed();
            let extent = match &action {
                Action::CollectExactly(range) => {
                    info!(partition, %range, "taking over a block that may be in the table");
                    Extent::Planned(*range)
                }
                _ => Extent::Open(self.limits),
            };
            positions.push((partition, machine.held().is_none().then_some(start)));
            let assigned = Assigned {
                machine,
                collector: Collector::new(start, extent),
                dead_letters: 0,
                dead_letter_bytes: 0,
                putting_aside: JoinSet::new(),
                waiting: VecDeque::new(),
                blocks: VecDeque::new(),
                known: 0,
                missing: BTreeSet::new(),
                end_seen: 0,
                resume_at: None,
                request: None,
                paused: false,
                refused: None,
                last_progress: Instant::now(),
            };
            self.partitions.insert(partition, assigned);
            actions.push((partition, epoch, action));
        }
        takeover::assign(&self.consumer, &self.config.source.topic, &positions)?;
        info!(?partitions, topic_id = taken.topic_id, "partitions assigned");
        for (partition, epoch, action) in actions {
            let start = self.partitions.get(&partition).map_or(0, |a| a.machine.committed());
            self.observer.at(Moment::Assigned, partition, start);
            self.act(partition, epoch, action);
        }
        self.relieve();
        self.tell();
        Ok(())
    }

    pub(super) fn revoke(&mut self, partitions: &[i32]) -> Result<(), ExportError> {
        let lost = self.consumer.client().assignment_lost();
        if !lost {
            self.settle(partitions, REVOKE_PATIENCE.min(self.session_timeout));
        }
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition(&self.config.source.topic, partition);
            if let Some(Assigned { request: Some(request), .. }) = self.partitions.remove(&partition) {
                request.abort();
            }
        }
        self.metrics.forget(partitions);
        self.consumer.client().incremental_unassign(&list).map_err(ExportError::Kafka)?;
        info!(?partitions, lost, "partitions revoked");
        self.last_turn = Instant::now();
        Ok(())
    }

    /// Lets the inserts under way of `partitions` end, commits what they did, and begins nothing new.
    fn settle(&mut self, partitions: &[i32], patience: Duration) {
        let deadline = Instant::now() + patience;
        for partition in partitions {
            if let Some(assigned) = self.partitions.get_mut(partition) {
                assigned.machine.forget_ready();
                assigned.waiting.clear();
                let begun = assigned.known.min(usize::from(assigned.machine.is_busy()));
                assigned.blocks.truncate(begun);
                assigned.known = begun;
                assigned.collector = Collector::new(i64::MAX - 1, Extent::Open(self.limits));
            }
        }
        // No new plan: what is sealed and not planned is left to the next owner.
        self.outbox.retain(|(partition, _, action)| {
            !partitions.contains(partition)
                || !matches!(action, Action::Commit { metadata: Metadata::Planned { .. }, .. })
        });
        self.work_off();
        while partitions.iter().any(|p| self.partitions.get(p).is_some_and(|a| a.request.is_some())) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left.min(Duration::from_millis(200))) {
                Ok(answer) => self.take_answer(answer),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => break,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.heart.beat();
            self.work_off();
        }
        for &partition in partitions {
            let unsettled = self.partitions.get(&partition).and_then(|a| a.machine.unsettled_advance());
            if let Some((offset, metadata)) = unsettled
                && let Err(error) = self.commit(partition, offset, &metadata)
            {
                // The next owner finds the plan and the rows.
                warn!(partition, offset, %error, "a last commit failed");
            }
        }
        self.last_turn = Instant::now();
    }

    pub(super) fn leave(mut self) -> Result<(), ExportError> {
        self.stopping = true;
        self.progress.fail("stopping");
        let partitions: Vec<i32> = self.partitions.keys().copied().collect();
        for &partition in &partitions {
            self.set_paused(partition, true);
        }
        if !self.consumer.client().assignment_lost() {
            self.settle(&partitions, STOP_PATIENCE);
        }
        for assigned in self.partitions.values() {
            if let Some(request) = &assigned.request {
                request.abort();
            }
        }
        info!("inserts are settled; leaving the group");
        Ok(())
    }

    pub(super) fn partition_error(&mut self, partition: i32, code: RDKafkaErrorCode, reason: &str) {
        if !matches!(code, RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) {
            warn!(partition, ?code, reason, "Kafka cannot read on in a partition; it tries again");
            return;
        }
        let Some(assigned) = self.partitions.get(&partition) else { return };
        let (epoch, offset) = (assigned.machine.epoch(), assigned.collector.next_offset());
        let ends = source::log_ends(&self.consumer, &self.config.source.topic, &[partition]);
        let (log_start, log_end) = match ends {
            Ok(ends) => ends.get(&partition).copied().unwrap_or((-1, -1)),
            Err(error) => {
                warn!(partition, %error, "cannot ask for the ends of a partition");
                (-1, -1)
            }
        };
        self.input(partition, epoch, Input::OutOfRange { offset, log_start, log_end });
    }
}
