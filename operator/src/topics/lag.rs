//! Lag: how many messages wait for a consumer group, and how old the oldest of them is. Pure.
//!
//! What is not known is unknown, never zero and never a guess; no lag is negative. Cases of one partition, with `c` the
//! committed offset, `s` the log start and `e` the last stable offset (the end for a reader of committed messages):
//!
//! | case | lag |
//! |---|---|
//! | `s ≤ c ≤ e` | `e − c` |
//! | nothing committed, the group begins at the earliest | `e − s` |
//! | nothing committed, the group begins at the latest | unknown: its place is taken at the first assignment |
//! | `c < s`: messages were removed before they were read | unknown, and said so |
//! | `c > e`: the topic was created anew, or offsets were reset | unknown, and said so |
//! | an offset could not be read | unknown |
//!
//! `e − c` counts offsets, and not every offset is a message: each transaction takes one for its marker, aborted messages
//! and compacted ones leave gaps. Therefore a lag that is not zero is looked at ([`Oldest`]): when there is no message at
//! or after `c`, nothing waits; when the first one is at `m`, `e − m` is waiting. So idle is idle.

use std::{collections::BTreeMap, fmt, time::Duration};

use penstock_pipeline::config::StartFrom;

/// Messages that wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lag {
    /// So many, markers of later transactions included.
    Known(u64),
    /// Nobody knows.
    Unknown(Unknown),
}

impl Lag {
    /// The number, as the status has it; `None` when it is not known.
    pub fn messages(&self) -> Option<i64> {
        match self {
            Self::Known(messages) => Some(i64::try_from(*messages).unwrap_or(i64::MAX)),
            Self::Unknown(_) => None,
        }
    }
}

/// Why a lag is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The topic does not exist.
    NoTopic,
    /// The group has committed nothing for the partition, and begins with what arrives after its first start.
    NothingCommitted {
        /// The partition.
        partition: i32,
    },
    /// Messages between the committed offset and the log start were removed before they were read.
    Removed {
        /// The partition.
        partition: i32,
        /// The committed offset.
        committed: i64,
        /// The oldest offset that is still there.
        log_start: i64,
    },
    /// The committed offset lies beyond the end of the partition.
    BeyondEnd {
        /// The partition.
        partition: i32,
        /// The committed offset.
        committed: i64,
        /// The end of the partition.
        end: i64,
    },
    /// Kafka did not say.
    Unanswered {
        /// What was asked, and what went wrong.
        why: String,
    },
}

impl Unknown {
    /// Whether somebody must look: the group's place and the topic do not fit together, and its reader holds still.
    pub fn needs_attention(&self) -> bool {
        matches!(self, Self::Removed { .. } | Self::BeyondEnd { .. })
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoTopic => f.write_str("the topic does not exist"),
            Self::NothingCommitted { partition } => {
                write!(f, "nothing is committed for partition {partition} yet")
            }
            Self::Removed { partition, committed, log_start } => write!(
                f,
                "partition {partition} begins at offset {log_start}, after the committed offset {committed}: what lay \
                 between was removed before it was read"
            ),
            Self::BeyondEnd { partition, committed, end } => write!(
                f,
                "the committed offset {committed} of partition {partition} lies beyond its end {end}: the topic was \
                 created anew, or offsets were set by hand"
            ),
            Self::Unanswered { why } => f.write_str(why),
        }
    }
}

/// Age of the oldest message that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LagTime {
    /// Nothing waits.
    Idle,
    /// So old, by the message's own time.
    Known(Duration),
    /// Nobody knows.
    Unknown,
}

impl LagTime {
    /// Seconds, rounded, as the status has it; `None` when nothing waits or it is not known.
    pub fn seconds(self) -> Option<i64> {
        match self {
            Self::Known(age) => Some(i64::try_from((age.as_millis() + 500) / 1000).unwrap_or(i64::MAX)),
            Self::Idle | Self::Unknown => None,
        }
    }
}

/// Lag of one consumer group on one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLag {
    /// Messages that wait, over all partitions; unknown when one of them is.
    pub lag: Lag,
    /// Age of the oldest one.
    pub time: LagTime,
}

impl GroupLag {
    /// A lag that is not known.
    pub fn unknown(why: Unknown) -> Self {
        Self { lag: Lag::Unknown(why), time: LagTime::Unknown }
    }
}

