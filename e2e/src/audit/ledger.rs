//! The ledger: one entry for each event, into which everything that is read is written, and from which the account is made.
//!
//! Pure: it reads no journal, topic or table itself. The order of writing is the order of the pipeline: journal, `captured`,
//! dead letters, `ingested`, `transformed`, rows.

mod closing;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use uuid::Uuid;

use super::{
    account::{Findings, Kind},
    content::{Content, Ignored, Reading, digest, of_ingested},
    journal::{Answer, Line},
    table::Row,
};

/// What the account is made by.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Whether there is a transformation, and the table is fed from `transformed`.
    pub transformed: bool,
    /// Whether a journal says what was sent.
    pub journal: bool,
    /// Whether events that are not in the journal are left out.
    pub others_send: bool,
    /// Whether partitions were added.
    pub partitions_grown: bool,
}

/// A place where events lie one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Topic of capture.
    Captured,
    /// Topic of the consumer.
    Ingested,
    /// Topic of the transformation.
    Transformed,
    /// Table of the export.
    Rows,
}

impl Stage {
    /// Its name in an account.
    pub fn name(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Ingested => "ingested",
            Self::Transformed => "transformed",
            Self::Rows => "rows",
        }
    }
}

/// Whose dead letter it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Of capture, instead of a message in `captured`.
    Capture,
    /// Of the consumer, instead of one in `ingested`.
    Consumer,
    /// Of the transformation, instead of one in `transformed`.
    Transformation,
    /// Of the export, instead of a row.
    Export,
}

impl Step {
    /// The step that a header names: `capture`, `consumer-main`, `transformation`, `export-<name>`.
    pub fn of(name: &str) -> Option<Self> {
        match name.split('-').next()? {
            "capture" => Some(Self::Capture),
            "consumer" => Some(Self::Consumer),
            "transformation" => Some(Self::Transformation),
            "export" => Some(Self::Export),
            _ => None,
        }
    }
}

/// Partition and offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Partition.
    pub partition: u32,
    /// Offset.
    pub offset: i64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.partition, self.offset)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    count: u32,
    /// Of the first one.
    partition: u32,
    offset: i64,
}

impl Seen {
    fn place(self) -> Place {
        Place { partition: self.partition, offset: self.offset }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    uuid: Uuid,
    content: Option<Content>,
    raw: Option<u64>,
    /// Digest of the Kafka key, which says which order is kept; 0 before it is known or without one.
    key: u64,
    /// Of the last topic's message.
    rest: u64,
    seen: [Seen; 4],
    dead: [u8; 4],
    number: u32,
    attempts: u16,
    answer: Option<Answer>,
    /// It was found where nothing may be that was not elsewhere before; that has been named, and is all there is to say.
    stranger: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Ledger {
    rules: Rules,
    index: HashMap<Uuid, u32>,
    entries: Vec<Entry>,
    /// Where an event was seen again, for those that were.
    again: HashMap<(u32, Stage), Place>,
    messages: [u64; 4],
    others: u64,
    letters: BTreeMap<(String, String), u64>,
    /// Keys of the dead letters of exports, which may be written twice.
    export_letters: HashSet<u64>,
    repeated_letters: u64,
    /// Dead letters and captured messages in which no event with a UUID can be found.
    nameless_letters: u64,
    unreadable_captured: u64,
    origins: Origins,
    topic_ids: BTreeSet<String>,
    findings: Findings,
}

impl Ledger {
    /// An empty one.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            index: HashMap::new(),
            entries: Vec::new(),
            again: HashMap::new(),
            messages: [0; 4],
            others: 0,
            letters: BTreeMap::new(),
            export_letters: HashSet::new(),
            repeated_letters: 0,
            nameless_letters: 0,
            unreadable_captured: 0,
            origins: Origins::default(),
            topic_ids: BTreeSet::new(),
            findings: Findings::default(),
        }
    }

    /// Writes a line of the journal.
    pub fn journal(&mut self, line: Line) {
        match line {
            Line::Sent(sent) => {
                let entry = self.entry(sent.uuid);
                entry.attempts = entry.attempts.saturating_add(1);
                entry.number = sent.number;
                entry.raw = Some(sent.raw);
                entry.content = Some(sent.content);
            }
            Line::Answered(uuid, answer) => {
                let entry = self.entry(uuid);
                // Of several attempts, an acknowledgement is what counts; and one that may have landed before a refusal.
                entry.answer = match (entry.answer, answer) {
                    (Some(Answer::Acknowledged), _) | (_, Answer::Acknowledged) => Some(Answer::Acknowledged),
                    (Some(Answer::TurnedAway), _) | (_, Answer::TurnedAway) => Some(Answer::TurnedAway),
                    _ => Some(Answer::Refused),
                };
            }
        }
    }

