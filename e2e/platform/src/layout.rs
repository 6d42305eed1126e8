//! Where the platform keeps its things, and the addresses and names that all of its parts agree on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// The version of Kubernetes that is built; it is also what every component reports.
pub const KUBERNETES_VERSION: &str = "v1.36.3";
/// The version of Kafka in `kafka/pom.xml`.
pub const KAFKA_VERSION: &str = "4.3.1";
/// The version of the ClickHouse server in `clickhouse/package.json`.
pub const CLICKHOUSE_VERSION: &str = "26.7.3";

/// The node's name, its network namespace and the root of its cgroups.
pub const NODE: &str = "penstock";
/// The namespace that holds the far end of the node's default route and nothing else.
pub const OUTSIDE: &str = "penstock-outside";
/// The node's address inside its namespace.
pub const NODE_IP: &str = "10.77.0.2";
/// The address at the far end of the node's default route.
pub const OUTSIDE_IP: &str = "10.77.0.1";
/// Addresses of pods.
pub const POD_CIDR: &str = "10.78.0.0/16";
/// Addresses of services.
pub const SERVICE_CIDR: &str = "10.79.0.0/16";
/// The first address of [`SERVICE_CIDR`], which Kubernetes gives to the API server.
pub const API_SERVICE_IP: &str = "10.79.0.1";
/// The address of the cluster's DNS service.
pub const DNS_IP: &str = "10.79.0.10";
/// The node port on which Kafka's listener for clients outside the cluster is reached.
pub const KAFKA_NODE_PORT: u16 = 30092;
/// The node port of Kafka's listener that asks for a client certificate.
pub const KAFKA_TLS_NODE_PORT: u16 = 30093;
/// The node port of Kafka's listener that asks for a password or a token.
pub const KAFKA_SASL_NODE_PORT: u16 = 30095;
/// The node port on which ClickHouse's HTTP interface is reached.
pub const CLICKHOUSE_NODE_PORT: u16 = 30123;
/// The node port on which ClickHouse's HTTPS interface is reached.
pub const CLICKHOUSE_TLS_NODE_PORT: u16 = 30443;

/// Ports on 127.0.0.1 through which the machine reaches the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPorts {
    /// The Kubernetes API (`PENSTOCK_API_PORT`, 16443).
    pub api: u16,
    /// Kafka, plaintext (`PENSTOCK_KAFKA_PORT`, 19092).
    pub kafka: u16,
    /// Kafka, TLS with a client certificate (`PENSTOCK_KAFKA_TLS_PORT`, 19093).
    pub kafka_tls: u16,
    /// Kafka, TLS with a password or a token (`PENSTOCK_KAFKA_SASL_PORT`, 19095).
    pub kafka_sasl: u16,
    /// ClickHouse over HTTP (`PENSTOCK_CLICKHOUSE_PORT`, 18123).
    pub clickhouse: u16,
    /// ClickHouse over HTTPS (`PENSTOCK_CLICKHOUSE_TLS_PORT`, 18443).
    pub clickhouse_tls: u16,
}

/// Folders and ports of one platform. Everything below [`Layout::state`] belongs to the platform alone.
#[derive(Debug, Clone)]
pub struct Layout {
    /// What is running and its data: `PENSTOCK_PLATFORM_DIR`, or `/var/lib/penstock-platform`.
    pub state: PathBuf,
    /// What was expensive to build, shared by all clones: `PENSTOCK_CACHE`, or `penstock` below the user's cache.
    pub cache: PathBuf,
    /// The sources of the platform: `e2e/platform` in the clone that this program was built from.
    pub sources: PathBuf,
    /// Ports on 127.0.0.1.
    pub ports: HostPorts,
}

impl Layout {
    /// Reads the environment.
    ///
    /// # Errors
    /// A port that is not a number, a state folder that is relative or too long for the sockets below it,
    /// or no home folder and no `PENSTOCK_CACHE`.
    pub fn from_env() -> Result<Self> {
        let state = std::env::var_os("PENSTOCK_PLATFORM_DIR")
            .map_or_else(|| PathBuf::from("/var/lib/penstock-platform"), PathBuf::from);
        if !state.is_absolute() || state.as_os_str().len() > 60 {
            bail!(
                "PENSTOCK_PLATFORM_DIR={} must be an absolute path of at most 60 characters: unix sockets lie below it",
                state.display()
            );
        }
        let cache = match (
            std::env::var_os("PENSTOCK_CACHE"),
            std::env::var_os("XDG_CACHE_HOME"),
            std::env::var_os("HOME"),
        ) {
            (Some(dir), _, _) => PathBuf::from(dir),
            (None, Some(dir), _) => Path::new(&dir).join("penstock"),
            (None, None, Some(home)) => Path::new(&home).join(".cache/penstock"),
            (None, None, None) => {
                bail!("neither PENSTOCK_CACHE nor HOME is set, so there is nowhere to keep what is built")
            }
        };
        Ok(Self {
            state,
            cache,
            sources: PathBuf::from(env!("CARGO_MANIFEST_DIR")),
            ports: HostPorts {
                api: port("PENSTOCK_API_PORT", 16443)?,
                kafka: port("PENSTOCK_KAFKA_PORT", 19092)?,
                kafka_tls: port("PENSTOCK_KAFKA_TLS_PORT", 19093)?,
                kafka_sasl: port("PENSTOCK_KAFKA_SASL_PORT", 19095)?,
                clickhouse: port("PENSTOCK_CLICKHOUSE_PORT", 18123)?,
                clickhouse_tls: port("PENSTOCK_CLICKHOUSE_TLS_PORT", 18443)?,
            },
        })
    }

    /// The root of the repository.
    pub fn repository(&self) -> PathBuf {
        self.sources.join("../..")
    }

    /// The administrator's kubeconfig for use on this machine.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("kubeconfig")
    }

    /// `kubectl`, `helm` and `kubeconform` as the platform uses them, and `penstock-ctr`.
    pub fn bin(&self) -> PathBuf {
        self.state.join("bin")
    }

    /// Logs of the components, one file each.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// Sockets, process files and mounts: nothing here outlives the processes.
    pub fn run(&self) -> PathBuf {
        self.state.join("run")
    }

    /// Configuration files of the components, written anew by each start.
    pub fn config(&self) -> PathBuf {
        self.state.join("config")
    }

    /// Certificates and keys of the cluster's own components.
    pub fn pki(&self) -> PathBuf {
        self.state.join("pki")
    }

    /// Certificates and keys of Kafka and ClickHouse, signed by an authority of their own.
    pub fn services_pki(&self) -> PathBuf {
        self.state.join("pki-services")
    }

    /// What survives a stop unless it is wiped: etcd, images, and the volumes of Kafka and ClickHouse.
    pub fn data(&self) -> PathBuf {
        self.state.join("data")
    }

    /// The socket of the platform's own containerd.
    pub fn containerd_socket(&self) -> PathBuf {
        self.run().join("containerd.sock")
    }

    /// The kubelet's root folder, with the volumes of running pods.
    pub fn kubelet(&self) -> PathBuf {
        self.run().join("kubelet")
    }
}

fn port(variable: &str, default: u16) -> Result<u16> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is not a port")),
        Err(_) => Ok(default),
    }
}