/// The offsets of one partition, in the order in which they must be read: the committed one first, so that a group that
/// commits meanwhile does not seem to be beyond the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionOffsets {
    /// Offset of the next message that the group reads; `None` when it has committed nothing.
    pub committed: Option<i64>,
    /// Oldest offset that is still there.
    pub log_start: i64,
    /// Last stable offset.
    pub end: i64,
}

/// What a partition says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartitionLag {
    /// Offsets from `position` to `end` wait; none when they are equal.
    Waiting {
        /// Where the group goes on.
        position: i64,
        /// Last stable offset.
        end: i64,
    },
    /// Nobody knows.
    Unknown(Unknown),
}

/// The first message at or after a group's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oldest {
    /// Nobody has looked, or not found out in time.
    NotSeen,
    /// There is none.
    Nothing,
    /// There is one.
    Message {
        /// Its offset.
        offset: i64,
        /// Its time, milliseconds since 1970; `None` when it has none.
        timestamp_ms: Option<i64>,
    },
}

/// Lag of one partition by its offsets: the table at the top of this file.
pub fn partition_lag(partition: i32, offsets: PartitionOffsets, start_from: StartFrom) -> PartitionLag {
    let PartitionOffsets { committed, log_start, end } = offsets;
    let position = match (committed, start_from) {
        (Some(committed), _) if committed < log_start => {
            return PartitionLag::Unknown(Unknown::Removed { partition, committed, log_start });
        }
        (Some(committed), _) if committed > end => {
            return PartitionLag::Unknown(Unknown::BeyondEnd { partition, committed, end });
        }
        (Some(committed), _) => committed,
        (None, StartFrom::Earliest) => log_start,
        (None, StartFrom::Latest) => {
            return PartitionLag::Unknown(Unknown::NothingCommitted { partition });
        }
    };
    PartitionLag::Waiting { position, end: end.max(position) }
}

/// Lag of a group by its partitions, each with what was found at its position. `now_ms` is the present, milliseconds since
/// 1970; a message from the future is of age zero.
pub fn group_lag<'a>(
    partitions: impl IntoIterator<Item = (&'a PartitionLag, Oldest)>,
    now_ms: i64,
) -> GroupLag {
    let mut total: u64 = 0;
    let mut time = LagTime::Idle;
    for (partition, oldest) in partitions {
        let (position, end) = match partition {
            PartitionLag::Waiting { position, end } => (*position, *end),
            PartitionLag::Unknown(why) => return GroupLag::unknown(why.clone()),
        };
        if position == end {
            continue;
        }
        let (first, age) = match oldest {
            Oldest::Nothing => continue,
            Oldest::NotSeen => (position, LagTime::Unknown),
            Oldest::Message { offset, timestamp_ms } => (
                offset.max(position).min(end),
                timestamp_ms.map_or(LagTime::Unknown, |time| {
                    LagTime::Known(Duration::from_millis(
                        u64::try_from(now_ms.saturating_sub(time)).unwrap_or(0),
                    ))
                }),
            ),
        };
        total = total.saturating_add(end.abs_diff(first));
        time = match (time, age) {
            (LagTime::Unknown, _) | (_, LagTime::Unknown) => LagTime::Unknown,
            (LagTime::Known(a), LagTime::Known(b)) => LagTime::Known(a.max(b)),
            (LagTime::Idle, age) | (age, LagTime::Idle) => age,
        };
    }
    GroupLag { lag: Lag::Known(total), time }
}

/// Sum of lags; the first unknown one makes it unknown.
pub fn total<'a>(lags: impl IntoIterator<Item = &'a Lag>) -> Lag {
    let mut total: u64 = 0;
    for lag in lags {
        match lag {
            Lag::Known(messages) => total = total.saturating_add(*messages),
            Lag::Unknown(why) => return Lag::Unknown(why.clone()),
        }
    }
    Lag::Known(total)
}

/// What was found at a position, kept so that a group at rest is not looked at again and again.
///
/// A message at a position stays where it is as long as the topic is the same; that there is none holds as long as the
/// end does not move.
#[derive(Debug, Default)]
pub struct Memory {
    seen: BTreeMap<(String, String, i32), Seen>,
}

#[derive(Debug)]
struct Seen {
    topic_id: penstock_pipeline::kafka::topic_ids::TopicId,
    position: i64,
    end: i64,
    log_start: i64,
    oldest: Oldest,
}

/// One partition as a group stands to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// The group.
    pub group: &'a str,
    /// The topic.
    pub topic: &'a str,
    /// Its identity.
    pub topic_id: penstock_pipeline::kafka::topic_ids::TopicId,
    /// The partition.
    pub partition: i32,
    /// Where the group goes on.
    pub position: i64,
    /// Last stable offset.
    pub end: i64,
    /// Oldest offset that is still there.
    pub log_start: i64,
}

