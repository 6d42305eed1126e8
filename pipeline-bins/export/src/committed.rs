//! What is written beside a committed offset.
//!
//! Every commit of the group says in its metadata which topic its offsets count; while an insert may be under way it also
//! carries the plan. It is plain text, as all components write it: `penstock/1 <topic id> <partitions>`; an export into
//! ClickHouse appends `<start>..<end> <milliseconds since 1970>` for a plan, `topology=<fingerprint>` for a plan whose rows
//! go to several servers, and `doubt=<offset>` while the table may have rows of which nothing else tells.

use std::fmt;

/// Version of the metadata and of the way in which a range becomes rows.
const FORMAT: &str = "penstock/1";

/// What every version of ours begins with.
const FAMILY: &str = "penstock/";

/// Offsets of one partition, from `start` to before `end`. Never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OffsetRange {
    start: i64,
    end: i64,
}

impl OffsetRange {
    /// The offsets from `start` to before `end`; `None` unless `0 <= start < end`.
    pub fn new(start: i64, end: i64) -> Option<Self> {
        (0 <= start && start < end).then_some(Self { start, end })
    }

    /// First offset.
    pub fn start(self) -> i64 {
        self.start
    }

    /// Offset after the last; what is committed when the range is done.
    pub fn end(self) -> i64 {
        self.end
    }
}

impl fmt::Display for OffsetRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// What the offsets of a group count. They mean nothing in a topic that was deleted and made again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Kafka's id of the topic.
    pub topic_id: String,
    /// Partitions of the topic when the group first committed. A later partition is read from its beginning, whatever
    /// `startFrom` says: nobody decided to skip what is in it.
    pub first_partitions: i32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.topic_id, self.first_partitions)
    }
}

/// A block that may have been inserted. Immutable once committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The topic whose offsets these are.
    pub origin: Origin,
    /// The offsets.
    pub range: OffsetRange,
    /// When it was made, milliseconds since 1970; for people.
    pub made_at_ms: i64,
    /// Fingerprint of the servers among which its rows are divided; `None`: there is one.
    pub topology: Option<String>,
}

/// The metadata of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// None, or some other program's: the offset was set by hand, and a plan may have been lost with it.
    Foreign,
    /// Nothing is under way.
    Settled {
        /// The topic whose offsets these are.
        origin: Origin,
        /// Rows of offsets below this one may be at the destination, though nothing says so.
        doubt: Option<i64>,
    },
    /// This block may be partly or wholly in the table.
    Planned {
        /// The block.
        plan: Plan,
        /// As in [`Metadata::Settled`].
        doubt: Option<i64>,
    },
    /// Ours, but of a version that this one cannot read.
    Unreadable,
}

impl Metadata {
    /// Reads what was committed beside an offset.
    pub fn parse(text: &str) -> Self {
        if !text.starts_with(FAMILY) {
            return Self::Foreign;
        }
        Self::parse_own(text).unwrap_or(Self::Unreadable)
    }

    /// The topic whose offset was committed, as far as it is known.
    pub fn origin(&self) -> Option<&Origin> {
        match self {
            Self::Settled { origin, .. } | Self::Planned { plan: Plan { origin, .. }, .. } => Some(origin),
            Self::Foreign | Self::Unreadable => None,
        }
    }

    fn parse_own(text: &str) -> Option<Self> {
        let mut words = text.split(' ').peekable();
        if words.next()? != FORMAT {
            return None;
        }
        let topic_id = words.next().filter(|id| !id.is_empty())?.to_owned();
        let first_partitions = words.next()?.parse().ok().filter(|&partitions| partitions > 0)?;
        let origin = Origin { topic_id, first_partitions };
        let mut range = None;
        if let Some((start, end)) = words.peek().and_then(|word| word.split_once("..")) {
            let offsets = OffsetRange::new(start.parse().ok()?, end.parse().ok()?)?;
            words.next();
            range = Some((offsets, words.next()?.parse().ok()?));
        }
        let (mut topology, mut doubt) = (None, None);
        for word in words {
            match word.split_once('=')? {
                ("topology", value) if topology.is_none() && !value.is_empty() => {
                    topology = Some(value.to_owned());
                }
                ("doubt", value) if doubt.is_none() => doubt = Some(value.parse().ok()?),
                _ => return None,
            }
        }
        match range {
            Some((range, made_at_ms)) => {
                Some(Self::Planned { plan: Plan { origin, range, made_at_ms, topology }, doubt })
            }
            None if topology.is_some() => None,
            None => Some(Self::Settled { origin, doubt }),
        }
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doubt = match self {
            Self::Foreign | Self::Unreadable => return Ok(()),
            Self::Settled { origin, doubt } => {
                write!(f, "{FORMAT} {origin}")?;
                doubt
            }
            Self::Planned { plan, doubt } => {
                write!(f, "{FORMAT} {} {} {}", plan.origin, plan.range, plan.made_at_ms)?;
                if let Some(topology) = &plan.topology {
                    write!(f, " topology={topology}")?;
                }
                doubt
            }
        };
        match doubt {
            Some(doubt) => write!(f, " doubt={doubt}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { topic_id: "b8tRS7h4TJ2Vt43Dp85v2A".into(), first_partitions: 12 }
    }

    fn plan(topology: Option<&str>) -> Plan {
        Plan {
            origin: origin(),
            range: OffsetRange::new(10, 25).unwrap(),
            made_at_ms: 1_764_000_000_000,
            topology: topology.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn what_is_committed_is_read_back() {
        for (metadata, text) in [
            (Metadata::Settled { origin: origin(), doubt: None }, ""),
            (Metadata::Settled { origin: origin(), doubt: Some(40) }, " doubt=40"),
            (Metadata::Planned { plan: plan(None), doubt: None }, " 10..25 1764000000000"),
            (
                Metadata::Planned { plan: plan(Some("a1")), doubt: Some(40) },
                " 10..25 1764000000000 topology=a1 doubt=40",
            ),
        ] {
            assert_eq!(metadata.to_string(), format!("penstock/1 b8tRS7h4TJ2Vt43Dp85v2A 12{text}"));
            assert_eq!(Metadata::parse(&metadata.to_string()), metadata);
        }
    }

    #[test]
    fn other_programs_metadata_is_foreign_and_other_versions_are_unreadable() {
        for foreign in ["", "some-client", "{\"a\":1}"] {
            assert_eq!(Metadata::parse(foreign), Metadata::Foreign, "{foreign:?}");
        }
        for unreadable in [
            "penstock/2 id 3 1..2 3",
            "penstock/1",
            "penstock/1 ",
            "penstock/1 id",
            "penstock/1 id 0",
            "penstock/1 id many",
            "penstock/1 id 3 5..5 3",
            "penstock/1 id 3 6..5 3",
            "penstock/1 id 3 -1..5 3",
            "penstock/1 id 3 1..2",
            "penstock/1 id 3 1..2 3 4",
            "penstock/1 id 3 1-2 3",
            "penstock/1 id 3 1..2 3 topology=",
            "penstock/1 id 3 1..2 3 topology=a topology=b",
            "penstock/1 id 3 topology=a",
            "penstock/1 id 3 doubt=x",
            "penstock/1 id 3 other=1",
        ] {
            assert_eq!(Metadata::parse(unreadable), Metadata::Unreadable, "{unreadable:?}");
        }
    }
}
