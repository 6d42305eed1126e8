//! State of one component from its Deployment. Neither early nor flapping: a change counts as done when the Deployment
//! controller has seen it, every pod is of the new revision, no pod of an old one is left, and all are available.

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use penstock_crds::v1alpha1::ComponentStatus;

use crate::build::REVISION_LABEL;

/// What is wanted of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Name of the component.
    pub name: String,
    /// Pods.
    pub replicas: i32,
    /// Hash of its configuration.
    pub revision: String,
}

/// How far a component is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// As wanted.
    Done,
    /// On its way.
    Rolling(String),
    /// Pods that were there are not available.
    Degraded(String),
    /// On its way for so long that something must be wrong with it.
    Stuck(String),
    /// Kept back until something else is there.
    Held(String),
}

impl Progress {
    /// With the trouble of its pods added to what is told.
    pub fn because(self, trouble: Option<&String>) -> Self {
        let Some(trouble) = trouble else { return self };
        let with = |message: String| format!("{message}; {trouble}");
        match self {
            Self::Rolling(message) => Self::Rolling(with(message)),
            Self::Degraded(message) => Self::Degraded(with(message)),
            Self::Stuck(message) => Self::Stuck(with(message)),
            other @ (Self::Done | Self::Held(_)) => other,
        }
    }

    /// What to tell people, unless all is well.
    pub fn message(&self) -> Option<&str> {
        match self {
            Self::Done => None,
            Self::Rolling(message) | Self::Degraded(message) | Self::Stuck(message) | Self::Held(message) => {
                Some(message)
            }
        }
    }
}

/// How far the Deployment of a component is from what is wanted.
pub fn progress(wanted: &Wanted, deployment: Option<&Deployment>, held: Option<&str>) -> Progress {
    let Some(deployment) = deployment else {
        return match held {
            Some(why) => Progress::Held(why.to_owned()),
            None => Progress::Rolling("its Deployment is being created".to_owned()),
        };
    };
    if let Some(why) = held
        && live_revision(deployment) != Some(wanted.revision.as_str())
    {
        return Progress::Held(why.to_owned());
    }
    let status = deployment.status.clone().unwrap_or_default();
    let generation = deployment.metadata.generation.unwrap_or_default();
    let seen = status.observed_generation.unwrap_or_default() >= generation;
    let replicas = status.replicas.unwrap_or_default();
    let updated = status.updated_replicas.unwrap_or_default();
    let available = status.available_replicas.unwrap_or_default();
    let live_wanted = deployment.spec.replicas.unwrap_or(1);
    let current = live_revision(deployment) == Some(wanted.revision.as_str());

    if !current || !seen || live_wanted != wanted.replicas {
        return Progress::Rolling("the change has been handed to its Deployment".to_owned());
    }
    if let Some(why) = condition(deployment, "Progressing", "False") {
        return Progress::Stuck(why);
    }
    if let Some(why) = condition(deployment, "ReplicaFailure", "True") {
        return Progress::Stuck(why);
    }
    if updated < wanted.replicas || replicas > updated {
        let old = (replicas - updated).max(0);
        return Progress::Rolling(format!(
            "{updated} of {} pods are of the new revision, {old} of an old one",
            wanted.replicas
        ));
    }
    if available < wanted.replicas {
        return Progress::Degraded(format!("{available} of {} pods are available", wanted.replicas));
    }
    Progress::Done
}

/// One entry of `status.components`.
pub fn component_status(
    wanted: &Wanted,
    deployment: Option<&Deployment>,
    progress: &Progress,
) -> ComponentStatus {
    let status = deployment.and_then(|deployment| deployment.status.clone()).unwrap_or_default();
    // Until the Deployment is of the wanted revision, none of its pods are, whatever its last status says.
    let updated = match deployment {
        Some(live)
            if live_revision(live) == Some(wanted.revision.as_str())
                && status.observed_generation >= live.metadata.generation =>
        {
            status.updated_replicas.unwrap_or_default()
        }
        _ => 0,
    };
    ComponentStatus {
        name: wanted.name.clone(),
        ready: *progress == Progress::Done,
        replicas: wanted.replicas,
        ready_replicas: status.ready_replicas.unwrap_or_default(),
        updated_replicas: updated,
        revision: Some(wanted.revision.clone()),
        lag: None,
        lag_seconds: None,
        message: progress.message().map(str::to_owned),
    }
}

/// What is wanted of a component by its Deployment alone, for a pipeline whose spec cannot be read.
pub fn as_it_runs(deployment: &Deployment) -> Wanted {
    Wanted {
        name: deployment.labels().get(crate::build::COMPONENT_LABEL).cloned().unwrap_or_default(),
        replicas: deployment.spec.replicas.unwrap_or(1),
        revision: live_revision(deployment).unwrap_or_default().to_owned(),
    }
}

