//! Ordered writes to Kubernetes: server-side apply under one field manager, only what differs; what is not wanted any
//! more goes last.

pub mod difference;
pub mod orphans;
pub mod outside;

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    sync::Arc,
};

use k8s_openapi::{NamespaceResourceScope, api::apps::v1::Deployment};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use penstock_crds::{FIELD_MANAGER, IngestionPipeline};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use self::{
    difference::{INTENT_ANNOTATION, first_difference},
    orphans::{Orphan, is_referred_to, orphans},
};
use crate::{
    build::{ComponentObjects, Objects},
    metrics::Metrics,
    observe::children::{Children, is_controlled_by},
    validate::Owner,
};

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server did not take an object.
    #[error("cannot apply {kind} {name:?}: {source}")]
    Apply {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// The API server did not let an object go.
    #[error("cannot remove {kind} {name:?}, which is not wanted any more: {source}")]
    Remove {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
    /// The name belongs to somebody else's object.
    #[error(
        "{kind} {name:?} is there already and is not of this pipeline; remove it, or create the pipeline under another name"
    )]
    NotOurs {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// An object could not be written as JSON, which no Kubernetes type is known to do.
    #[error("cannot write {kind} {name:?} as JSON: {source}")]
    Serialize {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The serialiser's words.
        source: serde_json::Error,
    },
    /// The object could not be read again before a removal.
    #[error("cannot read the pipeline again before removing what it does not want any more: {0}")]
    Reread(kube::Error),
}

impl ApplyError {
    /// Whether asking again cannot help, until somebody changes something.
    pub fn is_refused(&self) -> bool {
        match self {
            Self::NotOurs { .. } => true,
            // 400 and 422: the object itself; 403: rights, quota, Pod Security.
            Self::Apply { source: kube::Error::Api(status), .. } => matches!(status.code, 400 | 403 | 422),
            _ => false,
        }
    }
}

/// Version of a child that was compared with an intent and found as wanted, by kind and name. It spares comparing what
/// has not changed, and writing again what the API server keeps in another notation (`1000m` and `1`).
#[derive(Debug, Default)]
pub struct Verified(HashMap<(String, String), Seen>);

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    uid: Option<String>,
    resource_version: Option<String>,
    intent: String,
}

impl Seen {
    fn of<K: Resource>(live: &K, intent: &str) -> Self {
        Self {
            uid: live.meta().uid.clone(),
            resource_version: live.meta().resource_version.clone(),
            intent: intent.to_owned(),
        }
    }
}

/// Writes the objects of one pipeline.
pub struct Applier<'a> {
    /// To the API server.
    pub client: &'a Client,
    /// Whose objects they are.
    pub owner: &'a Owner,
    /// What has been compared before.
    pub verified: &'a mut Verified,
    /// Counts the writes.
    pub metrics: &'a Metrics,
}

