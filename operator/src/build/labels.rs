//! Metadata of every child: labels, owner, name.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::Resource;
use penstock_crds::IngestionPipeline;

use crate::validate::{Component, Owner};

/// Label with the pipeline's name.
pub const INSTANCE_LABEL: &str = "app.kubernetes.io/instance";
/// Label with the component's name.
pub const COMPONENT_LABEL: &str = "app.kubernetes.io/component";
/// Label that says who keeps an object; the operator watches what carries it.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "penstock-operator";
/// Label of pods (and so of their ReplicaSets) and ConfigMaps with the hash of the configuration.
pub const REVISION_LABEL: &str = "penstock.dev/revision";

/// Labels of everything that belongs to a pipeline.
pub(super) fn common(owner: &Owner) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "penstock".to_owned()),
        (INSTANCE_LABEL.to_owned(), owner.name.clone()),
        (MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned()),
    ])
}

/// Labels of everything that belongs to a component.
pub(super) fn of(owner: &Owner, component: &Component) -> BTreeMap<String, String> {
    let mut labels = common(owner);
    labels.insert(COMPONENT_LABEL.to_owned(), component.to_string());
    labels
}

/// Selects the pods of a component. Immutable in a Deployment: these three and never others.
pub(super) fn selector(owner: &Owner, component: &Component) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("app.kubernetes.io/name".to_owned(), "penstock".to_owned()),
        (INSTANCE_LABEL.to_owned(), owner.name.clone()),
        (COMPONENT_LABEL.to_owned(), component.to_string()),
    ])
}

/// [`selector`] as the API wants it.
pub(super) fn label_selector(owner: &Owner, component: &Component) -> LabelSelector {
    LabelSelector { match_labels: Some(selector(owner, component)), match_expressions: None }
}

/// Name, namespace, labels and owner of a child.
pub(super) fn metadata(owner: &Owner, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: Some(owner.namespace.clone()),
        labels: Some(labels),
        owner_references: Some(vec![OwnerReference {
            api_version: IngestionPipeline::api_version(&()).into_owned(),
            kind: IngestionPipeline::kind(&()).into_owned(),
            name: owner.name.clone(),
            uid: owner.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

/// `None` for an empty map: an empty field would be applied, and compared, for ever.
pub(super) fn non_empty<V>(map: BTreeMap<String, V>) -> Option<BTreeMap<String, V>> {
    Some(map).filter(|map| !map.is_empty())
}
