//! ClickHouse servers as processes of this machine, each a shard of one cluster, for tests that kill them.
//!
//! They are the platform's ClickHouse in everything but their place: they need what it was built from, and not that it
//! runs. A server with its data is a folder of its own, which outlives its process and not this value.

use std::{
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    command::{append, wait_until},
    layout::Layout,
    services::clickhouse_answers,
    toolchain,
};

/// A server answers within a second where nothing else runs.
const START: Duration = Duration::from_secs(60);

/// Below the ports that the kernel gives to outgoing connections, so that a server that was killed finds its own free.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// How often a port is looked for.
const ATTEMPTS: u16 = 200;

/// The servers of a cluster, one for each shard. Dropping this kills them and removes their data.
#[derive(Debug)]
pub struct Shards {
    folder: PathBuf,
    program: PathBuf,
    library: PathBuf,
    servers: Vec<Server>,
}

#[derive(Debug)]
struct Server {
    http: u16,
    native: u16,
    weight: u32,
    process: Option<Child>,
}

impl Shards {
    /// Name of the cluster in the configuration of each server.
    pub const CLUSTER: &str = "penstock";

    /// Starts a server for each weight, and waits until all of them answer.
    ///
    /// # Errors
    /// The server is not there and cannot be fetched, no ports are free, or one does not answer in time.
    pub fn start(weights: &[u32]) -> Result<Self> {
        let layout = Layout::from_env()?;
        let library = toolchain::clickhouse(&layout)?;
        let program = toolchain::clickhouse_launcher(&layout)?;
        let mut servers = Vec::new();
        for weight in weights {
            servers.push(Server { http: free_port()?, native: free_port()?, weight: *weight, process: None });
        }
        let folder = std::env::temp_dir().join(format!(
            "penstock-shards-{}-{}",
            std::process::id(),
            servers.first().map_or(0, |server| server.http)
        ));
        let mut shards = Self { folder, program, library, servers };
        for shard in 0..shards.servers.len() {
            std::fs::create_dir_all(shards.data(shard)).context("making the folder of a shard")?;
            std::fs::write(shards.config(shard), shards.configuration()).context("configuring a shard")?;
        }
        std::fs::write(shards.folder.join("users.xml"), USERS).context("writing the users of the shards")?;
        for shard in 0..shards.servers.len() {
            shards.spawn(shard)?;
        }
        for shard in 0..shards.servers.len() {
            shards.wait(shard)?;
        }
        Ok(shards)
    }

    /// URL of the HTTP interface of a shard, from 0.
    pub fn url(&self, shard: usize) -> String {
        format!("http://{}", self.address(shard))
    }

    /// `host:port` of the HTTP interface of a shard, from 0.
    pub fn address(&self, shard: usize) -> String {
        format!("{}:{}", Ipv4Addr::LOCALHOST, self.servers[shard].http)
    }

    /// Weights of the shards.
    pub fn weights(&self) -> impl Iterator<Item = u32> + Clone {
        self.servers.iter().map(|server| server.weight)
    }

