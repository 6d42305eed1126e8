//! Taking the platform down, whatever state it was left in.
//!
//! Nothing here trusts a record of what was started: processes are found by their cgroups, mounts by the folders they
//! lie below, namespaces and interfaces by name.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::layout::Layout;
use crate::{cgroup, daemon, network, node};

/// What happens to the data of etcd, Kafka, ClickHouse and the imported images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// It is there at the next start.
    Keep,
    /// The next start begins with an empty cluster.
    Wipe,
}

/// How long containers have to end by themselves before they are killed.
const CONTAINERS: Duration = Duration::from_secs(10);
/// The API server waits for open watches for up to a minute; nobody needs that here.
const API: Duration = Duration::from_secs(3);
const OTHERS: Duration = Duration::from_secs(5);

/// Stops everything. Each step is bounded, and each is done whatever the one before found.
///
/// # Errors
/// Something is left that could not be removed, by name.
pub fn down(layout: &Layout, data: Data) -> Result<()> {
    let _ = std::fs::remove_file(layout.state.join("platform.json"));
    // No kubelet, no restarts: then the containers can be ended in peace, Kafka and ClickHouse among them.
    daemon::stop(layout, "kubelet", OTHERS);
    end_containers();
    for (name, patience) in [
        ("kube-proxy", OTHERS),
        ("kube-scheduler", OTHERS),
        ("kube-controller-manager", OTHERS),
        ("kube-apiserver", API),
        ("etcd", OTHERS),
        ("containerd", OTHERS),
        ("forwarder", OTHERS),
    ] {
        daemon::stop(layout, name, patience);
    }
    let sockets = shim_sockets(layout);
    let killed = cgroup::kill_and_remove();
    let unmounted = unmount_below(&layout.state).and_then(|()| unmount_below(&layout.cache.join("buildah")));
    network::remove();
    for socket in sockets {
        let _ = std::fs::remove_file(socket);
    }
    node::restore_settings(layout);
    remove_log_links(layout);
    remove_cni_results(layout);
    killed?;
    unmounted?;
    for dir in [layout.run(), layout.config(), layout.bin()] {
        remove(&dir)?;
    }
    let _ = std::fs::remove_file(layout.kubeconfig());
    if data == Data::Wipe {
        remove(&layout.state)?;
    }
    let left = leftovers(layout);
    if !left.is_empty() {
        bail!("still there: {}", left.join(", "));
    }
    Ok(())
}

fn remove(dir: &Path) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Sends SIGTERM to what runs in pods and waits for it, not for the processes that hold pods' namespaces.
fn end_containers() {
    let start = Instant::now();
    let pids = || -> Vec<i32> {
        cgroup::container_processes()
            .into_iter()
            .filter(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() != "pause")
            })
            .collect()
    };
    for pid in pids() {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        // A test may have frozen it.
        let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
    }
    while !pids().is_empty() && start.elapsed() < CONTAINERS {
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Sockets of containerd's shims lie in a folder that all containerds of a machine share; each shim's bundle names its own.
fn shim_sockets(layout: &Layout) -> Vec<PathBuf> {
    let bundles = layout.run().join("containerd/io.containerd.runtime.v2.task/k8s.io");
    let Ok(entries) = std::fs::read_dir(bundles) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|bundle| std::fs::read_to_string(bundle.path().join("address")).ok())
        .filter_map(|address| address.trim().strip_prefix("unix://").map(PathBuf::from))
        .collect()
}

fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").context("reading the list of mounts")?;
    Ok(text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(point.replace("\\040", " ")))
        .filter(|point| point.starts_with(dir))
        .collect())
}

/// Unmounts everything below a folder, last mounted first, until nothing is left.
fn unmount_below(dir: &Path) -> Result<()> {
    for attempt in 0.. {
        let mounts = mounts_below(dir)?;
        if mounts.is_empty() {
            return Ok(());
        }
        if attempt == 20 {
            bail!(
                "cannot unmount {}",
                mounts.iter().map(|mount| mount.display().to_string()).collect::<Vec<_>>().join(", ")
            );
        }
        for mount in mounts.iter().rev() {
            // Lazily in the end: a program that looks into a volume must not keep the platform from going down.
            let flags = if attempt < 10 { MntFlags::empty() } else { MntFlags::MNT_DETACH };
            let _ = umount2(mount, flags);
        }
        std::thread::sleep(Duration::from_millis(if attempt == 0 { 0 } else { 50 }));
    }
    Ok(())
}

/// The kubelet keeps links to containers' logs in a folder that it does not let one choose.
fn remove_log_links(layout: &Layout) {
    let Ok(entries) = std::fs::read_dir("/var/log/containers") else { return };
    for link in entries.flatten().map(|entry| entry.path()) {
        if std::fs::read_link(&link).is_ok_and(|target| target.starts_with(layout.logs())) {
            let _ = std::fs::remove_file(link);
        }
    }
    // Fails, as it should, when others' links are there.
    let _ = std::fs::remove_dir("/var/log/containers");
}

/// The same for what CNI remembers about interfaces.
fn remove_cni_results(layout: &Layout) {
    let ours = layout.state.display().to_string();
    let Ok(entries) = std::fs::read_dir("/var/lib/cni/results") else { return };
    for file in entries.flatten() {
        // An entry names the network namespace it is about, and that lies below our folder.
        if std::fs::read_to_string(file.path()).is_ok_and(|text| text.contains(&ours)) {
            let _ = std::fs::remove_file(file.path());
        }
    }
}

/// Whatever of a platform that should be down is still on the machine.
pub fn leftovers(layout: &Layout) -> Vec<String> {
    let mut left: Vec<String> = cgroup::processes().iter().map(|pid| format!("process {pid}")).collect();
    if cgroup::present() {
        left.push("cgroups named penstock".to_owned());
    }
    if network::present() {
        left.push("network namespaces".to_owned());
    }
    left.extend(
        mounts_below(&layout.state)
            .unwrap_or_default()
            .iter()
            .map(|mount| format!("the mount {}", mount.display())),
    );
    left
}
