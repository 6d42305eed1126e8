//! What happens when a pipeline is deleted.
//!
//! Children go by their owner reference. Topics and tables go only where `deletionPolicy` says so, and only then the
//! object has a finalizer. The clean-up is bounded: after [`GIVE_UP_AFTER`] it lets go and says what it left behind; the
//! annotation [`SKIP_ANNOTATION`] lets go at once. It needs no valid spec.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use k8s_openapi::{
    api::{apps::v1::Deployment, core::v1::Pod},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use penstock_crds::{
    IngestionPipeline,
    v1alpha1::{DeletionPolicy, Management},
};

use crate::{
    apply::{Applier, ApplyError, Verified, orphans::orphans},
    build::{COMPONENT_LABEL, INSTANCE_LABEL, MANAGED_BY, MANAGED_BY_LABEL},
    credentials,
    metrics::Metrics,
    observe::{
        children::Children,
        outside::{self, Outside},
        references::References,
    },
    report::events::Notice,
    tables::{self, WantedTable},
    topics::{self, Transformed},
    validate::{Owner, Problems, ValidatedPipeline},
};

/// The finalizer.
pub const FINALIZER: &str = "penstock.dev/cleanup";
/// `"true"` on the object: let it go without cleaning up.
pub const SKIP_ANNOTATION: &str = "penstock.dev/skip-cleanup";
/// Longest time that a deletion waits for Kafka and ClickHouse.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(600);
/// Longest time that the pods are waited for; a node that is away does not hold topics back for ever.
const PODS_WITHIN: Duration = Duration::from_secs(120);

/// What has to be deleted outside Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Topics.
    pub topics: BTreeSet<String>,
    /// Tables.
    pub tables: BTreeSet<WantedTable>,
}

impl Leftovers {
    /// By the spec as it stands, valid or not, and by what the status remembers of former specs.
    pub fn of(object: &IngestionPipeline) -> Self {
        let spec = &object.spec;
        let policy = spec.deletion_policy.unwrap_or_default();
        let mut leftovers = Self::default();
        if policy.topics == DeletionPolicy::Delete && spec.kafka.management == Management::Managed {
            let prefix = spec.kafka.topic_prefix.clone().unwrap_or_else(|| {
                format!("{}.{}.", object.namespace().unwrap_or_default(), object.name_any())
            });
            let stages = topics::stage_topics(&prefix, None, Transformed::Wanted);
            let remembered = object.status.iter().flat_map(|status| &status.topics).map(|t| &t.name);
            leftovers.topics = stages
                .iter()
                .map(|topic| &topic.name)
                .chain(remembered)
                // A status can be written by others: what is not under the prefix is not ours.
                .filter(|name| name.starts_with(&prefix))
                .cloned()
                .collect();
        }
        if policy.tables == DeletionPolicy::Delete {
            leftovers.tables = spec
                .exports
                .iter()
                .filter_map(|export| export.clickhouse.as_ref())
                .filter(|clickhouse| clickhouse.management == Management::Managed)
                .map(WantedTable::from)
                .collect();
        }
        leftovers
    }

    /// Whether there is nothing to delete, and so no need for a finalizer.
    pub fn is_empty(&self) -> bool {
        self.topics.is_empty() && self.tables.is_empty()
    }
}

/// How the operator reaches what is outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accesses {
    /// Kafka.
    kafka: topics::Access,
    /// ClickHouse, by table.
    tables: BTreeMap<WantedTable, tables::Access>,
}

impl Accesses {
    /// Those of a pipeline that is in order.
    pub fn of(pipeline: &ValidatedPipeline) -> Self {
        let tables = outside::tables(pipeline);
        Self {
            kafka: pipeline.kafka.access.clone(),
            tables: tables.into_iter().map(|(table, owner)| (table, owner.access)).collect(),
        }
    }

