//! From one `ingested` or `transformed` message to one row in RowBinary.
//!
//! A pure function of message and position: whoever reads a range again gets the same rows and the same refusals.

use std::borrow::Cow;

use bytes::BufMut;
use penstock_pipeline::events::table::{COLUMNS, Value};
use serde::Deserialize;

/// Where in Kafka a message lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place<'a> {
    /// Id of the topic.
    pub topic_id: &'a str,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Kafka's time of the message, milliseconds since 1970.
    pub timestamp_ms: i64,
}

/// What must be known about a row that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowFacts {
    /// `timestamp` of the event, microseconds since 1970.
    pub timestamp_us: i64,
    /// Year and month of `timestamp`: the table partition, `year * 100 + month`.
    pub month: u32,
    /// Index of the server that gets the row.
    pub server: u16,
}

/// Why a message is no row. The display is for the dead letter: no values of the event in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Not a JSON object with the columns.
    #[error("not a JSON object of the expected shape: {0}")]
    Malformed(String),
    /// A value does not fit its column.
    #[error("{column}: {problem}")]
    Value {
        /// Name of the column.
        column: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The fields of a message, borrowed from it where nothing has to be unescaped.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow)]
    uuid: Cow<'a, str>,
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow)]
    properties: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    team_id: i64,
    #[serde(default)]
    project_id: Option<i64>,
    #[serde(borrow)]
    distinct_id: Cow<'a, str>,
    #[serde(borrow, default)]
    elements_chain: Cow<'a, str>,
    #[serde(borrow)]
    created_at: Cow<'a, str>,
    #[serde(borrow, default)]
    captured_at: Option<Cow<'a, str>>,
    #[serde(borrow)]
    person_id: Cow<'a, str>,
    #[serde(borrow)]
    person_created_at: Cow<'a, str>,
    #[serde(borrow)]
    person_properties: Cow<'a, str>,
    #[serde(borrow)]
    person_mode: Cow<'a, str>,
    #[serde(default)]
    historical_migration: bool,
}

/// Names of the columns that rows have, in their order.
pub fn column_names() -> impl Iterator<Item = &'static str> {
    COLUMNS.iter().filter(|column| column.value == Value::Inserted).map(|column| column.name)
}

/// Appends the header of the format RowBinaryWithNamesAndTypes, against which the server checks its table.
pub fn write_header(out: &mut Vec<u8>) {
    let columns = || COLUMNS.iter().filter(|column| column.value == Value::Inserted);
    write_length(out, columns().count());
    for column in columns() {
        write_string(out, column.name);
    }
    for column in columns() {
        write_string(out, column.type_);
    }
}

/// Appends the row of `message` to `out`. On an error `out` is as before. `server_of` says which server gets the rows of a
/// `distinct_id`.
pub fn write_row(
    out: &mut Vec<u8>,
    message: &[u8],
    place: Place<'_>,
    server_of: impl FnOnce(&str) -> u16,
) -> Result<RowFacts, RowError> {
    let fields: Fields<'_> =
        serde_json::from_slice(message).map_err(|error| RowError::Malformed(without_values(&error)))?;

    let uuid = parse_uuid("uuid", &fields.uuid)?;
    let timestamp = parse_time("timestamp", &fields.timestamp)?;
    let created_at = parse_time("created_at", &fields.created_at)?;
    let captured_at = match &fields.captured_at {
        Some(text) => parse_time("captured_at", text)?,
        None => created_at,
    };
    let person_id = parse_uuid("person_id", &fields.person_id)?;
    let person_created_at = parse_time("person_created_at", &fields.person_created_at)?;
    let person_mode: i8 = match &*fields.person_mode {
        "full" => 0,
        "propertyless" => 1,
        "force_upgrade" => 2,
        _ => {
            return Err(RowError::Value {
                column: "person_mode",
                problem: "is not one of full, propertyless, force_upgrade",
            });
        }
    };
    let kafka_seconds = u32::try_from(place.timestamp_ms.max(0) / 1000).unwrap_or(u32::MAX);

    out.reserve(256 + fields.properties.len() + fields.person_properties.len() + fields.elements_chain.len());
    write_uuid(out, uuid);
    write_string(out, &fields.event);
    write_string(out, &fields.properties);
    out.put_i64_le(timestamp.microseconds);
    out.put_i64_le(fields.team_id);
    out.put_i64_le(fields.project_id.unwrap_or(fields.team_id));
    write_string(out, &fields.distinct_id);
    write_string(out, &fields.elements_chain);
    out.put_i64_le(created_at.microseconds);
    out.put_i64_le(captured_at.microseconds);
    write_uuid(out, person_id);
    out.put_i64_le(person_created_at.microseconds.div_euclid(1000));
    write_string(out, &fields.person_properties);
    out.put_i8(person_mode);
    out.put_u8(fields.historical_migration.into());
    out.put_u32_le(kafka_seconds);
    write_string(out, place.topic_id);
    out.put_u64_le(u64::try_from(place.partition).unwrap_or_default());
    out.put_u64_le(u64::try_from(place.offset).unwrap_or_default());
    Ok(RowFacts {
        timestamp_us: timestamp.microseconds,
        month: timestamp.month,
        server: server_of(&fields.distinct_id),
    })
}

