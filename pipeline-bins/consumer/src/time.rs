//! Times: read as capture and others write them, written as ClickHouse reads them.

use std::fmt::Write;

use time::{OffsetDateTime, UtcOffset, format_description::well_known::Rfc3339};

/// Years that the `timestamp` column (`DateTime64(6)`) holds and every reader of it takes.
const YEARS: std::ops::RangeInclusive<i32> = 1900..=2261;

/// Reads RFC 3339. `None` when it is none, or when the time cannot be stored.
pub fn read(text: &str) -> Option<OffsetDateTime> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?.checked_to_offset(UtcOffset::UTC)?;
    YEARS.contains(&time.year()).then_some(time)
}

/// The time of a Kafka message, milliseconds since 1970.
pub fn of_kafka(timestamp_ms: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(timestamp_ms) * 1_000_000)
        .ok()
        .filter(|time| YEARS.contains(&time.year()))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// Writes `YYYY-MM-DD HH:MM:SS.ffffff` in place of what `out` held.
pub fn write(out: &mut String, time: OffsetDateTime) {
    out.clear();
    let (year, month, day) = time.to_calendar_date();
    let (hour, minute, second, micro) = time.to_hms_micro();
    let month = u8::from(month);
    write!(out, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micro:06}")
        .expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_any_zone_and_written_in_utc() {
        let cases = [
            ("2026-01-31T23:59:59Z", Some("2026-01-31 23:59:59.000000")),
            ("2026-02-01T01:30:00.1234567+01:30", Some("2026-02-01 00:00:00.123456")),
            ("1900-01-01T00:00:00Z", Some("1900-01-01 00:00:00.000000")),
            ("1899-12-31T23:59:59Z", None),
            ("2262-01-01T00:00:00Z", None),
            ("0001-01-01T00:00:00Z", None),
            ("2026-01-31 23:59:59", None),
            ("yesterday", None),
            ("", None),
        ];
        for (text, wanted) in cases {
            let written = read(text).map(|time| {
                let mut out = String::new();
                write(&mut out, time);
                out
            });
            assert_eq!(written.as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn the_time_of_a_message_is_always_one_that_can_be_stored() {
        let mut out = String::new();
        for (ms, wanted) in [
            (1_769_904_000_123, "2026-02-01 00:00:00.123000"),
            (0, "1970-01-01 00:00:00.000000"),
            (i64::MAX, "1970-01-01 00:00:00.000000"),
            (i64::MIN, "1970-01-01 00:00:00.000000"),
        ] {
            write(&mut out, of_kafka(ms));
            assert_eq!(out, wanted);
        }
    }
}
