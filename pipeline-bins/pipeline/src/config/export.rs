use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Admin, Identity, KafkaConnection, LiveFile, PasswordFiles, Source, TlsConfig};

/// Configuration of `export`: one export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExportConfig {
    /// Who this is.
    pub identity: Identity,
    /// Metrics and health.
    pub admin: Admin,
    /// Kafka.
    pub kafka: KafkaConnection,
    /// `ingested` or `transformed`.
    pub source: Source,
    /// The `dead-letter` topic.
    pub dead_letter: String,
    /// VRL expression that yields a boolean; only events for which it is true are delivered.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub where_: Option<String>,
    /// Where to. A map with one key, in YAML as in JSON (by itself YAML would want a tag, `!clickHouse`).
    #[serde(with = "serde_yaml_ng::with::singleton_map")]
    pub destination: Destination,
}

/// Where an export delivers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Destination {
    /// A ClickHouse table, exactly once.
    ClickHouse(ClickHouseDestination),
    /// An HTTP endpoint, at least once.
    Webhook(WebhookDestination),
}

/// A ClickHouse table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClickHouseDestination {
    /// URL of the HTTP interface. With `shards` nothing is written through it.
    pub url: String,
    /// Whom to trust when the URL is `https://…`; absent: the public authorities. Not with `http://…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// User and password; absent: the server's default user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<PasswordFiles>,
    /// Database.
    pub database: String,
    /// Table, with the columns of [`crate::events::table`]. With `shards` the one on each shard, below the Distributed one.
    pub table: String,
    /// Shards, in the order in which their cluster has them; a row belongs to the one that
    /// [`shard_of`](crate::events::sharding::shard_of) says. Empty: one server, at `url`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ClickHouseShard>,
    /// When an insert is made.
    pub block: BlockLimits,
    /// Time-out of one insert, milliseconds; shorter than the source's `maxPollIntervalMs`.
    pub insert_timeout_ms: u32,
    /// Pauses between attempts.
    pub retry: RetryConfig,
}

/// Servers that have the same rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClickHouseShard {
    /// Its part of the rows, in relation to the sum over all shards; 0 gets none.
    pub weight: u32,
    /// URLs of the HTTP interfaces, the preferred one first; at least one.
    pub replicas: Vec<String>,
}

/// When an insert is made: at whichever comes first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BlockLimits {
    /// Most rows.
    pub max_rows: u32,
    /// Most bytes, as they are in Kafka.
    pub max_bytes: u64,
    /// Longest time that the first event of a block waits, milliseconds.
    pub max_age_ms: u32,
}

/// Attempts and the pauses between them, which double from `min` to `max` with jitter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetryConfig {
    /// Attempts before giving up; absent: never give up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// First pause, milliseconds.
    pub min_backoff_ms: u64,
    /// Longest pause, milliseconds.
    pub max_backoff_ms: u64,
}

/// An HTTP endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebhookDestination {
    /// Where to POST.
    pub url: String,
    /// File with the signing key (`whsec_…`), reloaded live; several lines during a rotation, the first is the newest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing_key_file: Option<LiveFile>,
    /// Further request headers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// Longest time of one attempt, milliseconds.
    pub timeout_ms: u32,
    /// Deliveries under way at once.
    pub concurrency: u32,
    /// Attempts and pauses.
    pub retry: RetryConfig,
    /// Networks (CIDR) of special addresses that may be reached all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_networks: Vec<String>,
}
