//! One event of a request: what capture must know of it, or why it can never be one. PostHog's rules (facts 1.3).

use std::borrow::Cow;

use penstock_pipeline::events::dead_letter::Reason;
use serde::Deserialize;
use serde_json::{Value, value::RawValue};
use uuid::Uuid;

use crate::{
    shape::{string, time},
    timestamp::UnixMicros,
};

/// Longest distinct id; the rest is cut off.
const MAX_DISTINCT_ID_CHARS: usize = 200;

/// An event that can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidEvent<'a> {
    /// Name, without NUL.
    pub name: Cow<'a, str>,
    /// Distinct id, cut and without NUL.
    pub distinct_id: Cow<'a, str>,
    /// UUID that the client gave it.
    pub uuid: Option<Uuid>,
    /// Time that the client gave it.
    pub timestamp: Option<UnixMicros>,
    /// Milliseconds before the request.
    pub offset_ms: Option<i64>,
    /// The client's time of sending must not be used to correct `timestamp`.
    pub ignores_sent_at: bool,
    /// `$session_id`.
    pub session_id: Option<Cow<'a, str>>,
    /// `$cookieless_mode`.
    pub is_cookieless: bool,
    /// The event was made inside the system, so that the sender's address says nothing.
    pub is_internal: bool,
}

/// Why something in the place of an event is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault<'a> {
    /// The code of the dead letter.
    pub reason: Reason,
    /// What is wrong, for people.
    pub detail: String,
    /// Its distinct id, if that much is known.
    pub distinct_id: Option<Cow<'a, str>>,
}

/// What is in the place of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// The token that it names.
    pub token: Option<Cow<'a, str>>,
    /// The event, or why it is none.
    pub event: Result<ValidEvent<'a>, Fault<'a>>,
}

#[derive(Default, Deserialize)]
struct Fields<'a> {
    #[serde(borrow, default)]
    event: Option<&'a RawValue>,
    #[serde(borrow, default)]
    distinct_id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "$distinct_id")]
    dollar_distinct_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    uuid: Option<&'a RawValue>,
    #[serde(borrow, default)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow, default)]
    offset: Option<&'a RawValue>,
    #[serde(borrow, default)]
    properties: Option<&'a RawValue>,
    #[serde(borrow, default)]
    token: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "$token")]
    dollar_token: Option<&'a RawValue>,
    #[serde(borrow, default)]
    api_key: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct Properties<'a> {
    #[serde(borrow, default)]
    distinct_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    token: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "$session_id")]
    session_id: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "$ignore_sent_at")]
    ignore_sent_at: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "$cookieless_mode")]
    cookieless_mode: Option<&'a RawValue>,
    #[serde(borrow, default)]
    capture_internal: Option<&'a RawValue>,
}

/// Reads one event. `raw` is valid JSON.
pub fn parse(raw: &str) -> Parsed<'_> {
    let malformed = |detail: String| Parsed {
        token: None,
        event: Err(Fault { reason: Reason::Malformed, detail, distinct_id: None }),
    };
    if !raw.starts_with('{') {
        return malformed("the event is not a JSON object".to_owned());
    }
    let fields: Fields<'_> = match serde_json::from_str(raw) {
        Ok(fields) => fields,
        Err(error) => return malformed(format!("the event cannot be read: {error}")),
    };
    let properties = match fields.properties.map(|raw| serde_json::from_str(raw.get())) {
        None => Ok(Properties::default()),
        Some(Ok(properties)) if fields.properties.is_some_and(|raw| raw.get().starts_with('{')) => {
            Ok(properties)
        }
        Some(Ok(_)) => Err("`properties` is not a JSON object".to_owned()),
        Some(Err(error)) => Err(format!("`properties` cannot be read: {error}")),
    };
    let root_token = fields.token.or(fields.dollar_token).or(fields.api_key);
    let token = root_token.or(properties.as_ref().ok().and_then(|properties| properties.token));
    Parsed { token: token.and_then(string), event: validate(&fields, properties) }
}

