//! Deployment of a component.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource,
            HTTPGetAction, KeyToPath, ObjectFieldSelector, PodSecurityContext, PodSpec, PodTemplateSpec,
            Probe, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use penstock_pipeline::config::POD_NAME;

use super::{
    ImageSource,
    config::{self, ComponentConfig},
    config_map, credentials, labels, secret, workload_name,
};
use crate::validate::{Component, Destination, ValidatedPipeline, Workload};

/// Port of capture's HTTP API.
pub(super) const HTTP_PORT: i32 = 8000;
/// Port of `/metrics`, `/healthz` and `/readyz`.
pub const ADMIN_PORT: i32 = 9090;
/// Volume of the ConfigMap that a component runs with.
pub const CONFIG_VOLUME: &str = "config";
/// User and group of the image.
const USER: i64 = 65532;
/// Old ReplicaSets kept for `kubectl rollout undo`; their ConfigMaps are kept with them.
const REVISION_HISTORY: i32 = 5;

pub(super) fn build(
    pipeline: &ValidatedPipeline,
    component: &Component,
    workload: &Workload,
    config: &ComponentConfig,
    images: &ImageSource,
) -> Deployment {
    let owner = &pipeline.owner;
    Deployment {
        metadata: labels::metadata(
            owner,
            workload_name(&owner.name, component),
            labels::of(owner, component),
        ),
        spec: DeploymentSpec {
            replicas: Some(workload.replicas),
            revision_history_limit: Some(REVISION_HISTORY),
            progress_deadline_seconds: Some(600),
            selector: labels::label_selector(owner, component),
            // A new pod is ready before an old one goes, so that a change which does not start harms nothing.
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::Int(1)),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: template(pipeline, component, workload, config, images),
            ..DeploymentSpec::default()
        },
        status: None,
    }
}

fn template(
    pipeline: &ValidatedPipeline,
    component: &Component,
    workload: &Workload,
    config: &ComponentConfig,
    images: &ImageSource,
) -> PodTemplateSpec {
    // The user's labels first: none of them may take a pod out of its selector.
    let mut pod_labels = workload.pod_labels.clone();
    pod_labels.extend(labels::of(&pipeline.owner, component));
    pod_labels.insert(labels::REVISION_LABEL.to_owned(), config.revision.clone());
    let mut annotations = workload.pod_annotations.clone();
    if let Some(certificates) = credentials::certificates(pipeline, component) {
        annotations.insert(credentials::ANNOTATION.to_owned(), certificates);
    }
    let files = files(pipeline, component, config);
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(pod_labels),
            annotations: labels::non_empty(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(workload_name(&pipeline.owner.name, component)),
            automount_service_account_token: Some(false),
            enable_service_links: Some(false),
            termination_grace_period_seconds: Some(config::termination_grace_seconds(component)),
            security_context: Some(PodSecurityContext {
                run_as_non_root: Some(true),
                run_as_user: Some(USER),
                run_as_group: Some(USER),
                fs_group: Some(USER),
                seccomp_profile: Some(SeccompProfile {
                    type_: "RuntimeDefault".to_owned(),
                    localhost_profile: None,
                }),
                ..PodSecurityContext::default()
            }),
            containers: vec![container(pipeline, component, workload, images, &files)],
            volumes: Some(files.into_iter().map(|file| file.volume).collect()),
            image_pull_secrets: list(&workload.image_pull_secrets),
            priority_class_name: workload.priority_class_name.clone(),
            node_selector: labels::non_empty(workload.node_selector.clone()),
            tolerations: list(&workload.tolerations),
            affinity: workload.affinity.clone(),
            topology_spread_constraints: list(&workload.topology_spread_constraints),
            ..PodSpec::default()
        }),
    }
}

fn list<T: Clone>(items: &[T]) -> Option<Vec<T>> {
    Some(items.to_vec()).filter(|items| !items.is_empty())
}

