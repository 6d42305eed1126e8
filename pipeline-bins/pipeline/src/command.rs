//! The command line that the binaries share, and the way from it to a running process.
//!
//! ```text
//! capture --config FILE          run
//! capture --check-config FILE    parse and validate, print the verdict, exit 0 or 2
//! ```

use std::{
    error::Error,
    fmt, fs,
    future::Future,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Arg, ArgGroup, value_parser};
use serde::de::DeserializeOwned;
use tracing::{error, info};

use crate::{
    config::{self, Admin, Identity, KafkaConnection},
    health::{self, Health},
    lifecycle::{Shutdown, listen_for_signals},
    telemetry::{self, Metrics},
};

/// Exit code when the command line or the configuration is wrong: a restart cannot help.
const EXIT_CONFIGURATION: u8 = 2;

/// How long a binary may take to stop unless it says otherwise; below Kubernetes' default grace period of 30 s.
const DEFAULT_SHUTDOWN_DEADLINE: Duration = Duration::from_secs(25);

/// What every configuration file says.
pub trait Configuration: DeserializeOwned + Send + 'static {
    /// Who the process is.
    fn identity(&self) -> &Identity;
    /// Where it tells how it is.
    fn admin(&self) -> &Admin;
    /// How it reaches Kafka.
    fn kafka(&self) -> &KafkaConnection;
}

macro_rules! configuration {
    ($($type:ty),*) => {$(
        impl Configuration for $type {
            fn identity(&self) -> &Identity {
                &self.identity
            }
            fn admin(&self) -> &Admin {
                &self.admin
            }
            fn kafka(&self) -> &KafkaConnection {
                &self.kafka
            }
        }
    )*};
}

configuration!(
    config::CaptureConfig,
    config::ConsumerConfig,
    config::TransformationConfig,
    config::ExportConfig
);

/// What a running binary is given besides its configuration. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    /// Which pipeline and component this is.
    pub identity: Identity,
    /// Name of the pod (`POD_NAME`), or of the host outside Kubernetes. Unique among the running replicas.
    pub pod: String,
    /// Where metrics are registered.
    pub metrics: Metrics,
    /// Where checks are registered.
    pub health: Health,
    /// Says when to stop.
    pub shutdown: Shutdown,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML of the expected shape. The message has the field, the line and the column.
    #[error("the configuration {path} is not valid: {source}", path = path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Field, reason, line and column.
        source: serde_yaml_ng::Error,
    },
    /// The file can be read, but what it says makes no sense.
    #[error("the configuration {path} is not valid: {reason}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Field and reason.
        reason: String,
    },
}

/// A binary of the data plane: its name, its configuration and what to check in it.
///
/// `main` is a few lines: `Binary::new("capture", "…").check(check).run(serve)`.
pub struct Binary<C> {
    name: &'static str,
    about: &'static str,
    check: fn(&C) -> Result<(), String>,
    shutdown_deadline: fn(&C) -> Duration,
}

impl<C: Configuration> Binary<C> {
    /// A binary without checks of its own.
    pub fn new(name: &'static str, about: &'static str) -> Self {
        Self { name, about, check: |_| Ok(()), shutdown_deadline: |_| DEFAULT_SHUTDOWN_DEADLINE }
    }

    /// Adds what parsing cannot know (a VRL program compiles, one limit is above another). Runs with `--check-config`
    /// and before every start. The error says which field, why, and what to write instead.
    pub fn check(self, check: fn(&C) -> Result<(), String>) -> Self {
        Self { check, ..self }
    }

    /// How long the process may take to stop once asked; past it, it exits with an error. Default 25 s.
    pub fn shutdown_deadline(self, deadline: fn(&C) -> Duration) -> Self {
        Self { shutdown_deadline: deadline, ..self }
    }

