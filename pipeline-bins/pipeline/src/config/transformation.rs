use serde::{Deserialize, Serialize};

use super::{Admin, Identity, KafkaConnection, Source, TransactionConfig};

/// Configuration of `transformation`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TransformationConfig {
    /// Who this is.
    pub identity: Identity,
    /// Metrics and health.
    pub admin: Admin,
    /// Kafka.
    pub kafka: KafkaConnection,
    /// The `ingested` topic.
    pub source: Source,
    /// Transactions.
    pub transaction: TransactionConfig,
    /// The `transformed` topic.
    pub sink: String,
    /// The `dead-letter` topic.
    pub dead_letter: String,
    /// Applied in this order to every event.
    pub steps: Vec<StepConfig>,
    /// Longest CPU time that all steps together may take for one event, milliseconds.
    pub event_time_budget_ms: u64,
}

/// One VRL program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StepConfig {
    /// Unique name.
    pub name: String,
    /// What happens to an event on which it fails.
    pub on_error: OnError,
    /// The program.
    pub vrl: String,
}

/// What happens to an event on which a step fails at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnError {
    /// To the dead-letter topic, with the reason.
    DeadLetter,
    /// On to the next step, as it was before this one.
    Pass,
}
