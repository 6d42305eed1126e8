//! ConfigMap of a component: immutable, named by the hash of its content.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;

use super::{config::ComponentConfig, labels, workload_name};
use crate::validate::{Component, ValidatedPipeline};

/// Key of the configuration file.
pub const KEY: &str = "config.yaml";

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

#[cfg(test)]
mod tests {
    use crate::build::tests::component;

    #[test]
    fn the_config_map_of_capture() {
        insta::assert_yaml_snapshot!("config-map-capture", component("capture").config_map);
    }

    #[test]
    fn the_config_map_of_consumer_main() {
        insta::assert_yaml_snapshot!("config-map-consumer-main", component("consumer-main").config_map);
    }

    #[test]
    fn the_config_map_of_transformation() {
        insta::assert_yaml_snapshot!("config-map-transformation", component("transformation").config_map);
    }

    #[test]
    fn the_config_map_of_export_warehouse() {
        insta::assert_yaml_snapshot!("config-map-export-warehouse", component("export-warehouse").config_map);
    }

    #[test]
    fn the_config_map_of_export_crm() {
        insta::assert_yaml_snapshot!("config-map-export-crm", component("export-crm").config_map);
    }
}
