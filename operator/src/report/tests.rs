use k8s_openapi::{
    api::{
        apps::v1::{DeploymentSpec, DeploymentStatus},
        core::v1::PodTemplateSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    dependency::{Severity, Trouble},
    *,
};
use crate::build::{COMPONENT_LABEL, REVISION_LABEL};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn ready_dependency() -> Dependency {
    Dependency::Observed { troubles: Vec::new(), summary: "all there".into() }
}

fn effect() -> Effect {
    Effect {
        version: "0.1.0".into(),
        capture_url: "http://web-capture.shop.svc".into(),
        wanted: ["capture", "consumer-main"]
            .map(|name| Wanted { name: name.into(), replicas: 2, revision: "new".into() })
            .to_vec(),
        held: BTreeMap::new(),
        kafka: ready_dependency(),
        clickhouse: Some(ready_dependency()),
        lag: BTreeMap::from([(
            "consumer-main".to_owned(),
            ComponentLag { messages: Some(7), seconds: Some(1) },
        )]),
        pod_troubles: BTreeMap::new(),
        apply_failure: None,
    }
}

fn deployment(component: &str, revision: &str, updated: i32, available: i32) -> Deployment {
    let labels = |key: &str, value: &str| Some(BTreeMap::from([(key.to_owned(), value.to_owned())]));
    Deployment {
        metadata: ObjectMeta {
            generation: Some(1),
            labels: labels(COMPONENT_LABEL, component),
            ..ObjectMeta::default()
        },
        spec: DeploymentSpec {
            replicas: Some(2),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: labels(REVISION_LABEL, revision),
                    ..ObjectMeta::default()
                }),
                spec: None,
            },
            ..DeploymentSpec::default()
        },
        status: Some(DeploymentStatus {
            observed_generation: Some(1),
            replicas: Some(2),
            updated_replicas: Some(updated),
            available_replicas: Some(available),
            ready_replicas: Some(available),
            ..DeploymentStatus::default()
        }),
    }
}

fn report(
    previous: &IngestionPipelineStatus,
    effect: Effect,
    deployments: &[Deployment],
    second: i64,
) -> IngestionPipelineStatus {
    let facts = Facts {
        generation: Some(3),
        verdict: Verdict::Valid(Box::new(effect)),
        deployments: deployments.iter().collect(),
        topics: Vec::new(),
    };
    status(previous, &facts, at(second))
}

fn all_running() -> [Deployment; 2] {
    [deployment("capture", "new", 2, 2), deployment("consumer-main", "new", 2, 2)]
}

fn conditions_of(status: &IngestionPipelineStatus) -> BTreeMap<&str, (&str, &str)> {
    status
        .conditions
        .iter()
        .map(|condition| (condition.type_.as_str(), (condition.status.as_str(), condition.reason.as_str())))
        .collect()
}

fn fresh() -> IngestionPipelineStatus {
    IngestionPipelineStatus::default()
}

#[test]
fn all_is_well() {
    let status = report(&fresh(), effect(), &all_running(), 1);
    assert_eq!(
        conditions_of(&status),
        BTreeMap::from([
            ("Ready", ("True", "AllComponentsReady")),
            ("Reconciling", ("False", "AllComponentsReady")),
            ("Stalled", ("False", "AllComponentsReady")),
            ("KafkaReady", ("True", "AsSpecified")),
            ("ClickHouseReady", ("True", "AsSpecified")),
        ])
    );
    assert_eq!((status.lag, status.observed_generation), (Some(7), Some(3)));
    assert_eq!(status.components[1].lag_seconds, Some(1));
}

#[test]
fn the_same_facts_give_the_same_status() {
    let first = report(&fresh(), effect(), &all_running(), 1);
    let second = report(&first, effect(), &all_running(), 999);
    assert_eq!(difference(&first, &second), Difference::Nothing);
}

#[test]
fn a_rolling_change_is_not_ready_once_and_then_ready_once() {
    let mut status = report(&fresh(), effect(), &all_running(), 1);
    let steps = [
        deployment("capture", "old", 2, 2),
        deployment("capture", "new", 1, 2),
        deployment("capture", "new", 2, 1),
        deployment("capture", "new", 2, 2),
    ];
    let mut ready = vec!["True".to_owned()];
    for (second, step) in steps.into_iter().enumerate() {
        let deployments = [step, deployment("consumer-main", "new", 2, 2)];
        status = report(&status, effect(), &deployments, 10 + i64::try_from(second).unwrap());
        let state = conditions_of(&status)["Ready"].0.to_owned();
        if ready.last() != Some(&state) {
            ready.push(state);
        }
    }
    assert_eq!(ready, ["True", "False", "True"]);
}

