//! What lies in `ingested` and `transformed`: one ClickHouse-ready JSON object per event, in the shape of PostHog's
//! `clickhouse_events_json`, so that ClickHouse's own Kafka engine could read it as well.
//!
//! Key: as in `captured`. `properties` and `person_properties` are JSON in a string. Times are
//! `YYYY-MM-DD HH:MM:SS.ffffff` in UTC.

use serde::{Deserialize, Serialize};

/// Value of an `ingested` or `transformed` message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IngestedEvent {
    /// UUID of the event.
    pub uuid: String,
    /// Name of the event.
    pub event: String,
    /// Properties, a JSON object in a string.
    pub properties: String,
    /// Event time.
    pub timestamp: String,
    /// Id of the project.
    pub team_id: i64,
    /// Id of the project, again, for readers that expect it.
    pub project_id: i64,
    /// Distinct id.
    pub distinct_id: String,
    /// Chain of DOM elements, empty when there is none.
    pub elements_chain: String,
    /// When the consumer made this message: a pure function of the captured message's Kafka time, so that a repeated
    /// transaction writes the same bytes.
    pub created_at: String,
    /// Time of receipt by capture.
    pub captured_at: String,
    /// Person of the event; deterministic from project and distinct id while persons are not kept.
    pub person_id: String,
    /// When the person was created.
    pub person_created_at: String,
    /// Properties of the person, a JSON object in a string.
    pub person_properties: String,
    /// `full`, `propertyless` or `force_upgrade`.
    pub person_mode: String,
    /// True when the event was imported from elsewhere.
    pub historical_migration: bool,
}

/// An [`IngestedEvent`] to be written, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct IngestedEventRef<'a> {
    /// See [`IngestedEvent::uuid`].
    pub uuid: &'a str,
    /// See [`IngestedEvent::event`].
    pub event: &'a str,
    /// See [`IngestedEvent::properties`].
    pub properties: &'a str,
    /// See [`IngestedEvent::timestamp`].
    pub timestamp: &'a str,
    /// See [`IngestedEvent::team_id`].
    pub team_id: i64,
    /// See [`IngestedEvent::project_id`].
    pub project_id: i64,
    /// See [`IngestedEvent::distinct_id`].
    pub distinct_id: &'a str,
    /// See [`IngestedEvent::elements_chain`].
    pub elements_chain: &'a str,
    /// See [`IngestedEvent::created_at`].
    pub created_at: &'a str,
    /// See [`IngestedEvent::captured_at`].
    pub captured_at: &'a str,
    /// See [`IngestedEvent::person_id`].
    pub person_id: &'a str,
    /// See [`IngestedEvent::person_created_at`].
    pub person_created_at: &'a str,
    /// See [`IngestedEvent::person_properties`].
    pub person_properties: &'a str,
    /// See [`IngestedEvent::person_mode`].
    pub person_mode: &'a str,
    /// See [`IngestedEvent::historical_migration`].
    pub historical_migration: bool,
}
