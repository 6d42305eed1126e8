//! Faults of one container: its process killed or frozen, its pod's network cut.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup;
use crate::command::Run;

/// A running container of the platform.
#[derive(Debug, Clone)]
pub struct Container {
    id: String,
}

impl Container {
    /// Takes an id as a pod's status has it, with or without `containerd://`.
    ///
    /// # Errors
    /// No process runs in a container of this id.
    pub fn of(id: &str) -> Result<Self> {
        let id = id.rsplit('/').next().unwrap_or(id).to_owned();
        ensure!(id.len() >= 12, "{id:?} is not a container's id");
        let container = Self { id };
        container.main_process()?;
        Ok(container)
    }

    fn processes(&self) -> Vec<i32> {
        cgroup::processes_of_container(&self.id)
    }

    /// The process that is process 1 inside the container, by its id on this machine.
    ///
    /// # Errors
    /// Nothing runs in the container.
    pub fn main_process(&self) -> Result<i32> {
        self.processes()
            .into_iter()
            .find(|pid| is_first(*pid))
            .with_context(|| format!("no process runs in the container {}", self.id))
    }

    /// Kills the container's first process as the kernel does when memory is out, and with it all others, and waits
    /// until none is left. The kubelet starts the container anew.
    ///
    /// # Errors
    /// Nothing runs in the container, or it does not end within ten seconds.
    pub fn kill(&self) -> Result<()> {
        let pid = self.main_process()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("killing process {pid}"))?;
        let start = Instant::now();
        while !self.processes().is_empty() {
            if start.elapsed() > Duration::from_secs(10) {
                bail!("the container {} runs on ten seconds after SIGKILL", self.id);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Stops every process of the container where it is, without its knowing: connections stay open and nobody
    /// answers. Dropping the result lets them go on.
    ///
    /// # Errors
    /// Nothing runs in the container.
    pub fn freeze(&self) -> Result<Frozen> {
        self.main_process()?;
        let pids = self.processes();
        for pid in &pids {
            kill(Pid::from_raw(*pid), Signal::SIGSTOP).with_context(|| format!("stopping process {pid}"))?;
        }
        Ok(Frozen { container: self.clone() })
    }

    /// Closes every connection of the container's pod to this port of others, as a peer that resets them would, and says how
    /// many there were. The pod may make new ones at once.
    ///
    /// # Errors
    /// Nothing runs in the container, or the kernel does not close them.
    pub fn hang_up(&self, port: u16) -> Result<usize> {
        let closed = Run::new("nsenter")
            .args([
                "--net",
                "--target",
                &self.main_process()?.to_string(),
                "ss",
                "--kill",
                "--no-header",
                "--tcp",
                "--numeric",
                &format!("dport = :{port}"),
            ])
            .output()?;
        Ok(closed.lines().count())
    }

    /// Drops everything that the container's pod sends to these addresses. Dropping the result heals the network.
    ///
    /// # Errors
    /// Nothing runs in the container, or its routes cannot be changed.
    pub fn cut_from(&self, addresses: &[Ipv4Addr]) -> Result<Cut> {
        let mut cut = Cut { pid: self.main_process()?, addresses: Vec::new() };
        for address in addresses {
            cut.route("replace", *address)?;
            cut.addresses.push(*address);
        }
        Ok(cut)
    }
}

/// Whether a process is the first of its process namespace: its id in the innermost namespace is 1.
fn is_first(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| {
        status.lines().any(|line| line.starts_with("NSpid:") && line.split_whitespace().last() == Some("1"))
    })
}

/// A container that stands still; dropping this lets it go on.
#[derive(Debug)]
#[must_use = "dropping this lets the container go on at once"]
pub struct Frozen {
    container: Container,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in self.container.processes() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
    }
}

/// A network that is cut; dropping this heals it.
#[derive(Debug)]
#[must_use = "dropping this heals the network at once"]
pub struct Cut {
    pid: i32,
    addresses: Vec<Ipv4Addr>,
}

impl Cut {
    fn route(&self, verb: &str, address: Ipv4Addr) -> Result<()> {
        Run::new("nsenter")
            .args([
                "--net",
                "--target",
                &self.pid.to_string(),
                "ip",
                "route",
                verb,
                "blackhole",
                &format!("{address}/32"),
            ])
            .quiet()
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        for address in &self.addresses {
            // Fails when the pod is gone, and its routes with it.
            let _ = self.route("delete", *address);
        }
    }
}
