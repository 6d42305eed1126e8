//! Configuration files of the measured processes: what the operator renders for a pipeline whose spec says nothing about
//! them, but for addresses and names.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::{Value, json};

use crate::{
    events::{PROJECT, TOKEN},
    process::{Process, free_address},
};

/// The program of the transformation: drops robots, takes the address out, hides the e-mail address, sets a field.
pub const PROGRAM: &str = r#"
if match(string(.properties."$raw_user_agent") ?? "", r'(?i)bot|crawler|spider|headless') {
  abort
}
del(.properties."$ip")
if exists(.properties.email) {
  .properties.email = sha2(string!(.properties.email), variant: "SHA-256")
}
.properties.checked = true
"#;

/// Where the measured programs are, and where their files go.
pub struct Setup {
    /// Folder of the binaries.
    pub binaries: PathBuf,
    /// Folder of configuration files and logs; taken away at the end.
    pub directory: PathBuf,
    /// `host:port` of Kafka.
    pub kafka: String,
}

/// A started component and the address of its admin server.
pub struct Component {
    /// The process.
    pub process: Process,
    /// Metrics and health.
    pub admin: SocketAddr,
}

impl Setup {
    /// Starts a component with a configuration.
    ///
    /// # Errors
    /// The program is not there.
    pub fn start(&self, program: &str, config: impl FnOnce(&Self, SocketAddr) -> Value) -> Result<Component> {
        let admin = free_address()?;
        let file = self.directory.join(format!("{program}.yaml"));
        // JSON is YAML.
        fs::write(&file, config(self, admin).to_string())?;
        let process = Process::start(&self.directory, program, &self.binaries.join(program), |command| {
            command.arg("--config").arg(&file).env("POD_NAME", format!("bench-{program}"));
        })?;
        Ok(Component { process, admin })
    }

    fn base(&self, component: &str, admin: SocketAddr) -> Value {
        json!({
            "identity": {"namespace": "bench", "pipeline": "bench", "component": component},
            "admin": {"listen": admin, "stallAfterMs": 120_000},
            "kafka": {"bootstrapServers": self.kafka},
        })
    }

    fn projects(&self) -> Result<PathBuf> {
        let file = self.directory.join("projects.yaml");
        fs::write(&file, json!([{"id": PROJECT, "name": "bench", "token": TOKEN}]).to_string())?;
        Ok(file)
    }

    /// Configuration of capture. Its queue is that of a pod with 512 MiB.
    ///
    /// # Errors
    /// The list of projects cannot be written.
    pub fn capture(&self) -> Result<impl Fn(&Self, SocketAddr, SocketAddr, &str, &str) -> Value + use<>> {
        let projects = self.projects()?;
        Ok(move |setup: &Self, admin, listen: SocketAddr, topic: &str, dead_letter: &str| {
            merged(
                setup.base("capture", admin),
                json!({
                    "listen": listen,
                    "topic": topic,
                    "deadLetter": dead_letter,
                    "projectsFile": projects,
                    "limits": {
                        "maxBatchBodyBytes": 20 << 20,
                        "maxEventBodyBytes": 2 << 20,
                        "maxConcurrentRequests": 512,
                        "maxInFlightBytes": 128 << 20,
                        "producerQueueBytes": 128 << 20,
                        "deliveryTimeoutMs": 9_000,
                        "lingerMs": 5,
                        "requestTimeoutMs": 30_000,
                    },
                    "drain": {"readinessDelayMs": 0, "deadlineMs": 5_000},
                }),
            )
        })
    }

    /// Configuration of the consumer.
    ///
    /// # Errors
    /// The list of projects cannot be written.
    pub fn consumer(&self, admin: SocketAddr, way: &Way) -> Result<Value> {
        let transaction = json!({
            "sink": way.to,
            "deadLetter": way.dead_letter,
            "projectsFile": self.projects()?,
            "transaction": transaction(way),
        });
        Ok(merged(merged(self.base("consumer-main", admin), source(way)), transaction))
    }

