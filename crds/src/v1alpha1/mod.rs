//! `penstock.dev/v1alpha1`.

mod capture;
mod cluster;
mod consumer;
mod export;
mod kafka;
mod project;
mod security;
mod status;
mod transformation;
mod workload;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use capture::{CaptureService, CaptureSpec, ServiceType};
pub use cluster::{ClickHouseClusterSpec, ClickHouseReplication, ClickHouseShardSpec};
pub use consumer::{ConsumerLanes, ConsumerSpec, LaneSpec};
pub use export::{
    BlockSpec, ClickHouseSpec, ExportSpec, StartFrom, WebhookRetry, WebhookSigning, WebhookSpec,
};
pub use kafka::{KafkaSpec, Management, StageTopics, TopicSettings};
pub use project::{KeySelector, Project};
pub use security::{
    CaSource, ClickHouseAuthSpec, ClickHouseUser, ClientCertificate, DEFAULT_CA_KEY, DEFAULT_CERTIFICATE_KEY,
    DEFAULT_PASSWORD_KEY, DEFAULT_PRIVATE_KEY_KEY, DEFAULT_TOKEN_KEY, DEFAULT_USERNAME_KEY, KafkaAuthSpec,
    KafkaIdentity, OauthBearer, PlainHttp, ScramSha512, ServiceAccountToken, TlsSpec,
};
pub use status::{ComponentStatus, IngestionPipelineStatus, TopicStatus};
pub use transformation::{ConfigMapKeySelector, OnError, TransformationSpec, TransformationStep};
pub use workload::{EnvironmentVariable, WorkloadSettings};

/// One event ingestion pipeline: capture API, consumer, transformation and exports, with the Kafka topics and
/// ClickHouse tables between and behind them.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "IngestionPipeline",
    doc = "One event ingestion pipeline, from the HTTP API that clients send events to, through Kafka, to ClickHouse and webhooks.",
    plural = "ingestionpipelines",
    shortname = "ipl",
    category = "penstock",
    namespaced,
    status = "IngestionPipelineStatus",
    derive = "PartialEq",
    validation = Rule::new("self.metadata.name.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$') && size(self.metadata.name) <= 45").message(
        "metadata.name must be at most 45 lower-case letters, digits and '-', beginning with a letter, because Services are named by it"
    ),
    validation = Rule::new("self.spec.exports.all(e, size(self.metadata.name) + size(e.name) <= 55)").message(
        "metadata.name and the name of an export must have at most 55 characters together, because workloads are named by both; shorten one"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(
        name = "Lag",
        type_ = "integer",
        json_path = ".status.lag",
        description = "Messages that wait, over all components"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].message"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct IngestionPipelineSpec {
    /// Version of the data plane, which is the tag of the image that the components run. While it is set, an
    /// upgrade of the operator rolls nothing. Default: the version of the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9_][A-Za-z0-9_.-]*$')").message(
        "version must be the tag of an image, for example 0.1.0"
    ))]
    pub version: Option<String>,
    /// The tenants whose events are taken. Changing the list rolls nothing: running components reload it.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    #[x_kube(validation = Rule::new("self.all(p, self.exists_one(q, q.name == p.name))").message(
        "two projects have the same name; give each a name of its own"
    ))]
    #[x_kube(validation = Rule::new("self.all(p, !has(p.token) || self.exists_one(q, has(q.token) && q.token == p.token))").message(
        "two projects have the same token; give each a token of its own"
    ))]
    pub projects: Vec<Project>,
    /// Workload settings of every component; the same keys on a component override them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<WorkloadSettings>,
    /// The Kafka cluster, and the topics between the components.
    pub kafka: KafkaSpec,
    /// The HTTP API that client libraries send events to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture: Option<CaptureSpec>,
    /// The consumer: validates, resolves the project, normalises time and uuid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consumer: Option<ConsumerSpec>,
    /// Ordered VRL programs between consumer and exports. Without a step there is no transformation workload and
    /// no `transformed` topic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transformation: Option<TransformationSpec>,
    /// Where events are delivered; each export is a component with its own consumer group.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub exports: Vec<ExportSpec>,
    /// What happens to topics and tables when the pipeline is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicies>,
}

/// What happens to what lives outside Kubernetes when the pipeline is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletionPolicies {
    /// Kafka topics. `Retain` (default) leaves them where they are, `Delete` deletes them and the data in them.
    #[serde(default)]
    pub topics: DeletionPolicy,
    /// ClickHouse tables (never databases). `Retain` (default) leaves them where they are, `Delete` drops them and the
    /// data in them.
    #[serde(default)]
    pub tables: DeletionPolicy,
}

/// Retain or delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Leave it where it is.
    #[default]
    Retain,
    /// Delete it together with the pipeline. The data in it is lost.
    Delete,
}
