//! Spec and references → [`ValidatedPipeline`]. No client in sight.
//!
//! The API server has checked the schema and the CEL rules; what is checked here is what one object cannot know
//! (references, programs), what the build relies on, and what an older schema may have let through.

mod cluster;
mod names;
mod pipeline;
mod problem;
mod programs;
mod workload;

use std::collections::BTreeSet;

use penstock_crds::{
    IngestionPipeline,
    quantity::HumanDuration,
    v1alpha1::{
        BlockSpec, ClickHouseSpec, ExportSpec, OnError, Project, StartFrom, TransformationSpec, WebhookSpec,
        WorkloadSettings,
    },
};
use penstock_pipeline::config::{self, BlockLimits, ProjectEntry, RetryConfig, StepConfig};

pub use pipeline::{
    Capture, Component, Destination, Export, Kafka, Owner, StageNames, Transformation, ValidatedPipeline,
    Webhook, Workload,
};
pub use problem::{Problem, Problems};

use crate::{
    credentials::{self, KeyRef, ObjectKind},
    observe::references::{Reference, References},
    tables::{self, WantedTable},
    topics::{self, Transformed},
};

/// Most rows that one server block of ClickHouse holds.
const MAX_BLOCK_ROWS: u64 = 1_048_449;
/// Most bytes of one server block.
const MAX_BLOCK_BYTES: u64 = 256 << 20;

/// Checks everything and collects all that is wrong, so that one look at the status is enough.
///
/// `default_version` is the data plane of a spec that names none.
///
/// # Errors
/// Every [`Problem`] found.
pub fn validate(
    object: &IngestionPipeline,
    references: &References,
    default_version: &str,
) -> Result<ValidatedPipeline, Problems> {
    let mut problems = Vec::new();
    let spec = &object.spec;
    let owner = Owner {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
    };
    problems.extend(names::pipeline(&owner.name));

    let version = spec.version.clone().unwrap_or_else(|| default_version.to_owned());
    problems.extend(names::image_tag("spec.version", &version));

    let none = WorkloadSettings::default();
    let defaults = spec.defaults.as_ref().unwrap_or(&none);
    let projects = projects(&spec.projects, &owner.namespace, references, &mut problems);

    let capture_spec = spec.capture.clone().unwrap_or_default();
    let service = capture_spec.service.clone().unwrap_or_default();
    let capture = Capture {
        workload: workload::resolve("spec.capture", &capture_spec.workload, defaults, &mut problems),
        service_type: service.type_,
        service_port: service.port.unwrap_or(80),
        service_annotations: service.annotations.unwrap_or_default(),
        max_body_bytes: capture_spec.max_body_size.map_or(20 << 20, |size| size.0),
        max_concurrent_requests: capture_spec.max_concurrent_requests.unwrap_or(512),
    };
    if capture.max_body_bytes == 0 || capture.max_concurrent_requests == 0 {
        problems.push(Problem::Field {
            field: "spec.capture".into(),
            message: "maxBodySize and maxConcurrentRequests must be greater than 0".into(),
        });
    }

    let lane = spec.consumer.as_ref().and_then(|c| c.lanes.as_ref()).and_then(|l| l.main.as_ref());
    let consumer_main = workload::resolve(
        "spec.consumer.lanes.main",
        lane.map_or(&none, |lane| &lane.workload),
        defaults,
        &mut problems,
    );

    let transformation = spec
        .transformation
        .as_ref()
        .filter(|transformation| !transformation.steps.is_empty())
        .map(|spec| transformation(spec, defaults, &owner.namespace, references, &mut problems));

    let exports = exports(&spec.exports, defaults, &owner, references, &mut problems);

    let kafka_spec = &spec.kafka;
    let prefix =
        kafka_spec.topic_prefix.clone().unwrap_or_else(|| format!("{}.{}.", owner.namespace, owner.name));
    problems.extend(names::bootstrap_servers("spec.kafka.bootstrapServers", &kafka_spec.bootstrap_servers));
    problems.extend(names::topic_prefix("spec.kafka.topicPrefix", &prefix));
    let credentials = credentials::kafka(kafka_spec, &owner.namespace, references, &mut problems);
    let transformed = if transformation.is_some() { Transformed::Wanted } else { Transformed::Absent };
    let topics = topics::stage_topics(&prefix, kafka_spec.topics.as_ref(), transformed);
    for topic in topics.iter().filter(|topic| topic.partitions < 1) {
        problems.push(Problem::Field {
            field: "spec.kafka.topics".into(),
            message: format!(
                "topic {:?} cannot have {} partitions; write 1 or more",
                topic.name, topic.partitions
            ),
        });
    }

    Problems::check(problems)?;
    Ok(ValidatedPipeline {
        owner,
        version,
        kafka: Kafka {
            access: topics::Access {
                bootstrap_servers: kafka_spec.bootstrap_servers.clone(),
                trust: credentials.trust.clone(),
                identity: credentials.admin,
            },
            bootstrap_servers: kafka_spec.bootstrap_servers.clone(),
            trust: credentials.trust,
            identity: credentials.data,
            prefix,
            management: kafka_spec.management,
            topics,
        },
        projects,
        capture,
        consumer_main,
        transformation,
        exports,
        deletion: spec.deletion_policy.unwrap_or_default(),
    })
}