    /// Kills the server of a shard with SIGKILL; [`Self::restart`] brings it back.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self, shard: usize) -> Result<()> {
        let Some(mut process) = self.servers[shard].process.take() else {
            bail!("shard {shard} does not run")
        };
        // The launcher's death is the server's, by the kernel and with the same signal.
        process.kill().context("killing a shard")?;
        process.wait().context("waiting for the end of a shard")?;
        let port = self.servers[shard].http;
        wait_until("a shard that was killed is gone", START, || {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map(drop).context("its port is taken")
        })
    }

    /// Starts the server of a shard that was killed, with its data, and waits until it answers.
    ///
    /// # Errors
    /// It runs already, or does not answer in time.
    pub fn restart(&mut self, shard: usize) -> Result<()> {
        if self.servers[shard].process.is_some() {
            bail!("shard {shard} runs already");
        }
        self.spawn(shard)?;
        self.wait(shard)
    }

    /// Stops the server of a shard where it is: connections to it stand, new ones are taken by the kernel, and nobody answers.
    /// [`Self::thaw`] lets it go on with all that has come meanwhile.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self, shard: usize) -> Result<()> {
        self.signal(shard, Signal::SIGSTOP)
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self, shard: usize) -> Result<()> {
        self.signal(shard, Signal::SIGCONT)
    }

    fn signal(&self, shard: usize, signal: Signal) -> Result<()> {
        let process = self.servers[shard].process.as_ref().context("the shard does not run")?;
        // The server is the launcher's only child.
        let path = format!("/proc/{0}/task/{0}/children", process.id());
        let children = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let server = children.split_whitespace().next().context("the launcher has no server")?;
        kill(Pid::from_raw(server.parse()?), signal).with_context(|| format!("{signal} to shard {shard}"))
    }

    fn data(&self, shard: usize) -> PathBuf {
        self.folder.join(format!("shard-{shard}"))
    }

    fn config(&self, shard: usize) -> PathBuf {
        self.folder.join(format!("shard-{shard}.xml"))
    }

    fn log(&self, shard: usize) -> PathBuf {
        self.folder.join(format!("shard-{shard}.log"))
    }

    fn configuration(&self) -> String {
        let mut text = format!(
            "<clickhouse>\n<users_config>{}</users_config>\n<remote_servers><{}>\n",
            self.folder.join("users.xml").display(),
            Self::CLUSTER
        );
        for server in &self.servers {
            text.push_str(&format!(
                "<shard><weight>{}</weight><internal_replication>true</internal_replication>\
                 <replica><host>{}</host><port>{}</port></replica></shard>\n",
                server.weight,
                Ipv4Addr::LOCALHOST,
                server.native
            ));
        }
        text.push_str(&format!("</{}></remote_servers>\n</clickhouse>\n", Self::CLUSTER));
        text
    }

    fn spawn(&mut self, shard: usize) -> Result<()> {
        let log = append(&self.log(shard))?;
        let server = &self.servers[shard];
        let process = Command::new(&self.program)
            .arg(format!("--path={}", self.data(shard).display()))
            .arg(format!("--config-file={}", self.config(shard).display()))
            .arg(format!("--http_port={}", server.http))
            .arg(format!("--tcp_port={}", server.native))
            .arg(format!("--listen_host={}", Ipv4Addr::LOCALHOST))
            .env("LD_LIBRARY_PATH", &self.library)
            .current_dir(self.data(shard))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        self.servers[shard].process = Some(process);
        Ok(())
    }

    /// Waits until a shard answers. One that was killed a moment ago may still hold its folder, and its successor ends.
    fn wait(&mut self, shard: usize) -> Result<()> {
        let waited = wait_until(&format!("shard {shard}"), START, || {
            if let Some(process) = &mut self.servers[shard].process
                && process.try_wait()?.is_some()
            {
                self.spawn(shard)?;
            }
            clickhouse_answers(self.servers[shard].http)
        });
        waited.with_context(|| said(&self.log(shard)))
    }
}

impl Drop for Shards {
    fn drop(&mut self) {
        for server in &mut self.servers {
            if let Some(process) = &mut server.process {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Whoever comes without a password may do everything: the port is open to this machine alone.
const USERS: &str = "<clickhouse><profiles><default/></profiles><quotas><default/></quotas><users><default><password/>\
    <networks><ip>127.0.0.1</ip></networks><profile>default</profile><quota>default</quota></default></users></clickhouse>\n";

/// The end of a log, for a message about it.
fn said(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    format!("it says: {}", lines[lines.len().saturating_sub(10)..].join("\n"))
}

/// A port of 127.0.0.1 that nobody listens on. Each is given out once by this process, and processes begin at different
/// places.
fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = PORTS.end - PORTS.start;
    let first = u16::try_from(std::process::id().wrapping_mul(61) % u32::from(count)).unwrap_or(0);
    for _ in 0..ATTEMPTS {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = PORTS.start + first.wrapping_add(next) % count;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("none of {ATTEMPTS} ports of 127.0.0.1 is free")
}
