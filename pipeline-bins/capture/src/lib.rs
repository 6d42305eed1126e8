//! `capture`: the HTTP API that client libraries send events to.
//!
//! A request is read ([`routes`]), unpacked ([`decode`]), taken apart ([`shape`], [`event`], [`token`]), turned into
//! records ([`prepare`], [`record`]) and written ([`sink`], [`kafka_sink`]). It is answered 200 when Kafka has
//! acknowledged every one of them.

pub mod budget;
pub mod client_address;
pub mod decode;
pub mod event;
pub mod kafka_sink;
pub mod metrics;
pub mod prepare;
pub mod record;
pub mod refusal;
pub mod routes;
pub mod server;
pub mod shape;
pub mod sink;
pub mod timestamp;
pub mod token;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use penstock_pipeline::{
    command::Context, config::CaptureConfig, health::Kind, kafka::Connection, live_file::LiveFileMetrics,
    projects,
};
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::{
    kafka_sink::KafkaSink, metrics::CaptureMetrics, record::MAX_RECORD_BYTES, routes::App, server::Drain,
};

/// How often gauges are read.
const GAUGE_INTERVAL: Duration = Duration::from_secs(1);
/// What stopping takes besides the drain: the last reports of the producer, and slack.
const STOP_SLACK: Duration = Duration::from_secs(5);

/// What parsing the configuration cannot know.
pub fn check(config: &CaptureConfig) -> Result<(), String> {
    let limits = &config.limits;
    if config.kafka.bootstrap_servers.trim().is_empty() {
        return Err("kafka.bootstrapServers: is empty; write host:port".to_owned());
    }
    for (field, topic) in [("topic", &config.topic), ("deadLetter", &config.dead_letter)] {
        if topic.is_empty() {
            return Err(format!("{field}: is empty; write the name of a topic"));
        }
    }
    if config.topic == config.dead_letter {
        return Err("deadLetter: is the same topic as `topic`; write another one".to_owned());
    }
    for (field, value) in [
        ("maxBatchBodyBytes", limits.max_batch_body_bytes),
        ("maxEventBodyBytes", limits.max_event_body_bytes),
        ("maxConcurrentRequests", limits.max_concurrent_requests.into()),
        ("deliveryTimeoutMs", limits.delivery_timeout_ms.into()),
        ("requestTimeoutMs", limits.request_timeout_ms.into()),
    ] {
        if value == 0 {
            return Err(format!("limits.{field}: is 0; write a positive number"));
        }
    }
    let largest = limits.max_batch_body_bytes.max(limits.max_event_body_bytes);
    let largest_record = 2 * MAX_RECORD_BYTES as u64;
    for (field, value, least, why) in [
        (
            "maxInFlightBytes",
            limits.max_in_flight_bytes,
            largest,
            "a body of the largest size could not be held",
        ),
        (
            "producerQueueBytes",
            limits.producer_queue_bytes,
            largest_record,
            "a large event could not be queued",
        ),
    ] {
        if value < least {
            return Err(format!("limits.{field}: is {value}, so that {why}; write at least {least}"));
        }
    }
    if limits.linger_ms >= limits.delivery_timeout_ms {
        return Err(format!(
            "limits.lingerMs: is {}, not below limits.deliveryTimeoutMs ({}); write less",
            limits.linger_ms, limits.delivery_timeout_ms
        ));
    }
    Ok(())
}

/// Longest time from the signal to the end.
pub fn shutdown_deadline(config: &CaptureConfig) -> Duration {
    let drain = Duration::from_millis(
        u64::from(config.drain.readiness_delay_ms) + u64::from(config.drain.deadline_ms),
    );
    drain + STOP_SLACK
}