fn projects(
    specs: &[Project],
    namespace: &str,
    references: &References,
    problems: &mut Vec<Problem>,
) -> Vec<ProjectEntry> {
    let mut entries: Vec<ProjectEntry> = Vec::with_capacity(specs.len());
    for project in specs {
        let field = format!("spec.projects[{}]", project.name);
        if project.id <= 0 {
            problems.push(Problem::Field {
                field: field.clone(),
                message: format!("id {} is not positive; write a number from 1", project.id),
            });
        }
        let token = match (&project.token, &project.token_from) {
            (Some(token), None) => {
                if let Err(message) = names::token(token) {
                    problems.push(Problem::Field { field: format!("{field}.token"), message });
                }
                token.clone()
            }
            (None, Some(selector)) => {
                let field = format!("{field}.tokenFrom");
                match secret_text(&field, &selector.secret, &selector.key, namespace, references) {
                    Ok(token) => {
                        let token = token.trim().to_owned();
                        if let Err(message) = names::token(&token) {
                            problems.push(Problem::ReferenceValue {
                                field,
                                kind: "Secret",
                                name: selector.secret.clone(),
                                key: selector.key.clone(),
                                message,
                            });
                        }
                        token
                    }
                    Err(problem) => {
                        problems.push(problem);
                        continue;
                    }
                }
            }
            _ => {
                problems.push(Problem::Field {
                    field,
                    message: "write exactly one of token and tokenFrom".into(),
                });
                continue;
            }
        };
        if let Some(other) = entries.iter().find(|entry| entry.id == project.id || entry.token == token) {
            problems.push(Problem::Field {
                field,
                message: format!(
                    "has the id or the token of project {:?}; events could not be told apart",
                    other.name
                ),
            });
            continue;
        }
        entries.push(ProjectEntry { id: project.id, name: project.name.clone(), token });
    }
    entries.sort_by_key(|entry| entry.id);
    entries
}

fn transformation(
    spec: &TransformationSpec,
    defaults: &WorkloadSettings,
    namespace: &str,
    references: &References,
    problems: &mut Vec<Problem>,
) -> Transformation {
    let mut steps = Vec::with_capacity(spec.steps.len());
    let mut names = BTreeSet::new();
    for step in &spec.steps {
        let field = format!("spec.transformation.steps[{}]", step.name);
        if !names.insert(&step.name) {
            problems.push(Problem::Field {
                field: field.clone(),
                message: "another step has this name; give each its own".into(),
            });
        }
        let vrl = match (&step.vrl, &step.vrl_from) {
            (Some(vrl), None) => vrl.clone(),
            (None, Some(selector)) => {
                let field = format!("{field}.vrlFrom");
                match config_map_text(&field, &selector.config_map, &selector.key, namespace, references) {
                    Ok(vrl) => vrl,
                    Err(problem) => {
                        problems.push(problem);
                        continue;
                    }
                }
            }
            _ => {
                problems
                    .push(Problem::Field { field, message: "write exactly one of vrl and vrlFrom".into() });
                continue;
            }
        };
        if let Err(diagnostics) = programs::check_step(&vrl) {
            problems.push(Problem::Transformation { field, diagnostics });
        }
        let on_error = match step.on_error {
            OnError::DeadLetter => config::OnError::DeadLetter,
            OnError::Pass => config::OnError::Pass,
        };
        steps.push(StepConfig { name: step.name.clone(), on_error, vrl });
    }
    let event_time_budget_ms = spec.event_time_budget.map_or(100, HumanDuration::as_millis);
    if event_time_budget_ms == 0 {
        problems.push(Problem::Field {
            field: "spec.transformation.eventTimeBudget".into(),
            message: "an event needs some time; write for example 100ms".into(),
        });
    }
    Transformation {
        workload: workload::resolve("spec.transformation", &spec.workload, defaults, problems),
        steps,
        event_time_budget_ms,
    }
}

