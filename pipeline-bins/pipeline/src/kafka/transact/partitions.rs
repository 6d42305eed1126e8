//! Where the engine is in each partition, and where it begins. Plain data, no client in sight.
//!
//! A partition is consumed, or not yet placed, or held: held means that going on would lose or repeat messages without
//! anybody having decided so. Nothing here ever resets a position by itself.

use std::{collections::BTreeMap, fmt};

use crate::config::StartFrom;

/// What the offsets of a group say about the topic that they count, kept as metadata of every committed offset.
///
/// Offsets mean nothing in a topic that was deleted and made again, even where its log is long enough for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Kafka's id of the topic.
    pub topic_id: String,
    /// Partitions of the topic when the group first committed. A later partition is read from its beginning, whatever
    /// `startFrom` says: nobody decided to skip what is in it.
    pub first_partitions: i32,
}

const ORIGIN_FORMAT: &str = "penstock/1";

impl Origin {
    /// Text of the offset's metadata.
    pub fn encode(&self) -> String {
        format!("{ORIGIN_FORMAT} {} {}", self.topic_id, self.first_partitions)
    }

    /// Reads what [`Origin::encode`] made. `None` for an offset that something else committed, such as a tool that an
    /// operator used on purpose.
    pub fn parse(metadata: &str) -> Option<Self> {
        let mut words = metadata.split(' ');
        let (format, topic_id, partitions) = (words.next()?, words.next()?, words.next()?);
        let first_partitions = partitions.parse().ok()?;
        (format == ORIGIN_FORMAT && words.next().is_none())
            .then(|| Self { topic_id: topic_id.to_owned(), first_partitions })
    }
}

/// An offset that the group has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommittedOffset {
    /// The next message to read.
    pub offset: i64,
    /// What it counts.
    pub origin: Option<Origin>,
}

/// What is known about a partition when its start is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The group's offset.
    pub committed: Option<CommittedOffset>,
    /// Oldest offset that the partition has.
    pub low: i64,
    /// End of the partition.
    pub high: i64,
}

/// Why a partition is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The committed offset is not in the partition any more, or not yet.
    OutOfRange {
        /// The next message to read.
        offset: i64,
        /// Oldest offset that the partition has.
        low: i64,
        /// End of the partition.
        high: i64,
    },
    /// The topic is another one than the one that was read so far.
    OtherTopic {
        /// Id that the committed offset belongs to.
        was: String,
        /// Id of the topic of this name.
        is: String,
    },
    /// A message and its headers do not fit into a dead letter, in whatever parts.
    NoDeadLetter {
        /// The message.
        offset: i64,
        /// Bytes of its headers.
        header_bytes: usize,
    },
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { offset, low, high } if offset < low => write!(
                f,
                "the next message to read is {offset}, but the oldest that is left is {low}: {} messages are gone \
                 (retention was shorter than the lag). Nothing is skipped by itself: reset the group's offset to go on",
                low - offset
            ),
            Self::OutOfRange { offset, high, .. } => write!(
                f,
                "the next message to read is {offset}, but the partition ends at {high}: it was truncated or made anew. \
                 Nothing is repeated or skipped by itself: reset the group's offset to go on"
            ),
            Self::OtherTopic { was, is } => write!(
                f,
                "the topic was deleted and made again (its id was {was} and is {is}): the committed offset means nothing \
                 in it. Reset the group's offset to go on"
            ),
            Self::NoDeadLetter { offset, header_bytes } => write!(
                f,
                "message {offset} can be neither processed nor dead-lettered: its headers alone take {header_bytes} bytes. \
                 Raise max.message.bytes or move the group's offset past it"
            ),
        }
    }
}

/// Where a partition begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// Here. `committed` says whether the group has it already.
    At {
        /// The next message to read.
        offset: i64,
        /// What the group has committed.
        committed: Option<i64>,
    },
    /// Nowhere.
    Held(Hold),
}

