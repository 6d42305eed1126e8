//! The account: what was counted, and what is wrong.

use std::{collections::BTreeMap, fmt};

/// How many of each kind are named; all are counted.
const NAMED: usize = 5;

/// A kind of thing that may not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Acknowledged, or in one place, and not in the next.
    Lost,
    /// More often in one place than in the one before it.
    Doubled,
    /// It does not say what was sent.
    Altered,
    /// Events of one key changed places.
    OutOfOrder,
    /// Refused with a 4xx, and there all the same.
    RefusedButThere,
    /// Nobody sent it.
    Unknown,
    /// A row that names another origin than that of its message.
    Misplaced,
    /// Events of one key in several partitions.
    SeveralPartitions,
    /// No event.
    Unreadable,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Lost,
        Self::Doubled,
        Self::Altered,
        Self::OutOfOrder,
        Self::RefusedButThere,
        Self::Unknown,
        Self::Misplaced,
        Self::SeveralPartitions,
        Self::Unreadable,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Doubled => "doubled",
            Self::Altered => "altered",
            Self::OutOfOrder => "out of order",
            Self::RefusedButThere => "refused, but there",
            Self::Unknown => "sent by nobody",
            Self::Misplaced => "of another origin",
            Self::SeveralPartitions => "in several partitions",
            Self::Unreadable => "not readable",
        }
    }
}

/// Everything that is wrong: all of it counted, the first of it named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings(BTreeMap<Kind, (u64, Vec<String>)>);

impl Findings {
    /// Adds one.
    pub fn add(&mut self, kind: Kind, name: impl FnOnce() -> String) {
        let (count, named) = self.0.entry(kind).or_default();
        *count += 1;
        if named.len() < NAMED {
            named.push(name());
        }
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: Kind) -> u64 {
        self.0.get(&kind).map_or(0, |(count, _)| *count)
    }

    /// Those of a kind that are named.
    pub fn named(&self, kind: Kind) -> &[String] {
        self.0.get(&kind).map_or(&[], |(_, named)| named)
    }
}

/// What the sender knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SentCounts {
    /// Events sent.
    pub events: u64,
    /// Answered 200.
    pub acknowledged: u64,
    /// Answered 4xx.
    pub refused: u64,
    /// Answered 503.
    pub turned_away: u64,
    /// Of those, in Kafka.
    pub turned_away_landed: u64,
    /// Not answered.
    pub unanswered: u64,
    /// Of those, in Kafka.
    pub unanswered_landed: u64,
}

/// A topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageCount {
    /// `captured`, `ingested`, `transformed`.
    pub name: &'static str,
    /// Committed messages.
    pub messages: u64,
    /// Distinct UUIDs in them.
    pub distinct: u64,
}

/// The table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableCount {
    /// Rows, as they lie there.
    pub rows: u64,
    /// Distinct UUIDs.
    pub uuids: u64,
    /// Distinct topic id, partition and offset.
    pub origins: u64,
    /// Distinct topic ids.
    pub topic_ids: u64,
    /// Parts that a merge has made: in them, equal rows were folded, and cannot be counted any more.
    pub merged_parts: u64,
}

/// The account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// What was sent; absent without a journal.
    pub sent: Option<SentCounts>,
    /// The topics, in the order of the pipeline.
    pub stages: Vec<StageCount>,
    /// Dead letters by step and reason.
    pub dead_letters: BTreeMap<(String, String), u64>,
    /// Dead letters of exports that are there again, under the same key, as is allowed.
    pub repeated_letters: u64,
    /// The table.
    pub table: TableCount,
    /// Messages in `captured` whose UUID was there before.
    pub repeated_by_clients: u64,
    /// Messages and rows that are not in the journal, and were left out.
    pub others: u64,
    /// What is wrong.
    pub findings: Findings,
}

impl Account {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        Kind::ALL.iter().all(|kind| self.findings.count(*kind) == 0)
    }

    /// Dead letters of all kinds.
    pub fn dead(&self) -> u64 {
        self.dead_letters.values().sum()
    }
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, number: u64, note: &str) -> fmt::Result {
    let number = grouped(number);
    if note.is_empty() {
        writeln!(f, "  {name:<22}{number:>11}")
    } else {
        writeln!(f, "  {name:<22}{number:>11}  {note}")
    }
}

/// A number with its thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(sent) = &self.sent {
            writeln!(f, "The sender")?;
            line(f, "sent", sent.events, "")?;
            line(f, "acknowledged", sent.acknowledged, "answered 200")?;
            line(f, "refused", sent.refused, "answered 4xx")?;
            let landed = |landed: u64| format!("of which {} landed", grouped(landed));
            line(
                f,
                "turned away",
                sent.turned_away,
                &format!("answered 503, {}", landed(sent.turned_away_landed)),
            )?;
            line(f, "unanswered", sent.unanswered, &landed(sent.unanswered_landed))?;
        }
        writeln!(f, "Kafka")?;
        for stage in &self.stages {
            line(f, stage.name, stage.messages, &format!("{} distinct", grouped(stage.distinct)))?;
        }
        line(f, "dead letters", self.dead(), "")?;
        for ((step, reason), count) in &self.dead_letters {
            line(f, "", *count, &format!("{step}: {reason}"))?;
        }
        if self.repeated_letters > 0 {
            line(f, "", self.repeated_letters, "of exports, there again under the same key")?;
        }
        if self.repeated_by_clients > 0 {
            line(f, "repeated", self.repeated_by_clients, "captured messages whose UUID was there before")?;
        }
        if self.others > 0 {
            line(f, "of others", self.others, "messages and rows that are not in the journal")?;
        }
        writeln!(f, "ClickHouse")?;
        line(f, "rows", self.table.rows, "")?;
        line(f, "distinct UUIDs", self.table.uuids, "")?;
        let ids = if self.table.topic_ids == 1 { "topic id" } else { "topic ids" };
        line(f, "distinct origins", self.table.origins, &format!("of {} {ids}", self.table.topic_ids))?;
        if self.table.merged_parts > 0 {
            let note = "merged parts: rows that were there twice may have been folded in them";
            line(f, "", self.table.merged_parts, note)?;
        }
        writeln!(f, "What is wrong")?;
        for kind in Kind::ALL {
            line(f, kind.name(), self.findings.count(kind), "")?;
            let named = self.findings.named(kind);
            for one in named {
                writeln!(f, "      {one}")?;
            }
            let more = self.findings.count(kind) - named.len() as u64;
            if more > 0 {
                writeln!(f, "      and {} more", grouped(more))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn thousands_are_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (2_000_000, "2,000,000")] {
            assert_eq!(grouped(number), text);
        }
    }
}
