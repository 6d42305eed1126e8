//! containerd, the kubelet and kube-proxy: what makes the network namespace a node.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::{Run, find_on_path, wait_until, write_atomically};
use crate::control_plane::{api_url, kubectl};
use crate::daemon::{self, Daemon, Network, config_file};
use crate::images::PAUSE;
use crate::layout::{DNS_IP, Layout, NODE, NODE_IP, POD_CIDR};
use crate::pki;

/// Where Debian's package puts the CNI plugins.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// Runs `ctr` against the platform's containerd.
pub fn ctr(layout: &Layout) -> Run {
    Run::new("ctr").arg("--address").arg(layout.containerd_socket()).args(["--namespace", "k8s.io"])
}

/// Starts containerd with folders of its own, and waits until it answers.
///
/// # Errors
/// It ends or does not answer in time; the end of its log is shown.
pub fn ensure_containerd(layout: &Layout) -> Result<()> {
    let cni = layout.config().join("cni");
    config_file(
        &cni,
        "10-penstock.conflist",
        &serde_json::to_string_pretty(&serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "penstock",
            "plugins": [
                // A routed link per pod: no bridge, so replies between pods cannot bypass the translation of service addresses.
                {"type": "ptp", "ipMasq": false, "ipam": {
                    "type": "host-local",
                    "dataDir": layout.run().join("ipam"),
                    "ranges": [[{"subnet": POD_CIDR}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                }},
                {"type": "loopback"},
            ],
        }))?,
    )?;
    let (root, state) = (layout.data().join("containerd"), layout.run().join("containerd"));
    let config = config_file(
        &layout.config(),
        "containerd.toml",
        &format!(
            r#"version = 2
root = "{root}"
state = "{state}"
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
]

[grpc]
address = "{socket}"

[ttrpc]
address = "{socket}.ttrpc"

[debug]
level = "warn"

[plugins."io.containerd.internal.v1.opt"]
path = "{state}/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
stream_server_address = "127.0.0.1"
# Without CAP_SYS_RESOURCE a sandbox that asks for a lower score than containerd's own does not start.
restrict_oom_score_adj = true
# So that a network namespace left behind is known to be ours.
netns_mounts_under_state_dir = true

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{cni}"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#,
            root = root.display(),
            state = state.display(),
            socket = layout.containerd_socket().display(),
            cni = cni.display(),
        ),
    )?;
    let daemon = Daemon {
        name: "containerd",
        program: find_on_path("containerd").context("containerd is not on the PATH")?,
        args: vec!["--config".into(), config.display().to_string()],
        network: Network::Node,
        reads: vec![config],
    };
    daemon.ensure(layout)?;
    wait_until("containerd's answer", Duration::from_secs(30), || {
        daemon::check(layout, "containerd")?;
        ctr(layout).arg("version").quiet()
    })
}

/// Settings of the machine's kernel that the kubelet changes as it starts.
const CHANGED_SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

fn settings_file(layout: &Layout) -> PathBuf {
    layout.run().join("kernel-settings.json")
}

fn remember_settings(layout: &Layout) -> Result<()> {
    let file = settings_file(layout);
    if file.exists() {
        return Ok(());
    }
    let values: BTreeMap<&str, String> = CHANGED_SETTINGS
        .into_iter()
        .filter_map(|name| Some((name, std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?)))
        .collect();
    write_atomically(&file, &serde_json::to_vec(&values)?)
}

/// Gives the machine's kernel the settings that it had before the kubelet was first started.
pub fn restore_settings(layout: &Layout) {
    let Ok(text) = std::fs::read(settings_file(layout)) else { return };
    let values: BTreeMap<String, String> = serde_json::from_slice(&text).unwrap_or_default();
    for name in CHANGED_SETTINGS {
        if let Some(value) = values.get(name) {
            let _ = std::fs::write(Path::new("/proc/sys").join(name), value.trim());
        }
    }
}

/// Starts the kubelet and kube-proxy, and waits until the node is ready.
///
/// # Errors
/// A process ends or the node does not become ready in time.
pub fn ensure(layout: &Layout, kubernetes: &Path) -> Result<()> {
    let dir = layout.config();
    // Nobody outside the cluster is to be asked for a name.
    let resolv = config_file(&dir, "resolv.conf", "# Names outside the cluster are not resolved.\n")?;
    let kubeconfig =
        config_file(&dir, "kubelet.kubeconfig", &pki::kubeconfig(layout, &api_url(), "kubelet")?)?;
    let config = config_file(
        &dir,
        "kubelet.json",
        &serde_json::to_string_pretty(&serde_json::json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": NODE_IP,
            "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": layout.pki().join("ca.crt")}},
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": layout.pki().join("kubelet-serving.crt"),
            "tlsPrivateKeyFile": layout.pki().join("kubelet-serving.key"),
            "containerRuntimeEndpoint": format!("unix://{}", layout.containerd_socket().display()),
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{NODE}"),
            "failCgroupV1": false,
            "clusterDNS": [DNS_IP],
            "clusterDomain": "cluster.local",
            "resolvConf": resolv,
            "podLogsDir": layout.logs().join("pods"),
            "volumePluginDir": layout.kubelet().join("plugins"),
            "failSwapOn": false,
            "makeIPTablesUtilChains": false,
            "oomScoreAdj": 0,
            "configMapAndSecretChangeDetectionStrategy": "Watch",
            // No registry has these images: what is deleted to save space cannot be fetched again.
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
            "logging": {"verbosity": 1},
        }))?,
    )?;
    std::fs::create_dir_all(layout.logs().join("pods"))?;
    remember_settings(layout)?;
    Daemon {
        name: "kubelet",
        program: kubernetes.join("kubelet"),
        args: vec![
            format!("--config={}", config.display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--root-dir={}", layout.kubelet().display()),
            format!("--cert-dir={}", layout.run().join("kubelet-pki").display()),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={NODE_IP}"),
        ],
        network: Network::Node,
        reads: vec![config, kubeconfig, layout.pki().join("kubelet-serving.crt")],
    }
    .ensure(layout)?;

    let kubeconfig =
        config_file(&dir, "kube-proxy.kubeconfig", &pki::kubeconfig(layout, &api_url(), "kube-proxy")?)?;
    let config = config_file(
        &dir,
        "kube-proxy.json",
        &serde_json::to_string_pretty(&serde_json::json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": kubeconfig},
            "clusterCIDR": POD_CIDR,
            "hostnameOverride": NODE,
            "bindAddress": "0.0.0.0",
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "oomScoreAdj": 0,
            // These settings of the kernel are not a namespace's to change.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
            "logging": {"verbosity": 1},
        }))?,
    )?;
    Daemon {
        name: "kube-proxy",
        program: kubernetes.join("kube-proxy"),
        args: vec![format!("--config={}", config.display())],
        network: Network::Node,
        reads: vec![config, kubeconfig],
    }
    .ensure(layout)?;

    wait_until("the node's readiness", Duration::from_secs(90), || {
        daemon::check(layout, "kubelet")?;
        daemon::check(layout, "kube-proxy")?;
        kubectl(layout)
            .args(["wait", "--for=condition=Ready", &format!("node/{NODE}"), "--timeout=2s"])
            .quiet()
    })
}
