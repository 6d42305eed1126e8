//! The watches, and the queue between them and the passes.

use std::{collections::BTreeSet, fmt::Debug, future::Future, sync::Arc, time::Duration};

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{ConfigMap, Secret, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        Controller, WatchStreamExt,
        controller::Config,
        reflector::{self, Lookup, ObjectRef, Store},
        watcher,
    },
};
use penstock_crds::IngestionPipeline;
use penstock_pipeline::health::{Check, Heartbeat};
use serde::de::DeserializeOwned;
use tracing::Instrument;

use crate::{
    build::{MANAGED_BY, MANAGED_BY_LABEL},
    memory::Memories,
    metrics::Metrics,
    observe::{
        children::Stores,
        listing::{Abandoned, Listing, Mark},
        outside::Outside,
        references::{ReferenceNames, ReferenceReader},
    },
    options::Options,
    reconcile::{Context, after_failure, reconcile},
    report::events::Publisher,
    tables, topics,
};

/// Changes that come together are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// How often memories of pipelines that are gone are dropped, and gauges set.
const HOUSEKEEPING: Duration = Duration::from_secs(15);

/// Runs until `shutdown` ends; passes under way are finished.
///
/// `ready` passes once every watch has listed, those of pipelines and of what they name among them; `alive` beats while the
/// queue is served.
///
/// # Errors
/// A watch ended before it listed, which happens only while stopping.
pub async fn run(
    client: Client,
    options: &Options,
    instance: String,
    metrics: Metrics,
    ready: Check,
    alive: Heartbeat,
    shutdown: impl Future<Output = ()> + Send + Sync + 'static,
) -> Result<(), Abandoned> {
    let listing = Listing::default();
    let namespace = options.watch_namespace.as_deref();
    let of_our_class = watcher::Config::default().labels(&options.pipeline_selector());
    let ours = watcher::Config::default().labels(&format!("{MANAGED_BY_LABEL}={MANAGED_BY}"));

    let (pipelines, pipeline_events) =
        watched::<IngestionPipeline>(&client, namespace, of_our_class, listing.expect("IngestionPipelines"));
    let (deployments, deployment_events) =
        watched::<Deployment>(&client, namespace, ours.clone(), listing.expect("Deployments"));
    let (config_maps, config_map_events) =
        watched::<ConfigMap>(&client, namespace, ours.clone(), listing.expect("our ConfigMaps"));
    let (secrets, secret_events) =
        watched::<Secret>(&client, namespace, ours.clone(), listing.expect("our Secrets"));
    let (service_accounts, account_events) =
        watched::<ServiceAccount>(&client, namespace, ours.clone(), listing.expect("ServiceAccounts"));
    let (disruption_budgets, budget_events) = watched::<PodDisruptionBudget>(
        &client,
        namespace,
        ours.clone(),
        listing.expect("PodDisruptionBudgets"),
    );
    let (network_policies, policy_events) =
        watched::<NetworkPolicy>(&client, namespace, ours.clone(), listing.expect("NetworkPolicies"));
    let (services, service_events) =
        watched::<Service>(&client, namespace, ours.clone(), listing.expect("Services"));
    let (replica_sets, set_events) =
        watched::<PartialObjectMeta<ReplicaSet>>(&client, namespace, ours, listing.expect("ReplicaSets"));
    let (all_secrets, any_secret_events) = watched::<PartialObjectMeta<Secret>>(
        &client,
        namespace,
        watcher::Config::default(),
        listing.expect("all Secrets"),
    );
    let (all_config_maps, any_config_map_events) = watched::<PartialObjectMeta<ConfigMap>>(
        &client,
        namespace,
        watcher::Config::default(),
        listing.expect("all ConfigMaps"),
    );

    let context = Arc::new(Context {
        references: ReferenceReader::new(client.clone(), all_secrets, all_config_maps),
        stores: Stores {
            deployments,
            replica_sets,
            config_maps,
            secrets,
            service_accounts,
            disruption_budgets,
            network_policies,
            services,
        },
        outside: Outside { clusters: topics::Clusters::new(), servers: tables::Servers::new() },
        memories: Memories::default(),
        events: Publisher::new(client.clone(), instance),
        metrics: metrics.clone(),
        images: options.images(),
        default_version: options.default_version.clone(),
        resync: options.resync(),
        client,
    });

    let by_secret = naming(pipelines.clone(), |names, name| names.secrets.contains(name));
    let by_config_map = naming(pipelines.clone(), |names, name| names.config_maps.contains(name));
    let controller = Controller::for_stream(pipeline_events, pipelines.clone())
        .with_config(Config::default().debounce(DEBOUNCE).concurrency(options.concurrency))
        .owns_stream(deployment_events)
        .owns_stream(config_map_events)
        .owns_stream(secret_events)
        .owns_stream(account_events)
        .owns_stream(budget_events)
        .owns_stream(policy_events)
        .owns_stream(service_events)
        // A ReplicaSet concerns a pipeline through its Deployment; this only keeps the store filled.
        .watches_stream(set_events, |_| Vec::<ObjectRef<IngestionPipeline>>::new())
        .watches_stream(any_secret_events, move |secret| {
            by_secret(ResourceExt::namespace(&secret), &secret.name_any())
        })
        .watches_stream(any_config_map_events, move |map| {
            by_config_map(ResourceExt::namespace(&map), &map.name_any())
        })
        .graceful_shutdown_on(shutdown);

    let listed = listing.clone();
    let stores = async move {
        listed.complete().await?;
        ready.pass();
        tracing::info!("every watch has listed");
        Ok::<_, Abandoned>(())
    };
    let waiting = context.clone();
    let passes = controller
        .run(
            move |object, context: Arc<Context>| {
                let span = tracing::info_span!(
                    "pass",
                    namespace = ResourceExt::namespace(object.as_ref()).unwrap_or_default(),
                    pipeline = object.name_any(),
                    generation = object.metadata.generation.unwrap_or_default(),
                );
                let listing = listing.clone();
                async move {
                    // A store that has not listed yet would make every child look absent.
                    if listing.complete().await.is_err() {
                        return Ok(kube::runtime::controller::Action::await_change());
                    }
                    reconcile(object, context).await
                }
                .instrument(span)
            },
            after_failure,
            context.clone(),
        )
        .for_each(|result| {
            match result {
                Ok((object, _)) => tracing::debug!(%object, "looked at"),
                Err(kube::runtime::controller::Error::ReconcilerFailed(error, object)) => {
                    tracing::warn!(%error, %object, "the pass failed");
                }
                Err(error) => tracing::debug!(%error, "queue"),
            }
            std::future::ready(())
        });
    let housekeeping = async move {
        loop {
            alive.beat();
            keep_house(&waiting, &pipelines, &metrics);
            tokio::time::sleep(HOUSEKEEPING).await;
        }
    };
    tokio::select! {
        () = passes => Ok(()),
        Err(error) = stores => Err(error),
        () = housekeeping => Ok(()),
    }
}

