//! One pass over one pipeline: observe, validate, build, apply, report.

mod deletion;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use k8s_openapi::{api::apps::v1::Deployment, jiff::Timestamp};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::controller::Action,
};
use penstock_crds::{FIELD_MANAGER, IngestionPipeline, IngestionPipelineStatus, v1alpha1::TopicStatus};

use crate::{
    apply::{Applier, outside as apply_outside},
    build::{self, ImageSource, Objects},
    cleanup::{self, Accesses, Leftovers},
    memory::{Memories, Memory, Planned, Written},
    metrics::Metrics,
    observe::{
        children::{Children, Stores},
        outside::{self, Outside},
        pods,
        references::{ReferenceNames, ReferenceReader, References},
    },
    report::{
        self, ApplyFailure, Difference, Effect, Facts, LAG_WRITE_INTERVAL, Verdict,
        components::Wanted,
        events::{Publisher, transitions},
    },
    sources,
    topics::ManagedKeys,
    validate::{self, Component, Destination, Owner, Problems, ValidatedPipeline},
};

/// Longest time of one pass. Every request has a bound of its own; this one is for what nobody thought of, so that a
/// pipeline is never left to itself while the process looks alive.
const LONGEST_PASS: Duration = Duration::from_secs(300);
/// How long a watch may be behind our own writes of the status.
const WATCH_IS_BEHIND: Duration = Duration::from_secs(5);

/// What every pass needs.
pub struct Context {
    /// To the API server.
    pub client: Client,
    /// Children as the watches see them.
    pub stores: Stores,
    /// Secrets and ConfigMaps that specs name.
    pub references: ReferenceReader,
    /// Kafka and ClickHouse.
    pub outside: Outside,
    /// What is remembered between passes.
    pub memories: Memories,
    /// Tells people.
    pub events: Publisher,
    /// Counts.
    pub metrics: Metrics,
    /// Where the components' image comes from.
    pub images: ImageSource,
    /// Version of the data plane for a spec that names none.
    pub default_version: String,
    /// Time between two looks at what is outside Kubernetes.
    pub resync: Duration,
}

/// Why a pass could not be finished. What can be shown in the status is shown there, and is not an error of the pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The status was not taken.
    #[error("cannot write the status: {0}")]
    Status(kube::Error),
    /// The finalizer was not taken.
    #[error("cannot change the finalizer penstock.dev/cleanup: {0}")]
    Finalizer(kube::Error),
    /// The pods of a pipeline that goes could not be listed.
    #[error("cannot list the pods that are still there: {0}")]
    Pods(kube::Error),
    /// Something in it did not end.
    #[error("the pass was broken off after {} s; what it had not written yet is written in the next one", LONGEST_PASS.as_secs())]
    TooSlow,
    /// The workloads of a pipeline that goes could not be removed.
    #[error(transparent)]
    Stop(#[from] crate::apply::ApplyError),
}

impl Error {
    fn phase(&self) -> &'static str {
        match self {
            Self::Status(_) => "report",
            Self::Finalizer(_) | Self::Pods(_) | Self::Stop(_) => "cleanup",
            Self::TooSlow => "pass",
        }
    }
}

/// One pass.
///
/// # Errors
/// See [`Error`]; the pass is repeated after a pause that grows.
pub async fn reconcile(object: Arc<IngestionPipeline>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let memory = context.memories.of(object.metadata.uid.as_deref().unwrap_or_default());
    let mut memory = memory.lock().await;
    let work = async {
        if object.metadata.deletion_timestamp.is_some() {
            deletion::clean_up(&object, &context, &mut memory).await
        } else {
            pass(&object, &context, &mut memory).await
        }
    };
    let result = tokio::time::timeout(LONGEST_PASS, work).await.unwrap_or(Err(Error::TooSlow));
    match &result {
        Ok(_) => memory.passes.succeeded(),
        Err(error) => context.metrics.failed(error.phase()),
    }
    context.metrics.passed(begun.elapsed(), Timestamp::now().as_second() as f64);
    result
}

/// After a pass that failed.
pub fn after_failure(object: Arc<IngestionPipeline>, error: &Error, context: Arc<Context>) -> Action {
    let memory = context.memories.of(object.metadata.uid.as_deref().unwrap_or_default());
    // Nobody else holds it: passes over one object do not overlap.
    let pause = memory
        .try_lock()
        .map_or(Duration::from_secs(5), |mut memory| memory.passes.failed(error.to_string(), Instant::now()));
    Action::requeue(pause)
}

