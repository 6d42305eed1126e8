//! What capture writes to `captured`: PostHog's message, so that either side can be swapped for theirs.
//!
//! Key: `token:distinct_id`, partitioner murmur2_random. Value: the JSON of [`CapturedEvent`]. Headers: [`header`].
//! Source of the format: PostHog `rust/common/types/src/event.rs` (facts, 2026-11).

use serde::{Deserialize, Serialize};

/// Names of the Kafka headers of a `captured` message. A header without a value is sent as null or left out.
pub mod header {
    /// Token of the project.
    pub const TOKEN: &str = "token";
    /// Distinct id.
    pub const DISTINCT_ID: &str = "distinct_id";
    /// `$session_id`, when there is one.
    pub const SESSION_ID: &str = "session_id";
    /// Normalised event time, milliseconds since 1970.
    pub const TIMESTAMP: &str = "timestamp";
    /// Name of the event.
    pub const EVENT: &str = "event";
    /// UUID of the event.
    pub const UUID: &str = "uuid";
    /// Time of receipt, RFC 3339.
    pub const NOW: &str = "now";
    /// `true` when the client says that it imports old events; otherwise left out.
    pub const HISTORICAL_MIGRATION: &str = "historical_migration";
    /// Id of the project that capture found for the token; not PostHog's. Pods read a changed list of projects up to a
    /// minute apart: an event that was answered 200 is not refused by a consumer that does not know the project yet.
    pub const PROJECT_ID: &str = "penstock_project_id";
}

/// Value of a `captured` message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapturedEvent {
    /// UUID of the event, from the client or made at receipt (version 7).
    pub uuid: String,
    /// Distinct id, at most 200 characters.
    pub distinct_id: String,
    /// Address of the client.
    pub ip: String,
    /// The event as the client sent it, as JSON in a string.
    pub data: String,
    /// Time of receipt, RFC 3339.
    pub now: String,
    /// When the client says that it sent the request, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<String>,
    /// Token of the project.
    pub token: String,
    /// Name of the event.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub event: String,
    /// Event time after the rules of [capture facts 1.5], RFC 3339 in UTC.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub timestamp: String,
    /// Present only when true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_cookieless_mode: bool,
    /// Present only when true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub historical_migration: bool,
}

/// A [`CapturedEvent`] to be written, borrowed: capture writes every event once and keeps none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CapturedEventRef<'a> {
    /// See [`CapturedEvent::uuid`].
    pub uuid: &'a str,
    /// See [`CapturedEvent::distinct_id`].
    pub distinct_id: &'a str,
    /// See [`CapturedEvent::ip`].
    pub ip: &'a str,
    /// See [`CapturedEvent::data`].
    pub data: &'a str,
    /// See [`CapturedEvent::now`].
    pub now: &'a str,
    /// See [`CapturedEvent::sent_at`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<&'a str>,
    /// See [`CapturedEvent::token`].
    pub token: &'a str,
    /// See [`CapturedEvent::event`].
    pub event: &'a str,
    /// See [`CapturedEvent::timestamp`].
    pub timestamp: &'a str,
    /// See [`CapturedEvent::is_cookieless_mode`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_cookieless_mode: bool,
    /// See [`CapturedEvent::historical_migration`].
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub historical_migration: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_borrowed_is_read_owned() {
        let written = CapturedEventRef {
            uuid: "0190e9a2-1b5c-7000-8000-000000000000",
            distinct_id: "u\"1\"",
            ip: "203.0.113.9",
            data: r#"{"event":"order completed","properties":{"a":"\"\u00e9"}}"#,
            now: "2026-11-25T01:02:03.000004Z",
            sent_at: Some("2026-11-25T01:02:02Z"),
            token: "phc_a",
            event: "order completed",
            timestamp: "2026-11-25T01:02:03.000004Z",
            is_cookieless_mode: false,
            historical_migration: true,
        };
        let json = serde_json::to_string(&written).unwrap();
        assert!(!json.contains("is_cookieless_mode"), "{json}");
        let read: CapturedEvent = serde_json::from_str(&json).unwrap();
        assert_eq!(read.data, written.data);
        assert_eq!(read.distinct_id, written.distinct_id);
        assert_eq!(read.sent_at.as_deref(), written.sent_at);
        assert_eq!(read.timestamp, written.timestamp);
        assert!(read.historical_migration);
    }
}