fn keep_house(context: &Context, pipelines: &Store<IngestionPipeline>, metrics: &Metrics) {
    let all = pipelines.state();
    let uids: BTreeSet<&str> = all.iter().filter_map(|object| object.metadata.uid.as_deref()).collect();
    context.memories.retain(|uid| uids.contains(uid));
    let named: BTreeSet<(String, String)> = all
        .iter()
        .flat_map(|object| {
            let namespace = ResourceExt::namespace(object.as_ref()).unwrap_or_default();
            let names = ReferenceNames::of(&object.spec);
            names.secrets.into_iter().chain(names.config_maps).map(move |name| (namespace.clone(), name))
        })
        .collect();
    context
        .references
        .forget_unless(|namespace, name| named.contains(&(namespace.to_owned(), name.to_owned())));

    let mut counts = [0i64; 3];
    for object in &all {
        let ready = object
            .status
            .as_ref()
            .and_then(|status| status.conditions.iter().find(|condition| condition.type_ == "Ready"));
        let index = match ready.map(|condition| condition.status.as_str()) {
            Some("True") => 0,
            Some("False") => 1,
            _ => 2,
        };
        counts[index] += 1;
    }
    metrics.set_pipelines(counts[0], counts[1], counts[2]);
}

fn api<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// A store and the stream that fills it; deletions are in it, so that a deleted child is noticed at once.
fn watched<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
    mark: Mark,
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send + 'static + use<K>)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Lookup<DynamicType = ()>
        + DeserializeOwned
        + Clone
        + Debug
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store::<K>();
    let stream = watcher(api::<K>(client, namespace), config)
        .default_backoff()
        // The watch is tried again by itself; that it fails is said once for each try, which become more and more seldom.
        .inspect_err(|error| {
            tracing::warn!(kind = %<K as Lookup>::kind(&()), %error, "a watch of the API server failed; it is tried again");
        })
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        // Behind the store, which has everything by then.
        .inspect_ok(move |event| {
            if matches!(event, watcher::Event::InitDone) {
                mark.listed();
            }
        })
        .touched_objects();
    (store, stream)
}

/// Pipelines in a namespace whose spec names an object.
fn naming(
    pipelines: Store<IngestionPipeline>,
    names: fn(&ReferenceNames, &str) -> bool,
) -> impl Fn(Option<String>, &str) -> Vec<ObjectRef<IngestionPipeline>> + Send + Sync + 'static {
    move |namespace, name| {
        pipelines
            .state_filter(|pipeline| {
                ResourceExt::namespace(pipeline) == namespace
                    && names(&ReferenceNames::of(&pipeline.spec), name)
            })
            .iter()
            .map(|pipeline| ObjectRef::from_obj(pipeline.as_ref()))
            .collect()
    }
}
