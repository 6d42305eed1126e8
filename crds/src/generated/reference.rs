//! The reference of the resource's fields, as Markdown.

use std::fmt::Write;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Map, Value};

use super::COMMAND;
use crate::crd::EMBEDDED;

/// One row of a table.
struct Field {
    path: String,
    type_: String,
    required: bool,
    default: String,
    description: String,
}

/// The page `docs/reference/ingestionpipeline.md`.
pub(super) fn markdown(definition: &CustomResourceDefinition) -> String {
    let definition = serde_json::to_value(definition).expect("a definition is JSON");
    let version = &definition["spec"]["versions"][0];
    let schema = &version["schema"]["openAPIV3Schema"];
    let spec = &schema["properties"]["spec"];
    let mut page = format!(
        "<!-- Generated from the types in crds/src by `{COMMAND}`. Do not edit. -->\n# IngestionPipeline\n\n\
         `apiVersion: {}/{}`, `kind: IngestionPipeline`, short name `ipl`, namespaced.\n\n{}\n\n\
         Durations are written `500ms`, `30s`, `12h`, `7d`; sizes `65536`, `64Mi`, `1Gi`; counts `1000`, `100k`, `1M`. \
         Defaults are applied by the operator and are not written into the object.\n",
        text(&definition["spec"]["group"]),
        text(&version["name"]),
        text(&spec["description"]),
    );

    let workload = &spec["properties"]["defaults"]["properties"];
    let topic = &spec["properties"]["kafka"]["properties"]["topics"]["properties"]["defaults"]["properties"];
    let shared = [
        Shared { properties: workload, link: "the [workload settings](#workload-settings)" },
        Shared { properties: topic, link: "the [topic settings](#topic-settings)" },
    ];

    let mut fields = Vec::new();
    collect("", spec, &shared, &mut fields);
    section(&mut page, "Spec", "", &fields);

    let mut fields = Vec::new();
    collect_properties("", workload, &Value::Null, &[], &mut fields);
    section(
        &mut page,
        "Workload settings",
        "In `defaults` for every component; the same keys on `capture`, `consumer.lanes.main`, `transformation` and each \
         export override them, key by key: maps are merged, lists replaced.",
        &fields,
    );

    let mut fields = Vec::new();
    collect_properties("", topic, &Value::Null, &[], &mut fields);
    section(
        &mut page,
        "Topic settings",
        "In `kafka.topics.defaults` for every topic; the same keys on `captured`, `ingested`, `transformed` and \
         `dead-letter` override them.",
        &fields,
    );

    let mut fields = Vec::new();
    collect("", &schema["properties"]["status"], &[], &mut fields);
    section(&mut page, "Status", &text(&schema["properties"]["status"]["description"]), &fields);

    page.push_str("\n## Rules\n\nThe API server refuses an object that breaks one of these.\n\n");
    let mut rules = Vec::new();
    collect_rules("", schema, &shared, &mut rules);
    for (path, message) in rules {
        let _ = writeln!(page, "- `{path}`: {}.", message.trim_end_matches('.'));
    }
    page
}

/// A set of fields that several objects have, documented once.
struct Shared<'a> {
    properties: &'a Value,
    link: &'static str,
}

impl Shared<'_> {
    fn covers(&self, properties: &Map<String, Value>) -> bool {
        self.properties.as_object().is_some_and(|own| own.keys().all(|key| properties.contains_key(key)))
    }

    fn has(&self, name: &str) -> bool {
        self.properties.get(name).is_some()
    }
}

fn section(page: &mut String, title: &str, introduction: &str, fields: &[Field]) {
    let _ = write!(page, "\n## {title}\n\n");
    if !introduction.is_empty() {
        let _ = write!(page, "{introduction}\n\n");
    }
    page.push_str("| field | type | default | meaning |\n|---|---|---|---|\n");
    for field in fields {
        let required = if field.required { " **required**" } else { "" };
        let _ = writeln!(
            page,
            "| `{}` | {}{required} | {} | {} |",
            field.path,
            field.type_,
            cell(&field.default),
            cell(&field.description),
        );
    }
}

fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|")
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().replace('\n', " ")
}

