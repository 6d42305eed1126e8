//! `penstock.dev/v1alpha1`.

mod capture;
mod consumer;
mod export;
mod kafka;
mod project;
mod status;
mod transformation;
mod workload;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use capture::{CaptureService, CaptureSpec, ServiceType};
pub use consumer::{ConsumerLanes, ConsumerSpec, LaneSpec};
pub use export::{
    BlockSpec, ClickHouseSpec, ExportSpec, StartFrom, WebhookRetry, WebhookSigning, WebhookSpec,
};
pub use kafka::{KafkaSpec, Management, StageTopics, TopicSettings};
pub use project::{KeySelector, Project};
pub use status::{ComponentStatus, IngestionPipelineStatus};
pub use transformation::{ConfigMapKeySelector, OnError, TransformationSpec, TransformationStep};
pub use workload::{EnvironmentVariable, WorkloadSettings};

/// One event ingestion pipeline: capture API, consumer, transformation and exports, with the Kafka topics and
/// ClickHouse tables between and behind them.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "penstock.dev",
    version = "v1alpha1",
    kind = "IngestionPipeline",
    plural = "ingestionpipelines",
    shortname = "ipl",
    category = "penstock",
    namespaced,
    status = "IngestionPipelineStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct IngestionPipelineSpec {
    /// Version of the data plane, which is the tag of the image that the components run. While it is set, an
    /// upgrade of the operator rolls nothing. Default: the version of the operator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The tenants whose events are taken. Changing the list rolls nothing: running components reload it.
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
    pub exports: Vec<ExportSpec>,
    /// What happens to topics and tables when the pipeline is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_policy: Option<DeletionPolicies>,
}

/// What happens to what lives outside Kubernetes when the pipeline is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DeletionPolicies {
    /// Kafka topics. Default: Retain.
    #[serde(default)]
    pub topics: DeletionPolicy,
    /// ClickHouse tables (never databases). Default: Retain.
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
