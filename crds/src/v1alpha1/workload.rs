//! Settings of the Kubernetes workload that a component becomes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, LocalObjectReference, ResourceRequirements, Toleration, TopologySpreadConstraint,
};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// Workload settings. On a component they override `spec.defaults` key by key; maps are merged, lists replaced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSettings {
    /// Number of pods. Default 1. A change rolls nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000))]
    pub replicas: Option<i32>,
    /// CPU and memory of the container. Default: requests 100m and 128Mi, limit 512Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(
        "!has(self.requests) || !has(self.limits) || self.requests.all(k, !(k in self.limits) || \
         !isQuantity(string(self.requests[k])) || !isQuantity(string(self.limits[k])) || \
         !quantity(string(self.requests[k])).isGreaterThan(quantity(string(self.limits[k]))))"
    ).message("a request above its limit cannot be scheduled; lower it, or raise the limit"))]
    pub resources: Option<ResourceRequirements>,
    /// Level of the JSON logs, in the syntax of `RUST_LOG`. Default `info`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^[a-zA-Z0-9_:,=-]+$')").message(
        "logLevel must be a level or levels per module, for example info or info,penstock_pipeline=debug"
    ))]
    pub log_level: Option<String>,
    /// Secrets for pulling the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Option<Vec<LocalObjectReference>>,
    /// PriorityClass of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Taints that the pods tolerate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub tolerations: Option<Vec<Toleration>>,
    /// Scheduling affinity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How the pods spread over zones and nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Option<Vec<TopologySpreadConstraint>>,
    /// Additional labels of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 32, "additionalProperties" = {"type": "string", "maxLength": 63}))]
    #[x_kube(validation = Rule::new(
        "self.all(k, !(k in ['app.kubernetes.io/name', 'app.kubernetes.io/instance', 'app.kubernetes.io/component', \
         'app.kubernetes.io/managed-by', 'pod-template-hash']))"
    ).message("the labels app.kubernetes.io/name, instance, component, managed-by and pod-template-hash are set by the operator; remove them"))]
    pub pod_labels: Option<BTreeMap<String, String>>,
    /// Additional annotations of the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub pod_annotations: Option<BTreeMap<String, String>>,
    /// Annotations of the component's ServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub service_account_annotations: Option<BTreeMap<String, String>>,
    /// Additional environment variables of the container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Option<Vec<EnvironmentVariable>>,
}

/// An environment variable with a literal value. `POD_NAME` and `RUST_LOG` are set by the operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
pub struct EnvironmentVariable {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z_][A-Za-z0-9_]*$')").message(
        "name of an environment variable must be letters, digits and '_', not beginning with a digit"
    ))]
    #[x_kube(validation = Rule::new("!(self in ['POD_NAME', 'RUST_LOG'])").message(
        "POD_NAME and RUST_LOG are set by the operator; use logLevel for the level of the logs"
    ))]
    pub name: String,
    /// Its value.
    #[schemars(length(max = 4_096))]
    pub value: String,
}
