//! Where the engine is in each partition. Plain data, no client in sight.
//!
//! A partition is consumed, or not yet placed, or held ([`super::starts`] decides).

use std::collections::BTreeMap;

use super::starts::{Hold, Start};

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
    use super::*;

    fn at(offset: i64) -> Start {
        Start::At { offset, committed: Some(offset) }
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
}
