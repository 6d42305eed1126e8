//! Exports: where events are delivered.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KeySelector, Management, WorkloadSettings};
use crate::quantity::{ByteSize, Count, HumanDuration};

/// One export: a component with its own consumer group. Exactly one destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExportSpec {
    /// Unique name of the export; part of its workload's and consumer group's name.
    pub name: String,
    /// Workload settings of this component.
    #[serde(flatten)]
    pub workload: WorkloadSettings,
    /// Where an export that has no committed offset begins. Default Earliest.
    #[serde(default)]
    pub start_from: StartFrom,
    /// VRL expression that yields a boolean; only events for which it is true are delivered.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub where_: Option<String>,
    /// Deliver into a ClickHouse table, exactly once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clickhouse: Option<ClickHouseSpec>,
    /// When a ClickHouse insert is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<BlockSpec>,
    /// Deliver each event as an HTTP POST, at least once, signed by the Standard Webhooks rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookSpec>,
}

/// Where an export without a committed offset begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StartFrom {
    /// With the oldest event that the topic still has.
    #[default]
    Earliest,
    /// With the events that arrive from now on.
    Latest,
}

/// A ClickHouse table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClickHouseSpec {
    /// URL of the HTTP interface, `http://host:8123`.
    pub url: String,
    /// Database of the table. Immutable.
    pub database: String,
    /// Table. Immutable. Default `events`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// `Managed`: the operator creates database and table and adds missing columns. `External`: it checks and reports.
    #[serde(default)]
    pub management: Management,
}

/// When a ClickHouse insert is made: at whichever of the three comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockSpec {
    /// Most rows of one insert. Default 100k; at most 1M, which is what one server block holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rows: Option<Count>,
    /// Most bytes of one insert, as they are in Kafka. Default 64Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_size: Option<ByteSize>,
    /// Longest time that the first event of a block waits. Default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<HumanDuration>,
}

/// An HTTP endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSpec {
    /// Where to POST. `https` unless the destination's address is allowed by `allowedNetworks`.
    pub url: String,
    /// Secret key that signs every delivery (Standard Webhooks, `whsec_…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<WebhookSigning>,
    /// Further request headers. Not for secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<BTreeMap<String, String>>,
    /// Longest time of one attempt. Default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<HumanDuration>,
    /// Deliveries under way at once per pod. Default 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Attempts and the pauses between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<WebhookRetry>,
    /// Private networks (CIDR) that this webhook may reach. Default none: loopback, private, link-local and other
    /// special addresses are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_networks: Option<Vec<String>>,
}

/// Keys that sign deliveries; several during a rotation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookSigning {
    /// The signing key.
    #[serde(flatten)]
    pub key: KeySelector,
}

/// Attempts and the pauses between them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WebhookRetry {
    /// Attempts before the event goes to the dead-letter topic. Default 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Pause after the first failure; doubles with each. Default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_backoff: Option<HumanDuration>,
    /// Longest pause, also when the destination asks for more by Retry-After. Default 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff: Option<HumanDuration>,
}