    /// Parses the command line and does what it says. `main` runs until its work is done or until it has stopped after
    /// [`Shutdown::requested`]; metrics, health and logs are up before it starts and stay up until it has returned.
    pub fn run<F, Fut, E>(self, main: F) -> ExitCode
    where
        F: FnOnce(C, Context) -> Fut,
        Fut: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let arguments = self.command_line().get_matches();
        if let Some(path) = arguments.get_one::<PathBuf>("check-config") {
            return match self.load(path) {
                Ok(_) => {
                    println!("OK: {}", path.display());
                    ExitCode::SUCCESS
                }
                Err(error) => refuse(&error),
            };
        }
        let path =
            arguments.get_one::<PathBuf>("config").expect("clap requires one of --config and --check-config");
        let config = match self.load(path) {
            Ok(config) => config,
            Err(error) => return refuse(&error),
        };
        return_large_buffers();
        let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                eprintln!("error: cannot start the runtime: {error}");
                return ExitCode::FAILURE;
            }
        };
        let code = runtime.block_on(self.supervise(config, main));
        // Threads of clients that do not end must not keep the process: everything of value has been flushed by now.
        runtime.shutdown_timeout(Duration::from_secs(1));
        code
    }

    async fn supervise<F, Fut, E>(&self, config: C, main: F) -> ExitCode
    where
        F: FnOnce(C, Context) -> Fut,
        Fut: Future<Output = Result<(), E>>,
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        let pod = pod_name();
        telemetry::init_logs(config.identity(), &pod);
        let metrics = Metrics::new(config.identity());
        let shutdown = Shutdown::new();
        let health = Health::new(shutdown.clone());
        let context = Context {
            identity: config.identity().clone(),
            pod,
            metrics: metrics.clone(),
            health: health.clone(),
            shutdown: shutdown.clone(),
        };
        if let Err(error) = listen_for_signals(shutdown.clone()) {
            error!(%error, "cannot listen for signals");
            return ExitCode::FAILURE;
        }
        let address = config.admin().listen;
        if let Err(error) = health::serve_admin(address, health, metrics).await {
            error!(%error, %address, "cannot serve metrics and health: is another process on this address?");
            return ExitCode::FAILURE;
        }
        info!(binary = self.name, version = env!("CARGO_PKG_VERSION"), admin = %address, "started");

        let deadline = (self.shutdown_deadline)(&config);
        let work = main(config, context);
        let overdue = async {
            shutdown.requested().await;
            tokio::time::sleep(deadline).await;
        };
        tokio::select! {
            result = work => match result.map_err(Into::into) {
                Ok(()) => {
                    info!("stopped");
                    ExitCode::SUCCESS
                }
                Err(error) => {
                    error!(error = chain(error.as_ref()), "stopped by an error");
                    ExitCode::FAILURE
                }
            },
            () = overdue => {
                error!(deadline_ms = deadline.as_millis() as u64, "not stopped within the deadline; leaving");
                ExitCode::FAILURE
            }
        }
    }

    fn load(&self, path: &Path) -> Result<C, ConfigError> {
        let config: C = load_config(path)?;
        let checked = config.kafka().check().and_then(|()| (self.check)(&config));
        checked.map_err(|reason| ConfigError::Invalid { path: path.to_owned(), reason })?;
        Ok(config)
    }

    fn command_line(&self) -> clap::Command {
        let file = |name: &'static str, help: &'static str| {
            Arg::new(name).long(name).value_name("FILE").value_parser(value_parser!(PathBuf)).help(help)
        };
        clap::Command::new(self.name)
            .about(self.about)
            .version(env!("CARGO_PKG_VERSION"))
            .arg(file("config", "Run with this configuration"))
            .arg(file("check-config", "Only say whether this configuration is valid: exit code 0 or 2"))
            .group(ArgGroup::new("mode").args(["config", "check-config"]).required(true))
            .after_help(
                "The configuration is one YAML file; the operator renders it.\nLogs are JSON on standard output; RUST_LOG \
                 sets their level (default info).",
            )
    }
}

impl<C> fmt::Debug for Binary<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binary").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Reads a configuration file. Unknown fields are refused by the types.
pub fn load_config<C: DeserializeOwned>(path: &Path) -> Result<C, ConfigError> {
    let text =
        fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    serde_yaml_ng::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source })
}

