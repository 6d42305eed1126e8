//! A pipeline that everything can be built from: defaults applied, references resolved, names checked.

use std::{collections::BTreeMap, fmt};

use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use penstock_crds::v1alpha1::{DeletionPolicies, KeySelector, Management, ServiceType};
use penstock_pipeline::config::{BlockLimits, ProjectEntry, RetryConfig, StartFrom, StepConfig};

use crate::{
    credentials::{ClickHouseUser, KafkaIdentity, Trust},
    tables::{self, WantedTable},
    topics::{self, WantedTopic},
};

/// The object that owns what is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its namespace.
    pub namespace: String,
    /// Its name; a DNS label short enough to be the beginning of every child's name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// One pipeline, complete.
#[derive(Clone, Debug, PartialEq)]
pub struct ValidatedPipeline {
    /// The object itself.
    pub owner: Owner,
    /// Tag of the data plane's image.
    pub version: String,
    /// Kafka.
    pub kafka: Kafka,
    /// The tenants, tokens resolved; ordered by id.
    pub projects: Vec<ProjectEntry>,
    /// The capture API.
    pub capture: Capture,
    /// Workload of the consumer's main lane.
    pub consumer_main: Workload,
    /// The transformation, when it has steps.
    pub transformation: Option<Transformation>,
    /// The exports, in the order of the spec.
    pub exports: Vec<Export>,
    /// What happens outside Kubernetes on deletion.
    pub deletion: DeletionPolicies,
}

/// Kafka and the topics.
#[derive(Clone, Debug, PartialEq)]
pub struct Kafka {
    /// `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// Whom the components trust; `None` without TLS.
    pub trust: Option<Trust>,
    /// Who the components are; `None` for nobody in particular.
    pub identity: Option<KafkaIdentity>,
    /// How the operator itself reaches Kafka.
    pub access: topics::Access,
    /// Prefix of topics, groups and transactional ids.
    pub prefix: String,
    /// Who owns the topics.
    pub management: Management,
    /// Every topic that the pipeline needs.
    pub topics: Vec<WantedTopic>,
}

/// The capture API.
#[derive(Clone, Debug, PartialEq)]
pub struct Capture {
    /// Its pods.
    pub workload: Workload,
    /// Kind of its Service.
    pub service_type: ServiceType,
    /// Port of its Service.
    pub service_port: u16,
    /// Annotations of its Service.
    pub service_annotations: BTreeMap<String, String>,
    /// Largest body after decompression.
    pub max_body_bytes: u64,
    /// Requests handled at once.
    pub max_concurrent_requests: u32,
}

/// The transformation.
#[derive(Clone, Debug, PartialEq)]
pub struct Transformation {
    /// Its pods.
    pub workload: Workload,
    /// At least one; programs resolved and compiled.
    pub steps: Vec<StepConfig>,
    /// Time for one event.
    pub event_time_budget_ms: u64,
}

/// One export.
#[derive(Clone, Debug, PartialEq)]
pub struct Export {
    /// Unique name.
    pub name: String,
    /// Its pods.
    pub workload: Workload,
    /// Where a new consumer group begins.
    pub start_from: StartFrom,
    /// Condition in VRL, compiled.
    pub where_: Option<String>,
    /// Where to.
    pub destination: Destination,
}

/// Where an export delivers.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "a pipeline has a handful of them, and they stay where they are"
)]
pub enum Destination {
    /// A table.
    ClickHouse {
        /// The table.
        table: WantedTable,
        /// Who owns it.
        management: Management,
        /// Whom the export trusts behind an https URL.
        trust: Trust,
        /// Who the export is; `None` for nobody in particular.
        user: Option<ClickHouseUser>,
        /// How the operator itself reaches the servers.
        access: tables::Access,
        /// When an insert is made.
        block: BlockLimits,
    },
    /// An HTTP endpoint.
    Webhook(Webhook),
}