    /// Those of a spec that need not be in order but in its credentials.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn of_spec(object: &IngestionPipeline, references: &References) -> Result<Self, Problems> {
        let mut problems = Vec::new();
        let namespace = object.namespace().unwrap_or_default();
        let kafka = &object.spec.kafka;
        let credentials = credentials::kafka(kafka, &namespace, references, &mut problems);
        let mut tables = BTreeMap::new();
        for export in &object.spec.exports {
            let Some(clickhouse) = &export.clickhouse else { continue };
            let field = format!("spec.exports[{}].clickhouse", export.name);
            let (trust, _, user) =
                credentials::clickhouse(&field, clickhouse, &namespace, references, &mut problems);
            let access = tables::Access { trust, user };
            if clickhouse.management == Management::Managed {
                tables.insert(WantedTable::from(clickhouse), access);
            } else {
                tables.entry(WantedTable::from(clickhouse)).or_insert(access);
            }
        }
        Problems::check(problems)?;
        Ok(Self {
            kafka: topics::Access {
                bootstrap_servers: kafka.bootstrap_servers.clone(),
                trust: credentials.trust,
                identity: credentials.admin,
            },
            tables,
        })
    }
}

/// What a deletion does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is no finalizer of ours; Kubernetes does the rest.
    Nothing,
    /// Take the finalizer away: nothing is left to do.
    LetGo,
    /// Take the finalizer away: somebody said so.
    Skip,
    /// Take the finalizer away: it has taken too long.
    GiveUp,
    /// Stop the pods first: what still runs would write into topics that are being deleted, or make them again.
    StopPods,
    /// Delete topics and tables.
    Delete,
}

/// What is known about a deletion.
#[derive(Clone, Copy, Debug)]
pub struct Deletion {
    /// Whether the object has our finalizer.
    pub has_finalizer: bool,
    /// Whether the object says that the clean-up is to be skipped.
    pub skip: bool,
    /// Whether there is anything to delete outside.
    pub leftovers: bool,
    /// Deployments and pods that are still there.
    pub running: usize,
    /// Time since the deletion was asked for.
    pub since: Duration,
}

/// Decides.
pub fn step(deletion: Deletion) -> Step {
    let Deletion { has_finalizer, skip, leftovers, running, since } = deletion;
    match () {
        () if !has_finalizer => Step::Nothing,
        () if skip => Step::Skip,
        () if !leftovers => Step::LetGo,
        () if since >= GIVE_UP_AFTER => Step::GiveUp,
        () if running > 0 && since < PODS_WITHIN => Step::StopPods,
        () => Step::Delete,
    }
}

/// Whether the finalizer is there.
pub fn has_finalizer(object: &IngestionPipeline) -> bool {
    object.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// Adds or takes away the finalizer. Refused by the API server when the object has changed since it was read.
///
/// # Errors
/// The API server's answer.
pub async fn set_finalizer(
    client: &Client,
    object: &IngestionPipeline,
    wanted: bool,
) -> Result<(), kube::Error> {
    let mut finalizers: Vec<String> =
        object.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    if wanted {
        finalizers.push(FINALIZER.to_owned());
    }
    let api: Api<IngestionPipeline> =
        Api::namespaced(client.clone(), &object.namespace().unwrap_or_default());
    let patch = serde_json::json!({"metadata": {
        "finalizers": finalizers,
        "resourceVersion": object.metadata.resource_version,
        "uid": object.metadata.uid,
    }});
    match api.patch(&object.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 && !wanted => Ok(()),
        Err(error) => Err(error),
    }
}

/// Time since the deletion was asked for.
pub fn since(object: &IngestionPipeline, now: Timestamp) -> Duration {
    let asked = object.metadata.deletion_timestamp.as_ref().map_or(now, |time| time.0);
    Duration::try_from(now.duration_since(asked)).unwrap_or_default()
}

/// Pods of the pipeline that still exist.
///
/// # Errors
/// The API server's answer.
pub async fn pods(client: &Client, owner: &Owner) -> Result<usize, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &owner.namespace);
    let selector =
        format!("{MANAGED_BY_LABEL}={MANAGED_BY},{INSTANCE_LABEL}={},{COMPONENT_LABEL}", owner.name);
    Ok(api.list_metadata(&ListParams::default().labels(&selector)).await?.items.len())
}

/// Deletes the Deployments, and with them their pods.
///
/// # Errors
/// The first that could not be deleted.
pub async fn stop_pods(
    client: &Client,
    owner: &Owner,
    children: &Children,
    verified: &mut Verified,
    metrics: &Metrics,
) -> Result<(), ApplyError> {
    let all = orphans(children.deployments.iter().map(AsRef::as_ref), |_| false);
    Applier { client, owner, verified, metrics }.remove::<Deployment>(&all).await
}

