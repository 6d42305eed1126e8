//! The cgroups of the platform: by them its processes are found again, even when nothing else is known of them.
//!
//! Daemons are put into `penstock/daemons` of the pids hierarchy (what they start, containerd's shims among it, is
//! born there), and the kubelet keeps its pods under `penstock` of every hierarchy. On a machine with the unified
//! hierarchy alone there is one such tree.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::layout::NODE;

/// The mount points of all cgroup hierarchies that the kubelet uses.
pub fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(mounts) = std::fs::read_to_string("/proc/self/mountinfo") else { return Vec::new() };
    mounts
        .lines()
        .filter(|line| line.contains(" - cgroup "))
        .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
        .collect()
}

/// The same, and the unified hierarchy beside version 1, in which the container runtime makes groups as well.
fn all_trees() -> Vec<PathBuf> {
    let mut all = hierarchies();
    all.push(PathBuf::from("/sys/fs/cgroup/unified"));
    all
}

/// The hierarchy by which processes are tracked.
fn tracking() -> Result<PathBuf> {
    let all = hierarchies();
    all.iter()
        .find(|mount| mount.ends_with("pids"))
        .or_else(|| all.iter().find(|mount| mount.as_path() == Path::new("/sys/fs/cgroup")))
        .cloned()
        .context("no cgroup hierarchy with the pids controller is mounted")
}

/// Makes the platform's cgroups and returns the file into which a daemon writes itself.
///
/// # Errors
/// A hierarchy cannot be written.
pub fn ensure() -> Result<PathBuf> {
    for mount in hierarchies() {
        let group = mount.join(NODE);
        std::fs::create_dir_all(&group).with_context(|| format!("making the cgroup {}", group.display()))?;
        // A cpuset group without CPUs and memory nodes takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = std::fs::read_to_string(mount.join(file))
                && std::fs::read_to_string(group.join(file)).is_ok_and(|own| own.trim().is_empty())
            {
                std::fs::write(group.join(file), value.trim())
                    .with_context(|| format!("setting {file} of {}", group.display()))?;
            }
        }
    }
    let daemons = tracking()?.join(NODE).join("daemons");
    std::fs::create_dir_all(&daemons).with_context(|| format!("making the cgroup {}", daemons.display()))?;
    Ok(daemons.join("cgroup.procs"))
}

/// Every process in the platform's cgroups of the tracking hierarchy.
pub fn processes() -> Vec<i32> {
    let Ok(root) = tracking() else { return Vec::new() };
    let mut pids = Vec::new();
    for group in descendants(&root.join(NODE)) {
        if let Ok(text) = std::fs::read_to_string(group.join("cgroup.procs")) {
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        }
    }
    pids
}

/// Processes in the cgroups of pods: what runs in containers.
pub fn container_processes() -> Vec<i32> {
    let Ok(root) = tracking() else { return Vec::new() };
    descendants(&root.join(NODE).join("kubepods"))
        .iter()
        .filter_map(|group| std::fs::read_to_string(group.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

/// Processes in the cgroup of one container.
pub fn processes_of_container(id: &str) -> Vec<i32> {
    let Ok(root) = tracking() else { return Vec::new() };
    descendants(&root.join(NODE).join("kubepods"))
        .iter()
        .filter(|group| group.ends_with(id))
        .filter_map(|group| std::fs::read_to_string(group.join("cgroup.procs")).ok())
        .flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>())
        .collect()
}

/// Kills everything in the platform's cgroups and removes them.
///
/// # Errors
/// A process or a cgroup is still there after ten seconds.
pub fn kill_and_remove() -> Result<()> {
    let start = Instant::now();
    // Frozen processes take no signal's effect until they are thawed.
    for mount in all_trees() {
        for group in descendants(&mount.join(NODE)) {
            let _ = std::fs::write(group.join("freezer.state"), "THAWED");
            let _ = std::fs::write(group.join("cgroup.freeze"), "0");
        }
    }
    loop {
        let left = processes();
        if left.is_empty() {
            break;
        }
        if start.elapsed() > Duration::from_secs(10) {
            bail!("processes {left:?} do not end after SIGKILL");
        }
        for pid in left {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    for mount in all_trees() {
        let root = mount.join(NODE);
        loop {
            for group in descendants(&root).iter().rev() {
                let _ = std::fs::remove_dir(group);
            }
            if !root.exists() {
                break;
            }
            if start.elapsed() > Duration::from_secs(20) {
                bail!(
                    "the cgroup {} cannot be removed: something else put a process into it",
                    root.display()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    Ok(())
}

/// Whether any cgroup of the platform is still there.
pub fn present() -> bool {
    all_trees().iter().any(|mount| mount.join(NODE).exists())
}

/// A folder and all below it, parents first.
fn descendants(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        open.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
        found.push(dir);
    }
    found
}