/// Decides where a partition begins.
///
/// `topic` is the topic as it is now, with the number of partitions that the group first saw (or now sees).
pub fn start(partition: i32, seen: &Seen, topic: &Origin, from: StartFrom) -> Start {
    let Some(committed) = &seen.committed else {
        let offset = match from {
            StartFrom::Latest if partition < topic.first_partitions => seen.high,
            StartFrom::Latest | StartFrom::Earliest => seen.low,
        };
        return Start::At { offset, committed: None };
    };
    if let Some(origin) = &committed.origin
        && origin.topic_id != topic.topic_id
    {
        return Start::Held(Hold::OtherTopic { was: origin.topic_id.clone(), is: topic.topic_id.clone() });
    }
    let offset = committed.offset;
    if offset < seen.low || offset > seen.high {
        return Start::Held(Hold::OutOfRange { offset, low: seen.low, high: seen.high });
    }
    Start::At { offset, committed: Some(offset) }
}

/// What to do with a message that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accept {
    /// It is the next one.
    Take,
    /// It is not ours, or not any more, or was taken before.
    Ignore,
    /// A message is missing before it: this consumer cannot be trusted, make a new one.
    Broken {
        /// The message that should have come.
        expected: i64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Unplaced,
    Consuming { position: i64, committed: Option<i64> },
    Held(Hold),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Partition {
    epoch: u64,
    state: State,
    /// First message delivered since the committed offset: what must come first after a rewind to that offset.
    first_unsettled: Option<i64>,
    expected: Option<i64>,
}

/// A position to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Partition.
    pub partition: i32,
    /// The next message to read.
    pub offset: i64,
    /// The assignment that it belongs to.
    pub epoch: u64,
}

/// The partitions that this process owns.
#[derive(Clone, Debug, Default)]
pub struct Partitions {
    owned: BTreeMap<i32, Partition>,
    assignments: u64,
}

impl Partitions {
    /// Partitions have come; they are placed by [`Partitions::place`].
    pub fn assign(&mut self, partitions: &[i32]) {
        for &partition in partitions {
            self.assignments += 1;
            self.owned.insert(
                partition,
                Partition {
                    epoch: self.assignments,
                    state: State::Unplaced,
                    first_unsettled: None,
                    expected: None,
                },
            );
        }
    }

    /// Partitions have gone.
    pub fn revoke(&mut self, partitions: &[i32]) {
        for partition in partitions {
            self.owned.remove(partition);
        }
    }

    /// All have gone, with the consumer.
    pub fn clear(&mut self) {
        self.owned.clear();
    }

    /// All that are owned.
    pub fn owned(&self) -> Vec<i32> {
        self.owned.keys().copied().collect()
    }

    /// Those without a place.
    pub fn unplaced(&self) -> Vec<i32> {
        self.having(|state| matches!(state, State::Unplaced))
    }

    /// Those that are read.
    pub fn consuming(&self) -> Vec<i32> {
        self.having(|state| matches!(state, State::Consuming { .. }))
    }

    fn having(&self, is: impl Fn(&State) -> bool) -> Vec<i32> {
        self.owned.iter().filter(|(_, partition)| is(&partition.state)).map(|(number, _)| *number).collect()
    }

    /// Those that are held, and why.
    pub fn held(&self) -> impl Iterator<Item = (i32, &Hold)> {
        self.owned.iter().filter_map(|(number, partition)| match &partition.state {
            State::Held(hold) => Some((*number, hold)),
            _ => None,
        })
    }

    /// The next message to read of a partition that is read.
    pub fn position(&self, partition: i32) -> Option<i64> {
        match self.owned.get(&partition)?.state {
            State::Consuming { position, .. } => Some(position),
            _ => None,
        }
    }

    /// Puts a partition at its start, at first and after an abort.
    pub fn place(&mut self, partition: i32, start: Start) {
        let Some(entry) = self.owned.get_mut(&partition) else { return };
        match start {
            Start::At { offset, committed } => {
                // What was delivered since the committed offset and not committed must be delivered again, first of all.
                entry.expected = entry.first_unsettled.filter(|first| *first >= offset);
                entry.first_unsettled = None;
                entry.state = State::Consuming { position: offset, committed };
            }
            Start::Held(hold) => entry.state = State::Held(hold),
        }
    }