/// Deletes topics and tables; one that is gone already is deleted.
///
/// # Errors
/// All that could not be deleted, for people.
pub async fn delete(
    outside: &Outside,
    leftovers: &Leftovers,
    accesses: &Accesses,
) -> Result<Vec<Notice>, String> {
    let mut notices = Vec::new();
    let mut failures = Vec::new();
    if !leftovers.topics.is_empty() {
        let names = leftovers.topics.iter().cloned().collect();
        match topics::delete(&outside.clusters, &accesses.kafka, names).await {
            Ok(deleted) if deleted.is_empty() => {}
            Ok(deleted) => notices.push(Notice::normal(
                "TopicsDeleted",
                "CleanUp",
                format!("deleted, as deletionPolicy.topics says: {}", deleted.join(", ")),
            )),
            Err(error) => failures.push(format!("topics: {error}")),
        }
    }
    for table in &leftovers.tables {
        let access = accesses.tables.get(table).cloned().unwrap_or_default();
        match tables::drop_table(&outside.servers, table, &access).await {
            Ok(false) => {}
            Ok(true) => notices.push(Notice::normal(
                "TableDeleted",
                "CleanUp",
                format!(
                    "dropped table {}.{} at {}, as deletionPolicy.tables says",
                    table.database, table.table, table.url
                ),
            )),
            Err(error) => failures.push(format!("table {}.{}: {error}", table.database, table.table)),
        }
    }
    if failures.is_empty() { Ok(notices) } else { Err(failures.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deletion() -> Deletion {
        Deletion {
            has_finalizer: true,
            skip: false,
            leftovers: true,
            running: 0,
            since: Duration::from_secs(1),
        }
    }

    #[test]
    fn pods_stop_before_their_topics_go() {
        assert_eq!(step(Deletion { running: 2, ..deletion() }), Step::StopPods);
        assert_eq!(step(deletion()), Step::Delete);
    }

    #[test]
    fn a_pod_that_does_not_stop_holds_nothing_back_for_ever() {
        assert_eq!(step(Deletion { running: 1, since: PODS_WITHIN, ..deletion() }), Step::Delete);
    }

    #[test]
    fn a_clean_up_is_bounded_and_has_a_way_out() {
        assert_eq!(step(Deletion { since: GIVE_UP_AFTER, ..deletion() }), Step::GiveUp);
        assert_eq!(step(Deletion { skip: true, running: 3, ..deletion() }), Step::Skip);
    }

    #[test]
    fn nothing_is_deleted_without_the_finalizer_or_once_the_policy_says_retain() {
        assert_eq!(step(Deletion { has_finalizer: false, ..deletion() }), Step::Nothing);
        assert_eq!(step(Deletion { leftovers: false, running: 1, ..deletion() }), Step::LetGo);
    }

    fn object(yaml: &str) -> IngestionPipeline {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    const PIPELINE: &str = "
apiVersion: penstock.dev/v1alpha1
kind: IngestionPipeline
metadata: {name: web, namespace: shop}
spec:
  projects: []
  kafka: {bootstrapServers: 'kafka:9092'}
  exports:
  - {name: a, clickhouse: {url: 'http://ch:8123', database: analytics}}
  - {name: b, clickhouse: {url: 'http://ch:8123', database: theirs, management: External}}
  deletionPolicy: {topics: POLICY, tables: POLICY}
status:
  topics: [{name: shop.web.former}, {name: somebody.elses}]
";

    #[test]
    fn only_what_is_ours_is_deleted_and_only_if_the_policy_says_so() {
        assert!(Leftovers::of(&object(&PIPELINE.replace("POLICY", "Retain"))).is_empty());
        let leftovers = Leftovers::of(&object(&PIPELINE.replace("POLICY", "Delete")));
        let topics: Vec<&str> = leftovers.topics.iter().map(String::as_str).collect();
        assert_eq!(
            topics,
            [
                "shop.web.captured",
                "shop.web.dead-letter",
                "shop.web.former",
                "shop.web.ingested",
                "shop.web.transformed"
            ]
        );
        let tables: Vec<&str> = leftovers.tables.iter().map(|table| table.database.as_str()).collect();
        assert_eq!(tables, ["analytics"]);
    }

    #[test]
    fn topics_that_somebody_else_manages_are_theirs() {
        let yaml = PIPELINE.replace("POLICY", "Delete").replace(
            "{bootstrapServers: 'kafka:9092'}",
            "{bootstrapServers: 'kafka:9092', management: External}",
        );
        assert!(Leftovers::of(&object(&yaml)).topics.is_empty());
    }
}
