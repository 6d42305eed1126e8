//! What a running platform tells those who use it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::layout::{HostPorts, Layout};

/// Written to `platform.json` in the state folder once everything is up, and removed when the platform goes down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformInfo {
    /// Ports on 127.0.0.1 that the platform was started with.
    pub ports: HostPorts,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The folder of `kubectl` and `helm`.
    pub bin: PathBuf,
    /// The cluster's name for Kafka, for pods.
    pub kafka_bootstrap: String,
    /// The same for pods that show a certificate.
    pub kafka_tls_bootstrap: String,
    /// The same for pods that have a password or a token.
    pub kafka_sasl_bootstrap: String,
    /// The cluster's URL of ClickHouse, for pods.
    pub clickhouse_url: String,
    /// The cluster's encrypted URL of ClickHouse, for pods.
    pub clickhouse_tls_url: String,
}

impl PlatformInfo {
    /// What a platform with this layout offers.
    pub fn of(layout: &Layout) -> Self {
        Self {
            ports: layout.ports,
            kubeconfig: layout.kubeconfig(),
            bin: layout.bin(),
            kafka_bootstrap: "kafka.streaming:9092".into(),
            kafka_tls_bootstrap: "kafka.streaming:9093".into(),
            kafka_sasl_bootstrap: "kafka.streaming:9095".into(),
            clickhouse_url: "http://clickhouse.warehouse:8123".into(),
            clickhouse_tls_url: "https://clickhouse.warehouse:8443".into(),
        }
    }

    /// Reads the file of a platform that is up.
    ///
    /// # Errors
    /// No platform is up, or its file cannot be read.
    pub fn read(layout: &Layout) -> Result<Self> {
        let path = layout.state.join("platform.json");
        let text = std::fs::read(&path).with_context(|| {
            format!("no platform is up ({} cannot be read): run `make platform`", path.display())
        })?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not a platform's file", path.display()))
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The state folder cannot be written.
    pub fn write(&self, layout: &Layout) -> Result<()> {
        crate::command::write_atomically(
            &layout.state.join("platform.json"),
            &serde_json::to_vec_pretty(self)?,
        )
    }

    /// Kafka's address for clients on this machine.
    pub fn kafka_on_host(&self) -> String {
        format!("127.0.0.1:{}", self.ports.kafka)
    }

    /// Kafka's address for clients on this machine that show a certificate.
    pub fn kafka_tls_on_host(&self) -> String {
        format!("127.0.0.1:{}", self.ports.kafka_tls)
    }

    /// Kafka's address for clients on this machine that have a password or a token.
    pub fn kafka_sasl_on_host(&self) -> String {
        format!("127.0.0.1:{}", self.ports.kafka_sasl)
    }

    /// ClickHouse's encrypted URL for clients on this machine.
    pub fn clickhouse_tls_on_host(&self) -> String {
        format!("https://127.0.0.1:{}", self.ports.clickhouse_tls)
    }

    /// ClickHouse's URL for clients on this machine.
    pub fn clickhouse_on_host(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.clickhouse)
    }
}
