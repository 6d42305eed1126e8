//! Metrics and health.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use super::Driver;
use crate::stalls::{self, Progress};

impl Driver {
    pub(super) fn tell(&mut self) {
        let name = std::ffi::CString::new(self.config.source.topic.as_str()).unwrap_or_default();
        let mut all = Vec::with_capacity(self.partitions.len());
        let mut held = 0;
        for (&partition, assigned) in &mut self.partitions {
            let fetched = self.consumer.known_watermarks(&name, partition).map(|(_, end)| end);
            let end = fetched.max(self.ends.get(&partition).copied());
            let mark = assigned.committed.max(assigned.water.mark());
            let lag = end.map_or(0, |end| (end - mark).max(0));
            if end.is_some() {
                self.metrics.lag(partition, lag);
            }
            if lag == 0 {
                assigned.last_progress = Instant::now();
            }
            held += i64::from(assigned.held.is_some());
            all.push(Progress {
                partition,
                lag,
                still_for: assigned.last_progress.elapsed(),
                held: assigned.held.as_ref().map(ToString::to_string),
                refused: None,
                waits_for_something: !assigned.deliveries.is_empty() || assigned.paused,
            });
        }
        self.metrics.held_partitions.set(held);
        let trouble = self.delivery.last_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let trouble =
            trouble.or_else(|| self.kafka_trouble.as_ref().map(|reason| format!("Kafka: {reason}")));
        let stall = Duration::from_millis(self.config.admin.stall_after_ms);
        let verdicts = stalls::verdicts(&all, stall, trouble.as_deref());
        self.alive.set(verdicts.alive);
        self.progress.set(verdicts.ready);
    }
}
