//! The shapes of a body: one event, an array of events, or a batch with what holds for all of it.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{refusal::Refusal, timestamp::UnixMicros};

/// A body taken apart. Events are the client's own bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body<'a> {
    /// The events, each as it was sent.
    pub events: Vec<&'a str>,
    /// Whether the body was one event rather than a list.
    pub is_single: bool,
    /// Token of the whole batch.
    pub token: Option<Cow<'a, str>>,
    /// When the client says that it sent the request, as it wrote it.
    pub sent_at: Option<UnixMicros>,
    /// Whether the client imports old events.
    pub historical_migration: bool,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    batch: Option<&'a RawValue>,
    #[serde(borrow, default)]
    api_key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    token: Option<&'a RawValue>,
    #[serde(borrow, default)]
    sent_at: Option<&'a RawValue>,
    #[serde(borrow, default)]
    historical_migration: Option<&'a RawValue>,
}

impl<'a> Body<'a> {
    /// Takes a body apart. Fails when it is not JSON, neither object nor array, or has no event.
    pub fn parse(text: &'a str) -> Result<Self, Refusal> {
        let text = text.trim();
        let not_json = |error: serde_json::Error| {
            Refusal::bad_request("not_json", format!("the payload is not valid JSON: {error}"))
        };
        if text.starts_with('[') {
            let events: Vec<&RawValue> = serde_json::from_str(text).map_err(not_json)?;
            return Self::of_list(events, None, None, false);
        }
        if !text.starts_with('{') {
            // Whether it is JSON at all is what the sender needs to know first.
            serde_json::from_str::<&RawValue>(text).map_err(not_json)?;
            let message =
                "the payload must be an event, an array of events, or an object with `api_key` and `batch`";
            return Err(Refusal::bad_request("not_events", message));
        }
        let envelope: Envelope<'a> = serde_json::from_str(text).map_err(not_json)?;
        let sent_at = envelope.sent_at.and_then(time);
        let Some(batch) = envelope.batch else {
            return Ok(Self {
                events: vec![text],
                is_single: true,
                token: None,
                sent_at,
                historical_migration: false,
            });
        };
        let Ok(events) = serde_json::from_str::<Vec<&RawValue>>(batch.get()) else {
            return Err(Refusal::bad_request("batch_not_a_list", "`batch` must be an array of events"));
        };
        let token = match envelope.api_key.or(envelope.token) {
            Some(token) => Some(string(token).ok_or_else(|| {
                Refusal::unauthorized("invalid_token", "API key is not valid: it is not a string")
            })?),
            None => None,
        };
        let historical_migration = envelope.historical_migration.is_some_and(|value| value.get() == "true");
        Self::of_list(events, token, sent_at, historical_migration)
    }

    fn of_list(
        events: Vec<&'a RawValue>,
        token: Option<Cow<'a, str>>,
        sent_at: Option<UnixMicros>,
        historical_migration: bool,
    ) -> Result<Self, Refusal> {
        if events.is_empty() {
            return Err(Refusal::bad_request("empty_batch", "the batch has no events"));
        }
        let events = events.into_iter().map(RawValue::get).collect();
        Ok(Self { events, is_single: false, token, sent_at, historical_migration })
    }
}

/// A JSON string, without copying when it has no escapes. `None` when it is not a string.
pub fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inner = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        return serde_json::from_str(raw.get()).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inner))
}

/// A time as a JSON string or number.
pub fn time(raw: &RawValue) -> Option<UnixMicros> {
    match string(raw) {
        Some(text) => UnixMicros::parse(&text),
        None => UnixMicros::parse(raw.get()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_keeps_the_bytes_of_its_events() {
        let single = r#"{"event" : "a",  "n":1.0}"#;
        let body = Body::parse(single).unwrap();
        assert!(body.is_single);
        assert_eq!(body.events, [single]);

        let array = r#" [ {"event" : "a"} , 3, {"b":[1 ,2]} ] "#;
        let body = Body::parse(array).unwrap();
        assert!(!body.is_single);
        assert_eq!(body.events, [r#"{"event" : "a"}"#, "3", r#"{"b":[1 ,2]}"#]);

        let batch = r#"{"api_key":"k\u0041","historical_migration":true,"sent_at":"2026-11-25T01:02:03Z","batch":[{}]}"#;
        let body = Body::parse(batch).unwrap();
        assert_eq!(body.token.as_deref(), Some("kA"));
        assert_eq!(body.sent_at, UnixMicros::parse("2026-11-25T01:02:03Z"));
        assert!(body.historical_migration && !body.is_single);
        assert_eq!(body.events, ["{}"]);
        assert_eq!(Body::parse(r#"{"token":"t","batch":[{}]}"#).unwrap().token.as_deref(), Some("t"));
    }

    #[test]
    fn what_has_no_events_is_refused_with_the_reason() {
        let cases = [
            ("{", "not_json"),
            ("nonsense", "not_json"),
            ("[1,", "not_json"),
            (r#"{"event":"a"} trailing"#, "not_json"),
            ("3", "not_events"),
            (r#""text""#, "not_events"),
            ("[]", "empty_batch"),
            (r#"{"api_key":"k","batch":[]}"#, "empty_batch"),
            (r#"{"api_key":"k","batch":{}}"#, "batch_not_a_list"),
            (r#"{"api_key":7,"batch":[{}]}"#, "invalid_token"),
        ];
        for (text, reason) in cases {
            assert_eq!(Body::parse(text).unwrap_err().reason, reason, "{text}");
        }
    }
}
