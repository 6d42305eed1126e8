//! A cluster of ClickHouse servers below one export.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::clickhouse_identifier;

/// A cluster: a table on each shard, and a Distributed table over them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "!has(self.replication) || self.replication == 'Keeper' || self.shards.all(shard, size(shard.replicas) == 1)"
).message("a shard with several replicas needs replication: Keeper; otherwise its replicas would have different rows"))]
#[x_kube(validation = Rule::new(
    "self.shards.exists(shard, !has(shard.weight) || shard.weight > 0)"
).message("one shard at least must have a weight above 0, or there is no place for a row"))]
pub struct ClickHouseClusterSpec {
    /// Name of the cluster in the servers' configuration (`remote_servers`). Immutable.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = clickhouse_identifier("name of a cluster"))]
    pub name: String,
    /// `Keeper` (default): the tables of the shards are ReplicatedReplacingMergeTree; the servers need a Keeper (or ZooKeeper)
    /// and the macros `shard` and `replica`. `None`: ReplacingMergeTree, one replica per shard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication: Option<ClickHouseReplication>,
    /// The shards, in the order in which `remote_servers` has them.
    #[schemars(length(min = 1, max = 64))]
    pub shards: Vec<ClickHouseShardSpec>,
}

/// How the replicas of a shard come to have the same rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClickHouseReplication {
    /// By a Keeper, which ReplicatedReplacingMergeTree uses.
    #[default]
    Keeper,
    /// Not at all: a shard is one server.
    None,
}

/// Servers with the same rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClickHouseShardSpec {
    /// URLs of the replicas' HTTP interfaces, the one that takes the inserts first. With the scheme of `url`; each is one
    /// server, not a load balancer.
    #[schemars(length(min = 1, max = 4), inner(length(min = 1, max = 256)))]
    #[x_kube(validation = Rule::new(r"self.all(url, url.matches('^https?://[^/?#@]+(/[^?#]*)?$'))").message(
        "replicas must be http or https URLs without user, password and query, for example http://clickhouse-0.clickhouse.warehouse:8123"
    ))]
    pub replicas: Vec<String>,
    /// Its part of the rows in relation to the other shards; the same as in `remote_servers`. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub weight: Option<u32>,
}
