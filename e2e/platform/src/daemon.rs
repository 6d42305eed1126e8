//! Long-running processes: started detached, found again by process id and start time, stopped within a bound.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::command::{append, write_atomically};
use crate::layout::Layout;
use crate::{cgroup, network};

/// A log larger than this is set aside when its component starts.
const LOG_LIMIT: u64 = 64 << 20;

/// Which network a process sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The node's namespace.
    Node,
    /// The machine's own; its threads enter the node's where they must.
    Machine,
}

/// One component's process.
#[derive(Debug)]
pub struct Daemon {
    /// The component's name, as in `platform logs NAME`.
    pub name: &'static str,
    /// The executable.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its network.
    pub network: Network,
    /// Contents that it reads only when it starts: a change restarts it.
    pub reads: Vec<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    pid: i32,
    start_time: u64,
    spec: String,
}

/// What [`Daemon::ensure`] found or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It was running as asked for.
    Already,
    /// It was not running, or ran with other arguments or files.
    Now,
}

impl Daemon {
    fn spec(&self) -> String {
        let mut hash = Sha256::new();
        // The forwarder is this very program, whose path differs between clones.
        if self.network == Network::Node {
            hash.update(self.program.as_os_str().as_encoded_bytes());
        }
        for arg in &self.args {
            hash.update([0]);
            hash.update(arg);
        }
        for path in &self.reads {
            hash.update([1]);
            hash.update(std::fs::read(path).unwrap_or_default());
        }
        hex::encode(hash.finalize())
    }

    /// Starts the process unless it runs already with the same arguments and files.
    ///
    /// # Errors
    /// The program cannot be started.
    pub fn ensure(&self, layout: &Layout) -> Result<Started> {
        let spec = self.spec();
        if let Some(record) = read_record(layout, self.name) {
            if alive(&record) && record.spec == spec {
                return Ok(Started::Already);
            }
            stop(layout, self.name, Duration::from_secs(10));
        }
        self.start(layout, spec).with_context(|| format!("starting {}", self.name))?;
        Ok(Started::Now)
    }

    fn start(&self, layout: &Layout, spec: String) -> Result<()> {
        let log = log_file(layout, self.name);
        std::fs::create_dir_all(layout.logs())?;
        if std::fs::metadata(&log).is_ok_and(|meta| meta.len() > LOG_LIMIT) {
            std::fs::rename(&log, log.with_extension("log.old"))?;
        }
        let output = append(&log)?;
        let procs = File::options().write(true).open(cgroup::ensure()?)?;
        let namespace = match self.network {
            Network::Node => Some(File::open(network::namespace_file())?),
            Network::Machine => None,
        };
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .current_dir(&layout.state)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", &layout.state)
            .envs(layout_environment(layout))
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        // SAFETY: between fork and exec only system calls are made; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                nix::unistd::setsid()?;
                nix::unistd::write(procs.as_fd(), b"0")?;
                if let Some(namespace) = &namespace {
                    setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                }
                let _ = procs.as_raw_fd();
                Ok(())
            });
        }
        let child = command.spawn().with_context(|| format!("executing {}", self.program.display()))?;
        let pid = i32::try_from(child.id()).context("a process id beyond 31 bits")?;
        let record = Record { pid, start_time: start_time(pid).unwrap_or_default(), spec };
        write_atomically(&record_file(layout, self.name), &serde_json::to_vec(&record)?)?;
        // Waited for on a thread, so that a daemon that dies while this program runs is seen as gone, not as a zombie.
        std::thread::spawn(move || {
            let mut child = child;
            let _ = child.wait();
        });
        Ok(())
    }
}

/// What a daemon that is this program needs to find the same layout.
fn layout_environment(layout: &Layout) -> [(&'static str, PathBuf); 2] {
    [("PENSTOCK_PLATFORM_DIR", layout.state.clone()), ("PENSTOCK_CACHE", layout.cache.clone())]
}

/// The log of a component.
pub fn log_file(layout: &Layout, name: &str) -> PathBuf {
    layout.logs().join(format!("{name}.log"))
}

fn record_file(layout: &Layout, name: &str) -> PathBuf {
    layout.run().join("daemons").join(format!("{name}.json"))
}

fn read_record(layout: &Layout, name: &str) -> Option<Record> {
    serde_json::from_slice(&std::fs::read(record_file(layout, name)).ok()?).ok()
}

/// The start time of a process in clock ticks since boot: with the id it names a process for ever.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may hold anything; count from its end.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if state == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn alive(record: &Record) -> bool {
    start_time(record.pid) == Some(record.start_time)
}

/// The process id of a running component.
pub fn running(layout: &Layout, name: &str) -> Option<i32> {
    read_record(layout, name).filter(alive).map(|record| record.pid)
}

/// Fails when a component that was started has ended, with the end of its log.
///
/// # Errors
/// The component does not run.
pub fn check(layout: &Layout, name: &str) -> Result<()> {
    if running(layout, name).is_some() {
        return Ok(());
    }
    let log = log_file(layout, name);
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<&str> = text.trim_end().lines().collect();
    bail!(
        "{name} has ended; its log {} ends with:\n{}",
        log.display(),
        lines[lines.len().saturating_sub(15)..].join("\n")
    )
}

/// Asks a component to end, and after `patience` ends it.
pub fn stop(layout: &Layout, name: &str, patience: Duration) {
    if let Some(pid) = running(layout, name) {
        let start = Instant::now();
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        while running(layout, name).is_some() {
            if start.elapsed() > patience {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if start.elapsed() > patience + Duration::from_secs(5) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let _ = std::fs::remove_file(record_file(layout, name));
}

/// Copies of a file's content are what a daemon reads: writes it, and returns its path for [`Daemon::reads`].
///
/// # Errors
/// The configuration folder cannot be written.
pub fn config_file(dir: &Path, name: &str, content: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    write_atomically(&path, content.as_bytes())?;
    Ok(path)
}
