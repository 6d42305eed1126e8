//! `export`: delivers the events of one topic to one destination.

pub mod backoff;
pub mod clickhouse;
pub mod committed;
pub mod dead_letters;
pub mod filter;
pub mod metrics;
pub mod permitted;
pub mod source;
pub mod stalls;
pub mod takeover;
pub mod webhook;

use std::{io, sync::Arc};

use penstock_pipeline::{
    command::Context,
    config::{Destination, ExportConfig},
    live_file::LiveFileError,
};
use rdkafka::error::KafkaError;

use clickhouse::steps::Observer;
use filter::Filter;

/// Why an export cannot go on. A new process may.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// `where` does not compile.
    #[error("where: {0}")]
    Filter(String),
    /// A Kafka client could not be made or used.
    #[error("Kafka: {0}")]
    Kafka(#[source] KafkaError),
    /// librdkafka gave no queue.
    #[error("Kafka: the consumer has no queue")]
    NoQueue,
    /// The client declared itself unusable.
    #[error("Kafka: the consumer cannot go on: {0}")]
    FatalClient(String),
    /// Assigned partitions could not be looked at.
    #[error("Kafka: {0}")]
    Source(#[source] source::SourceError),
    /// The thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    /// The HTTP client could not be made.
    #[error("cannot make the HTTP client: {0}")]
    HttpClient(#[source] reqwest::Error),
    /// The signing keys cannot be used.
    #[error(transparent)]
    SigningKeys(#[from] LiveFileError),
    /// What [`check`] refuses.
    #[error("{0}")]
    Configuration(String),
    /// The thread ended without a word.
    #[error("the thread that reads the source panicked")]
    ThreadPanicked,
}

/// Checks what parsing cannot know. The error names the field and says what to write instead.
pub fn check(config: &ExportConfig) -> Result<(), String> {
    if let Some(source) = &config.where_ {
        Filter::compile(source).map_err(|error| format!("where: {error}"))?;
    }
    match &config.destination {
        Destination::ClickHouse(destination) => clickhouse::check(destination, config),
        Destination::Webhook(destination) => webhook::check(destination),
    }
}

/// Runs the export until it is asked to stop. `observer` is told of the protocol's steps; production runs with
/// [`clickhouse::steps::Unobserved`].
pub async fn run(
    config: ExportConfig,
    context: Context,
    observer: Arc<dyn Observer>,
) -> Result<(), ExportError> {
    let filter = config.where_.as_deref().map(Filter::compile).transpose().map_err(ExportError::Filter)?;
    match config.destination.clone() {
        Destination::ClickHouse(destination) => {
            clickhouse::run(config, destination, filter, observer, context).await
        }
        Destination::Webhook(destination) => webhook::run(config, destination, filter, context).await,
    }
}