/// UUID of the event of a row that [`write_row`] wrote: its first column.
pub fn uuid_of(row: &[u8]) -> Option<uuid::Uuid> {
    let high = u64::from_le_bytes(row.get(..8)?.try_into().ok()?);
    let low = u64::from_le_bytes(row.get(8..16)?.try_into().ok()?);
    Some(uuid::Uuid::from_u64_pair(high, low))
}

fn without_values(error: &serde_json::Error) -> String {
    // serde's text of a data error may quote the value; the kind and the place are enough.
    let kind = match error.classify() {
        serde_json::error::Category::Syntax => "syntax error",
        serde_json::error::Category::Eof => "ends too early",
        serde_json::error::Category::Data => {
            let text = error.to_string();
            if let Some(field) = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next())
            {
                return format!("field {field} is missing");
            }
            "a field has the wrong type"
        }
        serde_json::error::Category::Io => "unreadable",
    };
    format!("{kind} at byte {}", error.column())
}

fn parse_uuid(column: &'static str, text: &str) -> Result<uuid::Uuid, RowError> {
    uuid::Uuid::try_parse(text).map_err(|_| RowError::Value { column, problem: "is not a UUID" })
}

fn write_uuid(out: &mut Vec<u8>, uuid: uuid::Uuid) {
    let (high, low) = uuid.as_u64_pair();
    out.put_u64_le(high);
    out.put_u64_le(low);
}

