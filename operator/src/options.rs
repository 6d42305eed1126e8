//! Command line and environment.

use std::{net::SocketAddr, time::Duration};

use clap::Parser;

use crate::build::ImageSource;

/// Label of a pipeline with the class of the operator that looks after it.
const CLASS_LABEL: &str = "penstock.dev/operator-class";

/// The operator of Penstock: makes `IngestionPipeline`s true.
///
/// It runs in a cluster with the rights of its ServiceAccount, or outside of one with a kubeconfig (`KUBECONFIG`). Run one
/// at a time. Logs are JSON lines on standard output; their level is RUST_LOG (default `info`).
#[derive(Clone, Debug, Parser)]
#[command(name = "penstock-operator", version)]
pub struct Options {
    /// Repository of the components' image, without a tag; the tag is `spec.version`.
    #[arg(long, env = "PENSTOCK_PIPELINE_IMAGE", default_value = "ghcr.io/penstock/pipeline")]
    pub pipeline_image: String,

    /// imagePullPolicy of the components: Always, IfNotPresent or Never.
    #[arg(
        long,
        env = "PENSTOCK_PIPELINE_IMAGE_PULL_POLICY",
        default_value = "IfNotPresent",
        value_parser = ["Always", "IfNotPresent", "Never"]
    )]
    pub pipeline_image_pull_policy: String,

    /// Version of the data plane for pipelines that name none.
    #[arg(long, env = "PENSTOCK_DEFAULT_VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    pub default_version: String,

    /// Look after pipelines in this namespace only; without it, in all of them.
    #[arg(long, env = "PENSTOCK_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,

    /// Look after pipelines only whose label `penstock.dev/operator-class` has this value; without it, only after those
    /// without the label. With it two operators share a cluster, for example to try a new version on one pipeline.
    #[arg(long, env = "PENSTOCK_OPERATOR_CLASS")]
    pub operator_class: Option<String>,

    /// Address of /metrics, /healthz and /readyz.
    #[arg(long, env = "PENSTOCK_ADMIN_LISTEN", default_value = "0.0.0.0:9090")]
    pub admin_listen: SocketAddr,

    /// Seconds between two looks at Kafka and ClickHouse, which tell nobody when they change.
    #[arg(
        long,
        env = "PENSTOCK_RESYNC_SECONDS",
        default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    pub resync_seconds: u64,

    /// Pipelines looked after at the same time.
    #[arg(
        long,
        env = "PENSTOCK_CONCURRENCY",
        default_value_t = 16,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub concurrency: u16,
}

impl Options {
    /// Where the components' image comes from.
    pub fn images(&self) -> ImageSource {
        ImageSource {
            repository: self.pipeline_image.clone(),
            pull_policy: self.pipeline_image_pull_policy.clone(),
        }
    }

    /// Selects the pipelines that this operator looks after.
    pub fn pipeline_selector(&self) -> String {
        match &self.operator_class {
            Some(class) => format!("{CLASS_LABEL}={class}"),
            None => format!("!{CLASS_LABEL}"),
        }
    }

    /// Time between two looks at what is outside Kubernetes.
    pub fn resync(&self) -> Duration {
        Duration::from_secs(self.resync_seconds)
    }
}
