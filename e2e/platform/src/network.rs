//! The node's network namespace.
//!
//! It has no link to the machine's network. The node needs some default route, or traffic from the node to a
//! service's address is refused before kube-proxy can rewrite it; that route leads into a second namespace which
//! answers "network unreachable" to whatever arrives.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use crate::command::Run;
use crate::layout::{NODE, NODE_IP, OUTSIDE, OUTSIDE_IP};

/// The file by which the node's namespace is entered.
pub fn namespace_file() -> PathBuf {
    PathBuf::from("/run/netns").join(NODE)
}

/// Moves the calling thread, and no other, into the node's namespace. Sockets it opens from then on belong there.
///
/// # Errors
/// The namespace is not there, or the caller may not enter it.
pub fn enter() -> Result<()> {
    enter_namespace(&namespace_file())
}

fn enter_namespace(path: &Path) -> Result<()> {
    let file = File::open(path).with_context(|| {
        format!("the node's network namespace {} is not there: is the platform up?", path.display())
    })?;
    setns(file.as_fd(), CloneFlags::CLONE_NEWNET).context("entering the node's network namespace (root may)")
}

fn exists(namespace: &str) -> bool {
    // After a crash the file may be left without the mount that makes it a namespace.
    std::fs::read_to_string("/proc/self/mountinfo").is_ok_and(|mounts| {
        mounts.lines().any(|line| {
            let point = line.split(' ').nth(4).unwrap_or_default();
            point == format!("/run/netns/{namespace}") || point == format!("/var/run/netns/{namespace}")
        })
    })
}

/// Makes both namespaces and the link between them; what is already there is left alone.
///
/// # Errors
/// `ip` fails, with what it said.
pub fn ensure() -> Result<()> {
    for namespace in [NODE, OUTSIDE] {
        if !exists(namespace) {
            let _ = std::fs::remove_file(format!("/run/netns/{namespace}"));
            Run::new("ip").args(["netns", "add", namespace]).quiet()?;
        }
    }
    let ip = |namespace: &str, args: &str| {
        Run::new("ip").args(["-netns", namespace]).args(args.split(' ')).quiet()
    };
    for namespace in [NODE, OUTSIDE] {
        ip(namespace, "link set lo up")?;
    }
    if ip(NODE, "link show uplink").is_err() {
        Run::new("ip")
            .args(
                format!("-netns {NODE} link add uplink type veth peer name node netns {OUTSIDE}").split(' '),
            )
            .quiet()?;
    }
    ip(NODE, &format!("address replace {NODE_IP}/30 dev uplink"))?;
    ip(OUTSIDE, &format!("address replace {OUTSIDE_IP}/30 dev node"))?;
    ip(NODE, "link set uplink up")?;
    ip(OUTSIDE, "link set node up")?;
    ip(NODE, &format!("route replace default via {OUTSIDE_IP}"))?;
    ip(OUTSIDE, "route replace unreachable default")?;
    // The node forwards between its pods; the outside must, to answer that it does not know the way.
    for namespace in [NODE, OUTSIDE] {
        std::thread::spawn(move || -> Result<()> {
            enter_namespace(&Path::new("/run/netns").join(namespace))?;
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")
                .context("switching on forwarding in the node's namespace")
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that configures the node's namespace panicked"))??;
    }
    Ok(())
}

/// Removes both namespaces, with all interfaces and routes in them.
pub fn remove() {
    for namespace in [NODE, OUTSIDE] {
        if exists(namespace) {
            let _ = Run::new("ip").args(["netns", "delete", namespace]).quiet();
        }
        let _ = std::fs::remove_file(format!("/run/netns/{namespace}"));
    }
}

/// Whether either namespace is still there.
pub fn present() -> bool {
    exists(NODE) || exists(OUTSIDE)
}