fn validate<'a>(
    fields: &Fields<'a>,
    properties: Result<Properties<'a>, String>,
) -> Result<ValidEvent<'a>, Fault<'a>> {
    let root = fields.distinct_id.or(fields.dollar_distinct_id);
    let raw_id = root.or(properties.as_ref().ok().and_then(|properties| properties.distinct_id));
    let distinct_id = raw_id.and_then(distinct_id);
    let fault = |reason, detail: String| Fault { reason, detail, distinct_id: distinct_id.clone() };

    let properties = properties.map_err(|detail| fault(Reason::Malformed, detail))?;
    let name = match fields.event.map(string) {
        Some(Some(name)) if !name.is_empty() => without_nul(name),
        Some(Some(_)) => return Err(fault(Reason::MissingEvent, "the event name is empty".to_owned())),
        Some(None) => return Err(fault(Reason::MissingEvent, "the event name is not a string".to_owned())),
        None => return Err(fault(Reason::MissingEvent, "the event has no name (`event`)".to_owned())),
    };
    let uuid = match fields.uuid.map(|raw| (raw, string(raw))) {
        None => None,
        Some((_, Some(text))) if text.is_empty() => None,
        Some((raw, text)) => match text.and_then(|text| Uuid::try_parse(&text).ok()) {
            Some(uuid) => Some(uuid),
            None => {
                return Err(fault(
                    Reason::InvalidUuid,
                    format!("`uuid` is not a UUID: {}", excerpt(raw.get())),
                ));
            }
        },
    };
    let is_cookieless = match properties.cookieless_mode.map(RawValue::get) {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => {
            return Err(fault(Reason::Malformed, "`$cookieless_mode` is not true or false".to_owned()));
        }
    };
    let Some(distinct_id) = distinct_id.clone() else {
        let detail =
            if raw_id.is_some() { "`distinct_id` is blank" } else { "the event has no `distinct_id`" };
        return Err(fault(Reason::InvalidDistinctId, detail.to_owned()));
    };
    Ok(ValidEvent {
        name,
        distinct_id,
        uuid,
        timestamp: fields.timestamp.and_then(time),
        offset_ms: fields.offset.and_then(|raw| integer(raw.get())),
        ignores_sent_at: properties.ignore_sent_at.is_some_and(|raw| raw.get() == "true"),
        session_id: properties.session_id.and_then(string).filter(|id| !id.is_empty()),
        is_cookieless,
        is_internal: properties.capture_internal.is_some(),
    })
}

/// A distinct id as text: other JSON than strings is written as JSON, NUL becomes U+FFFD, and what is beyond 200
/// characters is cut off. `None` when it is blank.
fn distinct_id(raw: &RawValue) -> Option<Cow<'_, str>> {
    let text = match string(raw) {
        Some(text) => text,
        None => Cow::Owned(serde_json::from_str::<Value>(raw.get()).ok()?.to_string()),
    };
    if text.trim().is_empty() {
        return None;
    }
    let text = without_nul(text);
    match text.char_indices().nth(MAX_DISTINCT_ID_CHARS) {
        None => Some(text),
        Some((end, _)) => Some(match text {
            Cow::Borrowed(text) => Cow::Borrowed(&text[..end]),
            Cow::Owned(mut text) => {
                text.truncate(end);
                Cow::Owned(text)
            }
        }),
    }
}

/// NUL becomes U+FFFD: much that reads these texts further on ends at it.
fn without_nul(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{FFFD}")) } else { text }
}