/// Hash of the configuration of the pods that a Deployment makes.
pub fn live_revision(deployment: &Deployment) -> Option<&str> {
    let labels = deployment.spec.template.metadata.as_ref()?.labels.as_ref()?;
    labels.get(REVISION_LABEL).map(String::as_str)
}

fn condition(deployment: &Deployment, type_: &str, status: &str) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| {
        condition.type_.as_deref() == Some(type_) && condition.status.as_deref() == Some(status)
    })?;
    Some(format!(
        "{}: {}",
        found.reason.as_deref().unwrap_or(type_),
        found.message.as_deref().unwrap_or("no message")
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::{
        api::{
            apps::v1::{DeploymentCondition, DeploymentSpec, DeploymentStatus},
            core::v1::PodTemplateSpec,
        },
        apimachinery::pkg::apis::meta::v1::ObjectMeta,
    };

    use super::*;

    fn wanted(replicas: i32) -> Wanted {
        Wanted { name: "capture".into(), replicas, revision: "new".into() }
    }

    fn deployment(revision: &str, generation: i64, observed: i64, counts: [i32; 4]) -> Deployment {
        let [wanted, replicas, updated, available] = counts;
        Deployment {
            metadata: ObjectMeta { generation: Some(generation), ..ObjectMeta::default() },
            spec: DeploymentSpec {
                replicas: Some(wanted),
                template: PodTemplateSpec {
                    metadata: Some(ObjectMeta {
                        labels: Some(BTreeMap::from([(REVISION_LABEL.to_owned(), revision.to_owned())])),
                        ..ObjectMeta::default()
                    }),
                    spec: None,
                },
                ..DeploymentSpec::default()
            },
            status: Some(DeploymentStatus {
                observed_generation: Some(observed),
                replicas: Some(replicas),
                updated_replicas: Some(updated),
                available_replicas: Some(available),
                ready_replicas: Some(available),
                ..DeploymentStatus::default()
            }),
        }
    }

    fn done(wanted_: &Wanted, deployment: &Deployment) -> bool {
        progress(wanted_, Some(deployment), None) == Progress::Done
    }

    #[test]
    fn ready_is_not_early() {
        let wanted = wanted(2);
        assert!(!done(&wanted, &deployment("old", 1, 1, [2, 2, 2, 2])), "before the change is applied");
        assert!(!done(&wanted, &deployment("new", 2, 1, [2, 2, 2, 2])), "before the controller has seen it");
        assert!(!done(&wanted, &deployment("new", 2, 2, [2, 3, 1, 3])), "while old pods serve");
        assert!(!done(&wanted, &deployment("new", 2, 2, [2, 3, 2, 3])), "while an old pod goes");
        assert!(!done(&wanted, &deployment("new", 2, 2, [2, 2, 2, 1])), "before all are available");
        assert!(!done(&wanted, &deployment("new", 2, 2, [3, 3, 3, 3])), "with another number of pods");
        assert!(done(&wanted, &deployment("new", 2, 2, [2, 2, 2, 2])));
    }

    #[test]
    fn a_pod_that_went_is_not_a_rollout() {
        let state = progress(&wanted(2), Some(&deployment("new", 2, 2, [2, 2, 2, 1])), None);
        assert_eq!(state, Progress::Degraded("1 of 2 pods are available".into()));
    }

    #[test]
    fn a_rollout_past_its_deadline_is_stuck() {
        let mut late = deployment("new", 2, 2, [1, 2, 1, 1]);
        late.status.as_mut().unwrap().conditions = Some(vec![DeploymentCondition {
            type_: Some("Progressing".into()),
            status: Some("False".into()),
            reason: Some("ProgressDeadlineExceeded".into()),
            message: Some("timed out".into()),
            ..DeploymentCondition::default()
        }]);
        let state = progress(&wanted(1), Some(&late), None);
        assert_eq!(state, Progress::Stuck("ProgressDeadlineExceeded: timed out".into()));
    }

    #[test]
    fn a_component_that_is_held_back_says_why_and_one_that_runs_goes_on() {
        let why = Some("waiting for topics");
        assert_eq!(progress(&wanted(1), None, why), Progress::Held("waiting for topics".into()));
        let old = deployment("old", 1, 1, [1, 1, 1, 1]);
        assert_eq!(progress(&wanted(1), Some(&old), why), Progress::Held("waiting for topics".into()));
        let current = deployment("new", 1, 1, [1, 1, 1, 1]);
        assert_eq!(progress(&wanted(1), Some(&current), why), Progress::Done);
    }

    #[test]
    fn no_pods_wanted_and_none_there_is_done() {
        assert!(done(&wanted(0), &deployment("new", 1, 1, [0, 0, 0, 0])));
    }

    #[test]
    fn old_pods_are_not_counted_as_updated() {
        let old = deployment("old", 1, 1, [2, 2, 2, 2]);
        let status = component_status(&wanted(2), Some(&old), &Progress::Rolling("x".into()));
        assert_eq!((status.updated_replicas, status.ready_replicas, status.ready), (0, 2, false));
    }
}
