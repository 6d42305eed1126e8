//! Looking at how the engine is: lag, partitions without a place, what it is allowed, and whether the topic is still the same.

use std::time::Duration;

use rdkafka::consumer::Consumer;
use time::OffsetDateTime;
use tracing::{info, warn};

use super::{CALL, Driver, LOOK, LOOK_AT_TOPIC};
use crate::kafka::{
    admin::{self, Isolation, OffsetSpec},
    rights, topic_ids,
    transact::{
        Faults, Process,
        lifecycle::{self, Event, Remedy, State},
        metrics::ByPartition,
        stall::Answer,
        starts::Hold,
    },
};

/// Longest wait for an answer about partitions that stand still. It holds up those that do not.
const QUESTION: Duration = Duration::from_secs(1);
/// Longest wait for an answer about rights. Nobody is kept from anything by not knowing it.
const RIGHTS: Duration = Duration::from_secs(1);

impl<P: Process, F: Faults> Driver<'_, P, F> {
    /// Asks what is allowed, once in a while.
    fn look_at_rights(&mut self, now: Duration) {
        let was_denied = self.status.facts().denied.is_some();
        let interval = if was_denied { rights::INTERVAL_WHILE_DENIED } else { rights::INTERVAL };
        if self.rights_looked_at.is_some_and(|at| now.saturating_sub(at) < interval) {
            return;
        }
        self.rights_looked_at = Some(now);
        // Who does not answer is told of by others.
        let Ok(missing) = self.rights.missing(self.consumer.client().client(), RIGHTS) else { return };
        let denied = rights::told(&missing);
        let mut facts = self.status.facts();
        if facts.denied != denied {
            match &denied {
                Some(denied) => warn!("{denied}"),
                None => {
                    info!("Kafka allows what is needed");
                    // What was in the way was this, or is told of again.
                    facts.trouble = None;
                }
            }
            facts.denied = denied;
        }
    }

    pub(super) fn look(&mut self, now: Duration) {
        let since = now.saturating_sub(self.looked_at);
        self.looked_at = now;
        if std::mem::take(&mut self.found_nothing) {
            // A longer time is one in which this process stood still itself.
            self.progress.starved(since.min(LOOK * 2));
        }
        self.look_for_stalls(now);
        self.look_at_rights(now);
        let mut total = Some(0u64);
        for partition in self.partitions.owned() {
            let by = ByPartition { topic: self.options.source.topic.clone(), partition };
            let known = self.consumer.known_watermarks(&self.topic_name, partition);
            let lag = match (self.partitions.position(partition), known) {
                (Some(position), Some((_, high))) => u64::try_from(high - position).unwrap_or(0),
                _ => {
                    total = None;
                    continue;
                }
            };
            total = total.map(|total| total + lag);
            self.metrics.lag.get_or_create(&by).set(lag as i64);
            let age = match self.last_timestamp_ms.get(&partition) {
                Some(&last) if lag > 0 => {
                    let now_ms = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
                    (now_ms - i128::from(last)).max(0) as f64 / 1000.0
                }
                _ => 0.0,
            };
            self.metrics.lag_seconds.get_or_create(&by).set(age);
        }
        let unplaced = self.partitions.unplaced();
        let nothing_waits = total == Some(0)
            && unplaced.is_empty()
            && !self.partitions.has_to_commit()
            && matches!(self.state, State::Idle { .. });
        let in_trouble = {
            let mut facts = self.status.facts();
            facts.lag = total;
            // An unknown lag is no stall; the clock begins when it is known.
            if nothing_waits || total.is_none() {
                facts.progress_at = now;
            }
            facts.trouble.is_some()
        };
        if !unplaced.is_empty() && matches!(self.state, State::Idle { .. } | State::Open { .. }) {
            self.place_again(unplaced);
        }
        if self.renew_consumer() {
            return;
        }
        // With nothing to do, an answer of a broker is what tells that a trouble is over.
        let hopeful = in_trouble && nothing_waits;
        if hopeful || now.saturating_sub(self.topic_looked_at) >= LOOK_AT_TOPIC {
            self.topic_looked_at = now;
            if self.look_at_topic() && hopeful {
                self.failures = 0;
                self.status.facts().trouble = None;
            }
        }
    }

    /// Places partitions whose position could not be read when they came.
    ///
    /// All at once at first, and then one after the other: one whose offset belongs to a transaction that nobody ends
    /// keeps the others from being answered. Between two tries passes as long as a try takes, so that the group and the
    /// partitions that go on are served.
    fn place_again(&mut self, mut partitions: Vec<i32>) {
        let (tries, due) = self.placing;
        let began = self.status.now();
        if began < due {
            return;
        }
        if tries > 0 {
            let one = partitions[tries as usize % partitions.len()];
            partitions = vec![one];
        }
        match self.place(&partitions) {
            Ok(()) => {
                self.placing = (0, Duration::ZERO);
                self.happened(Event::Moved);
            }
            Err(reason) => {
                let now = self.status.now();
                self.placing = (tries.saturating_add(1), now + (now - began));
                self.trouble(format!("reading positions: {reason}"));
            }
        }
    }

    /// Makes a new consumer when nothing has gone through for long. True when it did.
    fn renew_consumer(&mut self) -> bool {
        let Some((since, reason)) = self.status.facts().trouble.clone() else {
            self.renewed = (0, Duration::ZERO);
            return false;
        };
        let now = self.status.now();
        let (renewed, last) = self.renewed;
        let trouble = now.saturating_sub(since);
        if !lifecycle::renews_consumer(trouble, now.saturating_sub(last.max(since)), renewed) {
            return false;
        }
        warn!(
            topic = self.options.source.topic,
            seconds = trouble.as_secs(),
            reason,
            "nothing goes through for long; making a new consumer"
        );
        self.renewed = (renewed.saturating_add(1), now);
        self.replace_consumer();
        true
    }

    /// Finds out which partitions stand still, and asks the broker about those.
    fn look_for_stalls(&mut self, now: Duration) {
        let after = self.options.stall_after;
        let unplaced = self.partitions.unplaced();
        for partition in self.partitions.owned() {
            let waits = match self.partitions.position(partition) {
                // Before the first answer of a broker nobody knows. It takes a moment, and not for ever.
                Some(position) => self
                    .consumer
                    .known_watermarks(&self.topic_name, partition)
                    .is_none_or(|(_, high)| high > position),
                None => unplaced.contains(&partition),
            };
            self.progress.seen(partition, waits, now);
            if unplaced.contains(&partition) {
                self.progress.trouble(partition, "its position is not known yet", now);
            }
            let by = ByPartition { topic: self.options.source.topic.clone(), partition };
            let still = self.progress.still(partition, now).as_secs_f64();
            self.metrics.stalled_seconds.get_or_create(&by).set(still);
        }
        self.ask_about(&self.progress.to_ask(now, after));
        let now = self.status.now();
        let stalls = self.progress.stalls(now, after);
        self.status.facts().stalls = stalls;
    }

    /// Asks the brokers, once for all of them, whether partitions that stand still have something to give.
    fn ask_about(&mut self, partitions: &[i32]) {
        let topic = self.options.source.topic.as_str();
        let asked: Vec<(i32, i64)> = partitions
            .iter()
            .filter_map(|&partition| Some((partition, self.partitions.position(partition)?)))
            .collect();
        let list: Vec<(&str, i32)> = asked.iter().map(|(partition, _)| (topic, *partition)).collect();
        let client = self.consumer.client().client();
        let ends = admin::list_offsets(client, &list, OffsetSpec::Latest, Isolation::ReadCommitted, QUESTION);
        let now = self.status.now();
        for (partition, position) in asked {
            let end = match &ends {
                Ok(ends) => ends.get(&(topic.to_owned(), partition)).map(Result::as_ref),
                Err(error) => Some(Err(error)),
            };
            let answer = match end {
                Some(Ok(&decided)) if decided > position => Answer::Owed,
                Some(Ok(_)) => Answer::Else(
                    "they belong to transactions that are not decided yet; look at what writes to the topic"
                        .to_owned(),
                ),
                Some(Err(error)) => Answer::Else(format!("Kafka does not tell about the partition: {error}")),
                None => Answer::Else("Kafka does not tell about the partition".to_owned()),
            };
            warn!(topic, partition, ?answer, "a partition stands still");
            self.progress.answered(partition, answer, now);
        }
    }

    /// Holds all partitions when the topic is another one than before. True when it is there and the same.
    pub(super) fn look_at_topic(&mut self) -> bool {
        let name = &self.options.source.topic;
        let id = match topic_ids::topic_id(self.consumer.client().client(), name, CALL) {
            Ok(Some(id)) => id.to_string(),
            Ok(None) => {
                self.trouble(format!("there is no topic {name}"));
                return false;
            }
            Err(error) => {
                self.trouble(format!("Kafka does not tell about topic {name}: {error}"));
                return false;
            }
        };
        let Some(was) = self.topic.as_ref().map(|topic| topic.topic_id.clone()).filter(|was| *was != id)
        else {
            return true;
        };
        if matches!(self.state, State::Open { .. }) {
            self.happened(Event::Failed(Remedy::Abort));
        }
        for partition in self.partitions.owned() {
            self.hold(partition, Hold::OtherTopic { was: was.clone(), is: id.clone() });
        }
        false
    }
}
