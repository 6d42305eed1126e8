//! The CustomResourceDefinition as it is installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Map, Value, json};

use crate::IngestionPipeline;

/// Fields whose types are Kubernetes' own. Their descriptions are cut to the first sentence: the whole text, once per
/// component, would make the definition too large for `kubectl apply`.
pub(crate) const EMBEDDED: [&str; 5] =
    ["affinity", "imagePullSecrets", "resources", "tolerations", "topologySpreadConstraints"];

/// Most entries of a map inside of them.
const MAX_EMBEDDED_PROPERTIES: u32 = 32;

/// The CustomResourceDefinition of [`IngestionPipeline`].
///
/// The derived schema, with these changes:
/// - no `default`: the API server would write it into the spec, where it shows as a difference to what the user keeps in
///   Git, and would freeze it there when a later version chooses better. The operator applies and documents the defaults.
/// - no `nullable`: `capture: null` is refused with a message, instead of being kept and looking set to the rules.
/// - quantities of resources are bounded by a rule: Kubernetes' own type takes any text.
/// - no number formats that OpenAPI does not know; their ranges are given by `minimum` and `maximum`.
pub fn crd() -> CustomResourceDefinition {
    let mut definition = IngestionPipeline::crd();
    for version in &mut definition.spec.versions {
        let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut())
        else {
            continue;
        };
        // Both conversions are between the same JSON: a schema that was derived serialises, and what only loses keys
        // is read again.
        let mut value = serde_json::to_value(&*schema).expect("a derived schema is JSON");
        normalise(&mut value, false);
        *schema = serde_json::from_value(value).expect("a schema without some keys is a schema");
    }
    definition
}

fn normalise(schema: &mut Value, embedded: bool) {
    let Some(object) = schema.as_object_mut() else { return };
    object.remove("default");
    object.remove("nullable");
    if let Some(format) = object.get("format").and_then(Value::as_str)
        && (format.starts_with("uint") || matches!(format, "int8" | "int16"))
    {
        object.remove("format");
    }
    if embedded && object.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        bound_quantity(object);
    }
    if embedded && object.get("additionalProperties").is_some_and(Value::is_object) {
        // The rules' budget is estimated from it.
        object.insert("maxProperties".into(), MAX_EMBEDDED_PROPERTIES.into());
    }
    if embedded && let Some(Value::String(description)) = object.get_mut("description") {
        *description = first_sentence(description);
    }
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        normalise_properties(properties, embedded);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            normalise(inner, embedded);
        }
    }
}

fn bound_quantity(object: &mut Map<String, Value>) {
    object.insert("maxLength".into(), 32.into());
    object.insert("anyOf".into(), json!([{"type": "integer"}, {"type": "string"}]));
    object.insert(
        "x-kubernetes-validations".into(),
        json!([{
            "rule": "type(self) == int ? self >= 0 : isQuantity(self) && !quantity(self).isLessThan(quantity('0'))",
            "message": "must be a quantity of Kubernetes, for example 100m, 0.5, 128Mi or 1Gi",
        }]),
    );
}

fn normalise_properties(properties: &mut Map<String, Value>, embedded: bool) {
    for (name, property) in properties {
        let own_description = property.get("description").cloned();
        let below = embedded || EMBEDDED.contains(&name.as_str());
        normalise(property, below);
        // The field itself is described by this crate; only what lies below it is cut.
        if !embedded && let (Some(object), Some(description)) = (property.as_object_mut(), own_description) {
            object.insert("description".into(), description);
        }
    }
}

fn first_sentence(text: &str) -> String {
    let paragraph = text.split("\n\n").next().unwrap_or(text);
    match paragraph.find(". ") {
        Some(end) => paragraph[..=end].to_owned(),
        None => paragraph.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema() -> Value {
        serde_json::to_value(crd()).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
    }

    fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
        visit(path, schema);
        if let Some(properties) = schema["properties"].as_object() {
            for (name, property) in properties {
                walk(&format!("{path}.{name}"), property, visit);
            }
        }
        for (key, suffix) in [("items", "[]"), ("additionalProperties", "{}")] {
            if schema[key].is_object() {
                walk(&format!("{path}{suffix}"), &schema[key], visit);
            }
        }
    }

    #[test]
    fn every_field_has_a_description() {
        let mut without = Vec::new();
        walk("", &schema(), &mut |path, schema| {
            let is_field = path.starts_with(".spec") || path.starts_with(".status");
            if is_field
                && !path.ends_with(['}', ']'])
                && schema["description"].as_str().is_none_or(str::is_empty)
            {
                without.push(path.to_owned());
            }
        });
        assert!(without.is_empty(), "no description: {without:#?}");
    }

    #[test]
    fn nothing_is_defaulted_and_nothing_is_nullable() {
        walk("", &schema(), &mut |path, schema| {
            assert!(schema.get("default").is_none(), "{path} has a default");
            assert!(schema.get("nullable").is_none(), "{path} is nullable");
        });
    }

    #[test]
    fn every_rule_says_what_to_write() {
        walk("", &schema(), &mut |path, schema| {
            for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
                assert!(rule["message"].is_string(), "{path}: no message for {}", rule["rule"]);
                let message = rule["message"].as_str().unwrap_or_default();
                assert!(message.len() > 15 && !message.contains('\n'), "{path}: {message:?}");
            }
        });
    }

    #[test]
    fn every_quantity_of_ours_is_bounded_by_a_rule() {
        let mut quantities = Vec::new();
        walk("", &schema(), &mut |path, schema| {
            if schema["x-kubernetes-int-or-string"] == true && !path.contains(".resources.") {
                let rules = schema["x-kubernetes-validations"].as_array().cloned().unwrap_or_default();
                assert_eq!(rules.len(), 1, "{path} has {} rules", rules.len());
                assert!(
                    rules[0]["rule"].as_str().unwrap_or_default().contains("<="),
                    "{path} has no upper bound"
                );
                quantities.push(path.to_owned());
            }
        });
        assert!(quantities.contains(&".spec.exports[].block.maxRows".to_owned()), "{quantities:?}");
    }

    #[test]
    fn the_definition_fits_the_annotation_of_kubectl_apply() {
        let size = serde_json::to_string(&crd()).unwrap().len();
        assert!(
            size < 240 * 1024,
            "the definition has {size} bytes; kubectl apply keeps a copy of at most 256 KiB"
        );
    }

    #[test]
    fn descriptions_of_embedded_types_end_with_their_first_sentence() {
        assert_eq!(first_sentence("One. Two."), "One.");
        assert_eq!(first_sentence("Only one"), "Only one");
        assert_eq!(first_sentence("Head\n\nBody. More."), "Head");
    }
}
