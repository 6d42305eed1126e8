//! What goes to Kafka: captured events and dead letters, as plain data.

use std::borrow::Cow;

use penstock_pipeline::{
    events::{
        captured::{self, CapturedEventRef},
        dead_letter::{self, Reason},
    },
    kafka::message_size::CAPTURED_EVENT,
};
use uuid::Uuid;

use crate::{
    event::{Fault, ValidEvent},
    timestamp::{Clues, UnixMicros, event_time},
};

/// Largest message: key, value and headers, bytes.
pub const MAX_RECORD_BYTES: usize = CAPTURED_EVENT as usize;
/// Bytes of the client in one dead letter; the rest is room for key and headers. A larger event is cut into parts.
const DEAD_LETTER_PART_BYTES: usize = 900_000;
/// What a message costs in memory besides its bytes, roughly: the record, librdkafka's message and its headers.
const OVERHEAD_BYTES: usize = 1024;
const MAX_DETAIL_BYTES: usize = 1024;
/// `dlq_step` of what capture itself puts aside.
const STEP: &str = "capture";

/// Which topic a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// `captured`
    Captured,
    /// `dead-letter`
    DeadLetter,
}

/// One message for Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Where it goes.
    pub stage: Stage,
    /// Its key; decides the partition.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// Its headers.
    pub headers: Headers,
}

impl Record {
    /// Bytes that count for Kafka.
    pub fn size(&self) -> usize {
        self.key.len() + self.value.len() + self.headers.size()
    }

    /// Bytes that count for memory.
    pub fn cost(&self) -> usize {
        self.size() + OVERHEAD_BYTES
    }
}

/// Headers, in order, with their values in one string.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    names: Vec<(&'static str, usize)>,
    values: String,
}

impl Headers {
    fn push(&mut self, name: &'static str, value: &str) {
        self.values.push_str(value);
        self.names.push((name, self.values.len()));
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let mut start = 0;
        self.names.iter().map(move |(name, end)| {
            let value = &self.values[start..*end];
            start = *end;
            (*name, value)
        })
    }

    /// Number of headers.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Value of a header.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    fn size(&self) -> usize {
        self.values.len() + self.names.iter().map(|(name, _)| name.len()).sum::<usize>()
    }
}

/// What holds for all events of a request.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// When it was received.
    pub now: UnixMicros,
    /// The same in RFC 3339.
    pub now_text: String,
    /// When the client says that it sent it.
    pub sent_at: Option<UnixMicros>,
    /// The same in RFC 3339.
    pub sent_at_text: Option<String>,
    /// Address of the client.
    pub ip: String,
    /// Token of the project.
    pub token: String,
    /// Id of the project.
    pub project_id: i64,
    /// The client imports old events.
    pub historical_migration: bool,
}

/// The `captured` message of an event; `data` is the event as it was sent.
pub fn captured(receipt: &Receipt, event: &ValidEvent<'_>, data: &str) -> Record {
    let uuid = event.uuid.unwrap_or_else(Uuid::now_v7);
    let mut uuid_buffer = Uuid::encode_buffer();
    let uuid: &str = uuid.as_hyphenated().encode_lower(&mut uuid_buffer);
    let time = event_time(
        receipt.now,
        Clues {
            timestamp: event.timestamp,
            offset_ms: event.offset_ms,
            sent_at: receipt.sent_at.filter(|_| !event.ignores_sent_at),
        },
    );
    let ip = if event.is_internal { "127.0.0.1" } else { &receipt.ip };
    let timestamp = time.rfc3339();
    let value = CapturedEventRef {
        uuid,
        distinct_id: &event.distinct_id,
        ip,
        data,
        now: &receipt.now_text,
        sent_at: receipt.sent_at_text.as_deref(),
        token: &receipt.token,
        event: &event.name,
        timestamp: &timestamp,
        is_cookieless_mode: event.is_cookieless,
        historical_migration: receipt.historical_migration,
    };
    let mut bytes = Vec::with_capacity(data.len() + data.len() / 4 + 512);
    serde_json::to_writer(&mut bytes, &value)
        .expect("strings and booleans are always JSON, and memory takes them");

    let mut headers = Headers {
        names: Vec::with_capacity(9),
        values: String::with_capacity(192 + event.distinct_id.len()),
    };
    headers.push(captured::header::TOKEN, &receipt.token);
    headers.push(captured::header::DISTINCT_ID, &event.distinct_id);
    if let Some(session_id) = &event.session_id {
        headers.push(captured::header::SESSION_ID, session_id);
    }
    headers.push(captured::header::TIMESTAMP, &time.millis().to_string());
    headers.push(captured::header::EVENT, &event.name);
    headers.push(captured::header::UUID, uuid);
    headers.push(captured::header::NOW, &receipt.now_text);
    headers.push(captured::header::PROJECT_ID, &receipt.project_id.to_string());
    if receipt.historical_migration {
        headers.push(captured::header::HISTORICAL_MIGRATION, "true");
    }
    // Without cookies the distinct id is the same for everybody: the address spreads the events instead.
    let of_key: &str = if event.is_cookieless { ip } else { &event.distinct_id };
    let key = format!("{}:{of_key}", receipt.token);
    Record { stage: Stage::Captured, key, value: bytes, headers }
}

