//! How an engine is, for whoever asks from another thread.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::stall::Stall;
use crate::health::Verdict;

/// How an engine is.
#[derive(Debug)]
pub struct Status {
    topic: String,
    stall_after: Duration,
    origin: Instant,
    last_turn_ms: AtomicU64,
    facts: Mutex<Facts>,
}

/// What is known. Times are since the engine's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// A producer was initialised at least once, so that brokers, coordinator and permissions are there.
    pub ready: bool,
    /// Messages that wait in the partitions of this process; `None` while unknown.
    pub lag: Option<u64>,
    /// The last time that a message was committed, or that nothing waited.
    pub progress_at: Duration,
    /// What keeps the engine from going on, and since when.
    pub trouble: Option<(Duration, String)>,
    /// What Kafka does not allow of topics and the group.
    pub denied: Option<String>,
    /// What Kafka does not allow of the transactional id.
    pub transactions_denied: Option<String>,
    /// Partitions that are held, and why.
    pub held: BTreeMap<i32, String>,
    /// Partitions that stand still.
    pub stalls: BTreeMap<i32, Stall>,
}

impl Facts {
    /// What Kafka does not allow.
    fn denials(&self) -> impl Iterator<Item = &str> {
        self.denied.as_deref().into_iter().chain(self.transactions_denied.as_deref())
    }
}

impl Status {
    pub(super) fn new(topic: String, stall_after: Duration) -> Self {
        Self {
            topic,
            stall_after,
            origin: Instant::now(),
            last_turn_ms: AtomicU64::new(0),
            facts: Mutex::new(Facts::default()),
        }
    }