async fn pass(object: &IngestionPipeline, context: &Context, memory: &mut Memory) -> Result<Action, Error> {
    let owner = owner_of(object);
    let previous = previous_status(object, memory);

    // Observe, the part that needs no valid spec.
    let children = context.stores.children(&owner.namespace, &owner.name, &owner.uid);
    let names = ReferenceNames::of(&object.spec);
    let references = match context.references.read(&owner.namespace, &names).await {
        Ok(references) => references,
        Err(error) => {
            tracing::warn!(%error, "the pass waits");
            context.metrics.failed("observe");
            let verdict = Verdict::Undecided { why: error.to_string() };
            write_report(object, context, memory, &previous, &children, verdict, None).await?;
            return Ok(Action::requeue(memory.passes.failed(error.to_string(), Instant::now())));
        }
    };

    // Validate and build.
    let plan = plan(object, context, memory, references);
    let planned = match plan {
        Ok(planned) => planned,
        Err(problems) => return refuse(object, context, memory, &previous, &children, &problems).await,
    };
    let (pipeline, objects) = (&planned.0, &planned.1);
    let accesses = Accesses::of(pipeline);
    if memory.accesses.as_ref() != Some(&accesses) {
        // Whoever was refused as somebody else is asked again at once.
        memory.kafka.succeeded();
        memory.clickhouse.clear();
        memory.accesses = Some(accesses);
    }

    // Exports that run go on reading the topic that they read, unless somebody has taken the consequences. On every pass:
    // it depends on what runs, and an annotation is no new generation.
    let deployments = memory.newest(&children.deployments);
    memory.sources =
        sources::running(pipeline, objects, &deployments, &children.config_maps, &memory.sources);
    let source_changes = match sources::decide(pipeline, &memory.sources, object.annotations()) {
        Ok(changes) => changes,
        Err(problem) => {
            return refuse(object, context, memory, &previous, &children, &problem.into()).await;
        }
    };

    // The finalizer comes before anything that it is there to clean up.
    let needs_finalizer = !Leftovers::of(object).is_empty();
    if needs_finalizer != cleanup::has_finalizer(object) {
        cleanup::set_finalizer(&context.client, object, needs_finalizer).await.map_err(Error::Finalizer)?;
        // The change comes back as an event, with the version of the object that the next write needs.
        return Ok(Action::requeue(Duration::from_secs(1)));
    }

    // Observe what is outside.
    let tables = outside::tables(pipeline);
    let kafka = outside::kafka(&context.outside, pipeline, &mut memory.kafka).await;
    let clickhouse = outside::clickhouse(&context.outside, &tables, &mut memory.clickhouse).await;

    // Apply: topics and tables first. A key that we are about to set is remembered before it is set.
    let managed = managed_keys(&previous);
    let topic_plan = apply_outside::plan_topics(&pipeline.kafka, &kafka, &managed);
    let managed = topic_plan.as_ref().map_or(managed, |plan| plan.managed_keys.clone());
    let known = topic_statuses(&previous, &managed, &BTreeSet::new());
    if topic_plan.as_ref().is_some_and(|plan| !plan.actions.is_empty()) && known != previous.topics {
        let status = IngestionPipelineStatus { topics: known, ..previous.clone() };
        write_status(object, context, memory, status).await?;
    }
    let topics =
        apply_outside::apply_topics(&context.outside, pipeline, &kafka, topic_plan, &context.metrics).await;
    let tables = apply_outside::apply_tables(&context.outside, &tables, &clickhouse, &context.metrics).await;
    context.events.publish_all(object, &topics.notices).await;
    context.events.publish_all(object, &tables.notices).await;
    let topic_statuses = topic_statuses(&previous, &managed, &topics.existing);

    // Then the objects.
    let known: BTreeSet<&str> = topic_statuses.iter().map(|topic| topic.name.as_str()).collect();
    let held = held_back(pipeline, &known, &topics, &tables, &children);
    let source_changes: Vec<_> = source_changes
        .into_iter()
        .filter(|change| !held.contains_key(&Component::Export(change.export.clone()).to_string()))
        .collect();
    if source_changes != memory.source_changes_told {
        context.events.publish_all(object, &sources::notices(&source_changes)).await;
        memory.source_changes_told = source_changes;
    }
    let applied = {
        let mut applier = Applier {
            client: &context.client,
            owner: &owner,
            verified: &mut memory.verified,
            metrics: &context.metrics,
        };
        let held: BTreeSet<&str> = held.keys().map(String::as_str).collect();
        match applier.apply(objects, &children, &held).await {
            Ok(deployments) => applier
                .remove_orphans(objects, &children, object.metadata.generation)
                .await
                .map(|()| deployments),
            Err(error) => Err(error),
        }
    };
    let apply_failure = match applied {
        Ok(deployments) => {
            memory.deployments = deployments.into_iter().map(|live| (live.name_any(), live)).collect();
            None
        }
        Err(error) => {
            tracing::warn!(%error, "the objects are not all written");
            context.metrics.failed("apply");
            Some(ApplyFailure { why: error.to_string(), refused: error.is_refused() })
        }
    };

    // Report.
    let unready = memory.newest(&children.deployments).iter().any(|deployment| {
        let status = deployment.status.clone().unwrap_or_default();
        // While pods roll, the old ones may be as many as are wanted, and the new one is what there is to tell of.
        status.available_replicas.unwrap_or(0) < deployment.spec.replicas.unwrap_or(1)
            || status.unavailable_replicas.unwrap_or(0) > 0
    });
    let mut pod_troubles =
        if unready { pods::troubles(&context.client, &owner).await } else { BTreeMap::new() };
    for (component, trouble) in &mut pod_troubles {
        *trouble = build::in_terms_of_the_spec(pipeline, component, trouble);
    }
    let failed = apply_failure.is_some();
    let effect = Effect {
        version: pipeline.version.clone(),
        capture_url: build::capture_url(pipeline),
        wanted: wanted(pipeline, objects),
        held,
        pod_troubles,
        lag: apply_outside::lag(pipeline, &kafka),
        kafka: topics.dependency,
        clickhouse: tables.dependency,
        apply_failure,
    };
    let verdict = Verdict::Valid(Box::new(effect));
    write_report(object, context, memory, &previous, &children, verdict, Some(topic_statuses)).await?;
    if failed {
        return Ok(Action::requeue(memory.passes.failed("apply", Instant::now())));
    }
    Ok(Action::requeue(context.resync))
}

