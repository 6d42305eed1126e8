//! Workload settings: the component's own over the pipeline's over those of the API.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::ResourceRequirements, apimachinery::pkg::api::resource::Quantity};
use penstock_crds::v1alpha1::{EnvironmentVariable, WorkloadSettings};

use super::{Problem, Workload};

/// Environment variables that the operator sets itself.
const RESERVED_ENV: [&str; 2] = ["POD_NAME", "RUST_LOG"];

/// Merges key by key; maps are merged, lists replaced. Problems are added with `field` as their path.
pub fn resolve(
    field: &str,
    own: &WorkloadSettings,
    defaults: &WorkloadSettings,
    problems: &mut Vec<Problem>,
) -> Workload {
    let replicas = own.replicas.or(defaults.replicas).unwrap_or(1);
    if replicas < 0 {
        problems.push(Problem::Field {
            field: format!("{field}.replicas"),
            message: format!("{replicas} pods cannot be run; write 0 or more"),
        });
    }
    let env = own
        .env
        .as_ref()
        .or(defaults.env.as_ref())
        .map_or_else(Vec::new, |env| environment(&format!("{field}.env"), env, problems));
    Workload {
        replicas,
        resources: resources(own.resources.as_ref(), defaults.resources.as_ref()),
        log_level: own
            .log_level
            .as_ref()
            .or(defaults.log_level.as_ref())
            .cloned()
            .unwrap_or_else(|| "info".to_owned()),
        image_pull_secrets: replaced(&own.image_pull_secrets, &defaults.image_pull_secrets),
        priority_class_name: own.priority_class_name.clone().or_else(|| defaults.priority_class_name.clone()),
        node_selector: merged(own.node_selector.as_ref(), defaults.node_selector.as_ref()),
        tolerations: replaced(&own.tolerations, &defaults.tolerations),
        affinity: own.affinity.clone().or_else(|| defaults.affinity.clone()),
        topology_spread_constraints: replaced(
            &own.topology_spread_constraints,
            &defaults.topology_spread_constraints,
        ),
        pod_labels: merged(own.pod_labels.as_ref(), defaults.pod_labels.as_ref()),
        pod_annotations: merged(own.pod_annotations.as_ref(), defaults.pod_annotations.as_ref()),
        service_account_annotations: merged(
            own.service_account_annotations.as_ref(),
            defaults.service_account_annotations.as_ref(),
        ),
        env,
    }
}

fn replaced<T: Clone>(own: &Option<Vec<T>>, defaults: &Option<Vec<T>>) -> Vec<T> {
    own.as_ref().or(defaults.as_ref()).cloned().unwrap_or_default()
}

fn merged<V: Clone>(
    own: Option<&BTreeMap<String, V>>,
    defaults: Option<&BTreeMap<String, V>>,
) -> BTreeMap<String, V> {
    let mut map = defaults.cloned().unwrap_or_default();
    map.extend(own.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
    map
}

/// The API's own default applies only to who says nothing at all: half of it over half of the user's could make a
/// request above a limit.
fn resources(
    own: Option<&ResourceRequirements>,
    defaults: Option<&ResourceRequirements>,
) -> ResourceRequirements {
    if own.is_none() && defaults.is_none() {
        let quantity = |text: &str| Quantity(text.to_owned());
        return ResourceRequirements {
            requests: Some(BTreeMap::from([
                ("cpu".to_owned(), quantity("100m")),
                ("memory".to_owned(), quantity("128Mi")),
            ])),
            limits: Some(BTreeMap::from([("memory".to_owned(), quantity("512Mi"))])),
            claims: None,
        };
    }
    let part = |get: fn(&ResourceRequirements) -> Option<&BTreeMap<String, Quantity>>| {
        Some(merged(own.and_then(get), defaults.and_then(get))).filter(|map| !map.is_empty())
    };
    ResourceRequirements {
        requests: part(|r| r.requests.as_ref()),
        limits: part(|r| r.limits.as_ref()),
        claims: own.and_then(|r| r.claims.clone()).or_else(|| defaults.and_then(|r| r.claims.clone())),
    }
}

fn environment(
    field: &str,
    env: &[EnvironmentVariable],
    problems: &mut Vec<Problem>,
) -> Vec<(String, String)> {
    let mut taken: Vec<(String, String)> = Vec::with_capacity(env.len());
    for variable in env {
        if RESERVED_ENV.contains(&variable.name.as_str()) {
            problems.push(Problem::Field {
                field: field.to_owned(),
                message: format!("{} is set by the operator; use logLevel for RUST_LOG", variable.name),
            });
        } else if taken.iter().any(|(name, _)| *name == variable.name) {
            problems.push(Problem::Field {
                field: field.to_owned(),
                message: format!("{} is there twice; keep one", variable.name),
            });
        } else {
            taken.push((variable.name.clone(), variable.value.clone()));
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirements(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> ResourceRequirements {
        let map = |entries: &[(&str, &str)]| {
            Some(entries.iter().map(|(k, v)| ((*k).to_owned(), Quantity((*v).to_owned()))).collect())
        };
        ResourceRequirements { requests: map(requests), limits: map(limits), claims: None }
    }

    #[test]
    fn maps_are_merged_key_by_key_and_lists_are_replaced() {
        let defaults = WorkloadSettings {
            pod_labels: Some(BTreeMap::from([("a".into(), "1".into()), ("b".into(), "1".into())])),
            env: Some(vec![EnvironmentVariable { name: "X".into(), value: "1".into() }]),
            replicas: Some(3),
            ..Default::default()
        };
        let own = WorkloadSettings {
            pod_labels: Some(BTreeMap::from([("b".into(), "2".into())])),
            env: Some(vec![EnvironmentVariable { name: "Y".into(), value: "2".into() }]),
            ..Default::default()
        };
        let workload = resolve("spec.capture", &own, &defaults, &mut Vec::new());
        assert_eq!(workload.pod_labels, BTreeMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]));
        assert_eq!(workload.env, [("Y".to_owned(), "2".to_owned())]);
        assert_eq!(workload.replicas, 3);
    }

    #[test]
    fn the_default_limit_is_not_put_under_a_request_of_the_user() {
        let own = requirements(&[("memory", "2Gi")], &[]);
        let merged = resources(Some(&own), None);
        assert_eq!(merged.limits, None);
        assert_eq!(merged.requests, own.requests);
    }

    #[test]
    fn a_component_overrides_one_resource_and_keeps_the_others() {
        let defaults = requirements(&[("cpu", "1"), ("memory", "1Gi")], &[("memory", "1Gi")]);
        let own = requirements(&[("cpu", "2")], &[]);
        let merged = resources(Some(&own), Some(&defaults));
        assert_eq!(merged, requirements(&[("cpu", "2"), ("memory", "1Gi")], &[("memory", "1Gi")]));
    }

    #[test]
    fn variables_of_the_operator_and_doubles_are_refused() {
        let mut problems = Vec::new();
        let own = WorkloadSettings {
            env: Some(
                ["POD_NAME", "X", "X"]
                    .map(|name| EnvironmentVariable { name: name.into(), value: String::new() })
                    .to_vec(),
            ),
            ..Default::default()
        };
        resolve("spec.capture", &own, &WorkloadSettings::default(), &mut problems);
        assert_eq!(problems.len(), 2, "{problems:?}");
    }
}