impl Applier<'_> {
    /// Applies everything except the Deployments of components that are held back; the result is each Deployment as the
    /// API server has it now, which is newer than what the watches have seen.
    ///
    /// In this order: what pods mount and run as, then the pods, then what stands in front of and around them.
    ///
    /// # Errors
    /// The first write that failed; what comes after it waits for the next pass.
    pub async fn apply(
        &mut self,
        objects: &Objects,
        children: &Children,
        held: &BTreeSet<&str>,
    ) -> Result<Vec<Arc<Deployment>>, ApplyError> {
        self.object(&objects.projects, &children.secrets).await?;
        for of in &objects.components {
            self.object(&of.config_map, &children.config_maps).await?;
            self.object(&of.service_account, &children.service_accounts).await?;
        }
        let mut deployments = Vec::with_capacity(objects.components.len());
        for of in objects.components.iter().filter(|of| !held.contains(of.component.to_string().as_str())) {
            deployments.push(self.object(&of.deployment, &children.deployments).await?);
        }
        self.object(&objects.capture_service, &children.services).await?;
        for of in &objects.components {
            self.object(&of.disruption_budget, &children.disruption_budgets).await?;
            self.object(&of.network_policy, &children.network_policies).await?;
        }
        Ok(deployments)
    }

    /// Applies one object unless it is as wanted; the result is the object as it is now.
    async fn object<K>(&mut self, intent: &K, live: &[Arc<K>]) -> Result<Arc<K>, ApplyError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let kind = K::kind(&()).into_owned();
        let name = intent.name_any();
        let (body, hash) = intent_of(intent).map_err(|source| ApplyError::Serialize {
            kind: kind.clone(),
            name: name.clone(),
            source,
        })?;
        let found = live.iter().find(|object| object.name_any() == name);
        let key = (kind.clone(), name.clone());
        let mut why = "absent".to_owned();
        if let Some(found) = found {
            let seen = Seen::of(found.as_ref(), &hash);
            if self.verified.0.get(&key) == Some(&seen) {
                return Ok(found.clone());
            }
            let value = with_type(found.as_ref()).map_err(|source| ApplyError::Serialize {
                kind: kind.clone(),
                name: name.clone(),
                source,
            })?;
            match first_difference(&body, &value) {
                None => {
                    self.verified.0.insert(key, seen);
                    return Ok(found.clone());
                }
                Some(path) => why = format!("{path} differs"),
            }
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let failed = |source| ApplyError::Apply { kind: kind.clone(), name: name.clone(), source };
        if found.is_none()
            && let Some(other) = api.get_metadata_opt(&name).await.map_err(failed)?
            && !is_controlled_by(&other, &self.owner.uid)
        {
            return Err(ApplyError::NotOurs { kind, name });
        }
        tracing::info!(kind, object = name, why, "applying");
        let applied = api
            .patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&body))
            .await
            .map_err(failed)?;
        self.metrics.wrote(&kind, "apply");
        self.verified.0.insert(key, Seen::of(&applied, &hash));
        Ok(Arc::new(applied))
    }

    /// Removes the children that `objects` does not have any more, and old configuration that nothing refers to.
    ///
    /// The pipeline is read again first: a spec that has moved on since this pass began decides nothing.
    ///
    /// # Errors
    /// The first removal that failed.
    pub async fn remove_orphans(
        &mut self,
        objects: &Objects,
        children: &Children,
        generation: Option<i64>,
    ) -> Result<(), ApplyError> {
        let has = |name: &str, of: fn(&ComponentObjects) -> Option<&String>| {
            objects.components.iter().any(|component| of(component).is_some_and(|own| own == name))
        };
        let workload = |name: &str| has(name, |of| of.deployment.metadata.name.as_ref());
        let deployments = orphans(children.deployments.iter().map(Arc::as_ref), workload);
        let budgets = orphans(children.disruption_budgets.iter().map(Arc::as_ref), workload);
        let policies = orphans(children.network_policies.iter().map(Arc::as_ref), workload);
        let accounts = orphans(children.service_accounts.iter().map(Arc::as_ref), workload);
        let services = orphans(children.services.iter().map(Arc::as_ref), |name| {
            objects.capture_service.metadata.name.as_deref() == Some(name)
        });
        let secrets = orphans(children.secrets.iter().map(Arc::as_ref), |name| {
            objects.projects.metadata.name.as_deref() == Some(name)
        });
        let unreferred =
            children.config_maps.iter().filter(|object| !is_referred_to(object, &children.revisions));
        let config_maps =
            orphans(unreferred.map(Arc::as_ref), |name| has(name, |of| of.config_map.metadata.name.as_ref()));
        let all = [&deployments, &services, &budgets, &policies, &accounts, &secrets, &config_maps];
        if all.iter().all(|list| list.is_empty()) {
            return Ok(());
        }
        let api: Api<IngestionPipeline> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        let current = api.get_metadata_opt(&self.owner.name).await.map_err(ApplyError::Reread)?;
        let still_so = current.is_some_and(|current| {
            current.metadata.uid.as_deref() == Some(self.owner.uid.as_str())
                && current.metadata.generation == generation
                && current.metadata.deletion_timestamp.is_none()
        });
        if !still_so {
            return Ok(());
        }
        self.remove::<Deployment>(&deployments).await?;
        self.remove::<k8s_openapi::api::core::v1::Service>(&services).await?;
        self.remove::<k8s_openapi::api::policy::v1::PodDisruptionBudget>(&budgets).await?;
        self.remove::<k8s_openapi::api::networking::v1::NetworkPolicy>(&policies).await?;
        self.remove::<k8s_openapi::api::core::v1::ServiceAccount>(&accounts).await?;
        self.remove::<k8s_openapi::api::core::v1::Secret>(&secrets).await?;
        self.remove::<k8s_openapi::api::core::v1::ConfigMap>(&config_maps).await
    }

    /// Removes children by name, each only if it is still the one that was seen.
    ///
    /// # Errors
    /// The first removal that failed. One that is gone already is removed.
    pub async fn remove<K>(&mut self, orphans: &[Orphan]) -> Result<(), ApplyError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + Debug,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.owner.namespace);
        for orphan in orphans {
            let kind = K::kind(&()).into_owned();
            tracing::info!(kind, object = orphan.name, "removing");
            let parameters = DeleteParams::background()
                .preconditions(Preconditions { uid: Some(orphan.uid.clone()), resource_version: None });
            match api.delete(&orphan.name, &parameters).await {
                Ok(_) => self.metrics.wrote(&kind, "remove"),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(source) => {
                    return Err(ApplyError::Remove { kind, name: orphan.name.clone(), source });
                }
            }
            self.verified.0.remove(&(K::kind(&()).into_owned(), orphan.name.clone()));
        }
        Ok(())
    }
}

/// The object as it is sent, with its type and with the hash of itself.
fn intent_of<K: Resource<DynamicType = ()> + Serialize>(
    object: &K,
) -> Result<(Value, String), serde_json::Error> {
    let mut body = with_type(object)?;
    let hash = difference::hash(&body);
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(Default::default()));
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(INTENT_ANNOTATION.to_owned(), Value::String(hash.clone()));
        }
    }
    Ok((body, hash))
}

/// An object from a watch carries no type of its own.
fn with_type<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Result<Value, serde_json::Error> {
    let mut value = serde_json::to_value(object)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".to_owned(), K::api_version(&()).into_owned().into());
        fields.insert("kind".to_owned(), K::kind(&()).into_owned().into());
    }
    Ok(value)
}