/// Says in the status why the spec cannot be made true. What runs is left alone.
async fn refuse(
    object: &IngestionPipeline,
    context: &Context,
    memory: &mut Memory,
    previous: &IngestionPipelineStatus,
    children: &Children,
    problems: &Problems,
) -> Result<Action, Error> {
    context.metrics.failed("validate");
    write_report(object, context, memory, previous, children, Verdict::Invalid(problems), None).await?;
    Ok(Action::requeue(context.resync))
}

fn owner_of(object: &IngestionPipeline) -> Owner {
    Owner {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
        uid: object.metadata.uid.clone().unwrap_or_default(),
    }
}

/// Validates and builds, or remembers what came of the same input before.
fn plan(
    object: &IngestionPipeline,
    context: &Context,
    memory: &mut Memory,
    references: References,
) -> Result<Arc<(ValidatedPipeline, Objects)>, Problems> {
    let generation = object.metadata.generation;
    if let Some(planned) = &memory.planned
        && planned.generation == generation
        && planned.references == references
    {
        return planned.result.clone();
    }
    let result = validate::validate(object, &references, &context.default_version).and_then(|pipeline| {
        let objects = build::objects(&pipeline, &context.images).map_err(|error| {
            Problems::from(validate::Problem::Field { field: "spec".into(), message: error.to_string() })
        })?;
        Ok(Arc::new((pipeline, objects)))
    });
    memory.planned = Some(Planned { generation, references, result: result.clone() });
    result
}

/// What is wanted of each component, for the report.
fn wanted(pipeline: &ValidatedPipeline, objects: &Objects) -> Vec<Wanted> {
    objects
        .components
        .iter()
        .map(|of| Wanted {
            name: of.component.to_string(),
            replicas: pipeline.workload(&of.component).map_or(1, |workload| workload.replicas),
            revision: of.revision.clone(),
        })
        .collect()
}

/// Components that are not created or changed in this pass.
///
/// A pod that starts before its topics would make them itself where the brokers allow that, with the brokers' number of
/// partitions; so a component waits until they are known to exist, now or, while nobody answers, from an earlier pass.
/// An export that has never run waits for its table. One that runs is not held back by it, unless the servers see another
/// cluster than the spec has.
fn held_back(
    pipeline: &ValidatedPipeline,
    known: &BTreeSet<&str>,
    topics: &apply_outside::TopicsOutcome,
    tables: &apply_outside::TablesOutcome,
    children: &Children,
) -> BTreeMap<String, String> {
    let reachable = !topics.existing.is_empty();
    let missing: Vec<&str> = pipeline
        .kafka
        .topics
        .iter()
        .map(|topic| topic.name.as_str())
        .filter(|name| if reachable { !topics.existing.contains(*name) } else { !known.contains(name) })
        .collect();
    let mut held = BTreeMap::new();
    for component in pipeline.components() {
        if !missing.is_empty() {
            held.insert(component.to_string(), format!("waits for topics: {}", missing.join(", ")));
            continue;
        }
        let Component::Export(name) = &component else { continue };
        let Some(Destination::ClickHouse { table, .. }) =
            pipeline.export(name).map(|export| &export.destination)
        else {
            continue;
        };
        let workload = build::workload_name(&pipeline.owner.name, &component);
        let runs = children.deployments.iter().any(|deployment| deployment.name_any() == workload);
        if let Some(why) = tables.disputed.get(table) {
            held.insert(component.to_string(), format!("waits for its cluster: {why}"));
        } else if let Some(why) = tables.unusable.get(table).filter(|_| !runs) {
            held.insert(component.to_string(), format!("waits for its table: {why}"));
        }
    }
    held
}

