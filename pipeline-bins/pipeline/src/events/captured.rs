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
