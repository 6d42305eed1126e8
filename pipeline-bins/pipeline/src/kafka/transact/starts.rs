//! Where a partition begins. Plain data, no client in sight.
//!
//! Held means that going on would lose or repeat messages without anybody having decided so. Nothing here ever resets a
//! position by itself.

use std::fmt;

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

#[cfg(test)]
mod tests {
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
}