/// An integer, or what is before the decimal point of a number.
fn integer(text: &str) -> Option<i64> {
    // The cast saturates, and what is not a number is not finite or does not parse.
    text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().filter(|n| n.is_finite()).map(|n| n as i64))
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn valid(raw: &str) -> ValidEvent<'_> {
        parse(raw).event.unwrap_or_else(|fault| panic!("{raw}: {fault:?}"))
    }

    #[test]
    fn distinct_ids_become_text() {
        let long = "ä".repeat(201);
        let cases = [
            (r#""user-1""#.to_owned(), "user-1".to_owned()),
            (r#"" spaces stay ""#.to_owned(), " spaces stay ".to_owned()),
            ("23".to_owned(), "23".to_owned()),
            ("2.50".to_owned(), "2.5".to_owned()),
            ("true".to_owned(), "true".to_owned()),
            (r#"["a", 1]"#.to_owned(), r#"["a",1]"#.to_owned()),
            (r#"{"a" : 1}"#.to_owned(), r#"{"a":1}"#.to_owned()),
            (r#""a\u0000b""#.to_owned(), "a\u{FFFD}b".to_owned()),
            (r#""quote \" inside""#.to_owned(), "quote \" inside".to_owned()),
            (format!("\"{long}\""), "ä".repeat(200)),
            (format!("\"\\n{long}\""), format!("\n{}", "ä".repeat(199))),
        ];
        for (json, expected) in cases {
            let raw = format!(r#"{{"event":"a","distinct_id":{json}}}"#);
            assert_eq!(valid(&raw).distinct_id, expected, "{json}");
        }
    }

    #[test]
    fn the_distinct_id_is_at_the_root_or_in_the_properties() {
        assert_eq!(
            valid(r#"{"event":"a","distinct_id":"r","properties":{"distinct_id":"p"}}"#).distinct_id,
            "r"
        );
        assert_eq!(valid(r#"{"event":"a","$distinct_id":"d"}"#).distinct_id, "d");
        assert_eq!(valid(r#"{"event":"a","properties":{"distinct_id":"p"}}"#).distinct_id, "p");
        assert_eq!(
            valid(r#"{"event":"a","distinct_id":null,"properties":{"distinct_id":"p"}}"#).distinct_id,
            "p"
        );
    }

    #[test]
    fn the_token_is_at_the_root_or_in_the_properties_even_of_bad_events() {
        let token = |raw| parse(raw).token.map(Cow::into_owned);
        assert_eq!(token(r#"{"token":"a","properties":{"token":"p"}}"#).as_deref(), Some("a"));
        assert_eq!(token(r#"{"$token":"a"}"#).as_deref(), Some("a"));
        assert_eq!(token(r#"{"api_key":"a"}"#).as_deref(), Some("a"));
        assert_eq!(token(r#"{"properties":{"token":"p"}}"#).as_deref(), Some("p"));
        assert_eq!(token("{}"), None);
    }

    #[test]
    fn what_capture_reads_is_read() {
        let event = valid(
            r#"{"event":"order completed","distinct_id":"u","uuid":"0190E9A2-1b5c-7000-8000-000000000001",
            "timestamp":"2026-11-25T01:02:03Z","offset":1500.9,
            "properties":{"$session_id":"s","$ignore_sent_at":true,"$cookieless_mode":true,"capture_internal":1}}"#,
        );
        assert_eq!(event.name, "order completed");
        assert_eq!(event.uuid.unwrap().to_string(), "0190e9a2-1b5c-7000-8000-000000000001");
        assert_eq!(event.timestamp, UnixMicros::parse("2026-11-25T01:02:03Z"));
        assert_eq!(event.offset_ms, Some(1500));
        assert_eq!(event.session_id.as_deref(), Some("s"));
        assert!(event.ignores_sent_at && event.is_cookieless && event.is_internal);

        let bare =
            valid(r#"{"event":"a","distinct_id":"u","uuid":"","timestamp":"whenever","properties":null}"#);
        assert_eq!((bare.uuid, bare.timestamp, bare.offset_ms), (None, None, None));
        assert!(!bare.ignores_sent_at && !bare.is_cookieless && !bare.is_internal);
    }

    #[test]
    fn bad_events_are_told_apart() {
        let cases = [
            ("3", Reason::Malformed),
            ("null", Reason::Malformed),
            ("[]", Reason::Malformed),
            (r#"{"event":"a","distinct_id":"u","properties":[]}"#, Reason::Malformed),
            (r#"{"event":"a","distinct_id":"u","properties":"x"}"#, Reason::Malformed),
            (r#"{"event":"a","event":"b","distinct_id":"u"}"#, Reason::Malformed),
            (r#"{"event":"a","distinct_id":"u","properties":{"$cookieless_mode":"yes"}}"#, Reason::Malformed),
            (r#"{"distinct_id":"u"}"#, Reason::MissingEvent),
            (r#"{"event":null,"distinct_id":"u"}"#, Reason::MissingEvent),
            (r#"{"event":"","distinct_id":"u"}"#, Reason::MissingEvent),
            (r#"{"event":7,"distinct_id":"u"}"#, Reason::MissingEvent),
            (r#"{"event":"a"}"#, Reason::InvalidDistinctId),
            (r#"{"event":"a","distinct_id":null}"#, Reason::InvalidDistinctId),
            (r#"{"event":"a","distinct_id":" \t"}"#, Reason::InvalidDistinctId),
            (r#"{"event":"a","distinct_id":"u","uuid":"nope"}"#, Reason::InvalidUuid),
            (r#"{"event":"a","distinct_id":"u","uuid":7}"#, Reason::InvalidUuid),
        ];
        for (raw, reason) in cases {
            assert_eq!(parse(raw).event.unwrap_err().reason, reason, "{raw}");
        }
        let fault = parse(r#"{"distinct_id":"u"}"#).event.unwrap_err();
        assert_eq!(fault.distinct_id.as_deref(), Some("u"));
    }
}
