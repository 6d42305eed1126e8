//! Partitions that come and go.

use std::{
    collections::BTreeMap,
    sync::mpsc::RecvTimeoutError,
    time::{Duration, Instant},
};

use rdkafka::{consumer::Consumer, topic_partition_list::TopicPartitionList};
use tracing::{error, info};

use super::{Assigned, Driver, PATIENCE};
use crate::{
    ExportError,
    takeover::{self, Beginning},
    webhook::low_water::LowWater,
};

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
        let mut positions = Vec::with_capacity(partitions.len());
        for assignment in taken.assignments {
            let partition = assignment.partition;
            let beginning = takeover::begin(&assignment);
            let start = beginning.offset();
            // A first position is written down, so that it is the same after a crash.
            let committed = if matches!(beginning, Beginning::First(_)) { -1 } else { start };
            let held = match beginning {
                Beginning::Held { reason, .. } => Some(reason),
                _ => None,
            };
            if let Some(reason) = &held {
                error!(partition, %reason, "partition held");
            }
            positions.push((partition, held.is_none().then_some(start)));
            let assigned = Assigned {
                epoch: assignment.epoch,
                origin: assignment.origin,
                water: LowWater::new(start),
                committed,
                held,
                paused: false,
                deliveries: BTreeMap::new(),
                last_progress: Instant::now(),
            };
            self.partitions.insert(partition, assigned);
        }
        takeover::assign(&self.consumer, &self.config.source.topic, &positions)?;
        info!(?partitions, topic_id = taken.topic_id, "partitions assigned");
        self.relieve();
        self.commit_all();
        self.tell();
        Ok(())
    }

    pub(super) fn revoke(&mut self, partitions: &[i32]) -> Result<(), ExportError> {
        let lost = self.consumer.client().assignment_lost();
        if !lost {
            self.settle(partitions);
        }
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition(&self.config.source.topic, partition);
            if let Some(assigned) = self.partitions.remove(&partition) {
                for under_way in assigned.deliveries.values() {
                    under_way.task.abort();
                    self.held_bytes = self.held_bytes.saturating_sub(under_way.bytes);
                }
            }
        }
        self.metrics.forget(partitions);
        self.consumer.client().incremental_unassign(&list).map_err(ExportError::Kafka)?;
        info!(?partitions, lost, "partitions revoked");
        Ok(())
    }

    /// Waits a little for deliveries under way, and commits how far it is.
    fn settle(&mut self, partitions: &[i32]) {
        let deadline = Instant::now() + PATIENCE;
        let busy = |this: &Self| {
            partitions.iter().any(|p| this.partitions.get(p).is_some_and(|a| !a.deliveries.is_empty()))
        };
        while busy(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.resolved.recv_timeout(left.min(Duration::from_millis(200))) {
                Ok(resolved) => self.take(&resolved),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => break,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.heart.beat();
        }
        for &partition in partitions {
            self.commit(partition);
        }
    }

    pub(super) fn leave(mut self) {
        self.stopping = true;
        self.progress.fail("stopping");
        self.relieve();
        let partitions: Vec<i32> = self.partitions.keys().copied().collect();
        if !self.consumer.client().assignment_lost() {
            self.settle(&partitions);
        }
        for assigned in self.partitions.values() {
            assigned.deliveries.values().for_each(|under_way| under_way.task.abort());
        }
        info!("deliveries are settled; leaving the group");
    }
}
