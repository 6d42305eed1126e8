//! Export into a ClickHouse table, exactly once.

mod block;
mod connection;
mod driver;
mod metrics;
mod pressure;
mod protocol;
mod refusal;
mod row;
mod servers;
pub mod steps;
mod table;
mod token;
mod topology;

use std::{sync::Arc, time::Duration};

use penstock_pipeline::{
    command::Context,
    config::{ClickHouseDestination, ExportConfig},
    health::Kind,
    kafka,
    live_file::{self, LiveFileMetrics},
};
use tracing::{info, warn};

use crate::{ExportError, backoff, filter::Filter};
use connection::Credentials;
use driver::Driver;
use servers::Servers;
use steps::Observer;
use table::TableFacts;
use topology::Topology;

/// Checks what parsing cannot know.
pub fn check(destination: &ClickHouseDestination, config: &ExportConfig) -> Result<(), String> {
    if !destination.url.starts_with("http://") && !destination.url.starts_with("https://") {
        return Err(format!(
            "destination.clickHouse.url: {:?} is not http://… or https://…",
            destination.url
        ));
    }
    if destination.insert_timeout_ms >= config.source.max_poll_interval_ms {
        return Err(format!(
            "destination.clickHouse.insertTimeoutMs: {} is not shorter than source.maxPollIntervalMs, {}",
            destination.insert_timeout_ms, config.source.max_poll_interval_ms
        ));
    }
    if destination.retry.max_attempts.is_some() {
        return Err(
            "destination.clickHouse.retry.maxAttempts: an export into ClickHouse never gives up; leave it \
                    out"
            .to_owned(),
        );
    }
    topology::check(destination)
}

/// Runs until asked to stop.
pub async fn run(
    config: ExportConfig,
    destination: ClickHouseDestination,
    filter: Option<Filter>,
    observer: Arc<dyn Observer>,
    context: Context,
) -> Result<(), ExportError> {
    let Some(kafka) = kafka::Connection::open(&config.kafka, &context).await else { return Ok(()) };
    let topology = Topology::new(&destination);
    let Some(credentials) = credentials(&destination, &context).await else { return Ok(()) };
    let servers = Servers::new(&destination, &credentials, &topology);
    let Some(facts) = facts(&servers, &destination, &context).await else { return Ok(()) };
    if facts.iter().any(|facts| !facts.remembers_tokens) {
        warn!(
            "the table has no deduplication window: two attempts of one insert that run at the same time would both \
             succeed; set non_replicated_deduplication_window"
        );
    }
    let driver =
        Driver::new(config, &destination, (servers, topology, facts), filter, observer, kafka, &context)?;
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("source".to_owned())
        .spawn(move || {
            let _ = done.send(driver.run());
        })
        .map_err(ExportError::Thread)?;
    result.await.unwrap_or(Err(ExportError::ThreadPanicked))
}

/// Reads the credentials, again and again until they can be used. `None`: asked to stop meanwhile.
async fn credentials(destination: &ClickHouseDestination, context: &Context) -> Option<Credentials> {
    let metrics = LiveFileMetrics::new(&context.metrics);
    let check = context.health.check(Kind::Readiness, "clickhouse credentials", "they were not read yet");
    loop {
        match Credentials::open(destination, &metrics).await {
            Ok(credentials) => {
                check.pass();
                return Some(credentials);
            }
            Err(error) => {
                warn!(%error, "the credentials for ClickHouse cannot be used; looking again until they can");
                check.fail(error.to_string());
            }
        }
        tokio::select! {
            () = context.shutdown.requested() => return None,
            () = tokio::time::sleep(live_file::POLL_INTERVAL) => {}
        }
    }
}

/// Looks at the table on all servers until it is there. `None`: asked to stop meanwhile.
async fn facts(
    servers: &Servers,
    destination: &ClickHouseDestination,
    context: &Context,
) -> Option<Vec<TableFacts>> {
    let check = context.health.check(Kind::Readiness, "table", "the table was not seen yet");
    let mut failures = 0;
    loop {
        match servers.facts().await {
            Ok(facts) => {
                check.pass();
                info!(?facts, "table found");
                return Some(facts);
            }
            Err(error) => {
                failures += 1;
                warn!(%error, "cannot look at the table yet");
                check.fail(format!("ClickHouse: {error}"));
            }
        }
        let pause = backoff::pause(&destination.retry, failures, rand::random()).min(Duration::from_secs(10));
        tokio::select! {
            () = context.shutdown.requested() => return None,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
