//! Transformation steps in VRL.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WorkloadSettings;
use crate::{
    quantity::HumanDuration,
    rules::{dns_label, duration_between, exactly_one_of, not_blank, object_key, object_name},
};

/// Ordered VRL programs between consumer and exports.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct TransformationSpec {
    /// Workload settings of this component.
    #[serde(flatten)]
    pub workload: WorkloadSettings,
    /// Applied in this order to every event.
    #[serde(default)]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub steps: Vec<TransformationStep>,
    /// Longest time that all steps together may take for one event; a longer one is an error of the step that was
    /// running. Default 100ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = duration_between(1, 10_000, "1ms to 10s"))]
    pub event_time_budget: Option<HumanDuration>,
}

/// One VRL program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = exactly_one_of("vrl", "vrlFrom"))]
pub struct TransformationStep {
    /// Unique name of the step; in metrics, dead letters and diagnostics.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = dns_label("name of a step"))]
    pub name: String,
    /// What happens to an event on which the program fails at run time. `DeadLetter` (default): it is kept in the
    /// dead-letter topic with the reason and goes no further. `Pass`: it is passed on as it was before this step.
    #[serde(default)]
    pub on_error: OnError,
    /// The program. Exactly one of `vrl` and `vrlFrom`. It may change the event, or drop it with `abort`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65_536))]
    #[x_kube(validation = not_blank("vrl"))]
    pub vrl: Option<String>,
    /// Take the program from a ConfigMap in the pipeline's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vrl_from: Option<ConfigMapKeySelector>,
}

/// A key of a ConfigMap in the namespace of the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConfigMapKeySelector {
    /// Name of the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("configMap"))]
    pub config_map: String,
    /// Key inside the ConfigMap.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_key("key", "mask.vrl"))]
    pub key: String,
}

/// What happens to an event on which a step fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnError {
    /// Keep it in the dead-letter topic with the reason; it goes no further.
    #[default]
    DeadLetter,
    /// Pass it on as it was before this step.
    Pass,
}
