//! ServiceAccount of a component: no binary talks to the Kubernetes API, so no token
//! for it is mounted; one for Kafka is where the spec says so. Its annotations are for
//! what a cloud ties to an account.

use k8s_openapi::api::core::v1::ServiceAccount;

use super::{labels, workload_name};
use crate::validate::{Component, ValidatedPipeline, Workload};

pub(super) fn build(
    pipeline: &ValidatedPipeline,
    component: &Component,
    workload: &Workload,
) -> ServiceAccount {
    let mut metadata = labels::metadata(
        &pipeline.owner,
        workload_name(&pipeline.owner.name, component),
        labels::of(&pipeline.owner, component),
    );
    metadata.annotations = labels::non_empty(workload.service_account_annotations.clone());
    ServiceAccount { metadata, automount_service_account_token: Some(false), ..ServiceAccount::default() }
}

#[cfg(test)]
mod tests {
    use crate::build::tests::component;

    #[test]
    fn the_service_account_of_an_export() {
        insta::assert_yaml_snapshot!("service-account", component("export-crm").service_account);
    }
}
