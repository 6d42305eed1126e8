//! The pass over a pipeline that goes.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::{ResourceExt, runtime::controller::Action};
use penstock_crds::{IngestionPipeline, IngestionPipelineStatus};

use super::{Context, Error, owner_of, previous_status, write_status};
use crate::{
    cleanup::{self, Accesses, Leftovers, Step},
    memory::Memory,
    observe::references::ReferenceNames,
    report::{
        conditions::{State, Statement, conditions},
        events::Notice,
    },
};

/// A pass over a pipeline that is being deleted.
pub(super) async fn clean_up(
    object: &IngestionPipeline,
    context: &Context,
    memory: &mut Memory,
) -> Result<Action, Error> {
    if !cleanup::has_finalizer(object) {
        return Ok(Action::await_change());
    }
    let owner = owner_of(object);
    let leftovers = Leftovers::of(object);
    let children = context.stores.children(&owner.namespace, &owner.name, &owner.uid);
    let pods = cleanup::pods(&context.client, &owner).await.map_err(Error::Pods)?;
    let step = cleanup::step(cleanup::Deletion {
        has_finalizer: true,
        skip: object.annotations().get(cleanup::SKIP_ANNOTATION).is_some_and(|value| value == "true"),
        leftovers: !leftovers.is_empty(),
        running: pods + children.deployments.len(),
        since: cleanup::since(object, Timestamp::now()),
    });
    tracing::info!(?step, pods, "the pipeline is being deleted");
    let left_behind = || {
        let topics = leftovers.topics.iter().cloned();
        let tables = leftovers.tables.iter().map(|table| format!("{}.{}", table.database, table.table));
        topics.chain(tables).collect::<Vec<_>>().join(", ")
    };
    match step {
        Step::Nothing => return Ok(Action::await_change()),
        Step::LetGo => {}
        Step::Skip => {
            let note = format!("not deleted, as the annotation says: {}", left_behind());
            let notice = Notice::warning("CleanupSkipped", "CleanUp", note);
            context.events.publish_all(object, &[notice]).await;
        }
        Step::GiveUp => {
            let note = format!(
                "given up after {} s; may be left behind: {}",
                cleanup::GIVE_UP_AFTER.as_secs(),
                left_behind()
            );
            let notice = Notice::warning("CleanupAbandoned", "CleanUp", note);
            context.events.publish_all(object, &[notice]).await;
        }
        Step::StopPods => {
            cleanup::stop_pods(&context.client, &owner, &children, &mut memory.verified, &context.metrics)
                .await?;
            write_deleting(object, context, memory, "StoppingPods", "its pods are being stopped").await?;
            return Ok(Action::requeue(Duration::from_secs(2)));
        }
        Step::Delete => match delete_outside(object, context, memory, &leftovers).await {
            Ok(notices) => context.events.publish_all(object, &notices).await,
            Err(why) => {
                tracing::warn!(why, "topics or tables are not deleted yet");
                context.metrics.failed("cleanup");
                let message = format!(
                    "{why}; given up {} s after the deletion, or at once with the annotation {}: \"true\"",
                    cleanup::GIVE_UP_AFTER.as_secs(),
                    cleanup::SKIP_ANNOTATION
                );
                write_deleting(object, context, memory, "CleanupFailed", &message).await?;
                return Ok(Action::requeue(memory.passes.failed(why, Instant::now())));
            }
        },
    }
    cleanup::set_finalizer(&context.client, object, false).await.map_err(Error::Finalizer)?;
    Ok(Action::await_change())
}

/// Deletes topics and tables with the credentials of the spec, or, when they are gone, with those of before.
async fn delete_outside(
    object: &IngestionPipeline,
    context: &Context,
    memory: &Memory,
    leftovers: &Leftovers,
) -> Result<Vec<Notice>, String> {
    let namespace = object.namespace().unwrap_or_default();
    let references = context.references.read(&namespace, &ReferenceNames::of(&object.spec)).await;
    let accesses = references
        .map_err(|error| error.to_string())
        .and_then(|references| {
            Accesses::of_spec(object, &references).map_err(|problems| problems.to_string())
        })
        .or_else(|why| memory.accesses.clone().ok_or(why))?;
    cleanup::delete(&context.outside, leftovers, &accesses).await
}

/// Says in the status how far a deletion is.
async fn write_deleting(
    object: &IngestionPipeline,
    context: &Context,
    memory: &mut Memory,
    reason: &str,
    message: &str,
) -> Result<(), Error> {
    let previous = previous_status(object, memory);
    let statements = vec![
        Statement::new("Ready", State::False, "Deleting", message),
        Statement::new("Reconciling", State::True, reason, message),
        Statement::new("Stalled", State::False, reason, message),
    ];
    let status = IngestionPipelineStatus {
        conditions: conditions(
            &previous.conditions,
            statements,
            object.metadata.generation,
            Timestamp::now(),
        ),
        observed_generation: object.metadata.generation,
        ..previous.clone()
    };
    if status == previous {
        return Ok(());
    }
    if reason == "CleanupFailed" {
        let notice = Notice::warning(reason, "CleanUp", message);
        context.events.publish_all(object, &[notice]).await;
    }
    write_status(object, context, memory, status).await
}
