use serde::{Deserialize, Serialize};

use super::{Admin, Identity, KafkaConnection, LiveFile, Source, TransactionConfig};

/// Configuration of `consumer`, one lane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ConsumerConfig {
    /// Who this is.
    pub identity: Identity,
    /// Metrics and health.
    pub admin: Admin,
    /// Kafka.
    pub kafka: KafkaConnection,
    /// The lane's topic.
    pub source: Source,
    /// Transactions.
    pub transaction: TransactionConfig,
    /// The `ingested` topic.
    pub sink: String,
    /// The `dead-letter` topic.
    pub dead_letter: String,
    /// Projects file, reloaded live.
    pub projects_file: LiveFile,
}
