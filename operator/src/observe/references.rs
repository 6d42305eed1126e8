//! Secrets and ConfigMaps that a spec names.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Mutex,
};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::reflector::{ObjectRef, Store},
};
use penstock_crds::IngestionPipelineSpec;

use super::ObserveError;

/// What is behind a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference<T> {
    /// Its data.
    Found(T),
    /// The API server says that there is no such object.
    Missing,
}

/// Everything that a spec names, by name; the namespace is the pipeline's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Secrets.
    pub secrets: BTreeMap<String, Reference<BTreeMap<String, Vec<u8>>>>,
    /// ConfigMaps.
    pub config_maps: BTreeMap<String, Reference<BTreeMap<String, String>>>,
}

/// Names of the Secrets and ConfigMaps that a spec refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferenceNames {
    /// Secrets.
    pub secrets: BTreeSet<String>,
    /// ConfigMaps.
    pub config_maps: BTreeSet<String>,
}

impl ReferenceNames {
    /// Those of a spec.
    pub fn of(spec: &IngestionPipelineSpec) -> Self {
        let tokens =
            spec.projects.iter().filter_map(|project| project.token_from.as_ref()).map(|s| &s.secret);
        let signing = spec
            .exports
            .iter()
            .filter_map(|export| export.webhook.as_ref()?.signing.as_ref())
            .map(|signing| &signing.key.secret);
        let programs = spec
            .transformation
            .iter()
            .flat_map(|transformation| &transformation.steps)
            .filter_map(|step| step.vrl_from.as_ref())
            .map(|selector| &selector.config_map);
        Self { secrets: tokens.chain(signing).cloned().collect(), config_maps: programs.cloned().collect() }
    }
}

/// Identity of one version of an object.
type Version = (String, String);

/// Data by namespace and name, each with the version that it is of.
type Cache<T> = Mutex<HashMap<(String, String), (Version, T)>>;

/// Contents of referenced objects, read once per version. The watches are of metadata only, so that the many Secrets
/// of a cluster that concern nobody here are never held in memory.
pub struct ReferenceReader {
    client: Client,
    secrets_seen: Store<PartialObjectMeta<Secret>>,
    config_maps_seen: Store<PartialObjectMeta<ConfigMap>>,
    secrets: Cache<BTreeMap<String, Vec<u8>>>,
    config_maps: Cache<BTreeMap<String, String>>,
}

impl ReferenceReader {
    /// Reads with `client` what the two metadata watches say has changed.
    pub fn new(
        client: Client,
        secrets_seen: Store<PartialObjectMeta<Secret>>,
        config_maps_seen: Store<PartialObjectMeta<ConfigMap>>,
    ) -> Self {
        Self {
            client,
            secrets_seen,
            config_maps_seen,
            secrets: Mutex::default(),
            config_maps: Mutex::default(),
        }
    }

    /// Everything that `names` names in `namespace`.
    ///
    /// # Errors
    /// The API server could not be asked. A missing object is not an error here.
    pub async fn read(&self, namespace: &str, names: &ReferenceNames) -> Result<References, ObserveError> {
        let mut references = References::default();
        for name in &names.secrets {
            references.secrets.insert(name.clone(), self.secret(namespace, name).await?);
        }
        for name in &names.config_maps {
            references.config_maps.insert(name.clone(), self.config_map(namespace, name).await?);
        }
        Ok(references)
    }

    async fn secret(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Reference<BTreeMap<String, Vec<u8>>>, ObserveError> {
        let key = (namespace.to_owned(), name.to_owned());
        let seen = self.secrets_seen.get(&ObjectRef::new(name).within(namespace));
        if let Some(version) = seen.and_then(|object| version(&object.metadata))
            && let Some((held, data)) = lock(&self.secrets).get(&key)
            && *held == version
        {
            return Ok(Reference::Found(data.clone()));
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await.map_err(|source| ObserveError::Reference {
            kind: "Secret",
            name: name.to_owned(),
            source,
        })?;
        let Some(object) = found else {
            lock(&self.secrets).remove(&key);
            return Ok(Reference::Missing);
        };
        let data: BTreeMap<String, Vec<u8>> =
            object.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
        if let Some(version) = version(&object.metadata) {
            lock(&self.secrets).insert(key, (version, data.clone()));
        }
        Ok(Reference::Found(data))
    }

    async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Reference<BTreeMap<String, String>>, ObserveError> {
        let key = (namespace.to_owned(), name.to_owned());
        let seen = self.config_maps_seen.get(&ObjectRef::new(name).within(namespace));
        if let Some(version) = seen.and_then(|object| version(&object.metadata))
            && let Some((held, data)) = lock(&self.config_maps).get(&key)
            && *held == version
        {
            return Ok(Reference::Found(data.clone()));
        }
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let found = api.get_opt(name).await.map_err(|source| ObserveError::Reference {
            kind: "ConfigMap",
            name: name.to_owned(),
            source,
        })?;
        let Some(object) = found else {
            lock(&self.config_maps).remove(&key);
            return Ok(Reference::Missing);
        };
        let data = object.data.unwrap_or_default();
        if let Some(version) = version(&object.metadata) {
            lock(&self.config_maps).insert(key, (version, data.clone()));
        }
        Ok(Reference::Found(data))
    }

    /// Drops what no pipeline names any more.
    pub fn forget_unless(&self, keep: impl Fn(&str, &str) -> bool) {
        lock(&self.secrets).retain(|(namespace, name), _| keep(namespace, name));
        lock(&self.config_maps).retain(|(namespace, name), _| keep(namespace, name));
    }
}

fn version(metadata: &kube::core::ObjectMeta) -> Option<Version> {
    Some((metadata.uid.clone()?, metadata.resource_version.clone()?))
}

/// A poisoned cache is still a cache: entries are replaced whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
