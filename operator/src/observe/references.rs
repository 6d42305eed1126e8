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
use penstock_crds::{
    IngestionPipelineSpec,
    v1alpha1::{ClickHouseUser, KafkaIdentity, TlsSpec},
};

use super::ObserveError;

/// What is behind a name. Not shown by `Debug`: it may be secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Reference<T> {
    /// Its data.
    Found(T),
    /// The API server says that there is no such object.
    Missing,
}

impl<T> std::fmt::Debug for Reference<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Found(_) => "Found",
            Self::Missing => "Missing",
        })
    }
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
        let mut names = Self {
            secrets: tokens.chain(signing).cloned().collect(),
            config_maps: programs.cloned().collect(),
        };
        names.trusts(spec.kafka.tls.as_ref());
        if let Some(auth) = &spec.kafka.auth {
            names.kafka(&auth.data);
            auth.admin.iter().for_each(|admin| names.kafka(admin));
        }
        for clickhouse in spec.exports.iter().filter_map(|export| export.clickhouse.as_ref()) {
            names.trusts(clickhouse.tls.as_ref());
            if let Some(auth) = &clickhouse.auth {
                names.user(&auth.data);
                auth.ddl.iter().for_each(|ddl| names.user(ddl));
            }
        }
        names
    }

    fn trusts(&mut self, tls: Option<&TlsSpec>) {
        if let Some(ca) = tls.and_then(|tls| tls.ca_from.as_ref()) {
            self.secrets.extend(ca.secret.clone());
            self.config_maps.extend(ca.config_map.clone());
        }
    }

    fn kafka(&mut self, identity: &KafkaIdentity) {
        self.secrets.extend(identity.scram_sha512.iter().map(|scram| scram.secret.clone()));
        self.secrets.extend(identity.mtls.iter().map(|mtls| mtls.secret.clone()));
        self.secrets.extend(identity.oauth_bearer.iter().filter_map(|bearer| bearer.secret.clone()));
    }

    fn user(&mut self, user: &ClickHouseUser) {
        self.secrets.insert(user.secret.clone());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::{secured_references, secured_yaml};

    #[test]
    fn every_credential_of_a_spec_is_watched() {
        for (identity, secret) in [
            ("scramSha512: {secret: web-kafka}", Some("web-kafka")),
            ("mtls: {secret: web-kafka-mtls}", Some("web-kafka-mtls")),
            ("oauthBearer: {secret: web-kafka-token}", Some("web-kafka-token")),
            ("oauthBearer: {serviceAccountToken: {audience: kafka}}", None),
        ] {
            let object: penstock_crds::IngestionPipeline =
                serde_yaml_ng::from_str(&secured_yaml(identity)).unwrap();
            let names = ReferenceNames::of(&object.spec);
            let mut secrets =
                BTreeSet::from(["app", "crm", "kafka-ca", "web-kafka-admin", "ch-insert", "ch-ddl"]);
            secrets.extend(secret);
            assert_eq!(names.secrets.iter().map(String::as_str).collect::<BTreeSet<_>>(), secrets);
            assert_eq!(names.config_maps, BTreeSet::from(["programs".to_owned(), "company-ca".to_owned()]));
        }
    }

    #[test]
    fn what_was_read_is_not_shown() {
        let text = format!("{:?}", secured_references());
        assert!(text.contains("web-kafka-admin"), "{text}");
        for secret in ["hunter2", "phc_app", "PRIVATE KEY"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
