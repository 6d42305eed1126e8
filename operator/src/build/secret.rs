//! Secret with the projects file. It is mounted apart and reloaded live, so it is in no hash: a new project rolls nothing.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};

use super::{BuildError, labels};
use crate::validate::{Component, ValidatedPipeline};

/// Key of the projects file.
pub(super) const KEY: &str = "projects.yaml";

/// Name of the Secret.
pub(super) fn name(pipeline: &ValidatedPipeline) -> String {
    format!("{}-projects", pipeline.owner.name)
}

pub(super) fn build(pipeline: &ValidatedPipeline) -> Result<Secret, BuildError> {
    let yaml = serde_yaml_ng::to_string(&pipeline.projects)
        .map_err(|source| BuildError::Render { component: Component::Capture, source })?;
    Ok(Secret {
        metadata: labels::metadata(&pipeline.owner, name(pipeline), labels::common(&pipeline.owner)),
        type_: Some("Opaque".to_owned()),
        data: Some(BTreeMap::from([(KEY.to_owned(), ByteString(yaml.into_bytes()))])),
        ..Secret::default()
    })
}

#[cfg(test)]
mod tests {
    use crate::build::tests::full;

    #[test]
    fn the_projects_are_ordered_and_resolved() {
        insta::assert_yaml_snapshot!(
            "projects-file",
            String::from_utf8(full().projects.data.unwrap().remove(super::KEY).unwrap().0).unwrap()
        );
    }
}