    /// Time since the engine's start.
    pub(super) fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    /// The engine's loop has turned.
    pub(super) fn turn(&self, now: Duration) {
        self.last_turn_ms.store(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails when a restart may help: the loop hangs, or messages wait (anywhere, or for twice as long in one partition)
    /// and none is taken although nothing is known to be in the way.
    pub fn liveness(&self) -> Verdict {
        let last_turn = Duration::from_millis(self.last_turn_ms.load(Ordering::Relaxed));
        liveness(&self.topic, &self.facts(), self.now(), last_turn, self.stall_after)
    }

    /// Fails when messages that wait now are not being processed: Kafka was not reached yet, or not any more, a partition
    /// is held or stands still, or the engine stalls.
    pub fn readiness(&self) -> Verdict {
        self.liveness()?;
        readiness(&self.topic, &self.facts(), self.now(), self.stall_after)
    }
}

fn liveness(
    topic: &str,
    facts: &Facts,
    now: Duration,
    last_turn: Duration,
    stall_after: Duration,
) -> Verdict {
    // Calls into librdkafka are bounded, but several of them may follow each other while Kafka is away.
    let hang_after = (stall_after * 2).max(Duration::from_secs(60));
    let silence = now.saturating_sub(last_turn);
    if silence > hang_after {
        return Err(format!("the engine that reads {topic} has not turned for {} s", silence.as_secs()));
    }
    // One partition is no reason to take the others away before there is no doubt.
    let owed = facts.stalls.iter().find(|(_, stall)| {
        stall.owed
            && facts.trouble.is_none()
            && facts.denials().next().is_none()
            && now.saturating_sub(stall.since) > stall_after * 2
    });
    if let Some((partition, stall)) = owed {
        return Err(stands_still(topic, *partition, stall, now, stall_after));
    }
    let stalled = now.saturating_sub(facts.progress_at);
    let explained = !facts.held.is_empty()
        || facts.denials().next().is_some()
        || facts.stalls.values().any(|stall| stall.reason.is_some());
    match facts.lag {
        Some(lag) if lag > 0 && stalled > stall_after && facts.trouble.is_none() && !explained => {
            Err(format!(
                "{lag} messages wait in {topic} and none was taken for {} s (at most {} s)",
                stalled.as_secs(),
                stall_after.as_secs()
            ))
        }
        _ => Ok(()),
    }
}

fn stands_still(topic: &str, partition: i32, stall: &Stall, now: Duration, stall_after: Duration) -> String {
    let reason = match (&stall.reason, stall.owed) {
        (Some(reason), _) => reason,
        (None, true) => "Kafka has them, and the consumer does not get them",
        (None, false) => "the reason is not known yet",
    };
    format!(
        "partition {partition} of {topic} stands still: messages wait and none was taken for {} s (at most {} s): {reason}",
        now.saturating_sub(stall.since).as_secs(),
        stall_after.as_secs()
    )
}

fn readiness(topic: &str, facts: &Facts, now: Duration, stall_after: Duration) -> Verdict {
    if let Some((partition, reason)) = facts.held.first_key_value() {
        let more = match facts.held.len() - 1 {
            0 => String::new(),
            n => format!(" (and {n} more partitions)"),
        };
        return Err(format!("partition {partition} of {topic} is held: {reason}{more}"));
    }
    // Nothing that passes by itself, however short it is.
    let denials: Vec<&str> = facts.denials().collect();
    if !denials.is_empty() {
        return Err(denials.join("; "));
    }
    if let Some((since, reason)) = &facts.trouble {
        let time = now.saturating_sub(*since);
        // Something short, such as an election of a leader, is no reason to say that nothing works.
        if !facts.ready || time > stall_after {
            return Err(format!("{topic} is not processed for {} s: {reason}", time.as_secs()));
        }
    }
    if !facts.ready {
        return Err("Kafka has not been reached yet".to_owned());
    }
    match facts.stalls.first_key_value() {
        Some((partition, stall)) => Err(stands_still(topic, *partition, stall, now, stall_after)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(30);

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn ready() -> Facts {
        Facts { ready: true, lag: Some(0), ..Facts::default() }
    }

    fn alive(facts: &Facts, now: u64, turn: u64) -> Verdict {
        liveness("t", facts, s(now), s(turn), STALL)
    }

    #[test]
    fn idle_is_healthy_for_ever() {
        assert_eq!(alive(&ready(), 10_000, 10_000), Ok(()));
        assert_eq!(readiness("t", &ready(), s(10_000), STALL), Ok(()));
    }

    #[test]
    fn lag_without_progress_is_not_healthy() {
        let facts = Facts { lag: Some(3), progress_at: s(10), ..ready() };
        assert_eq!(alive(&facts, 40, 40), Ok(()));
        assert!(alive(&facts, 41, 41).unwrap_err().contains("3 messages wait"));
    }

    #[test]
    fn an_unknown_lag_is_no_stall() {
        let facts = Facts { lag: None, ..ready() };
        assert_eq!(alive(&facts, 1000, 1000), Ok(()));
    }

    #[test]
    fn a_loop_that_hangs_is_not_healthy() {
        assert!(alive(&ready(), 100, 30).unwrap_err().contains("not turned"));
    }

    #[test]
    fn a_known_trouble_is_told_by_readiness_and_does_not_restart_the_process() {
        let facts = Facts { lag: Some(3), trouble: Some((s(10), "no broker".into())), ..ready() };
        assert_eq!(alive(&facts, 1000, 1000), Ok(()));
        assert_eq!(readiness("t", &facts, s(40), STALL), Ok(()));
        assert!(readiness("t", &facts, s(41), STALL).unwrap_err().contains("no broker"));
    }

    #[test]
    fn a_held_partition_is_not_ready_and_says_why() {
        let held = [(1, "gone".to_owned()), (4, "gone too".to_owned())].into();
        let facts = Facts { held, lag: Some(9), ..ready() };
        assert_eq!(alive(&facts, 1000, 1000), Ok(()));
        let reason = readiness("t", &facts, s(1), STALL).unwrap_err();
        assert_eq!(reason, "partition 1 of t is held: gone (and 1 more partitions)");
    }

    #[test]
    fn a_partition_that_stands_still_is_told_and_restarts_the_process_only_when_that_may_help() {
        let stalls = |reason: Option<&str>, owed| Facts {
            lag: Some(3),
            progress_at: s(1_000),
            stalls: [(2, Stall { since: s(10), reason: reason.map(str::to_owned), owed })].into(),
            ..ready()
        };
        let lost = stalls(None, true);
        let reason = readiness("t", &lost, s(41), STALL).unwrap_err();
        assert_eq!(
            reason,
            "partition 2 of t stands still: messages wait and none was taken for 31 s (at most 30 s): Kafka has them, and \
             the consumer does not get them"
        );
        assert_eq!(alive(&lost, 70, 70), Ok(()));
        assert!(alive(&lost, 71, 71).unwrap_err().contains("partition 2 of t stands still"));

        let damaged = stalls(Some("a checksum is wrong"), false);
        assert!(readiness("t", &damaged, s(41), STALL).unwrap_err().ends_with(": a checksum is wrong"));
        assert_eq!(alive(&damaged, 1_000, 1_000), Ok(()));
        let alone = Facts { progress_at: s(10), ..damaged };
        assert_eq!(alive(&alone, 1_000, 1_000), Ok(()), "also when it is the only one with messages");

        let away = Facts { trouble: Some((s(10), "no broker".into())), ..lost };
        assert_eq!(alive(&away, 1_000, 1_000), Ok(()));
    }

    #[test]
    fn what_is_not_allowed_is_told_at_once_and_a_restart_does_not_help() {
        let facts = Facts {
            lag: Some(3),
            denied: Some("Kafka does not allow Read on Topic t".into()),
            transactions_denied: Some("nor Write on TransactionalId i".into()),
            ..ready()
        };
        assert_eq!(alive(&facts, 1_000, 1_000), Ok(()));
        assert_eq!(
            readiness("t", &facts, s(1), STALL).unwrap_err(),
            "Kafka does not allow Read on Topic t; nor Write on TransactionalId i"
        );
    }

    #[test]
    fn nothing_is_ready_before_kafka_was_reached() {
        assert!(readiness("t", &Facts::default(), s(1), STALL).is_err());
    }
}