fn write_string(out: &mut Vec<u8>, text: &str) {
    write_length(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

/// LEB128, as RowBinary writes lengths.
fn write_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push((length as u8 & 0x7f) | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Time {
    microseconds: i64,
    month: u32,
}

/// Reads `YYYY-MM-DD HH:MM:SS[.fraction]` in UTC; `T` and a final `Z` are taken as well. What `DateTime64` holds safely:
/// years 1900 to 2261.
fn parse_time(column: &'static str, text: &str) -> Result<Time, RowError> {
    let wrong = |problem| RowError::Value { column, problem };
    let bytes = text.as_bytes();
    let bytes = bytes.strip_suffix(b"Z").unwrap_or(bytes);
    let unreadable = || wrong("is not a time like 2026-01-31 23:59:59.000000");
    if bytes.len() < 19
        || bytes[4] != b'-'
        || bytes[7] != b'-'
        || !matches!(bytes[10], b' ' | b'T')
        || bytes[13] != b':'
        || bytes[16] != b':'
    {
        return Err(unreadable());
    }
    let number = |range: std::ops::Range<usize>| -> Option<i64> {
        bytes[range]
            .iter()
            .try_fold(0i64, |sum, &byte| byte.is_ascii_digit().then(|| sum * 10 + i64::from(byte - b'0')))
    };
    let (Some(year), Some(month), Some(day), Some(hour), Some(minute), Some(second)) =
        (number(0..4), number(5..7), number(8..10), number(11..13), number(14..16), number(17..19))
    else {
        return Err(unreadable());
    };
    let fraction = match bytes.get(19) {
        None => 0,
        Some(b'.') if (21..=29).contains(&bytes.len()) => {
            let digits = number(20..bytes.len()).ok_or_else(unreadable)?;
            let places = bytes.len() - 20;
            // At most nine digits: the power and the product fit.
            if places <= 6 {
                digits * 10i64.pow(6 - places as u32)
            } else {
                digits / 10i64.pow(places as u32 - 6)
            }
        }
        Some(_) => return Err(unreadable()),
    };
    if !(1..=12).contains(&month) || !(1..=days_in(year, month)).contains(&day) {
        return Err(wrong("is not a day of the calendar"));
    }
    if hour > 23 || minute > 59 || second > 59 {
        return Err(wrong("is not a time of the day"));
    }
    if !(1900..=2261).contains(&year) {
        return Err(wrong("is outside of the years 1900 to 2261"));
    }
    let seconds = days_since_1970(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    let month = u32::try_from(year * 100 + month).map_err(|_| unreadable())?;
    Ok(Time { microseconds: seconds * 1_000_000 + fraction, month })
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the proleptic Gregorian calendar, counted in years that begin with March.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::events::ingested::IngestedEvent;

    use super::*;

    fn event() -> IngestedEvent {
        IngestedEvent {
            uuid: "0190f3d2-7c1a-7e2b-9b1e-0123456789ab".into(),
            event: "order completed".into(),
            properties: "{\"price\":\"9 €\",\"q\":\"a\\\"b\"}".into(),
            timestamp: "2026-11-22 12:42:52.976140".into(),
            team_id: 17,
            project_id: 18,
            distinct_id: "user-1".into(),
            elements_chain: String::new(),
            created_at: "2026-11-24 12:00:00.976140".into(),
            captured_at: "2026-11-24 12:00:00.000001".into(),
            person_id: "00006c09-0000-4000-a000-00000d0dea67".into(),
            person_created_at: "1970-01-01 00:00:05.000000".into(),
            person_properties: "{}".into(),
            person_mode: "propertyless".into(),
            historical_migration: true,
        }
    }

    fn place() -> Place<'static> {
        Place { topic_id: "topic", partition: 3, offset: 300, timestamp_ms: 1_764_000_000_999 }
    }

    fn row_of(event: &IngestedEvent) -> Result<(Vec<u8>, RowFacts), RowError> {
        let mut out = Vec::new();
        let facts = write_row(&mut out, &serde_json::to_vec(event).unwrap(), place(), |_| 1)?;
        Ok((out, facts))
    }

    #[test]
    fn a_row_has_the_bytes_that_row_binary_asks_for() {
        let (row, facts) = row_of(&event()).unwrap();
        assert_eq!(facts, RowFacts { timestamp_us: 1_795_351_372_976_140, month: 202_611, server: 1 });
        assert_eq!(uuid_of(&row).unwrap().to_string(), event().uuid);
        let mut expected = Vec::new();
        expected.extend([0x2b, 0x7e, 0x1a, 0x7c, 0xd2, 0xf3, 0x90, 0x01]);
        expected.extend([0xab, 0x89, 0x67, 0x45, 0x23, 0x01, 0x1e, 0x9b]);
        expected.push(15);
        expected.extend(b"order completed");
        expected.push(u8::try_from(event().properties.len()).unwrap());
        expected.extend(event().properties.as_bytes());
        expected.extend(1_795_351_372_976_140i64.to_le_bytes());
        expected.extend(17i64.to_le_bytes());
        expected.extend(18i64.to_le_bytes());
        expected.push(6);
        expected.extend(b"user-1");
        expected.push(0);
        assert_eq!(&row[..expected.len()], expected);
        let mut tail = Vec::new();
        tail.extend(5000i64.to_le_bytes());
        tail.extend(b"\x02{}\x01\x01");
        tail.extend(1_764_000_000u32.to_le_bytes());
        tail.extend(b"\x05topic");
        tail.extend(3u64.to_le_bytes());
        tail.extend(300u64.to_le_bytes());
        assert_eq!(&row[row.len() - tail.len()..], tail);
    }

    #[test]
    fn long_strings_have_their_length_in_several_bytes() {
        let mut out = Vec::new();
        write_length(&mut out, 300);
        write_length(&mut out, 127);
        write_length(&mut out, 128);
        assert_eq!(out, [0xac, 0x02, 0x7f, 0x80, 0x01]);
    }

    #[test]
    fn the_header_names_every_inserted_column_once() {
        let mut out = Vec::new();
        write_header(&mut out);
        assert_eq!(usize::from(out[0]), column_names().count());
        assert_eq!(column_names().last(), Some("_offset"));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_column_and_leaves_nothing_behind() {
        let change = |apply: fn(&mut IngestedEvent)| {
            let mut event = event();
            apply(&mut event);
            row_of(&event).unwrap_err().to_string()
        };
        for (error, column) in [
            (change(|e| e.uuid = "x".into()), "uuid"),
            (change(|e| e.person_id = String::new()), "person_id"),
            (change(|e| e.timestamp = "2026-02-30 00:00:00.000000".into()), "timestamp"),
            (change(|e| e.timestamp = "1899-12-31 00:00:00.000000".into()), "timestamp"),
            (change(|e| e.created_at = "yesterday".into()), "created_at"),
            (change(|e| e.captured_at = "2026-01-01 24:00:00".into()), "captured_at"),
            (change(|e| e.person_created_at = "2026-01-01 00:00:00.".into()), "person_created_at"),
            (change(|e| e.person_mode = "half".into()), "person_mode"),
        ] {
            assert!(error.starts_with(column), "{error}");
        }
        let mut out = vec![1, 2, 3];
        for message in [
            &b""[..],
            b"{",
            b"[]",
            b"null",
            b"\xff",
            b"{\"uuid\":1}",
            b"{\"uuid\":\"a\",\"uuid\":\"b\"}",
            b"{\"uuid\":\"\\ud800\"}",
        ] {
            assert!(matches!(write_row(&mut out, message, place(), |_| 0), Err(RowError::Malformed(_))));
        }
        assert_eq!(out, [1, 2, 3]);
    }

    #[test]
    fn a_refusal_says_what_is_missing_and_quotes_no_value() {
        let mut out = Vec::new();
        let missing = write_row(&mut out, b"{\"uuid\":\"a\"}", place(), |_| 0).unwrap_err().to_string();
        assert!(missing.contains("field event is missing"), "{missing}");
        let secret =
            write_row(&mut out, b"{\"uuid\":\"a\",\"team_id\":\"hunter2\"}", place(), |_| 0).unwrap_err();
        assert!(!secret.to_string().contains("hunter2"), "{secret}");
    }

    #[test]
    fn times_are_read_with_any_fraction() {
        for (text, microseconds) in [
            ("1970-01-01 00:00:00", 0),
            ("1970-01-01T00:00:01Z", 1_000_000),
            ("1970-01-01 00:00:00.5", 500_000),
            ("1970-01-01 00:00:00.123456789", 123_456),
            ("1969-12-31 23:59:59.999999", -1),
            ("2000-02-29 00:00:00.000", 951_782_400_000_000),
            ("2261-12-31 23:59:59.999999", 9_214_646_399_999_999),
            ("1900-01-01 00:00:00.000000", -2_208_988_800_000_000),
        ] {
            assert_eq!(parse_time("timestamp", text).unwrap().microseconds, microseconds, "{text}");
        }
        for text in
            ["", "2026-01-01", "2026-01-01 00:00:00.1234567890", "2026-1-01 00:00:00", "２026-01-01 00:00"]
        {
            assert!(parse_time("timestamp", text).is_err(), "{text:?}");
        }
    }
}
