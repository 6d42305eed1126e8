//! Export into a ClickHouse table, exactly once.

mod block;
mod driver;
mod metrics;
pub(crate) mod plan;
pub(crate) mod protocol;
mod row;
pub mod steps;
mod table;

use std::{sync::Arc, time::Duration};

use penstock_pipeline::{
    command::Context,
    config::{ClickHouseDestination, ExportConfig},
};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::{ExportError, backoff, filter::Filter};
use driver::Driver;
use steps::Observer;
use table::{Table, TableFacts};

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
    Ok(())
}

/// Runs until asked to stop.
pub async fn run(
    config: ExportConfig,
    destination: ClickHouseDestination,
    filter: Option<Filter>,
    observer: Arc<dyn Observer>,
    context: Context,
) -> Result<(), ExportError> {
    let Some(facts) = facts(&destination, &context).await else { return Ok(()) };
    if !facts.remembers_tokens {
        warn!(
            "the table has no deduplication window: two attempts of one insert that run at the same time would both \
             succeed; set non_replicated_deduplication_window"
        );
    }
    let driver = Driver::new(config, &destination, facts, filter, observer, &context, Handle::current())?;
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("source".to_owned())
        .spawn(move || {
            let _ = done.send(driver.run());
        })
        .map_err(ExportError::Thread)?;
    result.await.unwrap_or(Err(ExportError::ThreadPanicked))
}

/// Looks at the table until it is there. `None`: asked to stop meanwhile.
async fn facts(destination: &ClickHouseDestination, context: &Context) -> Option<TableFacts> {
    let check = context.health.check(
        penstock_pipeline::health::Kind::Readiness,
        "table",
        "the table was not seen yet",
    );
    let table = Table::new(destination);
    let mut failures = 0;
    loop {
        match table.facts().await {
            Ok(facts) => {
                check.pass();
                info!(uuid = facts.uuid, "table found");
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
