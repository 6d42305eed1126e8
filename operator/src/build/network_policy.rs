//! NetworkPolicy of a component, for ingress only: the kubelet's probes and a Prometheus anywhere in the cluster reach the
//! admin port; everybody reaches capture's HTTP port, which is there for clients outside; nothing else is open.
//! Egress is the cluster's business: Kafka, ClickHouse and webhooks may be anywhere.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use super::{
    deployment::{ADMIN_PORT, HTTP_PORT},
    labels, workload_name,
};
use crate::validate::{Component, ValidatedPipeline};

pub(super) fn build(pipeline: &ValidatedPipeline, component: &Component) -> NetworkPolicy {
    let port = |number: i32| NetworkPolicyPort {
        port: Some(IntOrString::Int(number)),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    };
    let every_pod = NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector::default()),
        ..NetworkPolicyPeer::default()
    };
    let mut ingress =
        vec![NetworkPolicyIngressRule { from: Some(vec![every_pod]), ports: Some(vec![port(ADMIN_PORT)]) }];
    if *component == Component::Capture {
        ingress.push(NetworkPolicyIngressRule { from: None, ports: Some(vec![port(HTTP_PORT)]) });
    }
    NetworkPolicy {
        metadata: labels::metadata(
            &pipeline.owner,
            workload_name(&pipeline.owner.name, component),
            labels::of(&pipeline.owner, component),
        ),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(labels::label_selector(&pipeline.owner, component)),
            policy_types: Some(vec!["Ingress".to_owned()]),
            ingress: Some(ingress),
            egress: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use crate::build::tests::component;

    #[test]
    fn the_network_policy_of_capture() {
        insta::assert_yaml_snapshot!("network-policy-capture", component("capture").network_policy);
    }

    #[test]
    fn the_network_policy_of_transformation() {
        insta::assert_yaml_snapshot!(
            "network-policy-transformation",
            component("transformation").network_policy
        );
    }
}
