//! Dead letters as records: plain data in, the records to produce out.

use crate::{
    events::dead_letter::{Reason, header},
    kafka::{Message, message_size},
};

/// Room for lengths, times and the header of a batch of one record.
const BATCH_OVERHEAD: usize = 512;

/// Most bytes of key and value of a record of the sink.
pub(super) const MAX_SINK_BYTES: usize = message_size::STAGE_TOPIC as usize - BATCH_OVERHEAD;

/// Most bytes of key, value and headers of a dead letter.
pub(super) const MAX_DEAD_LETTER_BYTES: usize = message_size::DEAD_LETTER_TOPIC as usize - BATCH_OVERHEAD;

/// Most bytes of the detail.
const MAX_DETAIL_BYTES: usize = 1024;

/// Bytes that a header takes besides its name and value.
const HEADER_OVERHEAD: usize = 10;

/// Where a dead letter is written from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin<'a> {
    /// The component.
    pub component: &'a str,
    /// The source topic.
    pub topic: &'a str,
    /// Now, RFC 3339.
    pub now: &'a str,
}

/// The records of one dead letter. They have the key and the Kafka time of the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeadLetter<'a> {
    /// Headers of every record: the original ones, then ours.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Values: one, or the original bytes in parts, each of which then also has [`header::PART`].
    pub values: Vec<Option<&'a [u8]>>,
}

/// Key and headers leave no room for a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom {
    /// Bytes of key and headers.
    pub header_bytes: usize,
}

/// Whether a record without headers fits into the sink.
pub(super) fn fits(key: Option<&[u8]>, value: &[u8]) -> bool {
    key.map_or(0, <[u8]>::len) + value.len() <= MAX_SINK_BYTES
}

/// Makes the records of a dead letter.
///
/// A message that was as large as a message may be has no room for more headers: it becomes several records, so that
/// nothing of it is lost and nothing behind it has to wait.
pub(super) fn dead_letter<'a>(
    message: &Message<'a>,
    reason: Reason,
    detail: &str,
    origin: Origin<'_>,
    max_bytes: usize,
) -> Result<DeadLetter<'a>, NoRoom> {
    let mut headers: Vec<(String, Option<Vec<u8>>)> = message
        .headers
        .iter()
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), value.map(<[u8]>::to_vec)))
        .collect();
    let partition = message.partition.to_string();
    let offset = message.offset.to_string();
    for (name, value) in [
        (header::REASON, reason.code()),
        (header::STEP, origin.component),
        (header::TIMESTAMP, origin.now),
        (header::DETAIL, cut(detail, MAX_DETAIL_BYTES)),
        (header::SOURCE_TOPIC, origin.topic),
        (header::SOURCE_PARTITION, &partition),
        (header::SOURCE_OFFSET, &offset),
    ] {
        headers.push((name.to_owned(), Some(value.as_bytes().to_vec())));
    }
    let around = message.key.map_or(0, <[u8]>::len)
        + headers
            .iter()
            .map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len) + HEADER_OVERHEAD)
            .sum::<usize>();
    let Some(value) = message.value else {
        return if around <= max_bytes {
            Ok(DeadLetter { headers, values: vec![None] })
        } else {
            Err(NoRoom { header_bytes: around })
        };
    };
    if around + value.len() <= max_bytes {
        return Ok(DeadLetter { headers, values: vec![Some(value)] });
    }
    // Parts have one header more.
    let room = max_bytes.saturating_sub(around + header::PART.len() + 2 * 10 + 1 + HEADER_OVERHEAD);
    // Parts of almost nothing would make one dead letter a flood.
    if room < max_bytes / 16 {
        return Err(NoRoom { header_bytes: around });
    }
    Ok(DeadLetter { headers, values: value.chunks(room).map(Some).collect() })
}

impl DeadLetter<'_> {
    /// Value of [`header::PART`] of the record at `index`; `None` when there is one record only.
    pub fn part(&self, index: usize) -> Option<String> {
        (self.values.len() > 1).then(|| format!("{}/{}", index + 1, self.values.len()))
    }
}

