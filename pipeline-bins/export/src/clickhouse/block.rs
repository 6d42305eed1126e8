//! Collecting messages into blocks: where a block ends, and what is in it.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use bytes::Bytes;

use super::{
    plan::OffsetRange,
    row::{self, RowFacts},
};

/// What one block may hold, so that the server takes it as one insert block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rows; at most [`Limits::SERVER_ROWS`].
    pub rows: u32,
    /// Bytes of RowBinary; at most [`Limits::SERVER_BYTES`].
    pub bytes: usize,
    /// Months, which are the table's partitions.
    pub months: usize,
}

impl Limits {
    /// Rows of one server block (`max_insert_block_size`).
    pub const SERVER_ROWS: u32 = 1_048_449;
    /// Bytes of one server block (`min_insert_block_size_bytes`).
    pub const SERVER_BYTES: usize = 256 << 20;
    /// Table partitions of one server block (`max_partitions_per_insert_block`).
    pub const SERVER_PARTITIONS: usize = 100;
}

/// Where a block that is being collected ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// At a limit, at its age, or when somebody says so.
    Open(Limits),
    /// At the end of a plan.
    Planned(OffsetRange),
}

/// A row of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct RowAt {
    offset: i64,
    begin: usize,
}

/// A complete block. Its bytes are the same at every attempt.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its offsets.
    pub range: OffsetRange,
    /// Least and greatest `timestamp` of its rows, microseconds since 1970; `None` without rows.
    pub timestamps_us: Option<(i64, i64)>,
    bytes: Bytes,
    rows: Arc<[RowAt]>,
    held_bytes: usize,
}

impl Block {
    /// Number of rows.
    pub fn row_count(&self) -> u32 {
        u32::try_from(self.rows.len()).unwrap_or(u32::MAX)
    }

    /// All rows, in RowBinary.
    pub fn bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// Memory that it holds, bytes.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Offsets of the rows, ascending.
    pub fn offsets(&self) -> impl Iterator<Item = i64> {
        self.rows.iter().map(|row| row.offset)
    }

    /// The rows at these offsets, with the UUID of each.
    pub fn rows_at(&self, offsets: &BTreeSet<i64>) -> Vec<(uuid::Uuid, Bytes)> {
        let ends = self.rows.iter().skip(1).map(|row| row.begin).chain([self.bytes.len()]);
        self.rows
            .iter()
            .zip(ends)
            .filter(|(row, _)| offsets.contains(&row.offset))
            .map(|(row, end)| {
                let bytes = self.bytes.slice(row.begin..end);
                (row::uuid_of(&bytes).unwrap_or_default(), bytes)
            })
            .collect()
    }
}

/// What becomes of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is a row, appended to [`Collector::buffer`].
    Row(RowFacts),
    /// It is no row: filtered or put aside.
    NoRow,
}

/// Collects the messages of one partition into blocks.
#[derive(Debug)]
pub struct Collector {
    extent: Extent,
    /// First offset of the block: the end of the last one.
    start: i64,
    /// Offset after the last message taken.
    next: i64,
    bytes: Vec<u8>,
    rows: Vec<RowAt>,
    months: BTreeSet<u32>,
    timestamps_us: Option<(i64, i64)>,
    /// When the first message of the block was taken.
    first_taken: Option<Instant>,
}

/// What [`Collector::take`] did.
#[derive(Debug)]
pub enum Taken {
    /// The message is in the block, which goes on.
    Collecting,
    /// The message is in the block, which is now complete.
    Complete(Block),
    /// The block was complete before the message, which begins the next one.
    CompleteBefore(Block),
}

impl Collector {
    /// Begins a block at `start`.
    pub fn new(start: i64, extent: Extent) -> Self {
        Self {
            extent,
            start,
            next: start,
            bytes: Vec::new(),
            rows: Vec::new(),
            months: BTreeSet::new(),
            timestamps_us: None,
            first_taken: None,
        }
    }

    /// Offset of the first message that is not taken yet.
    pub fn next_offset(&self) -> i64 {
        self.next
    }

