//! Configuration files of the binaries, rendered from their own types.
//!
//! The API leaves out what a user has no opinion about; a binary's file says everything. The numbers that fill the gap
//! are here, with their reasons.

use std::net::SocketAddr;

use penstock_pipeline::config::{
    Admin, CaptureConfig, CaptureLimits, ClickHouseDestination, ClickHouseShard, ConsumerConfig,
    Destination as DestinationConfig, DrainConfig, ExportConfig, Identity, RetryConfig, Source, StartFrom,
    TransactionConfig, TransformationConfig, WebhookDestination,
};
use sha2::{Digest, Sha256};

use super::{
    BuildError, credentials,
    deployment::{ADMIN_PORT, HTTP_PORT},
    secret,
};
use crate::{
    tables::WantedTable,
    validate::{Component, Destination, Export, ValidatedPipeline, Workload},
};

/// Where the ConfigMap is mounted.
pub(super) const CONFIG_DIRECTORY: &str = "/etc/penstock";
/// Where the projects Secret is mounted.
pub(super) const PROJECTS_DIRECTORY: &str = "/etc/penstock-projects";
/// Where a webhook's signing Secret is mounted.
pub(super) const SIGNING_DIRECTORY: &str = "/etc/penstock-signing";

/// The partitions of a pod that vanished go to another after this long. librdkafka's heartbeats come from a thread of
/// their own, every 3 s, so a busy pod is not taken for a dead one.
const SESSION_TIMEOUT_MS: u32 = 10_000;
/// Longer than any time-out towards a destination.
const MAX_POLL_INTERVAL_MS: u32 = 300_000;
/// A source with lag from which nothing was taken for so long is not healthy.
const STALL_AFTER_MS: u64 = 120_000;
/// How long the open transaction of a lost pod holds back readers.
const TRANSACTION_TIMEOUT_MS: u32 = 10_000;
const TRANSACTION_MAX_MESSAGES: u32 = 10_000;
const TRANSACTION_MAX_BYTES: u64 = 16 << 20;
/// What a transaction waits for company: two of them are between a request and its row.
const TRANSACTION_MAX_WAIT_MS: u32 = 100;
/// One insert; far below [`MAX_POLL_INTERVAL_MS`].
const INSERT_TIMEOUT_MS: u32 = 60_000;
/// Below the ten seconds after which client libraries give a request up, so that what they see as failed has failed.
const DELIVERY_TIMEOUT_MS: u32 = 9_000;
const LINGER_MS: u32 = 5;
const REQUEST_TIMEOUT_MS: u32 = 30_000;
/// Bodies of single events, as PostHog has it; `maxBodySize` is that of batches.
const MAX_EVENT_BODY_BYTES: u64 = 2 << 20;
/// Time for Services and load balancers to notice that a pod is not ready any more.
const READINESS_DELAY_MS: u32 = 5_000;
const DRAIN_DEADLINE_MS: u32 = 25_000;
/// What is assumed about memory where the spec sets no limit.
const ASSUMED_MEMORY_BYTES: u64 = 512 << 20;

/// Time between SIGTERM and SIGKILL: all that a component waits for on its way out, and a little more.
pub(super) fn termination_grace_seconds(component: &Component) -> i64 {
    match component {
        Component::Capture => i64::from((READINESS_DELAY_MS + DRAIN_DEADLINE_MS) / 1_000) + 10,
        // An insert or a transaction under way ends or is given up; both are safe to break off.
        Component::ConsumerMain | Component::Transformation | Component::Export(_) => 40,
    }
}

/// How objects are rendered for a version of the data plane.
///
/// `spec.version` pins this together with the image: a change that would alter what running components of a released
/// version get is a new variant, used from the next version on. The test `a_released_version_is_rendered_as_ever` holds
/// the hash of every released one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rendering {
    /// 0.1 and, so far, everything after it.
    V0_1,
}

impl Rendering {
    /// The rendering for an image tag. A tag that is no version gets the newest.
    pub fn of(_version: &str) -> Self {
        Self::V0_1
    }
}

/// Configuration of one component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComponentConfig {
    /// The file.
    pub yaml: String,
    /// First ten hexadecimal digits of its SHA-256.
    pub revision: String,
}