fn exports(
    specs: &[ExportSpec],
    defaults: &WorkloadSettings,
    owner: &Owner,
    references: &References,
    problems: &mut Vec<Problem>,
) -> Vec<Export> {
    let mut exports: Vec<Export> = Vec::with_capacity(specs.len());
    for spec in specs {
        let field = format!("spec.exports[{}]", spec.name);
        problems.extend(names::export(&field, &owner.name, &spec.name));
        if exports.iter().any(|export| export.name == spec.name) {
            problems.push(Problem::Field {
                field: field.clone(),
                message: "another export has this name; give each its own".into(),
            });
        }
        if let Some(condition) = &spec.where_
            && let Err(diagnostics) = programs::check_condition(condition)
        {
            problems.push(Problem::Transformation { field: format!("{field}.where"), diagnostics });
        }
        let destination = match (&spec.clickhouse, &spec.webhook) {
            (Some(clickhouse), None) => {
                clickhouse_destination(&field, clickhouse, spec.block.as_ref(), owner, references, problems)
            }
            (None, Some(webhook)) => {
                webhook_destination(&format!("{field}.webhook"), webhook, owner, references, problems)
            }
            _ => {
                problems.push(Problem::Field {
                    field,
                    message: "write exactly one of clickhouse and webhook".into(),
                });
                continue;
            }
        };
        exports.push(Export {
            name: spec.name.clone(),
            workload: workload::resolve(&field, &spec.workload, defaults, problems),
            start_from: match spec.start_from {
                StartFrom::Earliest => config::StartFrom::Earliest,
                StartFrom::Latest => config::StartFrom::Latest,
            },
            where_: spec.where_.clone(),
            destination,
        });
    }
    exports
}

fn clickhouse_destination(
    field: &str,
    spec: &ClickHouseSpec,
    block: Option<&BlockSpec>,
    owner: &Owner,
    references: &References,
    problems: &mut Vec<Problem>,
) -> Destination {
    problems.extend(names::url(&format!("{field}.clickhouse.url"), &spec.url));
    let (trust, user, ddl) =
        credentials::clickhouse(&format!("{field}.clickhouse"), spec, &owner.namespace, references, problems);
    if let Some(cluster) = &spec.cluster {
        problems.extend(cluster::problems(&format!("{field}.clickhouse.cluster"), cluster));
    }
    for (key, value) in [("database", Some(&spec.database)), ("table", spec.table.as_ref())] {
        if let Some(value) = value {
            problems.extend(names::identifier(&format!("{field}.clickhouse.{key}"), value));
        }
    }
    let block = block.cloned().unwrap_or_default();
    let field = format!("{field}.block");
    let max_rows = block.max_rows.map_or(100_000, |count| count.0);
    let max_bytes = block.max_size.map_or(64 << 20, |size| size.0);
    let max_age_ms = block.max_age.map_or(1_000, HumanDuration::as_millis);
    if max_rows == 0 || max_rows > MAX_BLOCK_ROWS {
        problems.push(Problem::Field {
            field: format!("{field}.maxRows"),
            message: format!("{max_rows} rows are not one insert; write 1 to {MAX_BLOCK_ROWS}"),
        });
    }
    if max_bytes == 0 || max_bytes > MAX_BLOCK_BYTES {
        problems.push(Problem::Field {
            field: format!("{field}.maxSize"),
            message: format!("{max_bytes} bytes are not one insert; write at most 256Mi"),
        });
    }
    Destination::ClickHouse {
        table: WantedTable::from(spec),
        management: spec.management,
        access: tables::Access { trust: trust.clone(), user: ddl },
        trust,
        user,
        block: BlockLimits {
            max_rows: u32::try_from(max_rows).unwrap_or(u32::MAX),
            max_bytes,
            max_age_ms: milliseconds(&format!("{field}.maxAge"), max_age_ms, problems),
        },
    }
}

