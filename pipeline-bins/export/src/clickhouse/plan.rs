//! What is written beside a committed offset, and the token of an insert.
//!
//! Every commit of the group says in its metadata which topic its offsets count; while an insert may be under way it also
//! carries the plan. Both are plain text: `penstock/1 <topic id> <partitions>`, as all components write it, and
//! `penstock/1 <topic id> <partitions> <start>..<end> <milliseconds since 1970>`.

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
}

/// The metadata of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metadata {
    /// None, or some other program's.
    Foreign,
    /// Nothing is under way.
    Settled(Origin),
    /// This block may be partly or wholly in the table.
    Planned(Plan),
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

    fn parse_own(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        if words.next()? != FORMAT {
            return None;
        }
        let topic_id = words.next().filter(|id| !id.is_empty())?.to_owned();
        let first_partitions = words.next()?.parse().ok().filter(|&partitions| partitions > 0)?;
        let origin = Origin { topic_id, first_partitions };
        let Some(range) = words.next() else {
            return Some(Self::Settled(origin));
        };
        let (start, end) = range.split_once("..")?;
        let range = OffsetRange::new(start.parse().ok()?, end.parse().ok()?)?;
        let made_at_ms = words.next()?.parse().ok()?;
        words.next().is_none().then_some(Self::Planned(Plan { origin, range, made_at_ms }))
    }
}

impl fmt::Display for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign | Self::Unreadable => Ok(()),
            Self::Settled(origin) => write!(f, "{FORMAT} {origin}"),
            Self::Planned(plan) => {
                write!(f, "{FORMAT} {} {} {}", plan.origin, plan.range, plan.made_at_ms)
            }
        }
    }
}

/// Which of the inserts of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The whole block.
    Block,
    /// What the table lacks of it, for the nth time; from 1.
    Repair(u32),
}

/// What a deduplication token is made of, besides the block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenScope {
    /// Consumer group.
    pub group: String,
    /// UUID of the table.
    pub table_uuid: String,
}

impl TokenScope {
    /// The `insert_deduplication_token` of an insert of `plan`: equal for every attempt, unlike for anything else.
    pub fn deduplication_token(&self, partition: i32, plan: &Plan, token: Token) -> String {
        let block = self.block_name(partition, plan);
        match token {
            Token::Block => block,
            Token::Repair(1) => format!("{block}:repair"),
            Token::Repair(n) => format!("{block}:repair:{n}"),
        }
    }

    /// The `query_id` of every insert and read-back of `plan`: the server refuses to run two queries of one id at the same
    /// time, so that an attempt that still runs there excludes its repetition, and the question whether it was successful.
    pub fn query_id(&self, partition: i32, plan: &Plan) -> String {
        format!("penstock:{}", self.block_name(partition, plan))
    }

    fn block_name(&self, partition: i32, plan: &Plan) -> String {
        format!("{}:{}:{}:{partition}:{}", self.group, self.table_uuid, plan.origin.topic_id, plan.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { topic_id: "b8tRS7h4TJ2Vt43Dp85v2A".into(), first_partitions: 12 }
    }

    fn plan() -> Plan {
        Plan { origin: origin(), range: OffsetRange::new(10, 25).unwrap(), made_at_ms: 1_764_000_000_000 }
    }

    #[test]
    fn what_is_committed_is_read_back() {
        for metadata in [Metadata::Settled(origin()), Metadata::Planned(plan())] {
            assert_eq!(Metadata::parse(&metadata.to_string()), metadata);
        }
        assert_eq!(
            Metadata::Planned(plan()).to_string(),
            "penstock/1 b8tRS7h4TJ2Vt43Dp85v2A 12 10..25 1764000000000"
        );
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
        ] {
            assert_eq!(Metadata::parse(unreadable), Metadata::Unreadable, "{unreadable:?}");
        }
    }

    #[test]
    fn tokens_name_group_table_topic_partition_and_range() {
        let scope = TokenScope { group: "shop.web.export-warehouse".into(), table_uuid: "t-1".into() };
        assert_eq!(
            scope.deduplication_token(3, &plan(), Token::Block),
            "shop.web.export-warehouse:t-1:b8tRS7h4TJ2Vt43Dp85v2A:3:10..25"
        );
        assert!(scope.deduplication_token(3, &plan(), Token::Repair(1)).ends_with(":3:10..25:repair"));
        assert!(scope.deduplication_token(3, &plan(), Token::Repair(2)).ends_with(":repair:2"));
        let later = Plan { made_at_ms: 0, ..plan() };
        assert_eq!(
            scope.deduplication_token(3, &plan(), Token::Block),
            scope.deduplication_token(3, &later, Token::Block),
            "the time of a plan is not part of the token"
        );
    }
}
