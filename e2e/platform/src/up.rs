//! Bringing the platform up: every step finds what is there and adds what is missing.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::command::{Locked, write_atomically};
use crate::control_plane::kubectl;
use crate::info::PlatformInfo;
use crate::layout::{KAFKA_VERSION, KUBERNETES_VERSION, Layout};
use crate::progress::Progress;
use crate::toolchain::{self, Built};
use crate::{
    addons, cgroup, cleanup, control_plane, daemon, images, network, node, pki, preflight, services,
};

/// The components whose processes are the platform's own.
pub const DAEMONS: [&str; 8] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "containerd",
    "kubelet",
    "kube-proxy",
    "forwarder",
];

/// Names the state folder of the platform that is up: there is one namespace and one cgroup of its name on a machine.
const OWNER: &str = "/run/penstock-platform";

/// Held by whoever changes the platform.
///
/// # Errors
/// The lock cannot be had, or the platform that is up has another state folder.
pub fn lock(layout: &Layout) -> Result<Locked> {
    let locked =
        Locked::on(Path::new(&format!("{OWNER}.lock")), "waiting for another `platform` command to end")?;
    if let Ok(owner) = std::fs::read_to_string(OWNER)
        && Path::new(owner.trim()) != layout.state
        && cgroup::present()
    {
        bail!(
            "the platform that is up on this machine keeps its state in {owner}: set PENSTOCK_PLATFORM_DIR={owner} to work with it"
        );
    }
    Ok(locked)
}

/// Brings everything up and returns how to reach it.
///
/// # Errors
/// The first step that fails, with the end of the log concerned. A further call goes on from there.
pub fn up(layout: &Layout) -> Result<PlatformInfo> {
    let _lock = lock(layout)?;
    let mut progress = Progress::new(12);

    // A platform of other ports or of another edition of the certificates is replaced; its data stays.
    if let Ok(running) = PlatformInfo::read(layout)
        && running != PlatformInfo::of(layout)
    {
        eprintln!(
            "the platform that is up was started with other settings: it is restarted, its data is kept"
        );
        cleanup::down(layout, cleanup::Data::Keep)?;
    }

    // A machine that was switched off leaves files of processes, sockets and mounts that are no more.
    if layout.run().exists() && DAEMONS.iter().all(|name| daemon::running(layout, name).is_none()) {
        cleanup::down(layout, cleanup::Data::Keep)?;
    }

    progress.step(
        "what the machine has",
        "a few seconds; two minutes if Debian packages are missing",
        || preflight::check(layout),
    )?;
    let kubernetes = progress.step(
        &format!("Kubernetes {KUBERNETES_VERSION} and etcd, built from source"),
        "5 to 10 minutes the first time, then cached",
        || toolchain::kubernetes(layout),
    )?;
    let tools = progress.step(
        "CoreDNS, metrics-server, Helm, kubeconform, built from source",
        "3 to 6 minutes the first time, then cached",
        || toolchain::tools(layout),
    )?;
    let built = Built { kubernetes, tools };
    let images = progress.step(
        &format!("images of the add-ons, Kafka {KAFKA_VERSION} and ClickHouse"),
        "2 minutes the first time, then cached",
        || images::platform(layout, &built),
    )?;
    progress.step("network namespace and certificates", "a second", || {
        write_atomically(Path::new(OWNER), layout.state.as_os_str().as_encoded_bytes())?;
        std::fs::create_dir_all(layout.run().join("daemons"))?;
        network::ensure()?;
        pki::ensure(layout)?;
        pki::ensure_services(layout)?;
        links(layout, &built)
    })?;
    progress.step("etcd and the API server", "10 seconds", || {
        control_plane::ensure_api(layout, &built.kubernetes)
    })?;
    progress.step("controller manager and scheduler", "a second", || {
        control_plane::ensure_controllers(layout, &built.kubernetes)
    })?;
    progress.step("containerd and its images", "5 seconds, 30 the first time", || {
        node::ensure_containerd(layout)?;
        for image in [
            &images.pause,
            &images.coredns,
            &images.metrics_server,
            &images.kafka,
            &images.clickhouse,
            &images.tls,
        ] {
            images::import(layout, image)?;
        }
        Ok(())
    })?;
    // A cluster that was up before has an aggregated API whose server is a pod: until the node runs it, each call of
    // kubectl waits for it. A new cluster has no right for kube-proxy yet, without which the node does not work.
    let known = layout.data().join("cluster-is-set-up");
    let objects = |progress: &mut Progress| {
        progress.step("objects of the add-ons, Kafka and ClickHouse", "5 seconds", || {
            addons::ensure(layout, &images)?;
            services::ensure(layout, &images)?;
            std::fs::write(&known, "").with_context(|| format!("writing {}", known.display()))
        })
    };
    let node = |progress: &mut Progress| {
        progress.step("the node: kubelet and kube-proxy", "15 seconds", || {
            node::ensure(layout, &built.kubernetes)
        })?;
        progress.step("DNS and resource metrics are ready", "30 seconds", || addons::wait(layout))
    };
    if known.exists() {
        node(&mut progress)?;
        objects(&mut progress)?;
    } else {
        objects(&mut progress)?;
        node(&mut progress)?;
    }
    progress.step("Kafka and ClickHouse are ready", "30 seconds", || services::wait(layout))?;

    let info = PlatformInfo::of(layout);
    info.write(layout)?;
    eprintln!("the platform is up, after {:.1} s", progress.seconds());
    Ok(info)
}

/// One folder with the programs that a person wants on the `PATH`, and `ctr` as `penstock-ctr`, which knows its socket.
fn links(layout: &Layout, built: &Built) -> Result<()> {
    std::fs::create_dir_all(layout.bin())?;
    for (name, target) in [
        ("kubectl", built.kubernetes.join("kubectl")),
        ("helm", built.tools.join("helm")),
        ("kubeconform", built.tools.join("kubeconform")),
    ] {
        let link = layout.bin().join(name);
        if std::fs::read_link(&link).is_ok_and(|current| current == target) {
            continue;
        }
        let _ = std::fs::remove_file(&link);
        symlink(&target, &link).with_context(|| format!("linking {}", link.display()))?;
    }
    let script = layout.bin().join("penstock-ctr");
    write_atomically(
        &script,
        format!(
            "#!/bin/sh\nexec ctr --address {} --namespace k8s.io \"$@\"\n",
            layout.containerd_socket().display()
        )
        .as_bytes(),
    )?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("making {} executable", script.display()))
}

/// The objects that `platform status` shows.
///
/// # Errors
/// The API cannot be reached.
pub fn overview(layout: &Layout) -> Result<String> {
    kubectl(layout).args(["get", "nodes,pods", "--all-namespaces", "--output", "wide"]).output()
}
