//! Which partitions stand still although messages wait in them. Plain data, no client in sight.
//!
//! A clock on the wall is not enough to tell: a slow engine with a backlog in many partitions takes them in turns, and a turn
//! may be long. So a partition stands still only when it was passed over as well: the engine had nothing else to take for as
//! long, or took more from others than can have been fetched before it was the partition's turn. A partition that is held is
//! told of as such, and is no stall.

use std::{collections::BTreeMap, time::Duration};

/// Most bytes that can be taken from others while a partition waits for its turn: the consumer's queue, one answer of a
/// broker, and one share of each partition ([`crate::kafka::client::consumer`]), and four times that, because brokers are
/// asked independently of each other.
const fn most_before_a_turn(partitions: usize) -> u64 {
    4 * ((32 + 8) + 2 * partitions as u64) * (1 << 20)
}

/// How long an answer of the broker about a partition is good.
const ANSWER: Duration = Duration::from_secs(30);

/// What the broker says about a partition that stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It has messages that this consumer should get.
    Owed,
    /// It has none, or does not say: why.
    Else(String),
}

/// A partition that stands still.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stall {
    /// Since when; time since the engine's start.
    pub since: Duration,
    /// What is known to be in the way.
    pub reason: Option<String>,
    /// The broker has messages for it, and nothing is known to be in the way: a restart may help.
    pub owed: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    waits: bool,
    /// The last progress, or the last time that nothing waited; and the two counters at that time.
    since: Duration,
    starved: Duration,
    taken: u64,
    trouble: Option<(Duration, String)>,
    answer: Option<(Duration, Answer)>,
}

/// The progress in each partition of this process. Times are since the engine's start.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    partitions: BTreeMap<i32, Entry>,
    starved: Duration,
    taken: u64,
}

impl Progress {
    /// The engine would have taken a message from any partition, and for so long there was none.
    pub fn starved(&mut self, time: Duration) {
        self.starved += time;
    }

    /// A message of so many bytes was taken.
    pub fn took(&mut self, bytes: u64) {
        self.taken += bytes;
    }

    /// A partition's position was committed.
    pub fn moved(&mut self, partition: i32, now: Duration) {
        let entry = Entry {
            waits: false,
            since: now,
            starved: self.starved,
            taken: self.taken,
            trouble: None,
            answer: None,
        };
        self.partitions.insert(partition, entry);
    }

    /// What a look at a partition shows: whether something waits in it that this engine ought to take.
    pub fn seen(&mut self, partition: i32, waits: bool, now: Duration) {
        match self.partitions.get_mut(&partition) {
            Some(entry) if waits => entry.waits = true,
            _ => {
                self.moved(partition, now);
                if let Some(entry) = self.partitions.get_mut(&partition) {
                    entry.waits = waits;
                }
            }
        }
    }

    /// Something is in the way of a partition.
    pub fn trouble(&mut self, partition: i32, reason: &str, now: Duration) {
        if let Some(entry) = self.partitions.get_mut(&partition) {
            entry.trouble = Some((now, reason.to_owned()));
        }
    }

    /// The broker was asked about a partition.
    pub fn answered(&mut self, partition: i32, answer: Answer, now: Duration) {
        if let Some(entry) = self.partitions.get_mut(&partition) {
            entry.answer = Some((now, answer));
        }
    }

    /// A partition has gone.
    pub fn forget(&mut self, partition: i32) {
        self.partitions.remove(&partition);
    }

    /// How long messages have been waiting in a partition without progress; zero while none waits.
    pub fn still(&self, partition: i32, now: Duration) -> Duration {
        match self.partitions.get(&partition) {
            Some(entry) if entry.waits => now.saturating_sub(entry.since),
            _ => Duration::ZERO,
        }
    }

    /// Partitions that stand still for longer than `after`.
    pub fn stalls(&self, now: Duration, after: Duration) -> BTreeMap<i32, Stall> {
        let most = most_before_a_turn(self.partitions.len());
        self.partitions
            .iter()
            .filter(|(_, entry)| {
                let passed_over =
                    self.starved.saturating_sub(entry.starved) > after || self.taken - entry.taken > most;
                entry.waits && now.saturating_sub(entry.since) > after && passed_over
            })
            .map(|(partition, entry)| {
                let fresh = |at: &Duration, most| now.saturating_sub(*at) <= most;
                let answer = entry.answer.as_ref().filter(|(at, _)| fresh(at, 2 * ANSWER));
                let told = entry.trouble.as_ref().filter(|(at, _)| fresh(at, after));
                let answered = match answer {
                    Some((_, Answer::Else(reason))) => Some(reason),
                    Some((_, Answer::Owed)) | None => None,
                };
                let reason = told.map(|(_, reason)| reason).or(answered).cloned();
                let owed = reason.is_none() && answer.is_some();
                (*partition, Stall { since: entry.since, reason, owed })
            })
            .collect()
    }