/// The dead letters of something that is no event: its bytes as they were sent, in several parts when they are more than
/// one message may hold.
pub fn dead_letters(receipt: &Receipt, fault: &Fault<'_>, data: &str) -> Vec<Record> {
    let distinct_id = fault.distinct_id.as_deref().unwrap_or_default();
    let key = format!("{}:{distinct_id}", receipt.token);
    let parts = data.len().div_ceil(DEAD_LETTER_PART_BYTES).max(1);
    let mut records = Vec::with_capacity(parts);
    for part in 0..parts {
        let from = part * DEAD_LETTER_PART_BYTES;
        let to = data.len().min(from + DEAD_LETTER_PART_BYTES);
        let mut headers = Headers::default();
        headers.push(captured::header::TOKEN, &receipt.token);
        if !distinct_id.is_empty() {
            headers.push(captured::header::DISTINCT_ID, distinct_id);
        }
        headers.push(captured::header::NOW, &receipt.now_text);
        headers.push(dead_letter::header::REASON, fault.reason.code());
        headers.push(dead_letter::header::STEP, STEP);
        headers.push(dead_letter::header::TIMESTAMP, &receipt.now_text);
        headers.push(dead_letter::header::DETAIL, &bounded(&fault.detail));
        if parts > 1 {
            headers.push(dead_letter::header::PART, &format!("{}/{parts}", part + 1));
        }
        let value = data.as_bytes()[from..to].to_vec();
        records.push(Record { stage: Stage::DeadLetter, key: key.clone(), value, headers });
    }
    records
}

