//! Times: how clients write them, and which one an event gets. PostHog's rules (facts 1.5).

use std::fmt::Write;

use time::{Date, Month, OffsetDateTime, PrimitiveDateTime, Time, format_description::well_known::Rfc2822};

const MICROS_PER_SECOND: i64 = 1_000_000;
/// 1 January of the year 0 and of the year 10,000: outside, RFC 3339 cannot say it.
const YEAR_0: i64 = -62_167_219_200 * MICROS_PER_SECOND;
const YEAR_10_000: i64 = 253_402_300_800 * MICROS_PER_SECOND;
/// An event this far in the future has a wrong clock.
const FUTURE_TOLERANCE: i64 = 23 * 3600 * MICROS_PER_SECOND;
/// Numbers from here on are milliseconds, smaller ones are seconds (the year 5138, and 1973).
const FIRST_MILLISECONDS: f64 = 1e11;
/// The end of 2020 in milliseconds: a `_` parameter below it is not a time of sending in milliseconds.
const END_OF_2020_MS: i64 = 1_609_459_200_000;

/// Microseconds since 1970, UTC: what ClickHouse will keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixMicros(pub i64);

impl UnixMicros {
    /// The present.
    pub fn now() -> Self {
        Self((OffsetDateTime::now_utc().unix_timestamp_nanos() / 1000) as i64)
    }

    /// Milliseconds since 1970.
    pub fn millis(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// RFC 3339 in UTC with microseconds. Times that it cannot say are 1970.
    pub fn rfc3339(self) -> String {
        let nanos = i128::from(self.0) * 1000;
        let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let mut text = String::with_capacity(27);
        let (year, month, day) = time.to_calendar_date();
        let (hour, minute, second, micros) = time.to_hms_micro();
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z",
            u8::from(month)
        );
        text
    }

    /// A time as a client writes it: RFC 3339 with or without zone, also a date alone, slashes, RFC 2822, or a number of
    /// seconds or milliseconds. `None` when it is none of these.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        iso(text).or_else(|| number(text)).or_else(|| {
            let time = OffsetDateTime::parse(text, &Rfc2822).ok()?;
            Some(Self::of(time.unix_timestamp(), 0))
        })
    }

    fn of(seconds: i64, micros: i64) -> Self {
        Self(seconds.saturating_mul(MICROS_PER_SECOND).saturating_add(micros))
    }
}

/// Time of sending from the query parameter `_`, in milliseconds. Years up to 2020 are not believed: they are seconds,
/// or a cache buster.
pub fn sent_at_of_query(text: &str) -> Option<UnixMicros> {
    let millis: i64 = text.parse().ok()?;
    (millis >= END_OF_2020_MS).then(|| UnixMicros(millis.saturating_mul(1000)))
}

/// What is known about when an event happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clues {
    /// Time that the client gave the event.
    pub timestamp: Option<UnixMicros>,
    /// Milliseconds before the request, when the client says it so.
    pub offset_ms: Option<i64>,
    /// When the client says that it sent the request.
    pub sent_at: Option<UnixMicros>,
}

/// When an event happened: an offset counts back from now; a timestamp is corrected by the client's clock skew when the
/// time of sending is known; otherwise it is as given; without any, now. More than 23 hours ahead is now; before the
/// year 0 is 1970.
pub fn event_time(now: UnixMicros, clues: Clues) -> UnixMicros {
    let time = match (clues.offset_ms, clues.timestamp, clues.sent_at) {
        (Some(offset), ..) => now.0.saturating_sub(offset.saturating_mul(1000)),
        (None, Some(timestamp), Some(sent_at)) => timestamp.0.saturating_sub(sent_at.0.saturating_sub(now.0)),
        (None, Some(timestamp), None) => timestamp.0,
        (None, None, _) => now.0,
    };
    if time > now.0.saturating_add(FUTURE_TOLERANCE) {
        return now;
    }
    if (YEAR_0..YEAR_10_000).contains(&time) { UnixMicros(time) } else { UnixMicros(0) }
}

