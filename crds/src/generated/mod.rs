//! The files of the repository that are generated from the API types.

mod chart_readme;
mod reference;

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::crd;

/// Writes the generated files; run it at the root of the repository.
pub const COMMAND: &str = "cargo run --release -p penstock-crds --bin crdgen";

/// A generated file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GeneratedFile {
    /// From the root of the repository.
    pub path: &'static str,
    /// All of it.
    pub content: String,
}

/// The generated files, as they should be.
pub fn files() -> Vec<GeneratedFile> {
    vec![
        GeneratedFile { path: "crds/penstock.dev_ingestionpipelines.yaml", content: definition_yaml() },
        GeneratedFile {
            path: "charts/penstock-crds/templates/penstock.dev_ingestionpipelines.yaml",
            content: chart_template(),
        },
        GeneratedFile { path: "docs/reference/ingestionpipeline.md", content: reference::markdown(&crd()) },
        GeneratedFile { path: "charts/penstock-crds/README.md", content: chart_readme::CRDS.readme().0 },
        GeneratedFile { path: "charts/penstock/README.md", content: chart_readme::OPERATOR.readme().0 },
    ]
}

/// The generated files below `root` that are missing or not as they should be.
pub fn stale(root: &Path) -> Vec<PathBuf> {
    files()
        .into_iter()
        .filter(|file| {
            fs::read_to_string(root.join(file.path)).ok().as_deref() != Some(file.content.as_str())
        })
        .map(|file| file.path.into())
        .collect()
}

/// The definition as YAML, as `kubectl apply` takes it.
pub fn definition_yaml() -> String {
    format!("# Generated from the types in crds/src by `{COMMAND}`. Do not edit.\n{}", yaml())
}

fn yaml() -> String {
    // A definition is made of strings, numbers, lists and maps with string keys, all of which YAML has.
    let value = serde_json::to_value(crd()).expect("a definition is JSON");
    serde_yaml_ng::to_string(&value).expect("JSON is YAML")
}

/// The beginning of the metadata of the template; the name follows.
const CHART_METADATA: &str = "
metadata:
  annotations:
    {{- if .Values.keep }}
    helm.sh/resource-policy: keep
    {{- end }}
    {{- with .Values.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  labels:
    {{- include \"penstock-crds.labels\" . | nindent 4 }}
";

/// The definition as a template of the chart `penstock-crds`: Helm keeps it when the chart is removed, so that removing
/// the chart does not delete every pipeline.
fn chart_template() -> String {
    // Helm would read `{{` in a description as the beginning of an action.
    let yaml = yaml().replace("{{", "{{ \"{{\" }}");
    let yaml = yaml.replacen("\nmetadata:\n", CHART_METADATA, 1);
    format!("{{{{- /* Generated from the types in crds/src by `{COMMAND}`. Do not edit. */}}}}\n{yaml}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generated_files_are_what_the_types_generate() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let stale = stale(&root);
        assert!(stale.is_empty(), "stale: {stale:?}; run: {COMMAND}");
    }

    #[test]
    fn the_chart_keeps_the_definition_when_it_is_removed() {
        let template = chart_template();
        assert!(template.contains("helm.sh/resource-policy: keep"));
        assert_eq!(template.matches("\nmetadata:\n").count(), 1);
    }

    #[test]
    fn the_plain_definition_is_the_definition() {
        let read: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition =
            serde_yaml_ng::from_str(&definition_yaml()).unwrap();
        assert_eq!(read, crd());
    }
}