/// The fault of an event whose message would be too large.
pub fn too_large(size: usize, distinct_id: Cow<'_, str>) -> Fault<'_> {
    let detail =
        format!("the event makes a message of {size} bytes; at most {MAX_RECORD_BYTES} are possible");
    Fault { reason: Reason::TooLarge, detail, distinct_id: Some(distinct_id) }
}

fn bounded(detail: &str) -> Cow<'_, str> {
    if detail.len() <= MAX_DETAIL_BYTES {
        return Cow::Borrowed(detail);
    }
    let end = (0..=MAX_DETAIL_BYTES).rev().find(|end| detail.is_char_boundary(*end)).unwrap_or(0);
    Cow::Owned(format!("{}…", &detail[..end]))
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::events::captured::CapturedEvent;

    use super::*;
    use crate::event;

    fn receipt() -> Receipt {
        let now = UnixMicros::parse("2026-11-25T12:00:00Z").unwrap();
        Receipt {
            now,
            now_text: now.rfc3339(),
            sent_at: None,
            sent_at_text: None,
            ip: "203.0.113.9".into(),
            token: "phc_a".into(),
            project_id: 1,
            historical_migration: false,
        }
    }

    fn message(receipt: &Receipt, data: &str) -> (Record, CapturedEvent) {
        let record = captured(receipt, &event::parse(data).event.unwrap(), data);
        let value = serde_json::from_slice(&record.value).unwrap();
        (record, value)
    }

    #[test]
    fn a_captured_message_has_key_headers_and_the_event_as_sent() {
        let data = r#"{ "event":"a \"b\"", "distinct_id":"u:1", "timestamp":"2026-11-25T11:00:00Z", "n":1.0,
            "uuid":"0190e9a2-1b5c-7000-8000-000000000001", "properties":{"$session_id":"s"} }"#;
        let (record, value) = message(&receipt(), data);
        assert_eq!(record.key, "phc_a:u:1");
        assert_eq!(value.data, data);
        assert_eq!((value.event.as_str(), value.distinct_id.as_str()), ("a \"b\"", "u:1"));
        assert_eq!((value.ip.as_str(), value.token.as_str()), ("203.0.113.9", "phc_a"));
        assert_eq!(value.now, "2026-11-25T12:00:00.000000Z");
        assert_eq!(value.timestamp, "2026-11-25T11:00:00.000000Z");
        assert_eq!(value.sent_at, None);
        let headers: Vec<_> = record.headers.iter().collect();
        let expected = [
            ("token", "phc_a"),
            ("distinct_id", "u:1"),
            ("session_id", "s"),
            ("timestamp", "1795604400000"),
            ("event", "a \"b\""),
            ("uuid", "0190e9a2-1b5c-7000-8000-000000000001"),
            ("now", "2026-11-25T12:00:00.000000Z"),
            ("penstock_project_id", "1"),
        ];
        assert_eq!(headers, expected);
    }

    #[test]
    fn an_event_without_uuid_gets_one_of_version_7() {
        let (record, value) = message(&receipt(), r#"{"event":"a","distinct_id":"u"}"#);
        assert_eq!(Uuid::parse_str(&value.uuid).unwrap().get_version_num(), 7);
        assert_eq!(record.headers.get("uuid"), Some(value.uuid.as_str()));
    }

    #[test]
    fn cookieless_internal_and_imported_events_say_so() {
        let data = r#"{"event":"a","distinct_id":"u","properties":{"$cookieless_mode":true}}"#;
        let imported = Receipt { historical_migration: true, ..receipt() };
        let (record, value) = message(&imported, data);
        assert_eq!(record.key, "phc_a:203.0.113.9");
        assert!(value.is_cookieless_mode && value.historical_migration);
        assert_eq!(record.headers.get("historical_migration"), Some("true"));
        let (_, value) =
            message(&receipt(), r#"{"event":"a","distinct_id":"u","properties":{"capture_internal":1}}"#);
        assert_eq!(value.ip, "127.0.0.1");
    }

    #[test]
    fn the_clients_clock_is_corrected_unless_the_event_says_no() {
        let sent_at = UnixMicros::parse("2026-11-25T11:00:00Z");
        let receipt = Receipt { sent_at, sent_at_text: sent_at.map(UnixMicros::rfc3339), ..receipt() };
        let at = r#""event":"a","distinct_id":"u","timestamp":"2026-11-25T10:59:00Z""#;
        let (_, value) = message(&receipt, &format!("{{{at}}}"));
        assert_eq!(value.timestamp, "2026-11-25T11:59:00.000000Z");
        assert_eq!(value.sent_at.as_deref(), Some("2026-11-25T11:00:00.000000Z"));
        let (_, value) = message(&receipt, &format!(r#"{{{at},"properties":{{"$ignore_sent_at":true}}}}"#));
        assert_eq!(value.timestamp, "2026-11-25T10:59:00.000000Z");
    }

    #[test]
    fn a_dead_letter_has_the_bytes_and_the_reason() {
        let data = r#"{ "distinct_id":"u" }"#;
        let records = dead_letters(&receipt(), &event::parse(data).event.unwrap_err(), data);
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].value, data.as_bytes());
        assert_eq!(records[0].key, "phc_a:u");
        assert_eq!(records[0].headers.get("dlq_reason"), Some("missing_event"));
        assert_eq!(records[0].headers.get("dlq_step"), Some("capture"));
        assert_eq!(records[0].headers.get("dlq_part"), None);
    }

    #[test]
    fn a_large_dead_letter_is_cut_into_parts_that_make_the_whole() {
        let data =
            format!(r#"{{"event":"a","distinct_id":"u","properties":{{"p":"{}"}}}}"#, "é".repeat(1_000_000));
        let records = dead_letters(&receipt(), &too_large(data.len(), "u".into()), &data);
        assert_eq!(records.len(), 3);
        assert!(records.iter().all(|record| record.size() <= MAX_RECORD_BYTES && record.key == "phc_a:u"));
        let parts: Vec<_> = records.iter().map(|record| record.headers.get("dlq_part").unwrap()).collect();
        assert_eq!(parts, ["1/3", "2/3", "3/3"]);
        let whole: Vec<u8> = records.into_iter().flat_map(|record| record.value).collect();
        assert_eq!(whole, data.as_bytes());
    }
}