fn webhook_destination(
    field: &str,
    spec: &WebhookSpec,
    owner: &Owner,
    references: &References,
    problems: &mut Vec<Problem>,
) -> Destination {
    problems.extend(names::url(&format!("{field}.url"), &spec.url));
    let signing = spec.signing.as_ref().map(|signing| signing.key.clone());
    if let Some(selector) = &signing {
        let found = secret_text(
            &format!("{field}.signing"),
            &selector.secret,
            &selector.key,
            &owner.namespace,
            references,
        );
        problems.extend(found.err());
    }
    let allowed_networks = spec.allowed_networks.clone().unwrap_or_default();
    for network in &allowed_networks {
        problems.extend(names::network(&format!("{field}.allowedNetworks"), network));
    }
    let retry = spec.retry.clone().unwrap_or_default();
    let max_attempts = retry.max_attempts.unwrap_or(8);
    let min_backoff_ms = retry.min_backoff.map_or(1_000, HumanDuration::as_millis);
    let max_backoff_ms = retry.max_backoff.map_or(300_000, HumanDuration::as_millis);
    let concurrency = spec.concurrency.unwrap_or(16);
    let timeout_ms = spec.timeout.map_or(10_000, HumanDuration::as_millis);
    if max_attempts == 0 || concurrency == 0 || timeout_ms == 0 {
        problems.push(Problem::Field {
            field: field.to_owned(),
            message: "retry.maxAttempts, concurrency and timeout must be greater than 0".into(),
        });
    }
    if min_backoff_ms > max_backoff_ms {
        problems.push(Problem::Field {
            field: format!("{field}.retry"),
            message: format!("minBackoff {min_backoff_ms}ms is longer than maxBackoff {max_backoff_ms}ms"),
        });
    }
    Destination::Webhook(Webhook {
        url: spec.url.clone(),
        signing,
        headers: spec.headers.clone().unwrap_or_default(),
        timeout_ms: milliseconds(&format!("{field}.timeout"), timeout_ms, problems),
        concurrency,
        retry: RetryConfig { max_attempts: Some(max_attempts), min_backoff_ms, max_backoff_ms },
        allowed_networks,
    })
}

/// A duration that a binary holds in 32 bits of milliseconds.
fn milliseconds(field: &str, ms: u64, problems: &mut Vec<Problem>) -> u32 {
    u32::try_from(ms).unwrap_or_else(|_| {
        problems.push(Problem::Field { field: field.to_owned(), message: "is longer than 49 days".into() });
        u32::MAX
    })
}

/// UTF-8 text behind a key of a Secret.
fn secret_text(
    field: &str,
    name: &str,
    key: &str,
    namespace: &str,
    references: &References,
) -> Result<String, Problem> {
    let from = KeyRef { kind: ObjectKind::Secret, name: name.to_owned(), key: key.to_owned() };
    reference_text(field, &from, namespace, references)
}

/// Text behind a key of a ConfigMap.
fn config_map_text(
    field: &str,
    name: &str,
    key: &str,
    namespace: &str,
    references: &References,
) -> Result<String, Problem> {
    let from = KeyRef { kind: ObjectKind::ConfigMap, name: name.to_owned(), key: key.to_owned() };
    match reference_text(field, &from, namespace, references) {
        // An empty program is told by the compiler.
        Err(Problem::ReferenceValue { .. }) => Ok(String::new()),
        text => text,
    }
}

/// UTF-8 text behind a key of a Secret or ConfigMap, which must hold something.
///
/// # Errors
/// The object, the key or the text is missing; `field` is who asked for it.
pub fn reference_text(
    field: &str,
    from: &KeyRef,
    namespace: &str,
    references: &References,
) -> Result<String, Problem> {
    let (kind, name, key) = (from.kind.name(), from.name.as_str(), from.key.as_str());
    let problem = |message: &str| Problem::ReferenceValue {
        field: field.to_owned(),
        kind,
        name: name.to_owned(),
        key: key.to_owned(),
        message: message.to_owned(),
    };
    let text = match from.kind {
        ObjectKind::Secret => match references.secrets.get(name) {
            Some(Reference::Found(data)) => {
                let bytes = data
                    .get(key)
                    .ok_or_else(|| key_missing(field, kind, name, key, data.keys().map(String::as_str)))?;
                std::str::from_utf8(bytes).map_err(|_| problem("is not text"))?
            }
            Some(Reference::Missing) | None => return Err(missing(field, kind, name, key, namespace)),
        },
        ObjectKind::ConfigMap => match references.config_maps.get(name) {
            Some(Reference::Found(data)) => data
                .get(key)
                .ok_or_else(|| key_missing(field, kind, name, key, data.keys().map(String::as_str)))?,
            Some(Reference::Missing) | None => return Err(missing(field, kind, name, key, namespace)),
        },
    };
    if text.trim().is_empty() { Err(problem("is empty")) } else { Ok(text.to_owned()) }
}

fn missing(field: &str, kind: &'static str, name: &str, key: &str, namespace: &str) -> Problem {
    Problem::ReferenceMissing {
        field: field.to_owned(),
        kind,
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        key: key.to_owned(),
    }
}

fn key_missing<'a>(
    field: &str,
    kind: &'static str,
    name: &str,
    key: &str,
    present: impl Iterator<Item = &'a str>,
) -> Problem {
    let present: Vec<&str> = present.collect();
    Problem::KeyMissing {
        field: field.to_owned(),
        kind,
        name: name.to_owned(),
        key: key.to_owned(),
        present: if present.is_empty() { "no keys".into() } else { format!("only {}", present.join(", ")) },
    }
}

#[cfg(test)]
mod tests;