fn number(text: &str) -> Option<UnixMicros> {
    let numeric =
        text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'+' | b'e' | b'E'));
    if text.is_empty() || !numeric {
        return None;
    }
    let factor = |value: f64| if value.abs() >= FIRST_MILLISECONDS { 1000 } else { MICROS_PER_SECOND };
    if let Ok(integer) = text.parse::<i64>() {
        return Some(UnixMicros(integer.saturating_mul(factor(integer as f64))));
    }
    let value: f64 = text.parse().ok()?;
    // The cast saturates.
    value.is_finite().then(|| UnixMicros((value * factor(value) as f64) as i64))
}

/// `2026-11-25`, `2026/11/25` or `11/25/2026`, then optionally a time of day, then optionally a zone.
fn iso(text: &str) -> Option<UnixMicros> {
    let mut rest = Scanner(text.as_bytes());
    let (first, width) = rest.digits(4)?;
    let separator = rest.one_of(b"-/")?;
    let (second, _) = rest.digits(2)?;
    rest.one_of(&[separator])?;
    let (third, third_width) = rest.digits(4)?;
    let (year, month, day) = match (width, third_width, separator) {
        (4, 1 | 2, _) => (first, second, third),
        (1 | 2, 4, b'/') => (third, first, second),
        _ => return None,
    };
    let date = Date::from_calendar_date(year as i32, Month::try_from(month as u8).ok()?, day as u8).ok()?;
    let midnight = PrimitiveDateTime::new(date, Time::MIDNIGHT).assume_utc().unix_timestamp();
    if rest.0.is_empty() {
        return Some(UnixMicros::of(midnight, 0));
    }
    rest.one_of(b"Tt ")?;
    let (hour, _) = rest.digits(2)?;
    rest.one_of(b":")?;
    let (minute, _) = rest.digits(2)?;
    let mut second = 0;
    let mut micros = 0;
    if rest.one_of(b":").is_some() {
        second = rest.digits(2)?.0;
        if rest.one_of(b".,").is_some() {
            micros = rest.micros()?;
        }
    }
    // 60 is a leap second: the first of the next minute.
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let zone = rest.zone()?;
    let seconds = midnight + hour * 3600 + minute * 60 + second - zone;
    Some(UnixMicros::of(seconds, micros))
}

struct Scanner<'a>(&'a [u8]);

