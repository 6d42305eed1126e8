//! Exports: where events are delivered.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ClickHouseAuthSpec, ClickHouseClusterSpec, KeySelector, Management, TlsSpec, WorkloadSettings};
use crate::{
    quantity::{ByteSize, Count, HumanDuration},
    rules::{
        bytes_between, clickhouse_identifier, count_between, dns_label, duration_between, duration_order,
        exactly_one_of, not_blank,
    },
};

/// One export: a component with its own consumer group. Exactly one destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = exactly_one_of("clickhouse", "webhook"))]
#[x_kube(validation = Rule::new("!has(self.block) || has(self.clickhouse)").message(
    "block belongs to a clickhouse export; remove it here"
))]
#[x_kube(validation = Rule::new("has(self.clickhouse) == has(oldSelf.clickhouse)").message(
    "an export cannot become another kind, because its offsets belong to the old destination; add an export with another name and remove this one"
))]
#[x_kube(validation = Rule::new(
    "!has(self.clickhouse) || !has(oldSelf.clickhouse) || (self.clickhouse.database == oldSelf.clickhouse.database && \
     (has(self.clickhouse.table) ? self.clickhouse.table : 'events') == (has(oldSelf.clickhouse.table) ? oldSelf.clickhouse.table : 'events'))"
).message("database and table of an export cannot be changed, because its offsets belong to that table; add an export with another name and remove this one"))]
#[x_kube(validation = Rule::new(
    "!has(self.clickhouse) || !has(oldSelf.clickhouse) || (has(self.clickhouse.cluster) == has(oldSelf.clickhouse.cluster) && \
     (!has(self.clickhouse.cluster) || self.clickhouse.cluster.name == oldSelf.clickhouse.cluster.name))"
).message("a cluster cannot be given to an export, taken from it or exchanged for another, because its offsets belong to the tables that it writes; add an export with another name and remove this one"))]
pub struct ExportSpec {
    /// Unique name of the export; part of its workload's and consumer group's name.
    #[schemars(length(min = 1, max = 30))]
    #[x_kube(validation = dns_label("name of an export"))]
    pub name: String,
    /// Workload settings of this component.
    #[serde(flatten)]
    pub workload: WorkloadSettings,
    /// Where an export that has no committed offset begins. `Earliest` (default): with the oldest event that the topic
    /// still has. `Latest`: with the events that arrive from now on.
    #[serde(default)]
    pub start_from: StartFrom,
    /// VRL expression that yields a boolean; only events for which it is true are delivered.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16_384))]
    #[x_kube(validation = not_blank("where"))]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.tls) || self.url.startsWith('https://')").message(
    "tls needs an https URL; write url: https://…, with the port of ClickHouse's https interface (often 8443), or remove tls"
))]
#[x_kube(validation = Rule::new(
    "!has(self.auth) || self.url.startsWith('https://') || (has(self.auth.plainHttp) && self.auth.plainHttp == 'Allow')"
).message("auth over plain http would send the password readable to everybody on the way; write url: https://…, or auth.plainHttp: Allow where the network itself is encrypted"))]
#[x_kube(validation = Rule::new(
    "!has(self.cluster) || self.cluster.shards.all(shard, shard.replicas.all(replica, \
     replica.startsWith('https://') == self.url.startsWith('https://')))"
).message("the replicas of a cluster must have the scheme of url, because they are reached in the same way: all http or all https"))]
pub struct ClickHouseSpec {
    /// URL of the HTTP interface, `http://host:8123` or `https://host:8443`. With a cluster: where the Distributed table is
    /// read, a server of it or a load balancer before them.
    #[schemars(length(min = 1, max = 2_048))]
    #[x_kube(validation = Rule::new(r"isURL(self) && self.matches('^https?://[^/?#@]+(/[^?#]*)?$')").message(
        "url must be an http or https URL without user, password and query, for example https://clickhouse.warehouse:8443"
    ))]
    pub url: String,
    /// Whom to trust behind an https URL. Default: the public authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// Who the export and the operator are in ClickHouse. Default: the user `default` without a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<ClickHouseAuthSpec>,
    /// Database of the table. Immutable.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = clickhouse_identifier("database"))]
    #[x_kube(validation = Rule::new("!(self.lowerAscii() in ['system', 'information_schema'])").message(
        "database is one of ClickHouse's own; choose another name, for example analytics"
    ))]
    pub database: String,
    /// Table. Immutable. Default `events`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = clickhouse_identifier("table"))]
    pub table: Option<String>,
    /// `Managed` (default): the operator creates database and table and adds missing columns. `External`: it checks and
    /// reports.
    #[serde(default)]
    pub management: Management,
    /// A cluster: the table is a Distributed one, and the export writes into a table `<table>_local` on each shard. Cannot be
    /// added to or taken from an export. Default: one server, the one at `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClickHouseClusterSpec>,
}