    /// Configuration of the transformation.
    pub fn transformation(&self, admin: SocketAddr, way: &Way) -> Value {
        let transaction = json!({
            "sink": way.to,
            "deadLetter": way.dead_letter,
            "steps": [{"name": "bench", "onError": "deadLetter", "vrl": PROGRAM}],
            "eventTimeBudgetMs": 1_000,
            "transaction": transaction(way),
        });
        merged(merged(self.base("transformation", admin), source(way)), transaction)
    }

    /// Configuration of an export; `way.to` is the table.
    pub fn export(&self, admin: SocketAddr, way: &Way, url: &str, database: &str) -> Value {
        let destination = json!({
            "deadLetter": way.dead_letter,
            "destination": {"clickHouse": {
                "url": url,
                "database": database,
                "table": way.to,
                "block": {"maxRows": 100_000, "maxBytes": 64 << 20, "maxAgeMs": 1_000},
                "insertTimeoutMs": 60_000,
                "retry": {"minBackoffMs": 200, "maxBackoffMs": 30_000},
            }},
        });
        merged(merged(self.base("export-bench", admin), source(way)), destination)
    }
}

/// What a component reads and writes.
#[derive(Clone, Debug)]
pub struct Way {
    /// Topic that is read.
    pub from: String,
    /// Consumer group.
    pub group: String,
    /// Topic or table that is written.
    pub to: String,
    /// Topic of dead letters.
    pub dead_letter: String,
}

fn source(way: &Way) -> Value {
    json!({"source": {
        "topic": way.from,
        "group": way.group,
        "startFrom": "earliest",
        "sessionTimeoutMs": 10_000,
        "maxPollIntervalMs": 300_000,
    }})
}

fn transaction(way: &Way) -> Value {
    json!({
        "idPrefix": format!("{}.", way.group),
        "timeoutMs": 10_000,
        "maxMessages": 10_000,
        "maxBytes": 16 << 20,
        "maxWaitMs": 100,
    })
}

fn merged(mut first: Value, second: Value) -> Value {
    if let (Some(first), Value::Object(second)) = (first.as_object_mut(), second) {
        first.extend(second);
    }
    first
}

/// A file in which nothing of this run is left behind.
///
/// # Errors
/// The system has no place for it.
pub fn directory() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new().prefix("penstock-bench-").tempdir()?)
}

/// The folder of this very program, in which the others are as well.
///
/// # Errors
/// The system does not tell.
pub fn own_folder() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    Ok(program.parent().unwrap_or(Path::new(".")).to_owned())
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::config::{CaptureConfig, ConsumerConfig, ExportConfig, TransformationConfig};

    use super::*;

    #[test]
    fn the_binaries_take_the_files() {
        let directory = directory().unwrap();
        let setup = Setup {
            binaries: PathBuf::new(),
            directory: directory.path().to_owned(),
            kafka: "127.0.0.1:9092".to_owned(),
        };
        let admin = SocketAddr::from(([127, 0, 0, 1], 9090));
        let way = Way { from: "a".into(), group: "g".into(), to: "b".into(), dead_letter: "d".into() };
        let capture = setup.capture().unwrap()(&setup, admin, admin, "captured", "dead-letter");
        assert_eq!(serde_json::from_value::<CaptureConfig>(capture).unwrap().topic, "captured");
        let consumer = setup.consumer(admin, &way).unwrap();
        assert_eq!(serde_json::from_value::<ConsumerConfig>(consumer).unwrap().source.group, "g");
        let transformation = setup.transformation(admin, &way);
        let transformation: TransformationConfig = serde_json::from_value(transformation).unwrap();
        assert_eq!(transformation.steps.len(), 1);
        let export = setup.export(admin, &way, "http://127.0.0.1:8123", "bench");
        assert_eq!(serde_json::from_value::<ExportConfig>(export).unwrap().source.topic, "a");
    }
}
