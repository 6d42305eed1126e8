//! The README of a chart: what it is, how it is installed, and a table of its values.

use std::fmt::Write;

use serde_json::Value;
use serde_yaml_ng::Value as Yaml;

use super::COMMAND;

/// The sources of a chart that its README is made of.
pub(super) struct Chart {
    pub(super) manifest: &'static str,
    pub(super) values: &'static str,
    pub(super) schema: &'static str,
    /// What is to be said between the description and the values.
    pub(super) introduction: &'static str,
}

/// The chart of the definitions.
pub(super) const CRDS: Chart = Chart {
    manifest: include_str!("../../../charts/penstock-crds/Chart.yaml"),
    values: include_str!("../../../charts/penstock-crds/values.yaml"),
    schema: include_str!("../../../charts/penstock-crds/values.schema.json"),
    introduction: "\
```
helm upgrade --install penstock-crds charts/penstock-crds --namespace penstock-system --create-namespace
```

It is a chart of its own because Helm never upgrades a `crds/` folder, and because an API outlives the operator: `helm
uninstall penstock-crds` leaves the definitions, and with them all pipelines, where they are. To remove them for good:
`kubectl delete crd ingestionpipelines.penstock.dev`, which deletes every pipeline.
",
};

/// The operator's chart.
pub(super) const OPERATOR: Chart = Chart {
    manifest: include_str!("../../../charts/penstock/Chart.yaml"),
    values: include_str!("../../../charts/penstock/values.yaml"),
    schema: include_str!("../../../charts/penstock/values.schema.json"),
    introduction: "\
```
helm upgrade --install penstock-crds charts/penstock-crds --namespace penstock-system --create-namespace
helm upgrade --install penstock charts/penstock --namespace penstock-system --create-namespace
```

One operator runs per cluster, or per `watchNamespace` or `operatorClass`. It is restarted by `Recreate`, so that two never write
against each other; pipelines go on without it. It needs no volume, runs as a user without rights under the restricted Pod
Security Standard, and has only the rights in [templates/_rules.tpl](templates/_rules.tpl). `helm uninstall penstock` stops
the operator and leaves pipelines and what they run.
",
};

impl Chart {
    /// The README, and what is wrong with the sources: values without a description, descriptions without a value.
    pub(super) fn readme(&self) -> (String, Vec<String>) {
        // The three are compiled in; a test reads them.
        let manifest: Yaml = serde_yaml_ng::from_str(self.manifest).expect("Chart.yaml is YAML");
        let values: Yaml = serde_yaml_ng::from_str(self.values).expect("values.yaml is YAML");
        let schema: Value = serde_json::from_str(self.schema).expect("values.schema.json is JSON");
        let mut rows = Vec::new();
        let mut wrong = Vec::new();
        collect("", &values, &schema, &mut rows, &mut wrong);
        let mut page = format!(
            "<!-- Generated from values.yaml and values.schema.json by `{COMMAND}`. Do not edit. -->\n# {}\n\n{}\n\n{}\n\
             ## Values\n\n| value | default | meaning |\n|---|---|---|\n",
            manifest["name"].as_str().unwrap_or_default(),
            manifest["description"].as_str().unwrap_or_default(),
            self.introduction,
        );
        for (path, default, meaning) in rows {
            let _ = writeln!(page, "| `{path}` | `{default}` | {} |", meaning.replace('|', "\\|"));
        }
        (page, wrong)
    }
}

fn collect(
    path: &str,
    values: &Yaml,
    schema: &Value,
    rows: &mut Vec<(String, String, String)>,
    wrong: &mut Vec<String>,
) {
    let below = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for (name, value) in values.as_mapping().into_iter().flatten() {
        let name = name.as_str().unwrap_or_default();
        let property = &schema["properties"][name];
        if property["properties"].is_object() {
            collect(&below(name), value, property, rows, wrong);
            continue;
        }
        let Some(meaning) = property["description"].as_str() else {
            wrong.push(format!("{} is not described in values.schema.json", below(name)));
            continue;
        };
        // What was read as YAML is JSON, as Helm's values are.
        let default = serde_json::to_string(value).expect("values are JSON");
        rows.push((below(name), default, meaning.to_owned()));
    }
    for name in schema["properties"].as_object().into_iter().flat_map(|all| all.keys()) {
        if values.get(name.as_str()).is_none() && name != "global" {
            wrong.push(format!("{} is described in values.schema.json but has no value", below(name)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_of_the_charts_is_described_and_every_description_has_a_value() {
        for chart in [CRDS, OPERATOR] {
            let (page, wrong) = chart.readme();
            assert!(wrong.is_empty(), "{wrong:#?}");
            assert!(page.contains("| value | default | meaning |"));
        }
    }

    #[test]
    fn a_value_without_description_and_a_description_without_value_are_found() {
        let chart = Chart {
            manifest: "name: x\ndescription: y",
            values: "a: 1\nb: {c: true}",
            schema: r#"{"properties": {"b": {"properties": {"c": {"description": "C."}, "d": {"description": "D."}}}}}"#,
            introduction: "",
        };
        let (page, wrong) = chart.readme();
        assert_eq!(wrong.len(), 2, "{wrong:?}");
        assert!(page.contains("| `b.c` | `true` | C. |"), "{page}");
    }

    #[test]
    fn chart_versions_are_the_version_of_the_workspace() {
        for chart in [CRDS, OPERATOR] {
            let manifest: Yaml = serde_yaml_ng::from_str(chart.manifest).unwrap();
            for key in ["version", "appVersion"] {
                assert_eq!(
                    manifest[key].as_str(),
                    Some(env!("CARGO_PKG_VERSION")),
                    "{key} of {}",
                    chart.manifest
                );
            }
        }
    }
}
