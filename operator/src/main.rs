//! The operator's process: options, logs, metrics and health, and an end that is asked for by SIGTERM.

use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use penstock_operator::{controller, metrics::Metrics, options::Options};
use penstock_pipeline::{
    config::Identity,
    health::{Health, Kind, serve_admin},
    lifecycle::{Shutdown, listen_for_signals},
    telemetry,
};

/// A queue that has not been served for so long is stuck.
const LONGEST_SILENCE: Duration = Duration::from_secs(90);
/// Longest time for the passes under way after SIGTERM.
const DRAIN: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let instance = std::env::var("POD_NAME").unwrap_or_else(|_| "penstock-operator".to_owned());
    let identity = Identity {
        namespace: std::env::var("POD_NAMESPACE").unwrap_or_default(),
        pipeline: String::new(),
        component: "operator".to_owned(),
    };
    telemetry::init_logs(&identity, &instance);
    // Fails only when a provider is installed already, and then that one serves.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let shutdown = Shutdown::new();
    listen_for_signals(shutdown.clone()).context("cannot listen for signals")?;
    let process = telemetry::Metrics::new(&identity);
    let metrics = Metrics::new(&process);
    let health = Health::new(shutdown.clone());
    let ready = health.check(Kind::Readiness, "watches", "the watches have not listed yet");
    let alive = health.heartbeat(Kind::Liveness, "queue", LONGEST_SILENCE);
    serve_admin(options.admin_listen, health, process)
        .await
        .with_context(|| format!("cannot listen on {}", options.admin_listen))?;

    let client = kube::Client::try_default()
        .await
        .context("cannot find the API server: neither a ServiceAccount nor a kubeconfig (KUBECONFIG)")?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        pipeline_image = options.pipeline_image,
        namespace = options.watch_namespace.as_deref().unwrap_or("all"),
        "the operator starts"
    );

    let asked = shutdown.clone();
    let stop = async move { asked.requested().await };
    let run = controller::run(client, &options, instance, metrics, ready, alive, stop);
    let patience = async {
        shutdown.requested().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        ended = run => ended.context("a watch has ended")?,
        () = patience => tracing::warn!("passes under way were broken off"),
    }
    tracing::info!(reason = shutdown.reason().unwrap_or("the queue has ended"), "the operator has stopped");
    Ok(())
}