    fn entry(&mut self, uuid: Uuid) -> &mut Entry {
        let next = self.entries.len() as u32;
        let index = *self.index.entry(uuid).or_insert(next);
        if index == next {
            self.entries.push(Entry {
                uuid,
                content: None,
                raw: None,
                key: 0,
                rest: 0,
                seen: [Seen::default(); 4],
                dead: [0; 4],
                number: 0,
                attempts: 0,
                answer: None,
                stranger: false,
            });
        }
        &mut self.entries[index as usize]
    }

    /// The entry of what was read. An event that nobody sent gets one as well, unless others send.
    fn known(&mut self, stage: Stage, place: Place, uuid: Uuid) -> Option<u32> {
        if let Some(index) = self.index.get(&uuid) {
            return Some(*index);
        }
        if self.rules.others_send {
            self.others += 1;
            return None;
        }
        let stranger = self.rules.journal || stage != Stage::Captured;
        if stranger {
            self.findings.add(Kind::Unknown, || {
                let before = if self.rules.journal { "nobody sent it" } else { "it is in no earlier topic" };
                format!("{uuid} at {} {place}: {before}", stage.name())
            });
        }
        self.entry(uuid).stranger = stranger;
        self.index.get(&uuid).copied()
    }

    /// Writes a message of a topic. `key` is the message's key.
    pub fn message(&mut self, stage: Stage, place: Place, key: &[u8], reading: &Reading) {
        self.messages[stage as usize] += 1;
        let Some(index) = self.known(stage, place, reading.uuid) else { return };
        let last = if self.rules.transformed { Stage::Transformed } else { Stage::Ingested };
        self.compare(index, stage.name(), Some(place), reading.raw, Some(reading.content));
        self.see(index, stage, place);
        let entry = &mut self.entries[index as usize];
        if stage == Stage::Captured && !key.is_empty() {
            entry.key = digest(key);
        }
        if stage == last {
            entry.rest = reading.rest;
        }
    }

    /// Writes that a message of a topic is no event.
    pub fn unreadable(&mut self, stage: Stage, place: Place, why: &str) {
        self.messages[stage as usize] += 1;
        if stage == Stage::Captured {
            self.unreadable_captured += 1;
        } else {
            self.findings.add(Kind::Unreadable, || format!("{} {place}: {why}", stage.name()));
        }
    }

    /// Writes a dead letter. `step` and `reason` are its headers, `key` its Kafka key. `uuid` and `reading` are of the event
    /// in it, as far as there is one; `raw` is the digest of its bytes.
    pub fn dead_letter(
        &mut self,
        place: Place,
        (step, reason): (&str, &str),
        key: &[u8],
        (uuid, raw, content): (Option<Uuid>, u64, Option<Content>),
    ) {
        let Some(kind) = Step::of(step) else {
            self.findings.add(Kind::Unreadable, || format!("dead-letter {place}: its step is {step:?}"));
            return;
        };
        if kind == Step::Export && !self.export_letters.insert(digest(key)) {
            self.repeated_letters += 1;
            return;
        }
        let Some(uuid) = uuid else {
            self.nameless_letters += 1;
            *self.letters.entry((step.to_owned(), reason.to_owned())).or_default() += 1;
            return;
        };
        let index = match self.index.get(&uuid) {
            Some(index) => *index,
            None if self.rules.others_send => {
                self.others += 1;
                return;
            }
            None => {
                // Without a journal, a dead letter of capture is the first that is heard of an event.
                let stranger = self.rules.journal || kind != Step::Capture;
                if stranger {
                    self.findings
                        .add(Kind::Unknown, || format!("{uuid} at dead-letter {place}: nobody sent it"));
                }
                self.entry(uuid).stranger = stranger;
                self.entries.len() as u32 - 1
            }
        };
        *self.letters.entry((step.to_owned(), reason.to_owned())).or_default() += 1;
        let raw = (kind == Step::Capture).then_some(raw);
        self.compare(index, "dead-letter", Some(place), raw, content);
        let dead = &mut self.entries[index as usize].dead[kind as usize];
        *dead = dead.saturating_add(1);
    }