impl Scanner<'_> {
    fn one_of(&mut self, expected: &[u8]) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        expected.contains(first).then(|| {
            self.0 = rest;
            *first
        })
    }

    /// One to `most` digits: their value and how many there were.
    fn digits(&mut self, most: usize) -> Option<(i64, usize)> {
        let width = self.0.iter().take(most).take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(width);
        self.0 = rest;
        (width > 0)
            .then(|| (digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0')), width))
    }

    /// A fraction of a second; digits behind the sixth are cut off.
    fn micros(&mut self) -> Option<i64> {
        let width = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(width);
        self.0 = rest;
        let padded = digits.iter().copied().chain(std::iter::repeat(b'0')).take(6);
        (width > 0).then(|| padded.fold(0, |value, digit| value * 10 + i64::from(digit - b'0')))
    }

    /// Seconds east of UTC, to the very end: nothing, `Z`, `UTC`, `+03`, `+0330`, `+03:30`.
    fn zone(&mut self) -> Option<i64> {
        while self.one_of(b" ").is_some() {}
        if matches!(self.0, b"" | b"Z" | b"z" | b"UTC" | b"GMT") {
            return Some(0);
        }
        let sign = if self.one_of(b"+-")? == b'-' { -1 } else { 1 };
        let (hours, _) = self.digits(2)?;
        let minutes = if self.0.is_empty() {
            0
        } else {
            self.one_of(b":");
            self.digits(2)?.0
        };
        (self.0.is_empty() && hours <= 23 && minutes <= 59).then_some(sign * (hours * 3600 + minutes * 60))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> UnixMicros {
        UnixMicros::parse(text).unwrap_or_else(|| panic!("{text} is a time"))
    }

    #[test]
    fn clients_write_times_in_many_ways() {
        let cases = [
            ("2026-11-25T01:02:03Z", "2026-11-25T01:02:03.000000Z"),
            ("2026-11-25T01:02:03.123456789Z", "2026-11-25T01:02:03.123456Z"),
            ("2026-11-25T01:02:03.5+00:00", "2026-11-25T01:02:03.500000Z"),
            ("2026-11-25T04:32:03+03:30", "2026-11-25T01:02:03.000000Z"),
            ("2026-11-24T20:02:03-0500", "2026-11-25T01:02:03.000000Z"),
            ("2026-11-25T04:02:03+03", "2026-11-25T01:02:03.000000Z"),
            ("2026-11-25T01:02:03", "2026-11-25T01:02:03.000000Z"),
            ("2026-11-25 01:02:03", "2026-11-25T01:02:03.000000Z"),
            ("2026-11-25 01:02:03.25 UTC", "2026-11-25T01:02:03.250000Z"),
            ("2026-11-25 01:02", "2026-11-25T01:02:00.000000Z"),
            ("2026-11-25", "2026-11-25T00:00:00.000000Z"),
            ("2026/11/25", "2026-11-25T00:00:00.000000Z"),
            ("11/25/2026 01:02:03", "2026-11-25T01:02:03.000000Z"),
            (" 2026-11-25T01:02:03Z ", "2026-11-25T01:02:03.000000Z"),
            ("Wed, 25 Nov 2026 01:02:03 GMT", "2026-11-25T01:02:03.000000Z"),
            ("Wed, 25 Nov 2026 03:02:03 +0200", "2026-11-25T01:02:03.000000Z"),
            ("1795568523", "2026-11-25T01:02:03.000000Z"),
            ("1795568523.25", "2026-11-25T01:02:03.250000Z"),
            ("1795568523250", "2026-11-25T01:02:03.250000Z"),
            ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000000Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000000Z"),
        ];
        for (text, expected) in cases {
            assert_eq!(at(text).rfc3339(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_not_taken_for_one() {
        let cases = [
            "",
            "now",
            "2026-13-01",
            "2026-02-30",
            "2026-11-25T25:00:00Z",
            "2026-11-25T01:02:03 Mars",
            "20-11-25",
            "2026-11/25",
            "2026-11-25T01:02:03+",
            "2026-11-25Tx",
            "--1",
            "1e999",
            "01/02/03",
        ];
        for text in cases {
            assert_eq!(UnixMicros::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_time_of_an_event_follows_the_rules() {
        let now = at("2026-11-25T12:00:00Z");
        let clues = |timestamp: Option<&str>, offset_ms, sent_at: Option<&str>| Clues {
            timestamp: timestamp.map(at),
            offset_ms,
            sent_at: sent_at.map(at),
        };
        let cases = [
            ("nothing is known", clues(None, None, None), "2026-11-25T12:00:00Z"),
            ("only sent_at", clues(None, None, Some("2026-11-25T11:00:00Z")), "2026-11-25T12:00:00Z"),
            ("as given", clues(Some("2026-11-25T11:30:00Z"), None, None), "2026-11-25T11:30:00Z"),
            (
                "the client's clock is an hour slow",
                clues(Some("2026-11-25T10:59:00Z"), None, Some("2026-11-25T11:00:00Z")),
                "2026-11-25T11:59:00Z",
            ),
            (
                "the client's clock is a day fast",
                clues(Some("2026-11-26T11:59:00Z"), None, Some("2026-11-26T12:00:00Z")),
                "2026-11-25T11:59:00Z",
            ),
            ("offset", clues(None, Some(1500), None), "2026-11-25T11:59:58.5Z"),
            (
                "offset overrides all",
                clues(Some("2020-01-01"), Some(1000), Some("2020-01-01")),
                "2026-11-25T11:59:59Z",
            ),
            ("22 hours ahead", clues(Some("2026-11-26T10:00:00Z"), None, None), "2026-11-26T10:00:00Z"),
            ("24 hours ahead", clues(Some("2026-11-26T12:00:00Z"), None, None), "2026-11-25T12:00:00Z"),
            ("far ahead by a negative offset", clues(None, Some(i64::MIN), None), "2026-11-25T12:00:00Z"),
            ("before all times", clues(None, Some(i64::MAX), None), "1970-01-01T00:00:00Z"),
        ];
        for (name, clues, expected) in cases {
            assert_eq!(event_time(now, clues), at(expected), "{name}");
        }
    }

    #[test]
    fn the_query_parameter_is_believed_only_in_milliseconds_after_2020() {
        assert_eq!(sent_at_of_query("1795568523250"), Some(at("1795568523250")));
        assert_eq!(sent_at_of_query("1795568523"), None);
        assert_eq!(sent_at_of_query("soon"), None);
    }
}