#[test]
fn a_refused_change_stalls_until_the_spec_is_fixed_and_running_components_stay_told() {
    let refused = Dependency::Observed {
        troubles: vec![Trouble {
            severity: Severity::Refused,
            reason: "PartitionDecreaseRefused",
            message: "has 6".into(),
        }],
        summary: String::new(),
    };
    let first = report(&fresh(), Effect { kafka: refused.clone(), ..effect() }, &all_running(), 1);
    let second = report(&first, Effect { kafka: refused, ..effect() }, &all_running(), 2);
    for status in [&first, &second] {
        let conditions = conditions_of(status);
        assert_eq!(conditions["Ready"], ("False", "PartitionDecreaseRefused"));
        assert_eq!(conditions["Stalled"].0, "True");
        assert_eq!(conditions["Reconciling"].0, "False");
        assert!(status.components.iter().all(|component| component.ready));
    }
    let fixed = report(&second, effect(), &all_running(), 3);
    assert_eq!(conditions_of(&fixed)["Ready"].0, "True");
}

#[test]
fn an_unreachable_dependency_is_told_and_its_lag_is_unknown_not_zero() {
    let away = Dependency::Unreachable { why: "kafka:9092 does not answer".into() };
    let unknown = BTreeMap::from([("consumer-main".to_owned(), ComponentLag::default())]);
    let status = report(&fresh(), Effect { kafka: away, lag: unknown, ..effect() }, &all_running(), 1);
    let conditions = conditions_of(&status);
    assert_eq!(conditions["KafkaReady"], ("False", "Unreachable"));
    assert_eq!(conditions["Ready"], ("False", "KafkaUnreachable"));
    assert_eq!(conditions["Reconciling"].0, "True");
    assert_eq!(status.lag, None);
}

#[test]
fn an_invalid_spec_leaves_what_runs_and_says_so() {
    let before = report(&fresh(), effect(), &all_running(), 1);
    let problems = Problems::from(crate::validate::Problem::Field {
        field: "spec.kafka".into(),
        message: "is wrong".into(),
    });
    let running = all_running();
    let facts = Facts {
        generation: Some(4),
        verdict: Verdict::Invalid(&problems),
        deployments: running.iter().collect(),
        topics: Vec::new(),
    };
    let invalid = status(&before, &facts, at(2));
    let conditions = conditions_of(&invalid);
    assert_eq!(conditions["Ready"], ("False", "InvalidSpec"));
    assert_eq!(conditions["Stalled"], ("True", "InvalidSpec"));
    assert_eq!(conditions["KafkaReady"].0, "Unknown");
    assert_eq!(invalid.components.len(), 2);
    assert!(invalid.components.iter().all(|component| component.ready));
    assert_eq!(invalid.capture_url, before.capture_url);
    let fixed = report(&invalid, effect(), &all_running(), 3);
    assert_eq!(conditions_of(&fixed)["Ready"].0, "True", "the stale failure is gone");
}

#[test]
fn an_object_that_the_api_server_refuses_stalls_and_one_that_failed_is_tried_again() {
    for (refused, stalled, reason) in [(true, "True", "ObjectRefused"), (false, "False", "ApplyFailed")] {
        let failure = Some(ApplyFailure { why: "cannot apply".into(), refused });
        let status = report(&fresh(), Effect { apply_failure: failure, ..effect() }, &all_running(), 1);
        assert_eq!(conditions_of(&status)["Stalled"], (stalled, reason));
    }
}

#[test]
fn numbers_that_always_move_are_no_substance() {
    let old = report(&fresh(), effect(), &all_running(), 1);
    let mut moved = effect();
    moved.lag.insert("consumer-main".into(), ComponentLag { messages: Some(8), seconds: None });
    let new = report(&old, moved, &all_running(), 2);
    assert_eq!(difference(&old, &new), Difference::Lag);
    let mut unknown = effect();
    unknown.lag.insert("consumer-main".into(), ComponentLag::default());
    assert_eq!(difference(&old, &report(&old, unknown, &all_running(), 2)), Difference::Substance);
}

#[test]
fn one_unknown_lag_makes_the_sum_unknown() {
    let lag = |messages| ComponentLag { messages, seconds: None };
    let both = BTreeMap::from([("a".to_owned(), lag(Some(1))), ("b".to_owned(), lag(None))]);
    assert_eq!(total(&both), None);
    let huge = BTreeMap::from([("a".to_owned(), lag(Some(i64::MAX))), ("b".to_owned(), lag(Some(1)))]);
    assert_eq!(total(&huge), Some(i64::MAX));
}

#[test]
fn what_keeps_a_pod_from_running_is_told_where_people_look() {
    let trouble = "pod web-capture-x: the image r/p:1 cannot be pulled".to_owned();
    let effect =
        Effect { pod_troubles: BTreeMap::from([("capture".to_owned(), trouble.clone())]), ..effect() };
    let deployments = [deployment("capture", "new", 2, 1), deployment("consumer-main", "new", 2, 2)];
    let status = report(&fresh(), effect, &deployments, 1);
    let message = status.components[0].message.as_deref().unwrap();
    assert!(message.ends_with(&trouble), "{message}");
    assert!(status.conditions[0].message.contains(&trouble));
}
