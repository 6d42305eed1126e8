use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::{Admin, Identity, KafkaConnection, LiveFile};

/// Configuration of `capture`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureConfig {
    /// Who this is.
    pub identity: Identity,
    /// Address of the HTTP API.
    pub listen: SocketAddr,
    /// Metrics and health.
    pub admin: Admin,
    /// Kafka.
    pub kafka: KafkaConnection,
    /// The `captured` topic.
    pub topic: String,
    /// The `dead-letter` topic: bad events whose neighbours in the request are good.
    pub dead_letter: String,
    /// Projects file, reloaded live.
    pub projects_file: LiveFile,
    /// Bounds on what one pod takes.
    pub limits: CaptureLimits,
    /// How it stops.
    pub drain: DrainConfig,
}

/// Bounds on what one pod takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CaptureLimits {
    /// Largest body of `/batch` after decompression, bytes. More is answered 413.
    pub max_batch_body_bytes: u64,
    /// Largest body of the other routes after decompression, bytes.
    pub max_event_body_bytes: u64,
    /// Requests handled at once; more are answered 503 with Retry-After.
    pub max_concurrent_requests: u32,
    /// Bytes of request bodies, compressed and decompressed, held at once; more are answered 503.
    pub max_in_flight_bytes: u64,
    /// Bytes that wait in the producer's queue; a full queue is answered 503.
    pub producer_queue_bytes: u64,
    /// An event that Kafka has not acknowledged by then has failed, and the request is answered 503; so has everything else
    /// that waits for Kafka then.
    pub delivery_timeout_ms: u32,
    /// `linger.ms`.
    pub linger_ms: u32,
    /// Longest time to read a request.
    pub request_timeout_ms: u32,
}

/// How capture stops: not ready, still serving; then no new connections; then what is under way ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DrainConfig {
    /// Time between turning not ready and closing the listener, for load balancers to notice, milliseconds.
    pub readiness_delay_ms: u32,
    /// Longest time for the requests under way, milliseconds.
    pub deadline_ms: u32,
}