/// An HTTP endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Where to POST.
    pub url: String,
    /// Key that signs; known to exist.
    pub signing: Option<KeySelector>,
    /// Further request headers.
    pub headers: BTreeMap<String, String>,
    /// Longest time of one attempt.
    pub timeout_ms: u32,
    /// Deliveries under way at once.
    pub concurrency: u32,
    /// Attempts and pauses.
    pub retry: RetryConfig,
    /// Special networks that may be reached.
    pub allowed_networks: Vec<String>,
}

/// Settings of a component's pods: the component's own over `spec.defaults` over those of the API.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Number of pods.
    pub replicas: i32,
    /// CPU and memory.
    pub resources: ResourceRequirements,
    /// `RUST_LOG`.
    pub log_level: String,
    /// Secrets for pulling the image.
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// PriorityClass.
    pub priority_class_name: Option<String>,
    /// Labels that a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Affinity.
    pub affinity: Option<Affinity>,
    /// Spread over zones and nodes.
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// Additional labels of the pods.
    pub pod_labels: BTreeMap<String, String>,
    /// Additional annotations of the pods.
    pub pod_annotations: BTreeMap<String, String>,
    /// Annotations of the ServiceAccount.
    pub service_account_annotations: BTreeMap<String, String>,
    /// Additional environment variables, in the order of the spec, each name once.
    pub env: Vec<(String, String)>,
}

/// A component of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Component {
    /// The capture API.
    Capture,
    /// The consumer's main lane.
    ConsumerMain,
    /// The transformation.
    Transformation,
    /// An export, by name.
    Export(String),
}

impl Component {
    /// Name of the binary that it runs.
    pub fn binary(&self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::ConsumerMain => "consumer",
            Self::Transformation => "transformation",
            Self::Export(_) => "export",
        }
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capture => f.write_str("capture"),
            Self::ConsumerMain => f.write_str("consumer-main"),
            Self::Transformation => f.write_str("transformation"),
            Self::Export(name) => write!(f, "export-{name}"),
        }
    }
}

/// Topics between the components of one pipeline, by name.
pub struct StageNames {
    /// Capture to consumer.
    pub captured: String,
    /// Consumer to transformation or exports.
    pub ingested: String,
    /// Transformation to exports.
    pub transformed: String,
    /// What can never succeed.
    pub dead_letter: String,
}

impl ValidatedPipeline {
    /// The components, in the order of the flow.
    pub fn components(&self) -> Vec<Component> {
        let mut components = vec![Component::Capture, Component::ConsumerMain];
        if self.transformation.is_some() {
            components.push(Component::Transformation);
        }
        components.extend(self.exports.iter().map(|export| Component::Export(export.name.clone())));
        components
    }

    /// Workload settings of a component, if the pipeline has it.
    pub fn workload(&self, component: &Component) -> Option<&Workload> {
        match component {
            Component::Capture => Some(&self.capture.workload),
            Component::ConsumerMain => Some(&self.consumer_main),
            Component::Transformation => self.transformation.as_ref().map(|t| &t.workload),
            Component::Export(name) => self.export(name).map(|export| &export.workload),
        }
    }

    /// The export of that name.
    pub fn export(&self, name: &str) -> Option<&Export> {
        self.exports.iter().find(|export| export.name == name)
    }

    /// Names of the stage topics.
    pub fn stages(&self) -> StageNames {
        let name = |stage: &str| format!("{}{stage}", self.kafka.prefix);
        StageNames {
            captured: name("captured"),
            ingested: name("ingested"),
            transformed: name("transformed"),
            dead_letter: name("dead-letter"),
        }
    }

    /// Topic that exports read.
    pub fn export_source(&self) -> String {
        let stages = self.stages();
        if self.transformation.is_some() { stages.transformed } else { stages.ingested }
    }

    /// Consumer group and topic of a component that reads Kafka.
    pub fn reads(&self, component: &Component) -> Option<(String, String)> {
        let group = format!("{}{component}", self.kafka.prefix);
        match component {
            Component::Capture => None,
            Component::ConsumerMain => Some((group, self.stages().captured)),
            Component::Transformation => Some((group, self.stages().ingested)),
            Component::Export(_) => Some((group, self.export_source())),
        }
    }
}