    /// Partitions about which the broker should be asked: they stand still, and it was not asked lately.
    pub fn to_ask(&self, now: Duration, after: Duration) -> Vec<i32> {
        self.stalls(now, after)
            .into_keys()
            .filter(|partition| {
                let answer = self.partitions.get(partition).and_then(|entry| entry.answer.as_ref());
                answer.is_none_or(|(at, _)| now.saturating_sub(*at) >= ANSWER)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(60);

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Two partitions; messages wait in partition 1, and partition 0 goes on, for so many seconds.
    fn neighbours(seconds: u64, starved: bool, bytes_per_second: u64) -> Progress {
        let mut progress = Progress::default();
        for now in 0..=seconds {
            if starved {
                progress.starved(s(1));
            }
            progress.took(bytes_per_second);
            progress.seen(0, true, s(now));
            progress.seen(1, true, s(now));
            progress.moved(0, s(now));
        }
        progress
    }

    fn stalled(progress: &Progress, now: u64) -> Vec<i32> {
        progress.stalls(s(now), AFTER).into_keys().collect()
    }

    #[test]
    fn a_partition_that_gets_nothing_while_its_neighbour_goes_on_stands_still() {
        let progress = neighbours(61, true, 0);
        assert_eq!(stalled(&progress, 60), [0; 0]);
        assert_eq!(stalled(&progress, 61), [1]);
        assert_eq!((progress.still(0, s(61)), progress.still(1, s(61))), (s(0), s(61)));
    }

    #[test]
    fn a_slow_engine_that_has_not_come_to_it_yet_is_no_stall() {
        let slow = neighbours(600, false, 100_000);
        assert_eq!(stalled(&slow, 600), [0; 0]);
        assert_eq!(slow.still(1, s(600)), s(600), "although it shows");
    }

    #[test]
    fn a_partition_that_is_passed_over_by_more_than_the_queue_holds_stands_still() {
        let fast = neighbours(61, false, 10 << 20);
        assert_eq!(stalled(&fast, 61), [1]);
        assert_eq!(stalled(&neighbours(61, false, 1 << 20), 61), [0; 0]);
    }

    #[test]
    fn progress_or_nothing_that_waits_ends_it() {
        for end in [
            |progress: &mut Progress| progress.moved(1, s(62)),
            |progress: &mut Progress| progress.seen(1, false, s(62)),
            |progress: &mut Progress| progress.forget(1),
        ] {
            let mut progress = neighbours(61, true, 0);
            end(&mut progress);
            assert_eq!(stalled(&progress, 62), [0; 0]);
            assert_eq!(progress.still(1, s(62)), s(0));
        }
    }

    #[test]
    fn only_what_the_broker_has_and_nothing_explains_is_owed() {
        let mut progress = neighbours(61, true, 0);
        let stall = |progress: &Progress, now| progress.stalls(s(now), AFTER).remove(&1);
        assert_eq!(progress.to_ask(s(61), AFTER), [1]);
        assert_eq!(stall(&progress, 61), Some(Stall { since: s(0), reason: None, owed: false }));

        progress.answered(1, Answer::Owed, s(61));
        assert_eq!(stall(&progress, 62), Some(Stall { since: s(0), reason: None, owed: true }));
        assert_eq!(progress.to_ask(s(90), AFTER), [0; 0]);
        assert_eq!(progress.to_ask(s(91), AFTER), [1], "an answer is good for a while only");

        progress.trouble(1, "a checksum is wrong", s(70));
        let told = Some(Stall { since: s(0), reason: Some("a checksum is wrong".into()), owed: false });
        assert_eq!(stall(&progress, 71), told);
        assert_eq!(stall(&progress, 131).and_then(|stall| stall.reason), None, "it was not told again");

        progress.answered(1, Answer::Else("no leader".into()), s(131));
        assert_eq!(stall(&progress, 131).and_then(|stall| stall.reason).as_deref(), Some("no leader"));
    }
}