/// Gives large freed buffers back to the system. By itself glibc keeps them for reuse once it has seen some, in up to
/// eight heaps per processor: memory that is bounded by our own accounts would look unbounded to the container's limit.
///
/// Not smaller ones: compressing a batch takes a context of one to four megabytes and buffers of up to one, for every batch
/// anew. Mapped, zeroed and unmapped each time they cost a producer as much as half of its CPU time. So buffers from eight
/// megabytes on go back at once, and of what is free at the end of a heap 8 MiB stay: both are said, since saying one
/// switches off glibc's own adjustment of the other.
fn return_large_buffers() {
    #[cfg(target_env = "gnu")]
    // SAFETY: called before the runtime starts its threads; the options take any positive number, and a refusal of them
    // changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 8 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 8 << 20);
        libc::mallopt(libc::M_ARENA_MAX, 4);
    }
}

fn refuse(error: &ConfigError) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::from(EXIT_CONFIGURATION)
}

/// The pod's name from the Downward API; outside Kubernetes the host's name.
fn pod_name() -> String {
    std::env::var(config::POD_NAME)
        .ok()
        .filter(|name| !name.is_empty())
        .or_else(|| fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_owned()))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// An error and its causes in one line, without saying anything twice.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConsumerConfig;

    const CONSUMER: &str = "
identity: {namespace: shop, pipeline: web, component: consumer-main}
admin: {listen: '0.0.0.0:9090', stallAfterMs: 60000}
kafka: {bootstrapServers: 'kafka:9092'}
source: {topic: c, group: g, startFrom: earliest, sessionTimeoutMs: 10000, maxPollIntervalMs: 300000}
transaction: {idPrefix: p, timeoutMs: 10000, maxMessages: 1000, maxBytes: 1000000, maxWaitMs: 100}
sink: ingested
deadLetter: dead-letter
projectsFile: /etc/penstock-projects/projects.yaml
";

    fn load(text: &str) -> Result<ConsumerConfig, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        fs::write(&path, text).unwrap();
        Binary::<ConsumerConfig>::new("consumer", "")
            .check(|config| {
                if config.kafka.bootstrap_servers.is_empty() {
                    return Err("kafka.bootstrapServers: is empty; write host:port".to_owned());
                }
                Ok(())
            })
            .load(&path)
    }

    #[test]
    fn a_complete_file_is_accepted() {
        assert_eq!(load(CONSUMER).unwrap().identity.pipeline, "web");
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_name_and_line() {
        let message = load(&CONSUMER.replace("sink:", "sinc:")).unwrap_err().to_string();
        assert!(message.contains("config.yaml"), "{message}");
        assert!(message.contains("unknown field `sinc`"), "{message}");
        assert!(message.contains("at line 7"), "{message}");
    }

    #[test]
    fn a_wrong_type_is_refused_with_its_path() {
        let message = load(&CONSUMER.replace("timeoutMs: 10000", "timeoutMs: soon")).unwrap_err().to_string();
        assert!(message.contains("transaction.timeoutMs"), "{message}");
        assert!(message.contains("at line 6"), "{message}");
    }

    #[test]
    fn the_binarys_own_check_speaks_as_well() {
        let message = load(&CONSUMER.replace("'kafka:9092'", "''")).unwrap_err().to_string();
        assert!(message.ends_with("kafka.bootstrapServers: is empty; write host:port"), "{message}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load_config::<ConsumerConfig>(Path::new("/does/not/exist.yaml")).unwrap_err();
        assert!(error.to_string().contains("/does/not/exist.yaml"), "{error}");
    }

    #[test]
    fn exactly_one_mode_is_required() {
        let command = Binary::<ConsumerConfig>::new("consumer", "").command_line();
        assert!(command.clone().try_get_matches_from(["consumer"]).is_err());
        assert!(
            command
                .clone()
                .try_get_matches_from(["consumer", "--config", "a", "--check-config", "b"])
                .is_err()
        );
        assert!(command.try_get_matches_from(["consumer", "--check-config", "b"]).is_ok());
    }
}
