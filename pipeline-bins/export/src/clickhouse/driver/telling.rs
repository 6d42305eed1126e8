//! Metrics and health, and looking at the topic.

use std::time::{Duration, Instant};

use super::{Answer, Driver};
use crate::{
    source,
    stalls::{self, Progress},
};

impl Driver {
    /// Metrics and health, once a second.
    pub(super) fn tell(&mut self) {
        let name = std::ffi::CString::new(self.config.source.topic.as_str()).unwrap_or_default();
        let mut all = Vec::with_capacity(self.partitions.len());
        let mut held = 0;
        for (&partition, assigned) in &mut self.partitions {
            let fetched = self.consumer.known_watermarks(&name, partition).map(|(_, end)| end);
            let end = fetched.max(self.ends.get(&partition).copied());
            let lag = end.map_or(0, |end| (end - assigned.machine.committed()).max(0));
            if end.is_some() {
                self.metrics.lag(partition, lag);
            }
            if lag == 0 {
                assigned.last_progress = Instant::now();
            }
            let why = assigned.machine.held().map(ToString::to_string);
            held += i64::from(why.is_some());
            all.push(Progress {
                partition,
                lag,
                still_for: assigned.last_progress.elapsed(),
                held: why,
                refused: assigned.refused.clone(),
                waits_for_something: assigned.request.is_some()
                    || assigned.resume_at.is_some()
                    || assigned.dead_letters > 0
                    || !assigned.waiting.is_empty()
                    || assigned.paused
                    || self.distrust_until.is_some_and(|until| Instant::now() < until),
            });
        }
        self.metrics.held_partitions.set(held);
        let stall = Duration::from_millis(self.config.admin.stall_after_ms);
        let verdicts = stalls::verdicts(&all, stall, self.last_trouble.as_deref());
        self.alive.set(verdicts.alive);
        self.progress.set(verdicts.ready);
    }

    pub(super) fn watch_topic(&self) {
        let answer = self.answer.clone();
        self.runtime.spawn(source::watch(
            self.dead_letters.clone(),
            self.config.source.topic.clone(),
            self.stop.clone(),
            move |now| {
                let _ = answer.send(Answer::Topic(now));
            },
        ));
    }
}