/// Entries after which the memory is emptied: it can be rebuilt, and pipelines come and go.
const MEMORY_LIMIT: usize = 200_000;

impl Memory {
    /// What is known of a place; [`Oldest::NotSeen`] when it must be looked at.
    pub fn recall(&self, place: &Place<'_>) -> Oldest {
        let key = (place.group.to_owned(), place.topic.to_owned(), place.partition);
        match self.seen.get(&key) {
            Some(seen) if seen.topic_id == place.topic_id && seen.position == place.position => {
                match seen.oldest {
                    // Retention may have removed it.
                    Oldest::Message { offset, .. } if offset < place.log_start => Oldest::NotSeen,
                    Oldest::Nothing if seen.end != place.end || seen.log_start != place.log_start => {
                        Oldest::NotSeen
                    }
                    oldest => oldest,
                }
            }
            _ => Oldest::NotSeen,
        }
    }

    /// Keeps what was found.
    pub fn keep(&mut self, place: &Place<'_>, oldest: Oldest) {
        if oldest == Oldest::NotSeen {
            return;
        }
        if self.seen.len() >= MEMORY_LIMIT {
            self.seen.clear();
        }
        self.seen.insert(
            (place.group.to_owned(), place.topic.to_owned(), place.partition),
            Seen {
                topic_id: place.topic_id,
                position: place.position,
                end: place.end,
                log_start: place.log_start,
                oldest,
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::kafka::topic_ids::TopicId;
    use proptest::prelude::*;

    use super::*;

    fn offsets(committed: Option<i64>, log_start: i64, end: i64) -> PartitionOffsets {
        PartitionOffsets { committed, log_start, end }
    }

    #[test]
    fn every_case_of_a_partition_has_its_answer() {
        use StartFrom::{Earliest, Latest};
        let waiting = |position, end| PartitionLag::Waiting { position, end };
        for (name, offsets, start_from, expected) in [
            ("caught up", offsets(Some(10), 0, 10), Earliest, waiting(10, 10)),
            ("behind", offsets(Some(4), 0, 10), Latest, waiting(4, 10)),
            ("behind, at the log start", offsets(Some(4), 4, 10), Latest, waiting(4, 10)),
            ("new and empty", offsets(None, 0, 0), Earliest, waiting(0, 0)),
            ("no offset, from the earliest", offsets(None, 7, 10), Earliest, waiting(7, 10)),
            (
                "no offset, from the latest",
                offsets(None, 7, 10),
                Latest,
                PartitionLag::Unknown(Unknown::NothingCommitted { partition: 3 }),
            ),
            (
                "stale offset",
                offsets(Some(4), 7, 10),
                Earliest,
                PartitionLag::Unknown(Unknown::Removed { partition: 3, committed: 4, log_start: 7 }),
            ),
            (
                "topic recreated",
                offsets(Some(400), 0, 10),
                Earliest,
                PartitionLag::Unknown(Unknown::BeyondEnd { partition: 3, committed: 400, end: 10 }),
            ),
        ] {
            assert_eq!(partition_lag(3, offsets, start_from), expected, "{name}");
        }
    }

    const WAITS: PartitionLag = PartitionLag::Waiting { position: 90, end: 100 };
    const CAUGHT_UP: PartitionLag = PartitionLag::Waiting { position: 100, end: 100 };

    fn message(offset: i64, timestamp_ms: i64) -> Oldest {
        Oldest::Message { offset, timestamp_ms: Some(timestamp_ms) }
    }

    #[test]
    fn markers_of_transactions_do_not_keep_an_idle_group_busy() {
        let marker = PartitionLag::Waiting { position: 99, end: 100 };
        let lag = group_lag([(&marker, Oldest::Nothing), (&CAUGHT_UP, Oldest::NotSeen)], 1_000);
        assert_eq!(lag, GroupLag { lag: Lag::Known(0), time: LagTime::Idle });
    }

    #[test]
    fn offsets_before_the_first_message_are_not_counted() {
        // Compacted, or aborted: the first message is at 95.
        let lag = group_lag([(&WAITS, message(95, 400))], 1_000);
        assert_eq!(lag, GroupLag { lag: Lag::Known(5), time: LagTime::Known(Duration::from_millis(600)) });
    }

    #[test]
    fn the_oldest_message_of_all_partitions_gives_the_age() {
        let lag = group_lag([(&WAITS, message(90, 800)), (&WAITS, message(90, 200))], 1_000);
        assert_eq!(lag, GroupLag { lag: Lag::Known(20), time: LagTime::Known(Duration::from_millis(800)) });
    }

    #[test]
    fn a_message_from_the_future_is_of_age_zero() {
        let lag = group_lag([(&WAITS, message(90, 5_000))], 1_000);
        assert_eq!(lag.time, LagTime::Known(Duration::ZERO));
    }

    #[test]
    fn an_age_that_was_not_looked_up_is_unknown_while_the_lag_is_known() {
        let lag = group_lag([(&WAITS, Oldest::NotSeen), (&WAITS, message(90, 200))], 1_000);
        assert_eq!(lag, GroupLag { lag: Lag::Known(20), time: LagTime::Unknown });
        let untimed = Oldest::Message { offset: 90, timestamp_ms: None };
        assert_eq!(group_lag([(&WAITS, untimed)], 1_000).time, LagTime::Unknown);
    }

    #[test]
    fn one_unknown_partition_makes_the_group_unknown() {
        let why = Unknown::Removed { partition: 1, committed: 1, log_start: 2 };
        let lag = group_lag(
            [(&WAITS, message(90, 1)), (&PartitionLag::Unknown(why.clone()), Oldest::NotSeen)],
            1_000,
        );
        assert_eq!(lag, GroupLag { lag: Lag::Unknown(why.clone()), time: LagTime::Unknown });
        assert!(why.needs_attention());
        assert_eq!(total([&Lag::Known(3), &Lag::Unknown(why.clone())]), Lag::Unknown(why));
        assert_eq!(total([&Lag::Known(3), &Lag::Known(4)]), Lag::Known(7));
    }

    fn place(topic_id: i64, position: i64, end: i64, log_start: i64) -> Place<'static> {
        Place {
            group: "g",
            topic: "t",
            topic_id: TopicId::from_bits(0, topic_id),
            partition: 0,
            position,
            end,
            log_start,
        }
    }

    #[test]
    fn a_group_at_rest_is_looked_at_once() {
        let mut memory = Memory::default();
        assert_eq!(memory.recall(&place(1, 9, 10, 0)), Oldest::NotSeen);
        memory.keep(&place(1, 9, 10, 0), Oldest::Nothing);
        assert_eq!(memory.recall(&place(1, 9, 10, 0)), Oldest::Nothing);
        assert_eq!(memory.recall(&place(1, 9, 11, 0)), Oldest::NotSeen, "the end moved");
        assert_eq!(memory.recall(&place(2, 9, 10, 0)), Oldest::NotSeen, "another topic");
    }

    #[test]
    fn a_message_that_was_found_is_remembered_while_it_is_there() {
        let mut memory = Memory::default();
        memory.keep(&place(1, 5, 10, 0), message(6, 1));
        assert_eq!(memory.recall(&place(1, 5, 20, 0)), message(6, 1), "the end may move");
        assert_eq!(memory.recall(&place(1, 6, 20, 0)), Oldest::NotSeen, "the group moved");
        assert_eq!(memory.recall(&place(1, 5, 20, 7)), Oldest::NotSeen, "retention removed it");
        memory.keep(&place(1, 6, 20, 0), Oldest::NotSeen);
        assert_eq!(memory.recall(&place(1, 5, 20, 0)), message(6, 1), "not seen is not kept");
    }

    proptest! {
        #[test]
        fn no_offsets_whatsoever_give_a_negative_or_overflowing_lag(
            committed in proptest::option::of(any::<i64>()),
            log_start in any::<i64>(),
            end in any::<i64>(),
            latest in any::<bool>(),
            oldest in prop_oneof![
                Just(Oldest::NotSeen),
                Just(Oldest::Nothing),
                (any::<i64>(), any::<i64>()).prop_map(|(offset, time)| message(offset, time)),
            ],
            now in any::<i64>(),
        ) {
            let start_from = if latest { StartFrom::Latest } else { StartFrom::Earliest };
            let partition = partition_lag(0, offsets(committed, log_start, end), start_from);
            let lag = group_lag([(&partition, oldest), (&partition, oldest)], now);
            if let PartitionLag::Waiting { position, end } = partition {
                prop_assert!(position <= end);
                let Lag::Known(messages) = lag.lag else { panic!("known partitions, unknown group") };
                prop_assert!(messages <= end.abs_diff(position).saturating_mul(2));
            }
        }
    }
}
