//! The `platform` command.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use penstock_platform::cleanup::{self, Data};
use penstock_platform::forward::Forward;
use penstock_platform::info::PlatformInfo;
use penstock_platform::layout::Layout;
use penstock_platform::{daemon, images, up};

/// A real single-node Kubernetes cluster with Kafka and ClickHouse, on this machine alone.
#[derive(Debug, Parser)]
#[command(name = "platform", version)]
struct Cli {
    #[command(subcommand)]
    command: Platform,
}

#[derive(Debug, Subcommand)]
enum Platform {
    /// Brings the platform up, or finds that it is: about 15 minutes on a fresh machine, under a minute after `down`.
    Up,
    /// Stops the platform; nothing of it is left running. The data is kept for the next `up`.
    Down(Down),
    /// Shows what runs.
    Status,
    /// Prints a component's log: a process of the platform, or coredns, metrics-server, kafka, clickhouse.
    Logs {
        /// The component; without one, all names.
        component: Option<String>,
        /// Goes on printing what is added.
        #[arg(short, long)]
        follow: bool,
    },
    /// Prints shell commands that point kubectl and helm at the platform: `eval "$(platform env)"`.
    Env,
    /// Builds the images of the operator and the pipeline from `target/release` and imports them.
    Images {
        /// The tag of both.
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        tag: String,
    },
    /// Listens on ports of 127.0.0.1 for addresses in the cluster until it is ended.
    Forward {
        /// Each as PORT=ADDRESS:PORT.
        #[arg(required = true)]
        forwards: Vec<String>,
    },
}

#[derive(Debug, Args)]
#[group(multiple = false)]
struct Down {
    /// Keeps the data (the default).
    #[arg(long)]
    keep_data: bool,
    /// Removes the data of etcd, Kafka and ClickHouse, the imported images, certificates and logs.
    #[arg(long)]
    wipe_data: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match Layout::from_env().and_then(|layout| run(&layout, cli.command)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("platform: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(layout: &Layout, command: Platform) -> Result<ExitCode> {
    match command {
        Platform::Up => {
            let info = up::up(layout)?;
            println!("\n  {}\n", environment(&info).replace('\n', "\n  "));
            println!(
                "  Kafka        {} on this machine, {} in the cluster",
                info.kafka_on_host(),
                info.kafka_bootstrap
            );
            println!(
                "  ClickHouse   {} on this machine, {} in the cluster",
                info.clickhouse_on_host(),
                info.clickhouse_url
            );
            println!("  logs         {} logs COMPONENT", program());
            println!("  stop         make platform-down");
        }
        Platform::Down(down) => {
            let _lock = up::lock(layout)?;
            let start = std::time::Instant::now();
            eprintln!("stopping the platform (up to 40 seconds)");
            cleanup::down(layout, if down.wipe_data { Data::Wipe } else { Data::Keep })?;
            let data = if down.wipe_data { "the data is gone" } else { "the data is kept" };
            eprintln!("the platform is down after {:.1} s; {data}", start.elapsed().as_secs_f64());
        }
        Platform::Status => return status(layout),
        Platform::Logs { component, follow } => return logs(layout, component.as_deref(), follow),
        Platform::Env => println!("{}", environment(&PlatformInfo::read(layout)?)),
        Platform::Images { tag } => {
            PlatformInfo::read(layout)?;
            let _lock = up::lock(layout)?;
            for image in images::ours(layout, &tag)? {
                println!("{} {}", image.name, image.id);
            }
        }
        Platform::Forward { forwards } => forward(&forwards)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn environment(info: &PlatformInfo) -> String {
    format!("export KUBECONFIG={}\nexport PATH={}:$PATH", info.kubeconfig.display(), info.bin.display())
}

fn program() -> String {
    std::env::args().next().unwrap_or_else(|| "platform".to_owned())
}

fn status(layout: &Layout) -> Result<ExitCode> {
    let mut all = true;
    for name in up::DAEMONS {
        match daemon::running(layout, name) {
            Some(pid) => println!("{name:<26} process {pid}"),
            None => {
                all = false;
                println!("{name:<26} not running");
            }
        }
    }
    if !all {
        let left = cleanup::leftovers(layout);
        if !left.is_empty() {
            println!(
                "\nthe platform is not whole: `platform up` completes it, `platform down` removes it ({})",
                left.join(", ")
            );
        }
        return Ok(ExitCode::FAILURE);
    }
    println!("\n{}", up::overview(layout)?);
    Ok(ExitCode::SUCCESS)
}

/// Components that are pods, with their namespaces and workloads.
const PODS: [(&str, &str, &str); 4] = [
    ("coredns", "kube-system", "deployment/coredns"),
    ("metrics-server", "kube-system", "deployment/metrics-server"),
    ("kafka", "streaming", "statefulset/kafka"),
    ("clickhouse", "warehouse", "statefulset/clickhouse"),
];

fn logs(layout: &Layout, component: Option<&str>, follow: bool) -> Result<ExitCode> {
    let names: Vec<&str> = up::DAEMONS.into_iter().chain(PODS.map(|(name, ..)| name)).collect();
    let Some(component) = component else {
        println!("{}", names.join("\n"));
        return Ok(ExitCode::SUCCESS);
    };
    let mut command;
    if let Some((_, namespace, workload)) = PODS.iter().find(|(name, ..)| *name == component) {
        command = Command::new(layout.bin().join("kubectl"));
        command.arg("--kubeconfig").arg(layout.kubeconfig()).args([
            "--namespace",
            namespace,
            "logs",
            workload,
        ]);
        if follow {
            command.arg("--follow");
        }
    } else if up::DAEMONS.contains(&component) {
        command = Command::new("tail");
        command
            .args(if follow { ["-n", "100", "-F"].as_slice() } else { ["-n", "+1"].as_slice() })
            .arg(daemon::log_file(layout, component));
    } else {
        bail!("no component is named {component}; there are {}", names.join(", "));
    }
    // exec returns only when it fails.
    Err(command.exec()).with_context(|| format!("showing the log of {component}"))
}

fn forward(forwards: &[String]) -> Result<()> {
    let mut open = Vec::new();
    for text in forwards {
        let (port, target) =
            text.split_once('=').with_context(|| format!("{text} is not PORT=ADDRESS:PORT"))?;
        let port: u16 = port.parse().with_context(|| format!("{port} is not a port"))?;
        let target: SocketAddr = target.parse().with_context(|| format!("{target} is not ADDRESS:PORT"))?;
        open.push(Forward::from_port(port, target)?);
    }
    loop {
        std::thread::park();
    }
}
