//! The measured processes: started, asked what they used, and stopped.

use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Longest time to get ready.
const START: Duration = Duration::from_secs(60);
/// Longest time to stop before it is killed.
const STOP: Duration = Duration::from_secs(20);

/// Unit of the times in `/proc/PID/stat`: fixed by the interface of the kernel.
const TICKS_PER_SECOND: u64 = 100;

/// What a process has used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// User and system time of all its threads.
    pub cpu: Duration,
    /// The most memory that it has had, bytes.
    pub peak_memory: u64,
}

/// What the process with this id has used since it started.
///
/// # Errors
/// There is no such process.
pub fn used(pid: u32) -> Result<Used> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}: has the process ended?"))
    };
    let ticks = ticks(&read("stat")?).with_context(|| format!("/proc/{pid}/stat is not as expected"))?;
    let peak = read("status")?
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(Used {
        cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
        peak_memory: peak.unwrap_or_default() * 1024,
    })
}

/// User and system time in `/proc/PID/stat`. The name of the program may hold spaces and parentheses.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// CPU time that this very process, which makes the load, has used.
///
/// # Errors
/// As [`used`].
pub fn own_cpu() -> Result<Duration> {
    Ok(used(std::process::id())?.cpu)
}

/// A started process; stopped when dropped.
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program. What it says goes to a file in `directory`.
    ///
    /// # Errors
    /// The program is not there.
    pub fn start(
        directory: &Path,
        name: &str,
        program: &Path,
        configure: impl FnOnce(&mut Command),
    ) -> Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let output = fs::File::create(&log)?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        configure(&mut command);
        let child = command.spawn().with_context(|| {
            format!(
                "cannot start {}: build it with `cargo build --profile dist --workspace --bins`",
                program.display()
            )
        })?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has used so far.
    ///
    /// # Errors
    /// It has ended; the message has the end of its log.
    pub fn used(&mut self) -> Result<Used> {
        self.check()?;
        used(self.pid())
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// It has ended; the message has the end of its log.
    pub fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(10).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        bail!("{} ended with {status}; its last words:\n{}", self.name, last.join("\n"))
    }

    /// Waits until it takes connections.
    ///
    /// # Errors
    /// It ends, or does not in a minute.
    pub fn wait_listening(&mut self, address: SocketAddr) -> Result<()> {
        self.wait("listens", || TcpStream::connect(address).is_ok())
    }

    /// Waits until its admin server calls it ready.
    ///
    /// # Errors
    /// It ends, or does not in a minute.
    pub fn wait_ready(&mut self, admin: SocketAddr) -> Result<()> {
        self.wait("is ready", || is_ready(admin).unwrap_or(false))
    }

    fn wait(&mut self, what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + START;
        while !is_so() {
            self.check()?;
            if Instant::now() > deadline {
                let _ = self.child.kill();
                let _ = self.child.wait();
                self.check().with_context(|| format!("never: {} {what}", self.name))?;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its id is a positive number that belongs to it until it is waited for.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let deadline = Instant::now() + STOP;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready(admin: SocketAddr) -> std::io::Result<bool> {
    use std::io::Write as _;
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}

/// An address of this machine on which nobody listens.
///
/// # Errors
/// The machine has none left.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_behind_any_name() {
        let stat = "7 (a) (b c) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 4 0 100 1000 10";
        assert_eq!(ticks(stat), Some(300));
        assert_eq!(ticks("7 (a"), None);
    }

    #[test]
    fn work_of_this_process_is_counted() {
        let before = own_cpu().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while own_cpu().unwrap() == before {
            assert!(Instant::now() < deadline, "a minute of work was not counted");
        }
    }
}
