//! The objects that pipelines own, as the watches last saw them.

use std::{fmt::Debug, hash::Hash, sync::Arc};

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::reflector::{Lookup, Store},
};

/// One watched kind each; everything in them carries the label of the operator.
#[derive(Clone)]
pub struct Stores {
    /// Workloads.
    pub deployments: Store<Deployment>,
    /// Their revisions, metadata only: the pods' labels are on them.
    pub replica_sets: Store<PartialObjectMeta<ReplicaSet>>,
    /// Configuration.
    pub config_maps: Store<ConfigMap>,
    /// Projects files.
    pub secrets: Store<Secret>,
    /// Identities.
    pub service_accounts: Store<ServiceAccount>,
    /// Disruption budgets.
    pub disruption_budgets: Store<PodDisruptionBudget>,
    /// Network policies.
    pub network_policies: Store<NetworkPolicy>,
    /// Services of capture.
    pub services: Store<Service>,
}

/// What one pipeline owns.
#[derive(Clone, Debug, Default)]
pub struct Children {
    /// Workloads.
    pub deployments: Vec<Arc<Deployment>>,
    /// Labels `penstock.dev/revision` of the pipeline's ReplicaSets, together with the component.
    pub revisions: Vec<Revision>,
    /// Configuration.
    pub config_maps: Vec<Arc<ConfigMap>>,
    /// Projects files.
    pub secrets: Vec<Arc<Secret>>,
    /// Identities.
    pub service_accounts: Vec<Arc<ServiceAccount>>,
    /// Disruption budgets.
    pub disruption_budgets: Vec<Arc<PodDisruptionBudget>>,
    /// Network policies.
    pub network_policies: Vec<Arc<NetworkPolicy>>,
    /// Services of capture.
    pub services: Vec<Arc<Service>>,
}

/// A revision that a ReplicaSet, and so a running pod or a way back, still refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Component, as in the label.
    pub component: String,
    /// Hash of the configuration.
    pub hash: String,
}

impl Stores {
    /// What the pipeline with this UID owns.
    pub fn children(&self, namespace: &str, name: &str, uid: &str) -> Children {
        let revisions = self
            .replica_sets
            .state_filter(|set| {
                set.metadata.namespace.as_deref() == Some(namespace)
                    && set.labels().get(crate::build::INSTANCE_LABEL).is_some_and(|instance| instance == name)
            })
            .iter()
            .filter_map(|set| {
                Some(Revision {
                    component: set.labels().get(crate::build::COMPONENT_LABEL)?.clone(),
                    hash: set.labels().get(crate::build::REVISION_LABEL)?.clone(),
                })
            })
            .collect();
        Children {
            deployments: owned(&self.deployments, namespace, uid),
            revisions,
            config_maps: owned(&self.config_maps, namespace, uid),
            secrets: owned(&self.secrets, namespace, uid),
            service_accounts: owned(&self.service_accounts, namespace, uid),
            disruption_budgets: owned(&self.disruption_budgets, namespace, uid),
            network_policies: owned(&self.network_policies, namespace, uid),
            services: owned(&self.services, namespace, uid),
        }
    }
}

/// Whether the object's controller has this UID.
pub fn is_controlled_by<K: Resource>(object: &K, uid: &str) -> bool {
    object
        .meta()
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

fn owned<K>(store: &Store<K>, namespace: &str, uid: &str) -> Vec<Arc<K>>
where
    K: Resource + Lookup<DynamicType = <K as Resource>::DynamicType> + Clone + Debug,
    <K as Resource>::DynamicType: Eq + Hash + Clone,
{
    store.state_filter(|object| {
        object.meta().namespace.as_deref() == Some(namespace) && is_controlled_by(object, uid)
    })
}
