//! Collecting messages into blocks: where a block ends, and what is in it.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use bytes::{Bytes, BytesMut};

use super::row::{self, RowFacts};
use crate::committed::OffsetRange;

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
    /// Index of the server that gets it.
    server: u16,
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

    /// The rows of one server, or those of them at certain offsets: their number, and them in RowBinary, in pieces of about
    /// `piece` bytes.
    pub fn rows_for(&self, server: u16, only: Option<&BTreeSet<i64>>, piece: usize) -> (u32, Vec<Bytes>) {
        let (mut count, mut pieces, mut current) = (0, Vec::new(), BytesMut::new());
        for (row, bytes) in self.rows() {
            if row.server != server || only.is_some_and(|only| !only.contains(&row.offset)) {
                continue;
            }
            count += 1;
            current.extend_from_slice(&bytes);
            if current.len() >= piece {
                pieces.push(current.split().freeze());
            }
        }
        if !current.is_empty() {
            pieces.push(current.freeze());
        }
        (count, pieces)
    }

    /// Memory that it holds, bytes.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Offsets of the rows, ascending.
    pub fn offsets(&self) -> impl Iterator<Item = i64> {
        self.rows.iter().map(|row| row.offset)
    }

    /// UUIDs of the events of the rows at these offsets.
    pub fn uuids_at(&self, offsets: &BTreeSet<i64>) -> Vec<(i64, uuid::Uuid)> {
        self.rows()
            .filter(|(row, _)| offsets.contains(&row.offset))
            .map(|(row, bytes)| (row.offset, row::uuid_of(&bytes).unwrap_or_default()))
            .collect()
    }

    fn rows(&self) -> impl Iterator<Item = (&RowAt, Bytes)> {
        let ends = self.rows.iter().skip(1).map(|row| row.begin).chain([self.bytes.len()]);
        self.rows.iter().zip(ends).map(|(row, end)| (row, self.bytes.slice(row.begin..end)))
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
        let before = Mark { bytes: self.bytes.len(), next: self.next, timestamps_us: self.timestamps_us };
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
                // By its span as well: whoever takes it over reads all of it again, rows or not, and what is in doubt when a
                // plan is lost is one span at most.
                let span = self.next - self.start;
                if self.rows.len() >= limits.rows as usize
                    || self.bytes.len() >= limits.bytes
                    || span >= i64::from(Limits::SERVER_ROWS)
                {
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
                self.rows.push(RowAt { offset, begin, server: facts.server });
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
        self.timestamps_us = before.timestamps_us;
        let block = self.complete(before.next, then);
        self.bytes = last_row;
        if let Some(last) = last {
            self.rows.push(RowAt { begin: 0, ..last });
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
    timestamps_us: Option<(i64, i64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { rows: 1000, bytes: 1 << 20, months: 100 };

    fn row(month: u32, server: u16) -> Verdict {
        Verdict::Row(RowFacts { timestamp_us: i64::from(month), month, server })
    }

    fn take(collector: &mut Collector, offset: i64, verdict: Verdict) -> Taken {
        collector.take(offset, Instant::now(), LIMITS, |out| {
            out.extend_from_slice(&u64::try_from(offset).unwrap().to_le_bytes());
            out.extend_from_slice(&[0; 8]);
            verdict
        })
    }

    #[test]
    fn a_block_ends_before_the_row_that_would_make_it_span_more_than_a_hundred_months() {
        let mut collector = Collector::new(0, Extent::Open(LIMITS));
        for number in 0..100 {
            // Each month twice: the number of months counts, not that of rows.
            for half in 0..2 {
                let offset = i64::from(number) * 2 + half;
                assert!(matches!(take(&mut collector, offset, row(number, 0)), Taken::Collecting));
            }
        }
        let Taken::CompleteBefore(block) = take(&mut collector, 200, row(100, 0)) else {
            panic!("the block was not split")
        };
        assert_eq!((block.range, block.row_count()), (OffsetRange::new(0, 200).unwrap(), 200));
        assert_eq!(block.timestamps_us, Some((0, 99)));
        assert_eq!(block.bytes().len(), 200 * 16);
        // The row is in the next block, whole and once.
        assert!(matches!(take(&mut collector, 201, row(101, 0)), Taken::Collecting));
        let next = collector.seal(LIMITS).unwrap();
        assert_eq!(next.range, OffsetRange::new(200, 202).unwrap());
        assert_eq!(next.offsets().collect::<Vec<_>>(), [200, 201]);
        assert_eq!(next.timestamps_us, Some((100, 101)));
        assert_eq!(next.bytes()[..8], 200_u64.to_le_bytes());
    }

    #[test]
    fn a_planned_block_is_not_split_whatever_its_months() {
        let mut collector = Collector::new(0, Extent::Planned(OffsetRange::new(0, 150).unwrap()));
        for number in 0..149 {
            assert!(matches!(take(&mut collector, i64::from(number), row(number, 0)), Taken::Collecting));
        }
        let Taken::Complete(block) = take(&mut collector, 149, row(149, 0)) else {
            panic!("the plan's block is not complete")
        };
        assert_eq!(block.row_count(), 150);
    }

    #[test]
    fn a_block_ends_at_its_span_when_nearly_nothing_of_it_is_a_row() {
        let span = i64::from(Limits::SERVER_ROWS);
        let mut collector = Collector::new(10, Extent::Open(LIMITS));
        assert!(matches!(take(&mut collector, 10, row(1, 0)), Taken::Collecting));
        assert!(matches!(take(&mut collector, 10 + span - 2, Verdict::NoRow), Taken::Collecting));
        let Taken::Complete(block) = take(&mut collector, 10 + span - 1, Verdict::NoRow) else {
            panic!("the block goes on")
        };
        assert_eq!(block.range, OffsetRange::new(10, 10 + span).unwrap());
        assert_eq!(block.row_count(), 1);
    }

    #[test]
    fn rows_are_divided_among_servers_without_loss() {
        let mut collector = Collector::new(0, Extent::Open(LIMITS));
        for offset in 0..30 {
            let verdict =
                if offset % 5 == 4 { Verdict::NoRow } else { row(1, u16::try_from(offset % 3).unwrap()) };
            take(&mut collector, offset, verdict);
        }
        let block = collector.seal(LIMITS).unwrap();
        let offsets_of = |server, only: Option<&BTreeSet<i64>>| {
            let (count, pieces) = block.rows_for(server, only, 40);
            assert!(pieces.iter().all(|piece| !piece.is_empty() && piece.len() < 40 + 16));
            let bytes = pieces.concat();
            assert_eq!(bytes.len(), count as usize * 16);
            bytes.chunks(16).map(|row| i64::from_le_bytes(row[..8].try_into().unwrap())).collect::<Vec<_>>()
        };
        let mut all = Vec::new();
        for server in 0..3 {
            let offsets = offsets_of(server, None);
            assert!(offsets.iter().all(|offset| offset % 3 == i64::from(server)));
            all.extend(offsets);
        }
        all.sort_unstable();
        assert_eq!(all, block.offsets().collect::<Vec<_>>());
        let missing: BTreeSet<i64> = [0, 1, 3, 10].into();
        assert_eq!(offsets_of(0, Some(&missing)), [0, 3]);
        assert_eq!(offsets_of(1, Some(&missing)), [1, 10]);
        assert_eq!(offsets_of(2, Some(&missing)), [] as [i64; 0]);
    }
}