fn managed_keys(status: &IngestionPipelineStatus) -> ManagedKeys {
    status
        .topics
        .iter()
        .map(|topic| (topic.name.clone(), topic.managed_config.iter().cloned().collect()))
        .collect()
}

/// What the status remembers of topics: those of before, those that are ours, and those that were seen.
fn topic_statuses(
    previous: &IngestionPipelineStatus,
    managed: &ManagedKeys,
    existing: &BTreeSet<String>,
) -> Vec<TopicStatus> {
    let before = previous.topics.iter().map(|topic| &topic.name);
    let names: BTreeSet<&String> = before.chain(existing).chain(managed.keys()).collect();
    names
        .into_iter()
        .map(|name| TopicStatus {
            name: name.clone(),
            managed_config: managed.get(name).into_iter().flatten().cloned().collect(),
        })
        .collect()
}

/// The status that the next one follows: as the watch shows it, or as it was written a moment ago if the watch is behind.
fn previous_status(object: &IngestionPipeline, memory: &Memory) -> IngestionPipelineStatus {
    let seen = object.status.clone().unwrap_or_default();
    match &memory.written {
        Some(written)
            if written.resource_version != object.metadata.resource_version
                && written.at.elapsed() < WATCH_IS_BEHIND =>
        {
            written.status.clone()
        }
        _ => seen,
    }
}

/// Writes the status if it says anything new, and tells people what has changed.
async fn write_report(
    object: &IngestionPipeline,
    context: &Context,
    memory: &mut Memory,
    previous: &IngestionPipelineStatus,
    children: &Children,
    verdict: Verdict<'_>,
    topics: Option<Vec<TopicStatus>>,
) -> Result<(), Error> {
    // Those that were applied in this pass may not have reached the watch.
    let mut deployments = memory.newest(&children.deployments);
    for (name, applied) in &memory.deployments {
        if !deployments.iter().any(|deployment| deployment.name_any() == *name) {
            deployments.push(applied.clone());
        }
    }
    let deployments: Vec<&Deployment> = deployments.iter().map(AsRef::as_ref).collect();
    let facts = Facts {
        generation: object.metadata.generation,
        verdict,
        deployments,
        topics: topics.unwrap_or_else(|| previous.topics.clone()),
    };
    let status = report::status(previous, &facts, Timestamp::now());
    let lag_is_due = memory.written.as_ref().is_none_or(|written| written.at.elapsed() >= LAG_WRITE_INTERVAL);
    match report::difference(previous, &status) {
        Difference::Nothing => return Ok(()),
        Difference::Lag if !lag_is_due => return Ok(()),
        Difference::Lag | Difference::Substance => {}
    }
    let notices = transitions(previous, &status);
    write_status(object, context, memory, status).await?;
    context.events.publish_all(object, &notices).await;
    Ok(())
}

async fn write_status(
    object: &IngestionPipeline,
    context: &Context,
    memory: &mut Memory,
    status: IngestionPipelineStatus,
) -> Result<(), Error> {
    let api: Api<IngestionPipeline> =
        Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let patch = serde_json::json!({
        "apiVersion": IngestionPipeline::api_version(&()),
        "kind": IngestionPipeline::kind(&()),
        "metadata": {"name": object.name_any(), "uid": object.metadata.uid},
        "status": status,
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    match api.patch_status(&object.name_any(), &parameters, &Patch::Apply(&patch)).await {
        Ok(written) => {
            context.metrics.wrote("IngestionPipeline/status", "apply");
            memory.written = Some(Written {
                status,
                resource_version: written.metadata.resource_version,
                at: Instant::now(),
            });
            Ok(())
        }
        // Gone, or another object of the same name: there is nobody left to tell.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => Ok(()),
        Err(error) => Err(Error::Status(error)),
    }
}