/// The longest beginning of a text that has at most so many bytes and ends at a character.
fn cut(text: &str, max_bytes: usize) -> &str {
    if text.len() <= max_bytes {
        return text;
    }
    let end = (0..=max_bytes).rev().find(|&index| text.is_char_boundary(index)).unwrap_or(0);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin<'_> =
        Origin { component: "consumer-main", topic: "captured", now: "2026-01-01T00:00:00Z" };

    fn header<'a>(letter: &'a DeadLetter<'_>, name: &str) -> Option<&'a str> {
        let (_, value) = letter.headers.iter().rev().find(|(other, _)| other == name)?;
        std::str::from_utf8(value.as_deref()?).ok()
    }

    #[test]
    fn the_original_is_kept_and_the_reason_added() {
        let original = [("token", Some(&b"phc"[..])), ("session_id", None)];
        let message = Message::of(b"\xff{").with_key(b"k").at(3, 42).with_headers(&original);
        let letter =
            dead_letter(&message, Reason::Malformed, "no JSON at byte 0", ORIGIN, MAX_DEAD_LETTER_BYTES)
                .unwrap();
        assert_eq!(letter.values, [Some(&b"\xff{"[..])]);
        assert_eq!(letter.headers[0], ("token".to_owned(), Some(b"phc".to_vec())));
        assert_eq!(letter.headers[1], ("session_id".to_owned(), None));
        assert_eq!(header(&letter, "dlq_reason"), Some("malformed"));
        assert_eq!(header(&letter, "dlq_step"), Some("consumer-main"));
        assert_eq!(header(&letter, "dlq_timestamp"), Some("2026-01-01T00:00:00Z"));
        assert_eq!(header(&letter, "dlq_detail"), Some("no JSON at byte 0"));
        assert_eq!(header(&letter, "dlq_source_topic"), Some("captured"));
        assert_eq!(header(&letter, "dlq_source_partition"), Some("3"));
        assert_eq!(header(&letter, "dlq_source_offset"), Some("42"));
        assert_eq!(letter.part(0), None);
    }

    #[test]
    fn a_tombstone_stays_a_tombstone() {
        let message = Message { value: None, ..Message::of(b"") };
        let letter = dead_letter(&message, Reason::Malformed, "", ORIGIN, MAX_DEAD_LETTER_BYTES).unwrap();
        assert_eq!(letter.values, [None]);
    }

    #[test]
    fn a_long_detail_is_cut_at_a_character() {
        assert_eq!(cut("äöü", 3), "ä");
        assert_eq!(cut("abc", 3), "abc");
        let message = Message::of(b"x");
        let letter =
            dead_letter(&message, Reason::Malformed, &"ü".repeat(2000), ORIGIN, MAX_DEAD_LETTER_BYTES)
                .unwrap();
        assert_eq!(header(&letter, "dlq_detail").unwrap().len(), 1024);
    }

    #[test]
    fn what_is_too_large_for_one_record_becomes_parts_that_are_the_original_together() {
        let value: Vec<u8> = (0..MAX_DEAD_LETTER_BYTES).map(|n| (n % 251) as u8).collect();
        let message = Message::of(&value).with_key(b"key");
        let letter = dead_letter(&message, Reason::TooLarge, "", ORIGIN, MAX_DEAD_LETTER_BYTES).unwrap();
        assert_eq!(letter.values.len(), 2);
        assert_eq!((letter.part(0).as_deref(), letter.part(1).as_deref()), (Some("1/2"), Some("2/2")));
        let together: Vec<u8> = letter.values.iter().flat_map(|part| part.unwrap()).copied().collect();
        assert_eq!(together, value);
        let headers: usize =
            letter.headers.iter().map(|(name, value)| name.len() + value.as_ref().map_or(0, Vec::len)).sum();
        assert!(letter.values.iter().all(|part| part.unwrap().len() + headers < MAX_DEAD_LETTER_BYTES));
    }

    #[test]
    fn headers_without_room_for_a_value_are_said_to_be_so() {
        let large = vec![b'x'; 2000];
        let headers = [("h", Some(&large[..]))];
        let value = [0; 100];
        let message = Message::of(&value).with_headers(&headers);
        assert!(dead_letter(&message, Reason::TooLarge, "", ORIGIN, 2000).unwrap_err().header_bytes > 2000);
    }
}
