//! Facts → status. Pure: what is true now, computed on every pass, with nothing left over from the last one but the times
//! at which conditions flipped.

pub mod components;
pub mod conditions;
pub mod dependency;
pub mod events;

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{api::apps::v1::Deployment, jiff::Timestamp};
use kube::ResourceExt;
use penstock_crds::{
    IngestionPipelineStatus,
    v1alpha1::{ComponentStatus, TopicStatus},
};

use self::{
    components::{Progress, Wanted, as_it_runs, component_status, progress},
    conditions::{State, Statement, conditions},
    dependency::Dependency,
};
use crate::validate::Problems;

/// Numbers that always move (lag) are written at most so often; everything else at once.
pub const LAG_WRITE_INTERVAL: Duration = Duration::from_secs(30);

/// Lag of one component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ComponentLag {
    /// Messages that wait; `None` when it is not known.
    pub messages: Option<i64>,
    /// Age of the oldest, seconds; `None` when nothing waits or it is not known.
    pub seconds: Option<i64>,
}

/// What a pass found out.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// Generation of the spec that was looked at.
    pub generation: Option<i64>,
    /// What the spec is.
    pub verdict: Verdict<'a>,
    /// Deployments of the pipeline as they are.
    pub deployments: Vec<&'a Deployment>,
    /// Topics, and what we set on them.
    pub topics: Vec<TopicStatus>,
}

/// What the spec is.
#[derive(Clone, Debug)]
pub enum Verdict<'a> {
    /// Something in it cannot be built; what runs is left alone.
    Invalid(&'a Problems),
    /// What it names could not be read; nothing is decided.
    Undecided {
        /// What could not be read.
        why: String,
    },
    /// It is being made true.
    Valid(Box<Effect>),
}

/// What came of a valid spec in this pass.
#[derive(Clone, Debug)]
pub struct Effect {
    /// Version of the data plane.
    pub version: String,
    /// Address of the capture API.
    pub capture_url: String,
    /// What is wanted of each component, in the order of the flow.
    pub wanted: Vec<Wanted>,
    /// Components that are not created or changed at present, with the reason.
    pub held: BTreeMap<String, String>,
    /// Kafka.
    pub kafka: Dependency,
    /// ClickHouse, for a pipeline that exports into it.
    pub clickhouse: Option<Dependency>,
    /// By component; one that reads no topic is not there.
    pub lag: BTreeMap<String, ComponentLag>,
    /// Why pods do not run, by component.
    pub pod_troubles: BTreeMap<String, String>,
    /// Why the objects could not be written.
    pub apply_failure: Option<ApplyFailure>,
}

/// Why the objects could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplyFailure {
    /// What was being written, and the API server's answer.
    pub why: String,
    /// The API server will not take it, however often it is asked.
    pub refused: bool,
}

/// The status by these facts, over the previous one.
pub fn status(
    previous: &IngestionPipelineStatus,
    facts: &Facts<'_>,
    now: Timestamp,
) -> IngestionPipelineStatus {
    let live: BTreeMap<&str, &Deployment> = facts
        .deployments
        .iter()
        .filter_map(|deployment| {
            Some((deployment.labels().get(crate::build::COMPONENT_LABEL)?.as_str(), *deployment))
        })
        .collect();
    let (statements, components, version, capture_url, lag) = match &facts.verdict {
        Verdict::Invalid(problems) => (
            unbuilt(problems.reason(), &problems.to_string(), State::True),
            running(&live),
            previous.version.clone(),
            previous.capture_url.clone(),
            None,
        ),
        Verdict::Undecided { why } => (
            unbuilt("ReferenceUnreadable", why, State::False),
            running(&live),
            previous.version.clone(),
            previous.capture_url.clone(),
            None,
        ),
        Verdict::Valid(effect) => {
            let progress: Vec<(&Wanted, Progress)> = effect
                .wanted
                .iter()
                .map(|wanted| {
                    let held = effect.held.get(&wanted.name).map(String::as_str);
                    let state = progress(wanted, live.get(wanted.name.as_str()).copied(), held);
                    (wanted, state.because(effect.pod_troubles.get(&wanted.name)))
                })
                .collect();
            let components = progress
                .iter()
                .map(|(wanted, state)| {
                    let lag = effect.lag.get(&wanted.name).copied().unwrap_or_default();
                    ComponentStatus {
                        lag: lag.messages,
                        lag_seconds: lag.seconds,
                        ..component_status(wanted, live.get(wanted.name.as_str()).copied(), state)
                    }
                })
                .collect();
            (
                statements(effect, &progress),
                components,
                Some(effect.version.clone()),
                Some(effect.capture_url.clone()),
                total(&effect.lag),
            )
        }
    };
    IngestionPipelineStatus {
        observed_generation: facts.generation,
        version,
        conditions: conditions(&previous.conditions, statements, facts.generation, now),
        components,
        topics: facts.topics.clone(),
        capture_url,
        lag,
    }
}

