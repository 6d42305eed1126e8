//! `ValidatedPipeline` → Kubernetes objects. Pure: the same pipeline always gives the same objects, in the same order,
//! and nothing in them varies with time.

mod config;
mod config_map;
mod credentials;
mod deployment;
mod labels;
mod network_policy;
mod pod_disruption_budget;
mod secret;
mod service;
mod service_account;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};

pub use config::{ComponentConfig, Rendering};
pub use config_map::KEY as CONFIG_KEY;
pub use credentials::{ANNOTATION as CREDENTIALS_ANNOTATION, in_terms_of_the_spec};
pub use deployment::{ADMIN_PORT, CONFIG_VOLUME};
pub use labels::{COMPONENT_LABEL, INSTANCE_LABEL, MANAGED_BY, MANAGED_BY_LABEL, REVISION_LABEL};

use crate::validate::{Component, ValidatedPipeline};

/// Where the image of the components comes from; a setting of the operator, the same for all pipelines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSource {
    /// Repository without a tag; the tag is the pipeline's version.
    pub repository: String,
    /// `imagePullPolicy` of the containers.
    pub pull_policy: String,
}

/// Why the objects could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A configuration type could not be written as YAML.
    #[error("cannot render the configuration of {component}: {source}")]
    Render {
        /// The component.
        component: Component,
        /// The serialiser's words.
        source: serde_yaml_ng::Error,
    },
}

/// Every object that a pipeline owns in Kubernetes.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// One per component.
    pub components: Vec<ComponentObjects>,
    /// The projects file, which running components reload.
    pub projects: Secret,
    /// In front of capture.
    pub capture_service: Service,
}

/// The objects of one component.
#[derive(Clone, Debug, PartialEq)]
pub struct ComponentObjects {
    /// Whose they are.
    pub component: Component,
    /// Hash of the configuration: the suffix of the ConfigMap's name, a label of the pods.
    pub revision: String,
    /// Its configuration, immutable.
    pub config_map: ConfigMap,
    /// Its identity, without rights in Kubernetes.
    pub service_account: ServiceAccount,
    /// Its pods.
    pub deployment: Deployment,
    /// One pod at a time may be evicted.
    pub disruption_budget: PodDisruptionBudget,
    /// Who may connect.
    pub network_policy: NetworkPolicy,
}

/// Name of the workload of a component.
pub fn workload_name(pipeline: &str, component: &Component) -> String {
    format!("{pipeline}-{component}")
}

/// Address of the capture API inside the cluster.
pub fn capture_url(pipeline: &ValidatedPipeline) -> String {
    let host = format!(
        "{}.{}.svc",
        workload_name(&pipeline.owner.name, &Component::Capture),
        pipeline.owner.namespace
    );
    match pipeline.capture.service_port {
        80 => format!("http://{host}"),
        port => format!("http://{host}:{port}"),
    }
}

/// Builds everything.
///
/// # Errors
/// A configuration could not be written as YAML, which no pipeline is known to cause.
pub fn objects(pipeline: &ValidatedPipeline, images: &ImageSource) -> Result<Objects, BuildError> {
    let components = pipeline
        .components()
        .into_iter()
        .map(|component| {
            let config = config::render(pipeline, &component)?;
            let workload = pipeline.workload(&component).unwrap_or(&pipeline.consumer_main);
            Ok(ComponentObjects {
                config_map: config_map::build(pipeline, &component, &config),
                service_account: service_account::build(pipeline, &component, workload),
                deployment: deployment::build(pipeline, &component, workload, &config, images),
                disruption_budget: pod_disruption_budget::build(pipeline, &component),
                network_policy: network_policy::build(pipeline, &component),
                revision: config.revision,
                component,
            })
        })
        .collect::<Result<_, BuildError>>()?;
    Ok(Objects { components, projects: secret::build(pipeline)?, capture_service: service::build(pipeline) })
}

#[cfg(test)]
pub(crate) mod tests;