/// Serves the API until asked to stop.
pub async fn serve(config: CaptureConfig, context: Context) -> anyhow::Result<()> {
    let metrics = CaptureMetrics::new(&context.metrics);
    // The list is there from now on: a process without one does not start.
    let projects = projects::open(&config.projects_file, &LiveFileMetrics::new(&context.metrics)).await?;
    if projects.load().is_empty() {
        warn!("there are no projects: every request will be answered 401");
    }
    let for_check = projects.clone();
    context.health.probe(Kind::Readiness, "projects", move || {
        if for_check.load().is_empty() { Err("the list of projects is empty".to_owned()) } else { Ok(()) }
    });

    let Some(kafka) = Connection::open(&config.kafka, &context).await else { return Ok(()) };
    let sink = KafkaSink::new(&config, kafka, &context.pod, metrics.clone())
        .context("cannot make a Kafka producer")?;
    sink.watch();
    let for_check = Arc::clone(&sink);
    context.health.probe(Kind::Readiness, "kafka", move || for_check.verdict());

    let app = App::new(Arc::clone(&sink), projects, config.limits.clone(), metrics.clone());
    read_gauges(&app, &sink, metrics.clone());
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!("cannot listen on {}: is another process on this address?", config.listen)
    })?;
    info!(address = %config.listen, topic = config.topic, "serving");
    let drain = Drain {
        readiness_delay: Duration::from_millis(config.drain.readiness_delay_ms.into()),
        deadline: Duration::from_millis(config.drain.deadline_ms.into()),
    };
    let requests = config.limits.max_concurrent_requests as usize;
    let drained =
        server::serve(listener, routes::router(app), context.shutdown, drain, requests, metrics.connections)
            .await?;

    // Requests that were answered have their acknowledgements; this is for those whose clients went away.
    let flush = tokio::task::spawn_blocking(move || sink.flush(STOP_SLACK / 2)).await;
    if !matches!(flush, Ok(Ok(()))) {
        warn!("messages of requests without an answer were given up");
    }
    anyhow::ensure!(drained, "requests were cut at the drain deadline of {} ms", config.drain.deadline_ms);
    Ok(())
}

fn read_gauges(app: &Arc<App<KafkaSink>>, sink: &Arc<KafkaSink>, metrics: CaptureMetrics) {
    use crate::sink::Sink as _;
    let app = Arc::downgrade(app);
    let sink = Arc::downgrade(sink);
    tokio::spawn(async move {
        while let (Some(app), Some(sink)) = (app.upgrade(), sink.upgrade()) {
            metrics.requests_in_flight.set(app.requests() as i64);
            metrics.in_flight_bytes.set(app.in_flight_bytes() as i64);
            metrics.queue_bytes.set(sink.queue().used() as i64);
            metrics.queue_messages.set(sink.queued_messages().into());
            drop((app, sink));
            tokio::time::sleep(GAUGE_INTERVAL).await;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = include_str!("../tests/config.yaml");

    fn config() -> CaptureConfig {
        serde_json::from_value(serde_yaml_ng::from_str(CONFIG).unwrap()).unwrap()
    }

    #[test]
    fn a_sensible_configuration_is_accepted() {
        assert_eq!(check(&config()), Ok(()));
    }

    #[test]
    fn senseless_limits_are_refused_with_what_to_write() {
        type Change = fn(&mut CaptureConfig);
        let cases: [(Change, &str); 6] = [
            (|config| config.kafka.bootstrap_servers.clear(), "kafka.bootstrapServers"),
            (|config| config.dead_letter = config.topic.clone(), "deadLetter"),
            (|config| config.limits.max_concurrent_requests = 0, "limits.maxConcurrentRequests"),
            (|config| config.limits.max_in_flight_bytes = 1 << 20, "write at least 20971520"),
            (|config| config.limits.producer_queue_bytes = 1 << 20, "write at least 2000000"),
            (|config| config.limits.linger_ms = config.limits.delivery_timeout_ms, "limits.lingerMs"),
        ];
        for (change, expected) in cases {
            let mut config = config();
            change(&mut config);
            let reason = check(&config).unwrap_err();
            assert!(reason.contains(expected), "{reason}");
        }
    }
}
