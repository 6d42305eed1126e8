//! What the machine lacks, said all at once; and what Debian's packages can give, installed.

use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::cgroup;
use crate::command::{Run, on_path};
use crate::daemon;
use crate::layout::Layout;
use crate::node::CNI_PLUGINS;

/// A program and the Debian package that has it.
const PROGRAMS: [(&str, &str); 14] = [
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("runc", "runc"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("nsenter", "util-linux"),
    ("buildah", "buildah"),
    ("mvn", "maven"),
    ("java", "openjdk-17-jre-headless"),
    ("jlink", "openjdk-17-jdk-headless"),
    ("gcc", "gcc"),
    ("strip", "binutils"),
    ("npm", "npm"),
    ("dpkg", "dpkg"),
];

/// Free space for what is built and for the cluster's images.
const DISK_GIB: u64 = 15;
const MEMORY_GIB: u64 = 6;

/// What cannot be installed from here, each with how to get it.
fn lacking(layout: &Layout) -> Vec<String> {
    let mut lacking = Vec::new();
    if !nix::unistd::geteuid().is_root() {
        lacking
            .push("root: containers and network namespaces need it; run `sudo -E make platform`".to_owned());
    }
    if std::env::consts::ARCH != "x86_64" {
        lacking.push(format!(
            "an x86_64 machine (this is {}): the ClickHouse library exists for that alone",
            std::env::consts::ARCH
        ));
    }
    match Run::new("go").args(["env", "GOVERSION"]).output() {
        Ok(version) if go_is_recent(version.trim()) => {}
        Ok(version) => lacking.push(format!(
            "Go 1.21 or later (this is {}), which fetches the release it needs by itself: https://go.dev/dl",
            version.trim()
        )),
        Err(_) => lacking.push(
            "Go 1.21 or later, which fetches the release it needs by itself: https://go.dev/dl".to_owned(),
        ),
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay")
        && Run::new("modprobe").arg("overlay").quiet().is_err()
    {
        lacking.push("the overlay file system in the kernel (CONFIG_OVERLAY_FS)".to_owned());
    }
    if !Path::new("/proc/self/ns/net").exists() {
        lacking.push("network namespaces in the kernel (CONFIG_NET_NS)".to_owned());
    }
    if cgroup::hierarchies().is_empty() {
        lacking.push("mounted cgroups below /sys/fs/cgroup".to_owned());
    }
    if !Path::new("/dev/kmsg").exists() {
        lacking.push("/dev/kmsg, which the kubelet reads".to_owned());
    }
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or_default();
    if kib < MEMORY_GIB << 20 {
        lacking
            .push(format!("{MEMORY_GIB} GiB of memory (there are {:.1})", kib as f64 / f64::from(1 << 20)));
    }
    if daemon::running(layout, "forwarder").is_none() {
        for (variable, port) in [
            ("PENSTOCK_API_PORT", layout.ports.api),
            ("PENSTOCK_KAFKA_PORT", layout.ports.kafka),
            ("PENSTOCK_CLICKHOUSE_PORT", layout.ports.clickhouse),
        ] {
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
                lacking.push(format!(
                    "port {port} of 127.0.0.1, which another program has: set {variable} to a free one"
                ));
            }
        }
    }
    for dir in [&layout.cache, &layout.state] {
        let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
        if let Ok(space) = nix::sys::statvfs::statvfs(existing) {
            let free = space.blocks_available() * space.fragment_size();
            if free < DISK_GIB << 30 && !layout.data().exists() {
                lacking.push(format!(
                    "{DISK_GIB} GiB of free disk at {} (there are {})",
                    existing.display(),
                    free >> 30
                ));
            }
        }
    }
    lacking
}

fn go_is_recent(version: &str) -> bool {
    let mut parts = version.trim_start_matches("go").split(['.', '-', ' ', 'r', 'b']);
    let number = |part: Option<&str>| part.and_then(|part| part.parse::<u32>().ok()).unwrap_or_default();
    (number(parts.next()), number(parts.next())) >= (1, 21)
}

/// Packages that would bring what is missing.
fn packages() -> Vec<&'static str> {
    let mut packages: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !on_path(program)).map(|(_, package)| *package).collect();
    if !["ptp", "host-local", "loopback"].iter().all(|plugin| Path::new(CNI_PLUGINS).join(plugin).exists()) {
        packages.push("containernetworking-plugins");
    }
    if !["/usr/lib/x86_64-linux-gnu/libc.a", "/usr/lib64/libc.a"].iter().any(|path| Path::new(path).exists())
    {
        packages.push("libc6-dev");
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Fails with the whole list of what is lacking, before anything was changed; installs packages otherwise.
///
/// # Errors
/// The machine lacks something that cannot be installed, or apt-get fails.
pub fn check(layout: &Layout) -> Result<()> {
    let mut lacking = lacking(layout);
    let packages = packages();
    if !on_path("apt-get") {
        lacking.push("apt-get: programs and the base of images come from Debian's packages, so this needs Debian or Ubuntu".to_owned());
    }
    if !lacking.is_empty() {
        bail!("this machine lacks:\n  - {}", lacking.join("\n  - "));
    }
    if packages.is_empty() {
        return Ok(());
    }
    eprintln!("       installing Debian packages: {}", packages.join(" "));
    let log = layout.cache.join("apt.log");
    Run::new("apt-get").args(["update"]).log(&log).quiet()?;
    Run::new("apt-get")
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&packages)
        .env("DEBIAN_FRONTEND", "noninteractive")
        // Where there is an init system: the packages' own services are not wanted, only their programs.
        .env("RUNLEVEL", "1")
        .log(&log)
        .quiet()
        .context("installing Debian packages")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_go_are_compared_as_numbers() {
        for (version, recent) in [
            ("go1.26.8", true),
            ("go1.21", true),
            ("go1.21rc2", true),
            ("go1.19.8", false),
            ("go1.9", false),
            ("go2.0", true),
            ("", false),
        ] {
            assert_eq!(go_is_recent(version), recent, "{version}");
        }
    }
}