/// Renders the file of one component.
pub(super) fn render(
    pipeline: &ValidatedPipeline,
    component: &Component,
) -> Result<ComponentConfig, BuildError> {
    let Rendering::V0_1 = Rendering::of(&pipeline.version);
    let yaml = match component {
        Component::Capture => serde_yaml_ng::to_string(&capture(pipeline)),
        Component::ConsumerMain => serde_yaml_ng::to_string(&consumer(pipeline)),
        Component::Transformation => serde_yaml_ng::to_string(&transformation(pipeline)),
        Component::Export(name) => {
            serde_yaml_ng::to_string(&pipeline.export(name).map(|e| export(pipeline, e)))
        }
    }
    .map_err(|source| BuildError::Render { component: component.clone(), source })?;
    let mut revision = hex::encode(Sha256::digest(yaml.as_bytes()));
    revision.truncate(10);
    Ok(ComponentConfig { yaml, revision })
}

fn identity(pipeline: &ValidatedPipeline, component: &Component) -> Identity {
    Identity {
        namespace: pipeline.owner.namespace.clone(),
        pipeline: pipeline.owner.name.clone(),
        component: component.to_string(),
    }
}

fn everywhere(port: i32) -> SocketAddr {
    // Both ports are constants below 65536.
    SocketAddr::from(([0, 0, 0, 0], port as u16))
}

fn admin() -> Admin {
    Admin { listen: everywhere(ADMIN_PORT), stall_after_ms: STALL_AFTER_MS }
}

fn source(pipeline: &ValidatedPipeline, component: &Component, start_from: StartFrom) -> Source {
    let (group, topic) = pipeline.reads(component).unwrap_or_default();
    Source {
        topic,
        group,
        start_from,
        session_timeout_ms: SESSION_TIMEOUT_MS,
        max_poll_interval_ms: MAX_POLL_INTERVAL_MS,
    }
}

fn transaction(pipeline: &ValidatedPipeline, component: &Component) -> TransactionConfig {
    TransactionConfig {
        id_prefix: format!("{}{component}.", pipeline.kafka.prefix),
        timeout_ms: TRANSACTION_TIMEOUT_MS,
        max_messages: TRANSACTION_MAX_MESSAGES,
        max_bytes: TRANSACTION_MAX_BYTES,
        max_wait_ms: TRANSACTION_MAX_WAIT_MS,
    }
}

fn projects_file() -> std::path::PathBuf {
    format!("{PROJECTS_DIRECTORY}/{}", secret::KEY).into()
}

fn capture(pipeline: &ValidatedPipeline) -> CaptureConfig {
    let capture = &pipeline.capture;
    let stages = pipeline.stages();
    let memory = memory_limit_bytes(&capture.workload);
    CaptureConfig {
        identity: identity(pipeline, &Component::Capture),
        listen: everywhere(HTTP_PORT),
        admin: admin(),
        kafka: credentials::kafka_connection(pipeline),
        topic: stages.captured,
        dead_letter: stages.dead_letter,
        projects_file: projects_file(),
        limits: CaptureLimits {
            max_batch_body_bytes: capture.max_body_bytes,
            max_event_body_bytes: capture.max_body_bytes.min(MAX_EVENT_BODY_BYTES),
            max_concurrent_requests: capture.max_concurrent_requests,
            // A body and what is made of it live side by side; half of the memory is left for both queues' overhead.
            max_in_flight_bytes: (memory / 4).max(capture.max_body_bytes.saturating_mul(2)),
            producer_queue_bytes: memory / 4,
            delivery_timeout_ms: DELIVERY_TIMEOUT_MS,
            linger_ms: LINGER_MS,
            request_timeout_ms: REQUEST_TIMEOUT_MS,
        },
        drain: DrainConfig { readiness_delay_ms: READINESS_DELAY_MS, deadline_ms: DRAIN_DEADLINE_MS },
    }
}

fn consumer(pipeline: &ValidatedPipeline) -> ConsumerConfig {
    let component = Component::ConsumerMain;
    let stages = pipeline.stages();
    ConsumerConfig {
        identity: identity(pipeline, &component),
        admin: admin(),
        kafka: credentials::kafka_connection(pipeline),
        source: source(pipeline, &component, StartFrom::Earliest),
        transaction: transaction(pipeline, &component),
        sink: stages.ingested,
        dead_letter: stages.dead_letter,
        projects_file: projects_file(),
    }
}

fn transformation(pipeline: &ValidatedPipeline) -> Option<TransformationConfig> {
    let component = Component::Transformation;
    let stages = pipeline.stages();
    let spec = pipeline.transformation.as_ref()?;
    Some(TransformationConfig {
        identity: identity(pipeline, &component),
        admin: admin(),
        kafka: credentials::kafka_connection(pipeline),
        source: source(pipeline, &component, StartFrom::Earliest),
        transaction: transaction(pipeline, &component),
        sink: stages.transformed,
        dead_letter: stages.dead_letter,
        steps: spec.steps.clone(),
        event_time_budget_ms: spec.event_time_budget_ms,
    })
}

