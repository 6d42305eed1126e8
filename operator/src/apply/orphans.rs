//! Which children are not wanted any more. Pure.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Resource, ResourceExt};

use crate::{
    build::{COMPONENT_LABEL, REVISION_LABEL},
    observe::children::Revision,
};

/// Identity of a child to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    /// Its name.
    pub name: String,
    /// Its UID, a precondition of the removal.
    pub uid: String,
}

impl Orphan {
    fn of<K: Resource>(object: &K) -> Option<Self> {
        Some(Self { name: object.meta().name.clone()?, uid: object.meta().uid.clone()? })
    }
}

/// Children with a name that is not wanted. What is being deleted already is left to it.
pub fn orphans<'a, K: Resource + 'a>(
    live: impl IntoIterator<Item = &'a K>,
    is_wanted: impl Fn(&str) -> bool,
) -> Vec<Orphan> {
    let mut orphans: Vec<Orphan> = live
        .into_iter()
        .filter(|object| object.meta().deletion_timestamp.is_none())
        .filter(|object| !is_wanted(object.meta().name.as_deref().unwrap_or_default()))
        .filter_map(|object| Orphan::of(object))
        .collect();
    orphans.sort_by(|a, b| a.name.cmp(&b.name));
    orphans
}

/// Whether a revision of the configuration is still referred to: a pod of it may start again, and a rollback needs it.
pub fn is_referred_to(config_map: &ConfigMap, revisions: &[Revision]) -> bool {
    let label = |key: &str| config_map.labels().get(key);
    revisions.iter().any(|revision| {
        label(COMPONENT_LABEL) == Some(&revision.component) && label(REVISION_LABEL) == Some(&revision.hash)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn config_map(component: &str, hash: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                name: Some(format!("web-{component}-{hash}")),
                uid: Some(format!("uid-{hash}")),
                labels: Some(BTreeMap::from([
                    (COMPONENT_LABEL.to_owned(), component.to_owned()),
                    (REVISION_LABEL.to_owned(), hash.to_owned()),
                ])),
                ..ObjectMeta::default()
            },
            ..ConfigMap::default()
        }
    }

    #[test]
    fn configuration_that_a_revision_refers_to_stays() {
        let revisions = [Revision { component: "capture".into(), hash: "old".into() }];
        assert!(is_referred_to(&config_map("capture", "old"), &revisions));
        assert!(!is_referred_to(&config_map("capture", "older"), &revisions));
        assert!(!is_referred_to(&config_map("transformation", "old"), &revisions));
    }

    #[test]
    fn what_is_not_wanted_goes_with_its_uid() {
        let live = [config_map("capture", "b"), config_map("capture", "a")];
        let found = orphans(&live, |name| name == "web-capture-a");
        assert_eq!(found, [Orphan { name: "web-capture-b".into(), uid: "uid-b".into() }]);
    }

    #[test]
    fn what_is_being_deleted_is_left_to_it() {
        let mut going = config_map("capture", "b");
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Default::default()));
        assert!(orphans(&[going], |_| false).is_empty());
    }
}
