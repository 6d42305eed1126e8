//! Service in front of capture.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use penstock_crds::v1alpha1::ServiceType;

use super::{labels, workload_name};
use crate::validate::{Component, ValidatedPipeline};

pub(super) fn build(pipeline: &ValidatedPipeline) -> Service {
    let component = Component::Capture;
    let capture = &pipeline.capture;
    let mut metadata = labels::metadata(
        &pipeline.owner,
        workload_name(&pipeline.owner.name, &component),
        labels::of(&pipeline.owner, &component),
    );
    metadata.annotations = labels::non_empty(capture.service_annotations.clone());
    let type_ = match capture.service_type {
        ServiceType::ClusterIP => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
    };
    Service {
        metadata,
        spec: Some(ServiceSpec {
            type_: Some(type_.to_owned()),
            selector: Some(labels::selector(&pipeline.owner, &component)),
            ports: Some(vec![ServicePort {
                name: Some("http".to_owned()),
                port: i32::from(capture.service_port),
                protocol: Some("TCP".to_owned()),
                target_port: Some(IntOrString::String("http".to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use crate::build::tests::full;

    #[test]
    fn the_service_of_capture() {
        insta::assert_yaml_snapshot!("service", full().capture_service);
    }
}
