//! Time that passes, and memory that is short.

use std::time::Instant;

use rdkafka::{consumer::Consumer, topic_partition_list::TopicPartitionList};
use tracing::{debug, warn};

use super::{Assigned, Driver};
use crate::clickhouse::{
    pressure::{self, Load},
    protocol::Input,
};

impl Driver {
    pub(super) fn tick(&mut self, now: Instant) {
        let mut due = Vec::new();
        let mut old = Vec::new();
        for (&partition, assigned) in &mut self.partitions {
            if assigned.resume_at.is_some_and(|at| at <= now) {
                assigned.resume_at = None;
                due.push((partition, Input::Elapsed));
            }
            if let Some(position) = assigned.idles_behind() {
                due.push((partition, Input::EndOfPartition { position }));
            }
            let aged =
                assigned.collector.age_since().is_some_and(|since| now.duration_since(since) >= self.max_age);
            // While an earlier block is under way, the next may grow as well as wait.
            if aged && assigned.blocks.is_empty() && assigned.waiting.is_empty() {
                old.push(partition);
            }
        }
        for (partition, input) in due {
            if let Some(epoch) = self.epoch_of(partition) {
                self.input(partition, epoch, input);
            }
        }
        for partition in old {
            self.seal(partition);
        }
        self.relieve();
    }

    /// Stops taking messages while blocks wait for ClickHouse or dead letters for Kafka, so that memory stays bounded; goes
    /// on at half.
    pub(super) fn relieve(&mut self) {
        let held: usize = self.partitions.values().map(Assigned::held_bytes).sum();
        self.metrics.buffered_bytes.set(i64::try_from(held).unwrap_or(i64::MAX));
        let pressure = if self.under_pressure { held > self.budget / 2 } else { held > self.budget };
        if pressure && !self.under_pressure {
            debug!(held, "pausing: ClickHouse takes less than Kafka gives");
            // Many half-blocks may hold the budget: they go out as they are. A plan's block has to be completed.
            for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
                self.seal(partition);
            }
        }
        self.under_pressure = pressure;
        let loads: Vec<Load> = self
            .partitions
            .iter()
            .map(|(&partition, assigned)| Load {
                partition,
                held: assigned.held_bytes(),
                is_planned: assigned.collector.is_planned(),
            })
            .collect();
        let paused = if pressure { pressure::paused_under_pressure(&loads) } else { Default::default() };
        for load in loads {
            self.set_paused(load.partition, paused.contains(&load.partition));
        }
    }

    pub(super) fn set_paused(&mut self, partition: i32, paused: bool) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        let paused = paused || assigned.machine.held().is_some() || self.stopping;
        if paused == assigned.paused {
            return;
        }
        assigned.paused = paused;
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(&self.config.source.topic, partition);
        let client = self.consumer.client();
        let result = if paused { client.pause(&list) } else { client.resume(&list) };
        if let Err(error) = result {
            warn!(partition, paused, %error, "could not pause or resume a partition");
        }
    }
}