    /// Bytes that are held.
    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity() + self.rows.capacity() * size_of::<RowAt>()
    }

    /// When the first message of the block was taken.
    pub fn age_since(&self) -> Option<Instant> {
        self.first_taken
    }

    /// Whether a plan says where the block ends.
    pub fn is_planned(&self) -> bool {
        matches!(self.extent, Extent::Planned(_))
    }

    /// Nothing was taken: what was skipped (transaction markers) needs no block of its own.
    pub fn skip_to(&mut self, position: i64) {
        if self.first_taken.is_none() && !self.is_planned() && position > self.next {
            self.start = position;
            self.next = position;
        }
    }

    /// Takes the message at `offset`; `write` appends its row to the buffer and says what it is. The block that follows a
    /// complete one has the extent `then`.
    pub fn take(
        &mut self,
        offset: i64,
        now: Instant,
        then: Limits,
        write: impl FnOnce(&mut Vec<u8>) -> Verdict,
    ) -> Taken {
        if let Extent::Planned(range) = self.extent
            && offset >= range.end()
        {
            let block = self.close(range.end(), Extent::Open(then));
            self.append(offset, now, write);
            return match block {
                Some(block) => Taken::CompleteBefore(block),
                None => Taken::Collecting,
            };
        }
        let before = Mark { bytes: self.bytes.len(), next: self.next };
        let verdict = self.append(offset, now, write);
        match self.extent {
            Extent::Planned(range) if self.next == range.end() => {
                self.complete(range.end(), then).map_or(Taken::Collecting, Taken::Complete)
            }
            Extent::Planned(_) => Taken::Collecting,
            Extent::Open(limits) => {
                let overfull = self.months.len() > limits.months || self.bytes.len() > Limits::SERVER_BYTES;
                if let Verdict::Row(facts) = verdict
                    && overfull
                    && self.rows.len() > 1
                {
                    return self.split_last(before, facts, now, then);
                }
                if self.rows.len() >= limits.rows as usize || self.bytes.len() >= limits.bytes {
                    return self.complete(self.next, then).map_or(Taken::Collecting, Taken::Complete);
                }
                Taken::Collecting
            }
        }
    }

    /// Closes the block where it stands: at its age, under pressure, or because the partition is given away. `None` when
    /// nothing was taken, or when a plan says that more belongs to it.
    pub fn seal(&mut self, then: Limits) -> Option<Block> {
        if self.is_planned() {
            return None;
        }
        self.complete(self.next, then)
    }

    /// All messages before `position` were taken: closes the block of a plan that ends there or before.
    pub fn seal_planned(&mut self, position: i64, then: Limits) -> Option<Block> {
        match self.extent {
            Extent::Planned(range) if position >= range.end() => self.complete(range.end(), then),
            _ => None,
        }
    }

    fn complete(&mut self, end: i64, then: Limits) -> Option<Block> {
        self.close(end, Extent::Open(then))
    }

    fn append(&mut self, offset: i64, now: Instant, write: impl FnOnce(&mut Vec<u8>) -> Verdict) -> Verdict {
        let begin = self.bytes.len();
        let verdict = write(&mut self.bytes);
        self.first_taken.get_or_insert(now);
        self.next = offset + 1;
        match verdict {
            Verdict::Row(facts) => {
                self.rows.push(RowAt { offset, begin });
                self.note(facts);
            }
            Verdict::NoRow => self.bytes.truncate(begin),
        }
        verdict
    }

    fn note(&mut self, facts: RowFacts) {
        self.months.insert(facts.month);
        let (least, greatest) = self.timestamps_us.unwrap_or((facts.timestamp_us, facts.timestamp_us));
        self.timestamps_us = Some((least.min(facts.timestamp_us), greatest.max(facts.timestamp_us)));
    }

    /// The last row made the block too wide: it begins the next block.
    fn split_last(&mut self, before: Mark, facts: RowFacts, now: Instant, then: Limits) -> Taken {
        let last_row = self.bytes.split_off(before.bytes);
        let last = self.rows.pop();
        let next = std::mem::replace(&mut self.next, before.next);
        let block = self.complete(before.next, then);
        self.bytes = last_row;
        if let Some(last) = last {
            self.rows.push(RowAt { offset: last.offset, begin: 0 });
        }
        self.first_taken = Some(now);
        self.next = next;
        self.note(facts);
        block.map_or(Taken::Collecting, Taken::CompleteBefore)
    }

    fn close(&mut self, end: i64, then: Extent) -> Option<Block> {
        let range = OffsetRange::new(self.start, end)?;
        let held_bytes = self.held_bytes();
        let block = Block {
            held_bytes,
            range,
            timestamps_us: self.timestamps_us.take(),
            bytes: std::mem::take(&mut self.bytes).into(),
            rows: std::mem::take(&mut self.rows).into(),
        };
        self.months.clear();
        self.first_taken = None;
        self.start = end;
        self.next = self.next.max(end);
        self.extent = then;
        Some(block)
    }
}

#[derive(Clone, Copy)]
struct Mark {
    bytes: usize,
    next: i64,
}