    /// Writes a row of the table.
    pub fn row(&mut self, row: &Row, ignored: &Ignored) {
        self.messages[Stage::Rows as usize] += 1;
        let place = row.place();
        if !self.topic_ids.contains(&row.topic_id) {
            self.topic_ids.insert(row.topic_id.clone());
        }
        self.origins.insert(digest(row.topic_id.as_bytes()), place);
        let reading = match of_ingested(&row.event, ignored) {
            Ok(reading) => reading,
            Err(error) => {
                self.findings.add(Kind::Unreadable, || format!("row from {place}: {error:#}"));
                return;
            }
        };
        let Some(index) = self.known(Stage::Rows, place, reading.uuid) else { return };
        self.compare(index, "row from", Some(place), None, Some(reading.content));
        self.see(index, Stage::Rows, place);
        let last = if self.rules.transformed { Stage::Transformed } else { Stage::Ingested };
        let entry = &self.entries[index as usize];
        let message = entry.seen[last as usize];
        if message.count == 1 {
            if message.place() != place {
                let (uuid, at) = (entry.uuid, message.place());
                self.findings.add(Kind::Misplaced, || {
                    format!("{uuid}: the row says {place}, the message is at {} {at}", last.name())
                });
            } else if entry.rest != reading.rest && entry.content == Some(reading.content) {
                let uuid = entry.uuid;
                self.findings.add(Kind::Altered, || {
                    format!("{uuid} row from {place}: another column is not as in its message")
                });
            }
        }
    }

    fn see(&mut self, index: u32, stage: Stage, place: Place) {
        let seen = &mut self.entries[index as usize].seen[stage as usize];
        seen.count += 1;
        if seen.count == 1 {
            (seen.partition, seen.offset) = (place.partition, place.offset);
        } else {
            self.again.insert((index, stage), place);
        }
    }

    /// Holds what was read against what was sent; without a journal, against what was captured.
    fn compare(
        &mut self,
        index: u32,
        at: &str,
        place: Option<Place>,
        raw: Option<u64>,
        content: Option<Content>,
    ) {
        let entry = &mut self.entries[index as usize];
        let place = place.map(|place| place.to_string()).unwrap_or_default();
        let uuid = entry.uuid;
        if self.rules.journal {
            if let (Some(sent), Some(raw)) = (entry.raw, raw)
                && sent != raw
            {
                self.findings.add(Kind::Altered, || {
                    format!("{uuid} at {at} {place}: the event is not as it was sent")
                });
                return;
            }
        } else if entry.seen[Stage::Captured as usize].count > 1 {
            // Two events of one UUID cannot be told apart.
            return;
        }
        let Some(content) = content else { return };
        match entry.content {
            None => entry.content = Some(content),
            Some(sent) if sent == content => {}
            // The second of one UUID.
            Some(_) if !self.rules.journal && at == Stage::Captured.name() => {}
            Some(sent) => self.findings.add(Kind::Altered, || {
                format!("{uuid} at {at} {place}: {}", sent.differences(&content).join(", "))
            }),
        }
    }
}

/// An event on its way from one place to the next.
#[derive(Clone, Copy, Debug)]
struct Move {
    key: u64,
    from: u32,
    to: u32,
    before: i64,
    after: i64,
    index: u32,
}

/// Distinct origins of rows: a bit for each offset.
#[derive(Debug, Default)]
struct Origins {
    pages: HashMap<(u64, u32, i64), Box<[u64; Origins::WORDS]>>,
    count: u64,
}

impl Origins {
    const WORDS: usize = 1024;

    fn insert(&mut self, topic: u64, place: Place) {
        let bits = Self::WORDS as i64 * 64;
        let page = self
            .pages
            .entry((topic, place.partition, place.offset.div_euclid(bits)))
            .or_insert_with(|| Box::new([0; Self::WORDS]));
        let bit = place.offset.rem_euclid(bits) as usize;
        let word = &mut page[bit / 64];
        if *word & (1 << (bit % 64)) == 0 {
            *word |= 1 << (bit % 64);
            self.count += 1;
        }
    }
}

#[cfg(test)]
mod tests;