    /// Stops reading a partition. True when messages of it were delivered that are not committed: what was made of them
    /// must not be committed either, since the position behind them is given up.
    #[must_use]
    pub fn hold(&mut self, partition: i32, hold: Hold) -> bool {
        let Some(entry) = self.owned.get_mut(&partition) else { return false };
        entry.state = State::Held(hold);
        entry.first_unsettled.take().is_some()
    }

    /// A message came.
    pub fn accept(&mut self, partition: i32, offset: i64) -> Accept {
        let Some(entry) = self.owned.get_mut(&partition) else { return Accept::Ignore };
        let State::Consuming { position, .. } = &mut entry.state else { return Accept::Ignore };
        if offset < *position {
            return Accept::Ignore;
        }
        match entry.expected {
            Some(expected) if expected != offset => return Accept::Broken { expected },
            _ => entry.expected = None,
        }
        *position = offset + 1;
        entry.first_unsettled.get_or_insert(offset);
        Accept::Take
    }

    /// A message came that is not processed now, because positions are about to be read again.
    pub fn pass_over(&mut self, partition: i32, offset: i64) {
        if let Some(entry) = self.owned.get_mut(&partition)
            && let State::Consuming { position, .. } = entry.state
            && offset >= position
        {
            entry
                .first_unsettled
                .get_or_insert(entry.expected.map_or(offset, |expected| expected.min(offset)));
        }
    }

    /// The end of a partition was reached: what lies below (transaction markers, aborted messages) is done.
    pub fn end(&mut self, partition: i32, offset: i64) -> Accept {
        let Some(entry) = self.owned.get_mut(&partition) else { return Accept::Ignore };
        let State::Consuming { position, .. } = &mut entry.state else { return Accept::Ignore };
        if offset <= *position {
            return Accept::Ignore;
        }
        if let Some(expected) = entry.expected {
            return if offset > expected { Accept::Broken { expected } } else { Accept::Ignore };
        }
        *position = offset;
        Accept::Take
    }

    /// Positions that the group has not committed yet.
    pub fn to_commit(&self) -> Vec<Position> {
        self.owned
            .iter()
            .filter_map(|(number, entry)| match entry.state {
                State::Consuming { position, committed } if committed != Some(position) => {
                    Some(Position { partition: *number, offset: position, epoch: entry.epoch })
                }
                _ => None,
            })
            .collect()
    }

    /// Whether [`Partitions::to_commit`] has something.
    pub fn has_to_commit(&self) -> bool {
        self.owned.values().any(|entry| {
            matches!(entry.state, State::Consuming { position, committed } if committed != Some(position))
        })
    }

