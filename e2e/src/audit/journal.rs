//! The journal of a sender: each event before it is sent, and what was answered.
//!
//! A text file, one fact a line, fields apart by tabs. What was sent is on the disk before it goes out, so that the journal
//! of a sender that was killed is a journal: what has no answer in it is unanswered.
//!
//! ```text
//! penstock-journal 1
//! S  <uuid>  <number>  <digest of the event>  <of its name>  <of its distinct id>  <of its properties>  <its time, µs>
//! A  <uuid>        answered 200
//! U  <uuid>        answered 503: it may be there
//! R  <uuid>        answered 4xx: it may not be there
//! ```
//! `number` grows with each event of one distinct id; 0 says that its order does not matter. Digests are XXH3 of 64 bits,
//! hexadecimal. An event that is sent again is there again.

use std::{
    fs::File,
    io::{BufRead, BufReader, BufWriter, Write},
    path::Path,
    sync::Mutex,
};

use anyhow::{Context, Result, bail};
use uuid::Uuid;

use super::content::Content;

const HEAD: &str = "penstock-journal 1";

/// What was answered to an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200: it is there.
    Acknowledged,
    /// 503: it may be there.
    TurnedAway,
    /// 4xx: it may not be there.
    Refused,
}

/// An event that is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its number among those of its distinct id; 0 when its order does not matter.
    pub number: u32,
    /// Digest of its JSON.
    pub raw: u64,
    /// What it says.
    pub content: Content,
}

/// One line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It is about to be sent.
    Sent(Sent),
    /// It was answered.
    Answered(Uuid, Answer),
}

/// A journal that is being written, by several tasks at once.
#[derive(Debug)]
pub struct Journal(Mutex<BufWriter<File>>);

impl Journal {
    /// Begins a journal; a file of that name is replaced.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        let mut file = BufWriter::new(
            File::create(path).with_context(|| format!("making the journal {}", path.display()))?,
        );
        writeln!(file, "{HEAD}")?;
        file.flush()?;
        Ok(Self(Mutex::new(file)))
    }

    /// Writes lines, and hands them to the system before it returns.
    ///
    /// # Errors
    /// The disk is full, or the like: then nothing more may be sent.
    pub fn write(&self, lines: &[Line]) -> Result<()> {
        let mut file = self.0.lock().expect("writing does not panic");
        for line in lines {
            match line {
                Line::Sent(sent) => writeln!(
                    file,
                    "S\t{}\t{}\t{:x}\t{:x}\t{:x}\t{:x}\t{}",
                    sent.uuid.simple(),
                    sent.number,
                    sent.raw,
                    sent.content.event,
                    sent.content.distinct_id,
                    sent.content.properties,
                    sent.content.timestamp
                )?,
                Line::Answered(uuid, answer) => {
                    let letter = match answer {
                        Answer::Acknowledged => 'A',
                        Answer::TurnedAway => 'U',
                        Answer::Refused => 'R',
                    };
                    writeln!(file, "{letter}\t{}", uuid.simple())?;
                }
            }
        }
        file.flush().context("writing the journal")
    }
}

/// Reads a journal line by line. A last line that was cut off while it was written is left out.
///
/// # Errors
/// The file is not a journal.
pub fn read(path: &Path, mut each: impl FnMut(Line)) -> Result<()> {
    let file = File::open(path).with_context(|| format!("opening the journal {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let mut line = String::new();
    let mut number = 0_u64;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            break;
        }
        number += 1;
        let Some(text) = line.strip_suffix('\n') else { break };
        if number == 1 {
            if text != HEAD {
                bail!("{} is not a journal: it begins with {text:?}, not {HEAD:?}", path.display());
            }
            continue;
        }
        each(parse(text).with_context(|| format!("{} line {number}: {text:?}", path.display()))?);
    }
    if number == 0 {
        bail!("{} is empty, not a journal", path.display());
    }
    Ok(())
}

fn parse(text: &str) -> Result<Line> {
    let mut fields = text.split('\t');
    let mut next = || fields.next().context("a field is missing");
    let kind = next()?;
    let uuid: Uuid = next()?.parse().context("the uuid")?;
    let answer = match kind {
        "S" => {
            let number = next()?.parse().context("the number")?;
            let mut hex = || -> Result<u64> { Ok(u64::from_str_radix(next()?, 16)?) };
            let (raw, event, distinct_id, properties) = (hex()?, hex()?, hex()?, hex()?);
            let timestamp = next()?.parse().context("the time")?;
            let content = Content { event, distinct_id, properties, timestamp };
            return Ok(Line::Sent(Sent { uuid, number, raw, content }));
        }
        "A" => Answer::Acknowledged,
        "U" => Answer::TurnedAway,
        "R" => Answer::Refused,
        other => bail!("{other:?} is no kind of line"),
    };
    Ok(Line::Answered(uuid, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_line_that_was_cut_off_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        let sent = Sent {
            uuid: Uuid::now_v7(),
            number: 7,
            raw: u64::MAX,
            content: Content { event: 1, distinct_id: 0, properties: 3, timestamp: -4 },
        };
        let lines = [
            Line::Sent(sent),
            Line::Answered(sent.uuid, Answer::TurnedAway),
            Line::Answered(sent.uuid, Answer::Refused),
            Line::Answered(sent.uuid, Answer::Acknowledged),
        ];
        Journal::create(&path).unwrap().write(&lines).unwrap();
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("A\t0198b6a2");
        std::fs::write(&path, text).unwrap();
        let mut read_back = Vec::new();
        read(&path, |line| read_back.push(line)).unwrap();
        assert_eq!(read_back, lines);
    }

    #[test]
    fn what_is_no_journal_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal");
        for text in ["", "S\t1\n", "penstock-journal 1\nX\t0198b6a25c2a7e3b8a520f1e2d3c4b5a\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(read(&path, |_| {}).is_err(), "{text:?}");
        }
    }
}