fn container(
    pipeline: &ValidatedPipeline,
    component: &Component,
    workload: &Workload,
    images: &ImageSource,
    files: &[File],
) -> Container {
    let port = |name: &str, number: i32| ContainerPort {
        name: Some(name.to_owned()),
        container_port: number,
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let mut ports = vec![port("admin", ADMIN_PORT)];
    if *component == Component::Capture {
        ports.insert(0, port("http", HTTP_PORT));
    }
    Container {
        name: component.binary().to_owned(),
        image: Some(format!("{}:{}", images.repository, pipeline.version)),
        image_pull_policy: Some(images.pull_policy.clone()),
        command: Some(vec![format!("/usr/local/bin/{}", component.binary())]),
        args: Some(vec!["--config".to_owned(), format!("{}/{}", config::CONFIG_DIRECTORY, config_map::KEY)]),
        env: Some(environment(workload)),
        ports: Some(ports),
        resources: Some(workload.resources.clone()),
        volume_mounts: Some(files.iter().map(|file| file.mount.clone()).collect()),
        // Slow to give up: a start waits for Kafka, and a restart does not make Kafka come sooner.
        startup_probe: Some(probe("/healthz", 2, 60)),
        liveness_probe: Some(probe("/healthz", 10, 6)),
        readiness_probe: Some(probe("/readyz", 2, 2)),
        // The last lines of the log of a container that failed end up in the status of its pod, and of the pipeline.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            run_as_non_root: Some(true),
            capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

fn environment(workload: &Workload) -> Vec<EnvVar> {
    let literal = |name: &str, value: &str| EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        value_from: None,
    };
    let pod_name = EnvVar {
        name: POD_NAME.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.name".to_owned(),
                api_version: Some("v1".to_owned()),
            }),
            ..EnvVarSource::default()
        }),
    };
    let mut env = vec![pod_name, literal("RUST_LOG", &workload.log_level)];
    env.extend(workload.env.iter().map(|(name, value)| literal(name, value)));
    env
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("admin".to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        ..Probe::default()
    }
}

/// A file that a component reads: a volume and where it is mounted.
struct File {
    volume: Volume,
    mount: VolumeMount,
}

fn files(pipeline: &ValidatedPipeline, component: &Component, config: &ComponentConfig) -> Vec<File> {
    let mount = |name: &str, path: &str| VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(true),
        ..VolumeMount::default()
    };
    let mut files = vec![File {
        volume: Volume {
            name: CONFIG_VOLUME.to_owned(),
            config_map: Some(ConfigMapVolumeSource {
                name: config_map::name(pipeline, component, &config.revision),
                default_mode: Some(0o444),
                ..ConfigMapVolumeSource::default()
            }),
            ..Volume::default()
        },
        mount: mount(CONFIG_VOLUME, config::CONFIG_DIRECTORY),
    }];
    let secret_volume = |name: &str, secret: String, key: &str| Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            items: Some(vec![KeyToPath {
                key: key.to_owned(),
                path: key.to_owned(),
                ..KeyToPath::default()
            }]),
            default_mode: Some(0o440),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    };
    match component {
        Component::Capture | Component::ConsumerMain => files.push(File {
            volume: secret_volume("projects", secret::name(pipeline), secret::KEY),
            mount: mount("projects", config::PROJECTS_DIRECTORY),
        }),
        Component::Transformation => {}
        Component::Export(name) => {
            if let Some(Destination::Webhook(webhook)) =
                pipeline.export(name).map(|export| &export.destination)
                && let Some(signing) = &webhook.signing
            {
                files.push(File {
                    volume: secret_volume("signing", signing.secret.clone(), &signing.key),
                    mount: mount("signing", config::SIGNING_DIRECTORY),
                });
            }
        }
    }
    files.extend(
        credentials::volumes(pipeline, component)
            .into_iter()
            .map(|(volume, directory)| File { mount: mount(&volume.name, directory), volume }),
    );
    files
}

#[cfg(test)]
mod tests {
    use crate::build::tests::component;

    #[test]
    fn the_deployment_of_capture() {
        insta::assert_yaml_snapshot!("deployment-capture", component("capture").deployment);
    }

    #[test]
    fn the_deployment_of_consumer_main() {
        insta::assert_yaml_snapshot!("deployment-consumer-main", component("consumer-main").deployment);
    }

    #[test]
    fn the_deployment_of_transformation() {
        insta::assert_yaml_snapshot!("deployment-transformation", component("transformation").deployment);
    }

    #[test]
    fn the_deployment_of_export_warehouse() {
        insta::assert_yaml_snapshot!("deployment-export-warehouse", component("export-warehouse").deployment);
    }

    #[test]
    fn the_deployment_of_export_crm() {
        insta::assert_yaml_snapshot!("deployment-export-crm", component("export-crm").deployment);
    }
}
