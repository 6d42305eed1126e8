//! Kafka: where it is, and the topics between the components.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::quantity::HumanDuration;

/// The Kafka cluster, and the topics between the components.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSpec {
    /// `host:port`, several separated by commas.
    pub bootstrap_servers: String,
    /// Prefix of topics, consumer groups and transactional ids, so that ACLs can be written before the first start.
    /// Immutable. Default `<namespace>.<name>.`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic_prefix: Option<String>,
    /// `Managed`: the operator creates and keeps the topics. `External`: it checks and reports, and changes nothing.
    #[serde(default)]
    pub management: Management,
    /// Settings of the topics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topics: Option<StageTopics>,
}

/// Who owns what lives outside Kubernetes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Management {
    /// The operator creates, grows and repairs it.
    #[default]
    Managed,
    /// Somebody else does; the operator checks and reports.
    External,
}

/// Settings per stage topic, over common defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageTopics {
    /// For every topic that does not say otherwise. Default: 12 partitions, the broker's replication factor,
    /// retention 3d, `compression.type: zstd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<TopicSettings>,
    /// What capture writes and the consumer reads. Default retention 7d.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captured: Option<TopicSettings>,
    /// What the consumer writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingested: Option<TopicSettings>,
    /// What the transformation writes; exists only with transformation steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transformed: Option<TopicSettings>,
    /// What can never succeed, with its reason. Default: 3 partitions, retention 30d.
    #[serde(default, rename = "dead-letter", skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<TopicSettings>,
}

/// Settings of one topic.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TopicSettings {
    /// Number of partitions. May grow (which breaks the order per key once, for what is in flight); never shrinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partitions: Option<i32>,
    /// Replicas of each partition. Default: the broker's. Used at creation only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replication_factor: Option<i16>,
    /// How long messages are kept (`retention.ms`), as `12h`, `7d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<HumanDuration>,
    /// Further topic configuration, by Kafka's own names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<BTreeMap<String, String>>,
}