fn export(pipeline: &ValidatedPipeline, export: &Export) -> ExportConfig {
    let component = Component::Export(export.name.clone());
    let destination = match &export.destination {
        Destination::ClickHouse { table, block, trust, user, .. } => {
            DestinationConfig::ClickHouse(ClickHouseDestination {
                url: table.url.clone(),
                tls: credentials::clickhouse_tls(trust),
                auth: credentials::clickhouse_auth(user.as_ref()),
                database: table.database.clone(),
                table: table.rows_table(),
                shards: shards(table),
                block: block.clone(),
                insert_timeout_ms: INSERT_TIMEOUT_MS,
                retry: RetryConfig { max_attempts: None, min_backoff_ms: 200, max_backoff_ms: 30_000 },
            })
        }
        Destination::Webhook(webhook) => DestinationConfig::Webhook(WebhookDestination {
            url: webhook.url.clone(),
            signing_key_file: webhook
                .signing
                .as_ref()
                .map(|signing| format!("{SIGNING_DIRECTORY}/{}", signing.key).into()),
            headers: webhook.headers.clone(),
            timeout_ms: webhook.timeout_ms,
            concurrency: webhook.concurrency,
            retry: webhook.retry.clone(),
            allowed_networks: webhook.allowed_networks.clone(),
        }),
    };
    ExportConfig {
        identity: identity(pipeline, &component),
        admin: admin(),
        kafka: credentials::kafka_connection(pipeline),
        source: source(pipeline, &component, export.start_from),
        dead_letter: pipeline.stages().dead_letter,
        where_: export.where_.clone(),
        destination,
    }
}

/// Where the rows go; none for a single server. A change of them is a change of the file, and so rolls the export.
fn shards(table: &WantedTable) -> Vec<ClickHouseShard> {
    table
        .cluster
        .iter()
        .flat_map(|cluster| &cluster.shards)
        .map(|shard| ClickHouseShard { weight: shard.weight, replicas: shard.replicas.clone() })
        .collect()
}

/// Memory limit of the container in bytes; [`ASSUMED_MEMORY_BYTES`] where there is none or it cannot be read.
fn memory_limit_bytes(workload: &Workload) -> u64 {
    workload
        .resources
        .limits
        .as_ref()
        .and_then(|limits| limits.get("memory"))
        .and_then(|quantity| bytes(&quantity.0))
        .unwrap_or(ASSUMED_MEMORY_BYTES)
}

/// Bytes of a Kubernetes quantity with an integer or decimal number and a size suffix.
fn bytes(quantity: &str) -> Option<u64> {
    let split = quantity.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(split);
    let factor: f64 = match suffix {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * factor;
    // Casting saturates; what is below one byte is no limit at all.
    (bytes >= 1.0).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_quantities_are_read_as_the_kubelet_reads_them() {
        for (text, expected) in [
            ("512Mi", Some(512 << 20)),
            ("1Gi", Some(1 << 30)),
            ("1.5Gi", Some(3 << 29)),
            ("1000000", Some(1_000_000)),
            ("1G", Some(1_000_000_000)),
            ("0", None),
            ("-1", None),
            ("x", None),
            ("1Xi", None),
        ] {
            assert_eq!(bytes(text), expected, "{text}");
        }
    }

    #[test]
    fn an_export_into_a_cluster_writes_to_the_rows_of_each_shard() {
        let yaml = crate::build::tests::FULL.replace(
            "{url: \"http://clickhouse.warehouse:8123\", database: analytics}",
            "{url: 'http://clickhouse.warehouse:8123', database: analytics, cluster: {name: two, replication: None, \
             shards: [{replicas: ['http://a:8123']}, {replicas: ['http://b:8123'], weight: 3}]}}",
        );
        let pipeline = crate::build::tests::pipeline(&yaml);
        let config = export(&pipeline, &pipeline.exports[0]);
        let DestinationConfig::ClickHouse(clickhouse) = config.destination else { panic!("no table") };
        assert_eq!(clickhouse.table, "events_local");
        let shard = |weight, url: &str| ClickHouseShard { weight, replicas: vec![url.to_owned()] };
        assert_eq!(clickhouse.shards, [shard(1, "http://a:8123"), shard(3, "http://b:8123")]);
    }

    #[test]
    fn a_pod_has_time_to_drain_before_it_is_killed() {
        let drain = i64::from(READINESS_DELAY_MS + DRAIN_DEADLINE_MS) / 1_000;
        assert!(termination_grace_seconds(&Component::Capture) > drain);
    }
}
