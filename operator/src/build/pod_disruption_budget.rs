//! PodDisruptionBudget of a component. `maxUnavailable`, because `minAvailable: 1` with one replica blocks every drain.

use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

use super::{labels, workload_name};
use crate::validate::{Component, ValidatedPipeline};

pub(super) fn build(pipeline: &ValidatedPipeline, component: &Component) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: labels::metadata(
            &pipeline.owner,
            workload_name(&pipeline.owner.name, component),
            labels::of(&pipeline.owner, component),
        ),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(IntOrString::Int(1)),
            selector: Some(labels::label_selector(&pipeline.owner, component)),
            // A pod that is not ready is not worth protecting: without this a crashing pod blocks the drain of its node.
            unhealthy_pod_eviction_policy: Some("AlwaysAllow".to_owned()),
            ..PodDisruptionBudgetSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use crate::build::tests::component;

    #[test]
    fn the_disruption_budget_of_capture() {
        insta::assert_yaml_snapshot!("pod-disruption-budget", component("capture").disruption_budget);
    }
}