    /// The group has committed these positions. Those of an earlier assignment are of no account any more.
    pub fn committed(&mut self, positions: &[Position]) {
        for done in positions {
            if let Some(entry) = self.owned.get_mut(&done.partition)
                && entry.epoch == done.epoch
                && let State::Consuming { position, committed } = &mut entry.state
            {
                *committed = Some(done.offset);
                if *position == done.offset {
                    entry.first_unsettled = None;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic() -> Origin {
        Origin { topic_id: "id-1".into(), first_partitions: 2 }
    }

    fn seen(committed: Option<i64>, low: i64, high: i64) -> Seen {
        let committed = committed.map(|offset| CommittedOffset { offset, origin: Some(topic()) });
        Seen { committed, low, high }
    }

    fn at(offset: i64) -> Start {
        Start::At { offset, committed: Some(offset) }
    }

    #[test]
    fn a_partition_begins_where_the_group_is_or_where_the_specification_says() {
        use StartFrom::{Earliest, Latest};
        let gone = |offset, low, high| Start::Held(Hold::OutOfRange { offset, low, high });
        for (name, partition, seen, from, expected) in [
            ("committed", 0, seen(Some(5), 0, 9), Earliest, at(5)),
            ("committed at the end", 0, seen(Some(9), 0, 9), Earliest, at(9)),
            ("committed at the start", 0, seen(Some(3), 3, 9), Earliest, at(3)),
            ("committed, empty partition", 0, seen(Some(3), 3, 3), Latest, at(3)),
            ("fresh, earliest", 0, seen(None, 3, 9), Earliest, Start::At { offset: 3, committed: None }),
            ("fresh, latest", 0, seen(None, 3, 9), Latest, Start::At { offset: 9, committed: None }),
            (
                "a partition added later",
                2,
                seen(None, 0, 9),
                Latest,
                Start::At { offset: 0, committed: None },
            ),
            ("retention overtook", 0, seen(Some(2), 3, 9), Earliest, gone(2, 3, 9)),
            ("truncated", 0, seen(Some(10), 0, 9), Latest, gone(10, 0, 9)),
        ] {
            assert_eq!(start(partition, &seen, &topic(), from), expected, "{name}");
        }
    }

    #[test]
    fn a_topic_that_was_made_again_is_held_even_where_the_offset_fits() {
        let new = Origin { topic_id: "id-2".into(), first_partitions: 2 };
        let start = start(0, &seen(Some(5), 0, 9), &new, StartFrom::Earliest);
        assert_eq!(start, Start::Held(Hold::OtherTopic { was: "id-1".into(), is: "id-2".into() }));
    }

    #[test]
    fn an_offset_that_somebody_set_by_hand_is_taken() {
        let seen = Seen { committed: Some(CommittedOffset { offset: 5, origin: None }), low: 0, high: 9 };
        assert_eq!(start(0, &seen, &topic(), StartFrom::Earliest), at(5));
    }

    #[test]
    fn the_origin_survives_the_metadata() {
        assert_eq!(Origin::parse(&topic().encode()), Some(topic()));
        for other in ["", "x", "penstock/1 a", "penstock/1 a b", "penstock/2 a 1", "penstock/1 a 1 more"] {
            assert_eq!(Origin::parse(other), None, "{other}");
        }
    }

    fn consuming(offset: i64) -> Partitions {
        let mut partitions = Partitions::default();
        partitions.assign(&[0]);
        partitions.place(0, at(offset));
        partitions
    }

    #[test]
    fn nothing_is_taken_before_a_partition_is_placed_nor_while_it_is_held() {
        let mut partitions = Partitions::default();
        assert_eq!(partitions.accept(0, 5), Accept::Ignore);
        partitions.assign(&[0]);
        assert_eq!(partitions.accept(0, 5), Accept::Ignore);
        partitions.place(0, Start::Held(Hold::OutOfRange { offset: 1, low: 2, high: 3 }));
        assert_eq!(partitions.accept(0, 5), Accept::Ignore);
        assert!(!partitions.has_to_commit());
    }

    #[test]
    fn gaps_of_markers_are_passed_and_old_messages_ignored() {
        let mut partitions = consuming(5);
        assert_eq!(partitions.accept(0, 5), Accept::Take);
        assert_eq!(partitions.accept(0, 8), Accept::Take);
        assert_eq!(partitions.accept(0, 7), Accept::Ignore);
        assert_eq!(partitions.to_commit(), [Position { partition: 0, offset: 9, epoch: 1 }]);
    }

    #[test]
    fn a_fresh_start_is_committed_before_the_first_message() {
        let mut partitions = Partitions::default();
        partitions.assign(&[0]);
        partitions.place(0, Start::At { offset: 7, committed: None });
        assert_eq!(partitions.to_commit(), [Position { partition: 0, offset: 7, epoch: 1 }]);
    }

    #[test]
    fn the_end_moves_the_position_over_markers() {
        let mut partitions = consuming(5);
        partitions.accept(0, 5);
        let positions = partitions.to_commit();
        partitions.committed(&positions);
        assert!(!partitions.has_to_commit());
        assert_eq!(partitions.end(0, 8), Accept::Take);
        assert_eq!(partitions.to_commit(), [Position { partition: 0, offset: 8, epoch: 1 }]);
        assert_eq!(partitions.end(0, 8), Accept::Ignore);
    }

    #[test]
    fn after_a_rewind_the_first_message_must_be_the_one_that_was_first_before() {
        let mut partitions = consuming(5);
        partitions.accept(0, 6);
        partitions.accept(0, 7);
        partitions.place(0, at(5));
        assert_eq!(partitions.clone().accept(0, 6), Accept::Take);
        assert_eq!(partitions.clone().end(0, 9), Accept::Broken { expected: 6 });
        assert_eq!(partitions.accept(0, 8), Accept::Broken { expected: 6 });
    }

    #[test]
    fn after_a_rewind_behind_what_was_committed_after_all_nothing_is_expected() {
        let mut partitions = consuming(5);
        partitions.accept(0, 6);
        partitions.place(0, at(7));
        assert_eq!(partitions.accept(0, 9), Accept::Take);
    }

    #[test]
    fn what_came_while_positions_were_read_again_is_expected_too() {
        let mut partitions = consuming(5);
        partitions.pass_over(0, 5);
        partitions.pass_over(0, 6);
        partitions.place(0, at(5));
        assert_eq!(partitions.accept(0, 6), Accept::Broken { expected: 5 });
    }

    #[test]
    fn a_partition_that_is_held_takes_back_what_was_taken_of_it() {
        let gone = || Hold::OutOfRange { offset: 7, low: 0, high: 6 };
        let mut partitions = consuming(5);
        partitions.accept(0, 5);
        assert!(partitions.hold(0, gone()), "the message is in the open transaction");
        assert!(!partitions.has_to_commit(), "and its position would not be");

        let mut partitions = consuming(5);
        partitions.accept(0, 5);
        let positions = partitions.to_commit();
        partitions.committed(&positions);
        assert!(!partitions.hold(0, gone()), "what is committed stays");
    }

    #[test]
    fn a_commit_of_an_earlier_assignment_is_of_no_account() {
        let mut partitions = consuming(5);
        partitions.accept(0, 5);
        let old = partitions.to_commit();
        partitions.revoke(&[0]);
        partitions.assign(&[0]);
        partitions.place(0, at(3));
        partitions.committed(&old);
        assert!(!partitions.has_to_commit());
        assert_eq!(partitions.position(0), Some(3));
    }

    proptest! {
        /// Whatever comes in whatever order, with aborts in between: what is committed never passes a message that was
        /// delivered and not taken.
        #[test]
        fn the_committed_offset_never_passes_a_message_that_was_not_taken(
            steps in prop::collection::vec((0u8..4, 0i64..20), 1..60)
        ) {
            let mut partitions = consuming(0);
            let mut taken = std::collections::BTreeSet::new();
            let mut committed = 0;
            let mut pending = Vec::new();
            let mut next = 0;
            for (step, jump) in steps {
                match step {
                    // The next message, possibly after markers (offsets that are multiples of 5 hold no message).
                    0 | 1 => {
                        if next % 5 == 4 { next += 1 }
                        if partitions.accept(0, next) == Accept::Take { pending.push(next) }
                        next += 1;
                    }
                    2 => {
                        let positions = partitions.to_commit();
                        partitions.committed(&positions);
                        taken.extend(pending.drain(..));
                        committed = positions.first().map_or(committed, |position| position.offset);
                    }
                    _ => {
                        // An abort and a rewind; sometimes a stale message of before comes through.
                        pending.clear();
                        partitions.place(0, at(committed));
                        if jump % 2 == 0 && next > committed + 1
                            && let Accept::Take = partitions.clone().accept(0, next)
                        {
                            prop_assert!((committed..next).all(|offset| offset % 5 == 4),
                                "{next} was taken after a rewind to {committed}");
                        }
                        next = committed;
                    }
                }
                prop_assert!((0..committed).all(|offset| offset % 5 == 4 || taken.contains(&offset)));
            }
        }
    }
}
