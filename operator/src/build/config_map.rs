//! ConfigMap of a component: immutable, named by the hash of its content.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;

use super::{config::ComponentConfig, labels, workload_name};
use crate::validate::{Component, ValidatedPipeline};

/// Key of the configuration file.
pub(super) const KEY: &str = "config.yaml";

/// Name of the ConfigMap of one revision.
pub(super) fn name(pipeline: &ValidatedPipeline, component: &Component, revision: &str) -> String {
    format!("{}-{revision}", workload_name(&pipeline.owner.name, component))
}

pub(super) fn build(
    pipeline: &ValidatedPipeline,
    component: &Component,
    config: &ComponentConfig,
) -> ConfigMap {
    let mut labels = labels::of(&pipeline.owner, component);
    labels.insert(labels::REVISION_LABEL.to_owned(), config.revision.clone());
    ConfigMap {
        metadata: labels::metadata(&pipeline.owner, name(pipeline, component, &config.revision), labels),
        data: Some(BTreeMap::from([(KEY.to_owned(), config.yaml.clone())])),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}