/// When a ClickHouse insert is made: at whichever of the three comes first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct BlockSpec {
    /// Most rows of one insert; at most 1M, which is what one server block holds. Default 100k.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = count_between(1, 1_000_000, "1 to 1M"))]
    pub max_rows: Option<Count>,
    /// Most bytes of one insert, as they are in Kafka. Default 64Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = bytes_between(1 << 10, 256 << 20, "1Ki to 256Mi"))]
    pub max_size: Option<ByteSize>,
    /// Longest time that the first event of a block waits. Default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between(10, 300_000, "10ms to 5m"))]
    pub max_age: Option<HumanDuration>,
}

/// An HTTP endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!self.url.startsWith('http://') || (has(self.allowedNetworks) && size(self.allowedNetworks) > 0)"
).message("url must begin with https://; plain http is for private networks only, named in allowedNetworks"))]
pub struct WebhookSpec {
    /// Where to POST. `https` unless the destination's address is allowed by `allowedNetworks`.
    #[schemars(length(min = 1, max = 2_048))]
    #[x_kube(validation = Rule::new(r"isURL(self) && self.matches('^https?://[^/?#@]+([/?][^#]*)?$')").message(
        "url must be an http or https URL without user and password, for example https://hooks.example.com/in"
    ))]
    pub url: String,
    /// Secret key that signs every delivery (Standard Webhooks, `whsec_…`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signing: Option<WebhookSigning>,
    /// Further request headers. Not for secrets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 1024, "pattern": "^[\\x20-\\x7e]*$"}))]
    #[x_kube(validation = Rule::new("self.all(k, k.matches('^[A-Za-z0-9-]{1,64}$'))").message(
        "the keys of headers must be letters, digits and '-', for example x-source"
    ))]
    #[x_kube(validation = Rule::new(
        "self.all(k, !k.lowerAscii().startsWith('webhook-') && \
         !(k.lowerAscii() in ['host', 'content-length', 'content-type', 'transfer-encoding', 'connection', 'user-agent']))"
    ).message("headers that delivery itself sets (webhook-*, content-type, content-length, host, user-agent …) cannot be set; remove them"))]
    pub headers: Option<BTreeMap<String, String>>,
    /// Longest time of one attempt. Default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between(100, 60_000, "100ms to 1m"))]
    pub timeout: Option<HumanDuration>,
    /// Deliveries under way at once per pod. Default 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_024))]
    pub concurrency: Option<u32>,
    /// Attempts and the pauses between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<WebhookRetry>,
    /// Private networks (CIDR) that this webhook may reach. Default none: loopback, private, link-local and other
    /// special addresses are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), inner(length(max = 43)))]
    #[x_kube(validation = Rule::new("self.all(n, isCIDR(n))").message(
        "allowedNetworks must be networks in CIDR notation, for example 10.0.0.0/8 or fd00::/8"
    ))]
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = duration_order("minBackoff", "maxBackoff"))]
pub struct WebhookRetry {
    /// Attempts before the event goes to the dead-letter topic. Default 8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: Option<u32>,
    /// Pause after the first failure; doubles with each. Default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between(10, 3_600_000, "10ms to 1h"))]
    pub min_backoff: Option<HumanDuration>,
    /// Longest pause, also when the destination asks for more by Retry-After. Default 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between(10, 86_400_000, "10ms to 1d"))]
    pub max_backoff: Option<HumanDuration>,
}