fn collect(path: &str, schema: &Value, shared: &[Shared<'_>], fields: &mut Vec<Field>) {
    collect_properties(path, &schema["properties"], &schema["required"], shared, fields);
}

fn collect_properties(
    path: &str,
    properties: &Value,
    required: &Value,
    shared: &[Shared<'_>],
    fields: &mut Vec<Field>,
) {
    let Some(properties) = properties.as_object() else { return };
    let covering = shared.iter().find(|shared| shared.covers(properties));
    for (name, schema) in properties {
        if covering.is_some_and(|shared| shared.has(name)) {
            continue;
        }
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let description = text(&schema["description"]);
        let (description, default) = split_default(&description);
        fields.push(Field {
            type_: type_name(name, schema),
            required: required.as_array().is_some_and(|all| all.iter().any(|key| key == name)),
            default,
            description,
            path: path.clone(),
        });
        if EMBEDDED.contains(&name.as_str()) {
            continue;
        }
        let (path, inner) = match schema["items"].is_object() {
            true => (format!("{path}[]"), &schema["items"]),
            false => (path, schema),
        };
        if let (Some(inner), Some(field)) = (inner["properties"].as_object(), fields.last_mut())
            && let Some(shared) = shared.iter().find(|shared| shared.covers(inner))
        {
            field.description = format!("{} Takes {}.", field.description, shared.link).trim().to_owned();
        }
        collect(&path, inner, shared, fields);
    }
}

/// Takes the sentence that says the default out of a description.
fn split_default(description: &str) -> (String, String) {
    if let Some(end) = description.find(" (default)") {
        let value = description[..end].rsplit(' ').next().unwrap_or_default();
        return (description.to_owned(), value.to_owned());
    }
    let Some(start) = description.find("Default") else { return (description.to_owned(), String::new()) };
    let sentence = &description[start..];
    let end = sentence.find(". ").unwrap_or(sentence.len());
    let rest = sentence.get(end + 2..).unwrap_or_default();
    let value = sentence[..end].trim_end_matches('.');
    let value = value.trim_start_matches("Default").trim_start_matches(':').trim();
    (format!("{}{rest}", &description[..start]).trim().to_owned(), value.to_owned())
}

fn type_name(name: &str, schema: &Value) -> String {
    if EMBEDDED.contains(&name) {
        return "Kubernetes".to_owned();
    }
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<String> = values.iter().map(|value| format!("`{}`", text(value))).collect();
        return values.join(" or ");
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return "number or text".to_owned();
    }
    match schema["type"].as_str() {
        Some("array") => match schema["items"]["type"].as_str() {
            Some("object") | None => "list".to_owned(),
            Some(inner) => format!("list of {inner}"),
        },
        Some("object") if schema["additionalProperties"].is_object() => "map".to_owned(),
        Some("integer") => match (schema["minimum"].as_f64(), schema["maximum"].as_f64()) {
            (Some(least), Some(most)) => format!("integer, {least} to {most}"),
            _ => "integer".to_owned(),
        },
        Some(other) => other.to_owned(),
        None => "any".to_owned(),
    }
}

fn collect_rules(path: &str, schema: &Value, shared: &[Shared<'_>], rules: &mut Vec<(String, String)>) {
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let path = if path.is_empty() { "the object" } else { path };
        rules.push((path.to_owned(), text(&rule["message"])));
    }
    if let Some(properties) = schema["properties"].as_object() {
        let covering = shared.iter().find(|shared| shared.covers(properties));
        for (name, property) in properties {
            // Shared fields are listed once, where `defaults` has them.
            if covering.is_some_and(|shared| shared.has(name)) && !path.ends_with("defaults") {
                continue;
            }
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            collect_rules(&path, property, shared, rules);
        }
    }
    if schema["items"].is_object() {
        collect_rules(&format!("{path}[]"), &schema["items"], shared, rules);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_taken_out_of_the_description() {
        for (description, rest, default) in [
            (
                "Number of pods. Default 1. A change rolls nothing.",
                "Number of pods. A change rolls nothing.",
                "1",
            ),
            ("Replicas. Default: the broker's.", "Replicas.", "the broker's"),
            ("`A` (default): one. `B`: two.", "`A` (default): one. `B`: two.", "`A`"),
            ("Nothing said.", "Nothing said.", ""),
        ] {
            assert_eq!(split_default(description), (rest.to_owned(), default.to_owned()));
        }
    }
}
