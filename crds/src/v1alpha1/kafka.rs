//! Kafka: where it is, and the topics between the components.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{KafkaAuthSpec, TlsSpec};
use crate::{quantity::HumanDuration, rules::duration_between};

/// The Kafka cluster, and the topics between the components.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.topicPrefix) == has(oldSelf.topicPrefix) && (!has(self.topicPrefix) || self.topicPrefix == oldSelf.topicPrefix)"
).message("topicPrefix cannot be set, changed or removed later, because topics and offsets are named by it; keep the old value, or create another pipeline"))]
#[x_kube(validation = Rule::new(
    "!has(self.auth) || has(self.tls) || !(has(self.auth.data.mtls) || (has(self.auth.admin) && has(self.auth.admin.mtls)))"
).message("mtls is a part of TLS; write tls as well, for example tls: {caFrom: {secret: kafka-ca}}, or tls: {} for the public authorities"))]
#[x_kube(validation = Rule::new(
    "!has(self.auth) || has(self.tls) || !(has(self.auth.data.oauthBearer) || (has(self.auth.admin) && has(self.auth.admin.oauthBearer)))"
).message("oauthBearer sends its token as it is, which needs TLS; write tls as well, for example tls: {caFrom: {secret: kafka-ca}}, or tls: {} for the public authorities"))]
pub struct KafkaSpec {
    /// `host:port`, several separated by commas.
    #[schemars(length(min = 1, max = 2_048))]
    #[x_kube(validation = Rule::new(
        r"self.matches('^([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\]):[0-9]{1,5}(,([A-Za-z0-9._-]+|\\[[0-9A-Fa-f:.]+\\]):[0-9]{1,5})*$')"
    ).message("bootstrapServers must be host:port, several separated by commas, for example kafka.streaming:9092"))]
    pub bootstrap_servers: String,
    /// Encrypts every connection to Kafka, and says whom to trust. `{}` trusts the public authorities. Default: no TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// Who the components and the operator are in Kafka. Default: nobody, which Kafka calls `ANONYMOUS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<KafkaAuthSpec>,
    /// Prefix of topics, consumer groups and transactional ids, so that ACLs can be written before the first start.
    /// Immutable. Default `<namespace>.<name>.`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    #[x_kube(validation = Rule::new("self.matches('^[a-zA-Z0-9._-]+$')").message(
        "topicPrefix must be letters, digits, '.', '_' and '-', as Kafka allows in topic names, for example shop.web."
    ))]
    pub topic_prefix: Option<String>,
    /// `Managed` (default): the operator creates and keeps the topics. `External`: it checks and reports, and changes
    /// nothing.
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.retention) || !has(self.config) || !('retention.ms' in self.config)").message(
    "retention and config['retention.ms'] say the same thing; remove retention.ms"
))]
#[x_kube(validation = Rule::new(
    "!has(self.config) || !('cleanup.policy' in self.config) || self.config['cleanup.policy'] == 'delete'"
).message("cleanup.policy must stay delete, because a compacted topic loses events; remove it from config"))]
#[x_kube(validation = Rule::new(
    "!has(self.replicationFactor) || !has(self.config) || !('min.insync.replicas' in self.config) || \
     !self.config['min.insync.replicas'].matches('^[0-9]{1,3}$') || \
     int(self.config['min.insync.replicas']) <= self.replicationFactor"
).message("min.insync.replicas above replicationFactor would refuse every write; lower it, or raise replicationFactor"))]
pub struct TopicSettings {
    /// Number of partitions. May grow (which breaks the order per key once, for what is in flight); never shrinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub partitions: Option<i32>,
    /// Replicas of each partition. Default: the broker's. Used at creation only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub replication_factor: Option<i16>,
    /// How long messages are kept (`retention.ms`), as `12h`, `7d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between(60_000, 315_360_000_000, "1m to 3650d"))]
    pub retention: Option<HumanDuration>,
    /// Further topic configuration, by Kafka's own names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 256}))]
    #[x_kube(validation = Rule::new("self.all(k, k.matches('^[a-z][a-z.]{0,99}$'))").message(
        "the keys of config must be Kafka's names of topic settings, for example max.message.bytes"
    ))]
    pub config: Option<BTreeMap<String, String>>,
}
