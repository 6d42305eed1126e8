//! Whether an object is as we want it. Pure.
//!
//! An intent names only the fields that we care about, and the API server adds defaults of its own; so an object is as
//! wanted when every field of the intent is there with the same value, whatever else there is.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// Annotation with the hash of the intent that was applied last: a field that is no longer wanted is seen by it, since
/// what is not in the intent is not compared.
pub const INTENT_ANNOTATION: &str = "penstock.dev/intent";

/// Hash of an intent.
pub fn hash(intent: &Value) -> String {
    // `serde_json` keeps maps in the order of their keys, so equal intents have equal text.
    let mut hash = hex::encode(Sha256::digest(intent.to_string().as_bytes()));
    hash.truncate(16);
    hash
}

/// Path of the first field of `intent` that `live` lacks or has otherwise; `None` when there is none.
pub fn first_difference(intent: &Value, live: &Value) -> Option<String> {
    match (intent, live) {
        (Value::Object(intent), Value::Object(live)) => intent.iter().find_map(|(key, wanted)| {
            let found = match live.get(key) {
                Some(found) => first_difference(wanted, found),
                None if is_empty(wanted) => None,
                None => Some(String::new()),
            };
            found.map(|rest| format!(".{key}{rest}"))
        }),
        (Value::Array(intent), Value::Array(live)) => {
            if intent.len() != live.len() {
                return Some(String::new());
            }
            intent.iter().zip(live).enumerate().find_map(|(index, (wanted, found))| {
                first_difference(wanted, found).map(|rest| format!("[{index}]{rest}"))
            })
        }
        (intent, live) => (intent != live).then(String::new),
    }
}

/// An empty list or map and an absent one are the same to Kubernetes.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_of_the_server_are_no_difference() {
        let intent = json!({"spec": {"replicas": 1, "template": {"containers": [{"name": "a"}]}}});
        let live = json!({"spec": {"replicas": 1, "progressDeadlineSeconds": 600,
            "template": {"containers": [{"name": "a", "terminationMessagePath": "/dev/termination-log"}]}},
            "status": {}});
        assert_eq!(first_difference(&intent, &live), None);
    }

    #[test]
    fn an_edit_is_found_with_its_path() {
        let intent = json!({"spec": {"containers": [{"name": "a", "image": "x:1"}]}});
        for (live, path) in [
            (json!({"spec": {"containers": [{"name": "a", "image": "x:2"}]}}), ".spec.containers[0].image"),
            (json!({"spec": {"containers": [{"name": "a"}]}}), ".spec.containers[0].image"),
            (json!({"spec": {"containers": []}}), ".spec.containers"),
            (json!({}), ".spec"),
        ] {
            assert_eq!(first_difference(&intent, &live).as_deref(), Some(path));
        }
    }

    #[test]
    fn empty_and_absent_are_the_same() {
        let intent = json!({"from": [{"namespaceSelector": {}}], "args": []});
        assert_eq!(first_difference(&intent, &json!({"from": [{"namespaceSelector": {}}]})), None);
    }

    #[test]
    fn the_hash_is_of_the_content() {
        assert_eq!(hash(&json!({"a": 1, "b": 2})), hash(&json!({"b": 2, "a": 1})));
        assert_ne!(hash(&json!({"a": 1})), hash(&json!({"a": 2})));
    }
}