/// Sum over the components; one that is not known makes it unknown.
fn total(lag: &BTreeMap<String, ComponentLag>) -> Option<i64> {
    lag.values().map(|lag| lag.messages).try_fold(0i64, |sum, messages| Some(sum.saturating_add(messages?)))
}

fn running(live: &BTreeMap<&str, &Deployment>) -> Vec<ComponentStatus> {
    live.values()
        .map(|deployment| {
            let wanted = as_it_runs(deployment);
            let state = progress(&wanted, Some(deployment), None);
            component_status(&wanted, Some(deployment), &state)
        })
        .collect()
}

/// The spec could not be turned into objects: for good (`stalled` true) or for now.
fn unbuilt(reason: &str, message: &str, stalled: State) -> Vec<Statement> {
    let reconciling = if stalled == State::True { State::False } else { State::True };
    vec![
        Statement::new("Ready", State::False, reason, message),
        Statement::new("Reconciling", reconciling, reason, message),
        Statement::new("Stalled", stalled, reason, message),
        Dependency::NotObserved.statement("KafkaReady"),
        Dependency::NotObserved.statement("ClickHouseReady"),
    ]
}

/// Why a pipeline is not ready.
struct Obstacle {
    reason: String,
    message: String,
    /// Only a person can take it away.
    stalled: bool,
}

fn statements(effect: &Effect, progress: &[(&Wanted, Progress)]) -> Vec<Statement> {
    let mut statements = match obstacle(effect, progress) {
        None => {
            let message = format!("{} components are ready", progress.len());
            vec![
                Statement::new("Ready", State::True, "AllComponentsReady", &message),
                Statement::new("Reconciling", State::False, "AllComponentsReady", &message),
                Statement::new("Stalled", State::False, "AllComponentsReady", message),
            ]
        }
        Some(Obstacle { reason, message, stalled }) => {
            let state = |holds| if holds { State::True } else { State::False };
            vec![
                Statement::new("Ready", State::False, &reason, &message),
                Statement::new("Reconciling", state(!stalled), &reason, &message),
                Statement::new("Stalled", state(stalled), &reason, message),
            ]
        }
    };
    statements.push(effect.kafka.statement("KafkaReady"));
    statements.extend(effect.clickhouse.iter().map(|clickhouse| clickhouse.statement("ClickHouseReady")));
    statements
}

/// The first thing to look at, most helpful first.
fn obstacle(effect: &Effect, progress: &[(&Wanted, Progress)]) -> Option<Obstacle> {
    if let Some(failure) = &effect.apply_failure {
        let reason = if failure.refused { "ObjectRefused" } else { "ApplyFailed" };
        return Some(Obstacle {
            reason: reason.to_owned(),
            message: failure.why.clone(),
            stalled: failure.refused,
        });
    }
    let dependencies = [("Kafka", Some(&effect.kafka)), ("ClickHouse", effect.clickhouse.as_ref())];
    for (name, dependency) in dependencies {
        let Some(dependency) = dependency.filter(|dependency| !dependency.is_ready()) else { continue };
        let statement = dependency.statement("Ready");
        return Some(Obstacle {
            reason: match dependency {
                Dependency::Observed { .. } => statement.reason,
                _ => format!("{name}{}", statement.reason),
            },
            message: statement.message,
            stalled: dependency.is_refused(),
        });
    }
    let mut worst: Option<(u8, Obstacle)> = None;
    for (wanted, state) in progress {
        let (rank, reason, stalled) = match state {
            Progress::Done => continue,
            Progress::Stuck(_) => (3, "ComponentStuck", true),
            Progress::Degraded(_) => (2, "ComponentNotReady", false),
            Progress::Held(_) => (1, "Waiting", false),
            Progress::Rolling(_) => (0, "RollingOut", false),
        };
        let message = format!("{}: {}", wanted.name, state.message().unwrap_or_default());
        match &mut worst {
            Some((known, obstacle)) if *known >= rank => {
                obstacle.message = format!("{}; {message}", obstacle.message);
            }
            Some((known, obstacle)) => {
                *known = rank;
                obstacle.reason = reason.to_owned();
                obstacle.stalled = stalled;
                obstacle.message = format!("{message}; {}", obstacle.message);
            }
            None => worst = Some((rank, Obstacle { reason: reason.to_owned(), message, stalled })),
        }
    }
    worst.map(|(_, obstacle)| obstacle)
}

/// Whether a new status is worth a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// None.
    Nothing,
    /// Only the numbers that always move.
    Lag,
    /// Something that somebody may wait for.
    Substance,
}

/// Compares two statuses.
pub fn difference(old: &IngestionPipelineStatus, new: &IngestionPipelineStatus) -> Difference {
    if old == new {
        return Difference::Nothing;
    }
    let still = |status: &IngestionPipelineStatus| {
        let mut status = status.clone();
        status.lag = status.lag.map(|_| 0);
        for component in &mut status.components {
            component.lag = component.lag.map(|_| 0);
            component.lag_seconds = None;
        }
        status
    };
    if still(old) == still(new) { Difference::Lag } else { Difference::Substance }
}

#[cfg(test)]
mod tests;
