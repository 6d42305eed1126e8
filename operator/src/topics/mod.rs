//! Kafka topics from outside: what a pipeline wants, what the brokers have, and what is done about the difference.
//!
//! - [`stage_topics`] turns the spec's settings into [`WantedTopic`]s, defaults applied (pure);
//! - [`observe`] reads topics, configuration, offsets and lag; that nobody answers is a value, not an error;
//! - [`plan`] decides (pure): create, grow, set configuration back; what it refuses or only reports is a [`Finding`];
//! - [`apply`] and [`delete`] do it.
//!
//! One client per cluster and identity is shared by all pipelines through [`Clusters`].
//!
//! **Which configuration is ours.** A key that the spec sets (or that has a default of ours) is set on the topic and set
//! back when somebody changes it. A key that nobody wants any more goes back to the brokers' value, but only if it was
//! this operator that set it: [`ManagedKeys`] remembers that, and belongs into the status. Every other key on the topic
//! is its owner's and left alone. Should the memory be lost, a key that was taken out of the spec meanwhile stays as it
//! is; nothing else is affected.

mod access;
mod apply;
mod cluster;
pub mod lag;
mod observe;
mod plan;
mod probe;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};

use penstock_pipeline::{
    config::StartFrom,
    kafka::{
        admin::{ConfigChange, ConfigValue},
        topic_ids::TopicId,
    },
};

use crate::failure::Failure;

pub use access::Access;
pub use apply::{Applied, ApplyError, apply, delete};
pub use cluster::{Cluster, Clusters};
pub use observe::observe;
pub use plan::{Finding, Severity, TopicPlan, plan};
pub use wanted::{Transformed, stage_topics};

/// A topic that a pipeline needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedTopic {
    /// Name, prefix included.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of each partition, used at creation; `None` for the brokers' default.
    pub replication_factor: Option<i16>,
    /// Configuration by Kafka's names, `retention.ms` included.
    pub config: BTreeMap<String, String>,
    /// Size in bytes that messages of this topic may have; a smaller `max.message.bytes` would refuse some.
    pub largest_message: u32,
}

/// A consumer group that reads a topic of the pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupReading {
    /// The consumer group.
    pub group: String,
    /// The topic that it reads.
    pub topic: String,
    /// Where it begins a partition for which it has committed nothing.
    pub start_from: StartFrom,
}

/// What was seen of Kafka.
#[derive(Clone, Debug, PartialEq)]
pub enum Observation {
    /// Nobody answered, or not what was asked.
    Unreachable {
        /// What is in the way.
        why: Failure,
    },
    /// Somebody answered.
    Reachable(Observed),
}

/// What the brokers said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// Those of the wanted topics that exist, by name.
    pub topics: BTreeMap<String, ObservedTopic>,
    /// Lag of each group, by name of the group.
    pub groups: BTreeMap<String, lag::GroupLag>,
    /// What we are not allowed to ask, and can do without.
    pub denied: Vec<Failure>,
}

/// A topic as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedTopic {
    /// Its identity.
    pub id: TopicId,
    /// Number of partitions.
    pub partitions: i32,
    /// Smallest number of replicas of a partition.
    pub replication_factor: i16,
    /// Partitions without a leader: neither written nor read at present.
    pub leaderless: Vec<i32>,
    /// All of its configuration, by Kafka's names.
    pub config: BTreeMap<String, ConfigValue>,
}

/// For each topic, the configuration keys that this operator has set on it. Remembered in the status.
pub type ManagedKeys = BTreeMap<String, BTreeSet<String>>;

/// One key of a topic's configuration that is set or taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRepair {
    /// The change.
    pub change: ConfigChange,
    /// The value that was in effect.
    pub was: Option<String>,
}

/// One change to the topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TopicAction {
    /// Create it.
    Create(WantedTopic),
    /// Give it more partitions.
    Grow {
        /// The topic.
        topic: String,
        /// Partitions that it has.
        from: i32,
        /// Partitions that it gets.
        to: i32,
    },
    /// Change some keys of its configuration and no others.
    ChangeConfig {
        /// The topic.
        topic: String,
        /// The keys, in order.
        repairs: Vec<ConfigRepair>,
    },
}

impl TopicAction {
    /// The topic that it changes.
    pub fn topic(&self) -> &str {
        match self {
            Self::Create(wanted) => &wanted.name,
            Self::Grow { topic, .. } | Self::ChangeConfig { topic, .. } => topic,
        }
    }

    /// Reason of the Event that tells of it: one word, stable.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Create(_) => "TopicCreated",
            Self::Grow { .. } => "TopicGrown",
            Self::ChangeConfig { .. } => "TopicConfigChanged",
        }
    }
}
