//! From messages to complete blocks, and to the machine.

use std::{
    sync::{Arc, mpsc::Sender},
    time::Instant,
};

use penstock_pipeline::{events::dead_letter::Reason, kafka::Message};

use super::{Answer, Driver, Waiting};
use crate::{
    clickhouse::{
        block::{Taken, Verdict},
        protocol::{Input, Sealed},
        row::{self, Place, RowError},
        steps::Moment,
        topology::Topology,
    },
    dead_letters::{DeadLetter, DeadLetters},
    filter::Filter,
    takeover::Epoch,
};

impl Driver {
    pub(super) fn message(&mut self, message: &Message<'_>, now: Instant) {
        if self.stopping {
            return;
        }
        let Some(assigned) = self.partitions.get_mut(&message.partition) else { return };
        if assigned.machine.held().is_some() || message.offset < assigned.collector.next_offset() {
            return;
        }
        let (machine, filter, topology) = (&assigned.machine, self.filter.as_ref(), &self.topology);
        let mut letter = None;
        let mut filtered = false;
        let taken = assigned.collector.take(message.offset, now, self.limits, |out| {
            match row_of(message, &machine.origin().topic_id, filter, topology, out) {
                Ok(Some(facts)) => Verdict::Row(facts),
                Ok(None) => {
                    filtered = true;
                    Verdict::NoRow
                }
                Err((reason, detail)) => {
                    letter = Some(DeadLetter::new(message, reason, detail));
                    Verdict::NoRow
                }
            }
        });
        if filtered {
            self.metrics.filtered.inc();
        }
        // In the range of a plan as well, whose dead letters were acknowledged before it was made: by another `where` (or one
        // that ran out of time only now) an event that was a row then may be none now, and must not vanish. A repeated
        // letter is recognised by its key.
        let pending = usize::from(letter.is_some());
        let block = match taken {
            Taken::Collecting => {
                assigned.dead_letters += pending;
                None
            }
            Taken::Complete(block) => {
                Some(Waiting { block, dead_letters: std::mem::take(&mut assigned.dead_letters) + pending })
            }
            Taken::CompleteBefore(block) => {
                let before = std::mem::replace(&mut assigned.dead_letters, pending);
                Some(Waiting { block, dead_letters: before })
            }
        };
        let epoch = assigned.machine.epoch();
        if let Some(letter) = letter {
            assigned.dead_letter_bytes += letter.held_bytes();
            self.metrics.dead_letter(letter.reason());
            let (letters, answer) = (self.dead_letters.clone(), self.answer.clone());
            assigned.putting_aside.spawn_on(put_aside(letter, epoch, letters, answer), &self.runtime);
        }
        if let Some(waiting) = block {
            self.sealed(message.partition, waiting);
        }
    }

    pub(super) fn dead_letter_kept(&mut self, partition: i32, epoch: Epoch, offset: i64, bytes: usize) {
        let Some(assigned) = self.current(partition, epoch) else { return };
        while assigned.putting_aside.try_join_next().is_some() {}
        assigned.dead_letter_bytes = assigned.dead_letter_bytes.saturating_sub(bytes);
        match assigned.waiting.iter_mut().find(|waiting| offset < waiting.block.range.end()) {
            Some(waiting) => waiting.dead_letters = waiting.dead_letters.saturating_sub(1),
            None => assigned.dead_letters = assigned.dead_letters.saturating_sub(1),
        }
        self.observer.at(Moment::DeadLetterKept, partition, offset);
        self.hand_over(partition);
    }

    pub(super) fn end_of_partition(&mut self, partition: i32, offset: i64) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        assigned.end_seen = assigned.end_seen.max(offset);
        if let Some(block) = assigned.collector.seal_planned(offset, self.limits) {
            let dead_letters = std::mem::take(&mut assigned.dead_letters);
            self.sealed(partition, Waiting { block, dead_letters });
        }
    }

    /// Closes what is being collected, whatever its size.
    pub(super) fn seal(&mut self, partition: i32) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        if let Some(block) = assigned.collector.seal(self.limits) {
            let dead_letters = std::mem::take(&mut assigned.dead_letters);
            self.sealed(partition, Waiting { block, dead_letters });
        }
    }

    fn sealed(&mut self, partition: i32, waiting: Waiting) {
        if let Some(assigned) = self.partitions.get_mut(&partition) {
            assigned.waiting.push_back(waiting);
        }
        self.hand_over(partition);
    }

    /// Moves blocks whose dead letters are kept on to the machine, as far as it takes them.
    pub(super) fn hand_over(&mut self, partition: i32) {
        loop {
            let Some(assigned) = self.partitions.get_mut(&partition) else { return };
            while assigned.waiting.front().is_some_and(|waiting| waiting.dead_letters == 0) {
                if let Some(waiting) = assigned.waiting.pop_front() {
                    assigned.blocks.push_back(Arc::new(waiting.block));
                }
            }
            if !assigned.machine.takes_blocks() {
                return;
            }
            let Some(block) = assigned.blocks.get(assigned.known) else { return };
            let sealed = Sealed { range: block.range, rows: block.row_count() };
            assigned.known += 1;
            let epoch = assigned.machine.epoch();
            self.observer.at(Moment::Sealed, partition, sealed.range.start());
            self.input(partition, epoch, Input::Sealed(sealed));
        }
    }
}

/// The row of a message; `None` when `where` leaves it out; otherwise why it can never be one.
fn row_of(
    message: &Message<'_>,
    topic_id: &str,
    filter: Option<&Filter>,
    topology: &Topology,
    out: &mut Vec<u8>,
) -> Result<Option<row::RowFacts>, (Reason, String)> {
    let value = message.value.unwrap_or_default();
    if let Some(filter) = filter
        && !filter.admits(value)?
    {
        return Ok(None);
    }
    let place = Place {
        topic_id,
        partition: message.partition,
        offset: message.offset,
        timestamp_ms: message.timestamp_ms,
    };
    row::write_row(out, value, place, |id| topology.server_of(id)).map(Some).map_err(|error| {
        let reason = match &error {
            RowError::Malformed(_) => Reason::Malformed,
            RowError::Value { .. } => Reason::InvalidRow,
        };
        (reason, error.to_string())
    })
}

/// Writes a dead letter until it is written. Given up with the partition: its next owner reads the message again, and writes
/// the letter under the same key.
async fn put_aside(letter: DeadLetter, epoch: Epoch, letters: DeadLetters, answer: Sender<Answer>) {
    letters.put(&letter).await;
    let (partition, offset, bytes) = (letter.partition(), letter.offset(), letter.held_bytes());
    // Nobody listens any more when the process is about to end.
    let _ = answer.send(Answer::DeadLetterKept { partition, epoch, offset, bytes });
}
