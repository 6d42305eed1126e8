//! The configuration files of the binaries.
//!
//! One YAML (or JSON) file per binary; unknown fields are refused. The operator renders these very types. Everything is
//! explicit here: defaults are the operator's business, so that a file says all that a binary does. Times are integers
//! with their unit in the name.
//!
//! Files that are reloaded while a binary runs (projects, signing keys, passwords) are named by path and mounted apart.
//! Nothing secret is in a configuration file.

mod capture;
mod consumer;
mod export;
mod security;
mod transformation;

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use capture::{CaptureConfig, CaptureLimits, DrainConfig};
pub use consumer::ConsumerConfig;
pub use export::{
    BlockLimits, ClickHouseDestination, ClickHouseShard, Destination, ExportConfig, RetryConfig,
    WebhookDestination,
};
pub use security::{CertificateFiles, KafkaAuth, PasswordFiles, TlsConfig, TokenFile};
pub use transformation::{OnError, StepConfig, TransformationConfig};

/// Which pipeline and which component a process is; in logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// Namespace of the `IngestionPipeline`.
    pub namespace: String,
    /// Name of the `IngestionPipeline`.
    pub pipeline: String,
    /// `capture`, `consumer-main`, `transformation`, `export-<name>`.
    pub component: String,
}

/// How to reach Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KafkaConnection {
    /// `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// Encryption; absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsConfig>,
    /// Who we are; absent: nobody in particular. A map with one key, in YAML as in JSON.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "serde_yaml_ng::with::singleton_map")]
    pub auth: Option<KafkaAuth>,
}

/// Where a consumer group without a committed offset begins. `auto.offset.reset` is always `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StartFrom {
    /// The oldest message that the partition still has.
    Earliest,
    /// The end of the partition at the time of the first assignment.
    Latest,
}

/// A component that reads one topic, in a consumer group of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Source {
    /// Topic to read.
    pub topic: String,
    /// Consumer group.
    pub group: String,
    /// Where a partition without a committed offset begins.
    pub start_from: StartFrom,
    /// `session.timeout.ms`.
    pub session_timeout_ms: u32,
    /// `max.poll.interval.ms`; every time-out towards a destination is shorter.
    pub max_poll_interval_ms: u32,
}

/// Bounds of one transaction of a component that reads, processes and writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TransactionConfig {
    /// The transactional id is this prefix followed by the pod's name (`POD_NAME`).
    pub id_prefix: String,
    /// `transaction.timeout.ms`: how long the open transaction of a lost pod holds back readers.
    pub timeout_ms: u32,
    /// Most messages of one transaction.
    pub max_messages: u32,
    /// Most bytes of message values of one transaction.
    pub max_bytes: u64,
    /// Longest time that the first message of a transaction waits for more, milliseconds.
    pub max_wait_ms: u32,
}

/// Addresses that a process listens on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Admin {
    /// `/metrics`, `/healthz` and `/readyz`.
    pub listen: SocketAddr,
    /// A source with lag from which nothing was taken for so long is not healthy, milliseconds.
    pub stall_after_ms: u64,
}

/// Environment variable with the pod's name, from the Downward API.
pub const POD_NAME: &str = "POD_NAME";

/// One project of the projects file, which is a YAML or JSON list of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProjectEntry {
    /// `team_id` of the project's rows.
    pub id: i64,
    /// Name for people.
    pub name: String,
    /// Token that clients send.
    pub token: String,
}

/// Path of a file that is reloaded when its content changes.
pub type LiveFile = PathBuf;
