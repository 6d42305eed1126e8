//! `transformation`: runs the steps of a pipeline on every event between `ingested` and `transformed`.
//!
//! Topology: one Kafka transaction per batch (`penstock_pipeline::kafka::transact`), in which every event of `ingested`
//! becomes an event of `transformed`, a dead letter, or is dropped by a step on purpose ([`chain`]). Everything that
//! is decided about an event is decided there, without Kafka in sight.
//!
//! The Kafka key stays as it was read (`token:distinct_id` of the client), also when a step changes the distinct id:
//! the events of one sender keep their order.

pub mod chain;
mod metrics;
mod process;

use std::{collections::BTreeSet, time::Duration};

use penstock_pipeline::{
    command::Context,
    config::TransformationConfig,
    kafka::{
        Connection,
        transact::{self, Options, Stopped},
    },
};

use chain::Chain;
use process::Transformation;

/// What parsing cannot know: the names are unique and the programs compile. The message has the compiler's diagnostics.
pub fn check(config: &TransformationConfig) -> Result<(), String> {
    if config.steps.is_empty() {
        return Err("steps: is empty; a pipeline without steps needs no transformation".to_owned());
    }
    if config.event_time_budget_ms == 0 {
        return Err("eventTimeBudgetMs: is 0; write at least 1".to_owned());
    }
    transact::check(&config.source, &config.transaction)?;
    let topics = [&config.source.topic, &config.sink, &config.dead_letter];
    if BTreeSet::from(topics).len() != topics.len() {
        return Err("source.topic, sink and deadLetter must be three topics".to_owned());
    }
    Chain::compile(&config.steps).map(drop).map_err(|error| error.to_string())
}

/// Why the process ends without being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A step does not compile; [`check`] finds it earlier.
    #[error(transparent)]
    Chain(#[from] chain::ChainError),
    /// The engine cannot go on.
    #[error(transparent)]
    Engine(#[from] Stopped),
}

/// Runs until it is told to stop.
pub async fn serve(config: TransformationConfig, context: Context) -> Result<(), Error> {
    let chain = Chain::compile(&config.steps)?;
    for (step, warnings) in chain.warnings() {
        tracing::warn!(step, "{warnings}");
    }
    let Some(kafka) = Connection::open(&config.kafka, &context).await else { return Ok(()) };
    let metrics = context.metrics.register(|registry| metrics::Metrics::register(registry, chain.names()));
    let budget = Duration::from_millis(config.event_time_budget_ms);
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
    let process = Transformation::new(chain, budget, metrics);
    let running = transact::start(options, process, &context.metrics, context.shutdown.token().clone());
    running.watched_by(&context.health);
    Ok(running.ended().await?)
}
