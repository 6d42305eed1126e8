//! etcd, the API server, the controller manager and the scheduler.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::command::{Run, wait_until, write_atomically};
use crate::daemon::{self, Daemon, Network, config_file};
use crate::layout::{
    CLICKHOUSE_NODE_PORT, CLICKHOUSE_TLS_NODE_PORT, KAFKA_NODE_PORT, KAFKA_SASL_NODE_PORT,
    KAFKA_TLS_NODE_PORT, Layout, NODE, NODE_IP, POD_CIDR, SERVICE_CIDR,
};
use crate::pki;

/// The address of the API server within the node's namespace.
pub fn api_url() -> String {
    format!("https://{NODE_IP}:6443")
}

/// Runs kubectl as the administrator.
pub fn kubectl(layout: &Layout) -> Run {
    Run::new(layout.bin().join("kubectl"))
        .arg("--kubeconfig")
        .arg(layout.kubeconfig())
        .arg("--cache-dir")
        .arg(layout.run().join("kubectl-cache"))
}

fn args(list: &[(&str, String)]) -> Vec<String> {
    list.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

/// Starts etcd and the API server, and waits until the API is ready on 127.0.0.1.
///
/// # Errors
/// A process ends or does not become ready in time; the end of its log is shown.
pub fn ensure_api(layout: &Layout, kubernetes: &Path) -> Result<()> {
    let pki = |file: &str| layout.pki().join(file).display().to_string();
    let etcd = Daemon {
        name: "etcd",
        program: kubernetes.join("server"),
        network: Network::Node,
        reads: vec![layout.pki().join("etcd.crt")],
        args: args(&[
            ("name", NODE.into()),
            ("data-dir", layout.data().join("etcd").display().to_string()),
            ("listen-client-urls", "https://127.0.0.1:2379".into()),
            ("advertise-client-urls", "https://127.0.0.1:2379".into()),
            ("listen-peer-urls", "http://127.0.0.1:2380".into()),
            ("initial-advertise-peer-urls", "http://127.0.0.1:2380".into()),
            ("initial-cluster", format!("{NODE}=http://127.0.0.1:2380")),
            ("cert-file", pki("etcd.crt")),
            ("key-file", pki("etcd.key")),
            ("client-cert-auth", "true".into()),
            ("trusted-ca-file", pki("etcd-ca.crt")),
            ("auto-compaction-retention", "10m".into()),
            ("snapshot-count", "10000".into()),
            ("log-level", "warn".into()),
        ]),
    };
    etcd.ensure(layout)?;

    let apiserver = Daemon {
        name: "kube-apiserver",
        program: kubernetes.join("kube-apiserver"),
        network: Network::Node,
        reads: vec![layout.pki().join("apiserver.crt")],
        args: args(&[
            ("advertise-address", NODE_IP.into()),
            ("secure-port", "6443".into()),
            ("service-cluster-ip-range", SERVICE_CIDR.into()),
            ("etcd-servers", "https://127.0.0.1:2379".into()),
            ("etcd-cafile", pki("etcd-ca.crt")),
            ("etcd-certfile", pki("apiserver-etcd.crt")),
            ("etcd-keyfile", pki("apiserver-etcd.key")),
            ("client-ca-file", pki("ca.crt")),
            ("tls-cert-file", pki("apiserver.crt")),
            ("tls-private-key-file", pki("apiserver.key")),
            ("kubelet-certificate-authority", pki("ca.crt")),
            ("kubelet-client-certificate", pki("apiserver-kubelet.crt")),
            ("kubelet-client-key", pki("apiserver-kubelet.key")),
            ("kubelet-preferred-address-types", "InternalIP".into()),
            ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
            ("requestheader-allowed-names", "front-proxy-client".into()),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("proxy-client-cert-file", pki("front-proxy.crt")),
            ("proxy-client-key-file", pki("front-proxy.key")),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".into()),
            ("service-account-key-file", pki("service-accounts.pub")),
            ("service-account-signing-key-file", pki("service-accounts.key")),
            ("authorization-mode", "Node,RBAC".into()),
            ("enable-admission-plugins", "NodeRestriction,OwnerReferencesPermissionEnforcement".into()),
            ("allow-privileged", "true".into()),
            ("profiling", "false".into()),
            ("v", "1".into()),
        ]),
    };
    apiserver.ensure(layout)?;
    ensure_forwarder(layout)?;

    write_atomically(
        &layout.kubeconfig(),
        pki::kubeconfig(layout, &format!("https://127.0.0.1:{}", layout.ports.api), "admin")?.as_bytes(),
    )?;
    {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(layout.kubeconfig(), std::fs::Permissions::from_mode(0o600))?;
    }
    wait_until("the API server's readiness", Duration::from_secs(90), || {
        daemon::check(layout, "etcd")?;
        daemon::check(layout, "kube-apiserver")?;
        kubectl(layout).args(["get", "--raw", "/readyz"]).quiet()
    })
}

/// The process that listens on 127.0.0.1 for the API, Kafka and ClickHouse.
fn ensure_forwarder(layout: &Layout) -> Result<()> {
    let ports = layout.ports;
    let forwarder = Daemon {
        name: "forwarder",
        program: std::env::current_exe()?,
        network: Network::Machine,
        reads: Vec::new(),
        args: vec![
            "forward".into(),
            format!("{}={NODE_IP}:6443", ports.api),
            format!("{}={NODE_IP}:{KAFKA_NODE_PORT}", ports.kafka),
            format!("{}={NODE_IP}:{KAFKA_TLS_NODE_PORT}", ports.kafka_tls),
            format!("{}={NODE_IP}:{KAFKA_SASL_NODE_PORT}", ports.kafka_sasl),
            format!("{}={NODE_IP}:{CLICKHOUSE_NODE_PORT}", ports.clickhouse),
            format!("{}={NODE_IP}:{CLICKHOUSE_TLS_NODE_PORT}", ports.clickhouse_tls),
        ],
    };
    forwarder.ensure(layout).map(drop)
}

/// Starts the controller manager and the scheduler. They wait for the API by themselves.
///
/// # Errors
/// A process cannot be started.
pub fn ensure_controllers(layout: &Layout, kubernetes: &Path) -> Result<()> {
    let pki = |file: &str| layout.pki().join(file).display().to_string();
    let config = |client: &str| {
        config_file(
            &layout.config(),
            &format!("{client}.kubeconfig"),
            &pki::kubeconfig(layout, &api_url(), client)?,
        )
    };

    let kubeconfig = config("controller-manager")?;
    let path = kubeconfig.display().to_string();
    Daemon {
        name: "kube-controller-manager",
        program: kubernetes.join("kube-controller-manager"),
        network: Network::Node,
        reads: vec![kubeconfig],
        args: args(&[
            ("kubeconfig", path.clone()),
            ("authentication-kubeconfig", path.clone()),
            ("authorization-kubeconfig", path),
            ("bind-address", "127.0.0.1".into()),
            ("leader-elect", "false".into()),
            ("use-service-account-credentials", "true".into()),
            ("service-account-private-key-file", pki("service-accounts.key")),
            ("root-ca-file", pki("ca.crt")),
            ("cluster-signing-cert-file", pki("ca.crt")),
            ("cluster-signing-key-file", pki("ca.key")),
            ("cluster-cidr", POD_CIDR.into()),
            ("service-cluster-ip-range", SERVICE_CIDR.into()),
            ("profiling", "false".into()),
            ("v", "1".into()),
        ]),
    }
    .ensure(layout)?;

    let kubeconfig = config("scheduler")?;
    let path = kubeconfig.display().to_string();
    Daemon {
        name: "kube-scheduler",
        program: kubernetes.join("kube-scheduler"),
        network: Network::Node,
        reads: vec![kubeconfig],
        args: args(&[
            ("kubeconfig", path.clone()),
            ("authentication-kubeconfig", path.clone()),
            ("authorization-kubeconfig", path),
            ("bind-address", "127.0.0.1".into()),
            ("leader-elect", "false".into()),
            ("profiling", "false".into()),
            ("v", "1".into()),
        ]),
    }
    .ensure(layout)?;
    Ok(())
}
