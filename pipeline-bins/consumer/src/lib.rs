//! `consumer`: makes events of what capture took.
//!
//! Topology: one Kafka transaction per batch (`penstock_pipeline::kafka::transact`), in which every message of `captured`
//! becomes an event of `ingested` or a dead letter. What is decided about a message is decided in [`ingest`], a pure
//! function, which is also the one place where an event is enriched. The engine keeps the order of each partition, and
//! with it the order of each distinct id.

pub mod ingest;
mod process;
mod properties;
pub mod time;

use std::{collections::BTreeSet, time::Duration};

use penstock_pipeline::{
    command::Context,
    config::ConsumerConfig,
    kafka::{
        Connection,
        transact::{self, Options, Stopped},
    },
    live_file::{LiveFileError, LiveFileMetrics},
    projects,
};
use process::{Ingestion, Metrics};

/// What parsing cannot know.
pub fn check(config: &ConsumerConfig) -> Result<(), String> {
    let topics = [&config.source.topic, &config.sink, &config.dead_letter];
    transact::check(&config.source, &config.transaction)?;
    if BTreeSet::from(topics).len() != topics.len() {
        return Err("source.topic, sink and deadLetter must be three topics".to_owned());
    }
    Ok(())
}

/// Why the process ends without being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no list of projects to begin with.
    #[error(transparent)]
    Projects(#[from] LiveFileError),
    /// The engine cannot go on.
    #[error(transparent)]
    Engine(#[from] Stopped),
}

/// Runs until it is told to stop.
pub async fn serve(config: ConsumerConfig, context: Context) -> Result<(), Error> {
    let Some(kafka) = Connection::open(&config.kafka, &context).await else { return Ok(()) };
    let projects = projects::open(&config.projects_file, &LiveFileMetrics::new(&context.metrics)).await?;
    let metrics = context.metrics.register(Metrics::register);
    let options = Options {
        component: config.identity.component,
        kafka,
        source: config.source,
        transaction: config.transaction,
        instance: context.pod,
        sink: config.sink,
        dead_letter: config.dead_letter,
        stall_after: Duration::from_millis(config.admin.stall_after_ms),
    };
    let process = Ingestion::new(projects, metrics);
    let running = transact::start(options, process, &context.metrics, context.shutdown.token().clone());
    running.watched_by(&context.health);
    Ok(running.ended().await?)
}
