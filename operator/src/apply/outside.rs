//! Changes to topics and tables, and what is left to say about them.

use std::collections::{BTreeMap, BTreeSet};

use penstock_crds::v1alpha1::Management;

use crate::{
    failure::Failure,
    metrics::Metrics,
    observe::outside::{Outside, Tables},
    report::{
        ComponentLag,
        dependency::{Dependency, Severity, Trouble},
        events::Notice,
    },
    tables::{self, WantedTable},
    topics::{self, ManagedKeys, TopicPlan, lag::Lag},
    validate::{Kafka, ValidatedPipeline},
};

/// What came of the topics in this pass.
pub struct TopicsOutcome {
    /// For the condition.
    pub dependency: Dependency,
    /// Topics that are known to exist.
    pub existing: BTreeSet<String>,
    /// For people.
    pub notices: Vec<Notice>,
}

fn severity(severity: topics::Severity) -> Severity {
    match severity {
        topics::Severity::Notice => Severity::Notice,
        topics::Severity::Refused => Severity::Refused,
        topics::Severity::Broken => Severity::Broken,
    }
}

/// What is to be done to the topics; `None` while nobody answers.
pub fn plan_topics(
    kafka: &Kafka,
    observation: &topics::Observation,
    managed: &ManagedKeys,
) -> Option<TopicPlan> {
    match observation {
        topics::Observation::Unreachable { .. } => None,
        topics::Observation::Reachable(observed) => {
            Some(topics::plan(&kafka.topics, &observed.topics, kafka.management, managed))
        }
    }
}

/// Does what the plan says. What each change is about is in an Event; one that fails is in the condition.
pub async fn apply_topics(
    outside: &Outside,
    pipeline: &ValidatedPipeline,
    observation: &topics::Observation,
    plan: Option<TopicPlan>,
    metrics: &Metrics,
) -> TopicsOutcome {
    let (observed, plan) = match (observation, plan) {
        (topics::Observation::Reachable(observed), Some(plan)) => (observed, plan),
        (topics::Observation::Unreachable { why }, _) => {
            return TopicsOutcome {
                dependency: Dependency::Unreachable { why: why.clone() },
                existing: BTreeSet::new(),
                notices: Vec::new(),
            };
        }
        (topics::Observation::Reachable(_), None) => {
            return TopicsOutcome {
                dependency: Dependency::NotObserved,
                existing: BTreeSet::new(),
                notices: Vec::new(),
            };
        }
    };
    let mut existing: BTreeSet<String> = observed.topics.keys().cloned().collect();
    let mut notices = Vec::new();
    let mut failures: Vec<Failure> = Vec::new();
    for applied in topics::apply(&outside.clusters, &pipeline.kafka.access, plan.actions).await {
        let action = &applied.action;
        match applied.result {
            Ok(()) => {
                metrics.changed_outside("kafka");
                tracing::info!(reason = action.reason(), topic = action.topic(), "changed a topic");
                existing.insert(action.topic().to_owned());
                let notice = Notice::normal(action.reason(), "Apply", action.note());
                notices.push(notice);
            }
            Err(error) => failures.push(error.into()),
        }
    }
    let mut troubles: Vec<Trouble> = plan
        .findings
        .iter()
        .map(|finding| Trouble {
            severity: severity(finding.severity()),
            reason: finding.reason(),
            message: finding.to_string(),
        })
        .collect();
    // The pipeline runs without it; the lag that nobody can read is worth a person's time all the same.
    troubles.extend(observed.denied.iter().map(|denied| Trouble {
        severity: Severity::Refused,
        reason: denied.cause.reason(),
        message: denied.why.clone(),
    }));
    for (group, lag) in &observed.groups {
        if let Lag::Unknown(why) = &lag.lag
            && why.needs_attention()
        {
            troubles.push(Trouble {
                severity: Severity::Broken,
                reason: "OffsetLost",
                message: format!("consumer group {group}: {why}"),
            });
        }
    }
    let dependency = if failures.is_empty() {
        let summary = format!("{} at {}", counted(existing.len(), "topic"), pipeline.kafka.bootstrap_servers);
        Dependency::Observed { troubles, summary }
    } else {
        Dependency::Failed { why: Failure::all(&failures) }
    };
    TopicsOutcome { dependency, existing, notices }
}

/// Lag by component.
pub fn lag(
    pipeline: &ValidatedPipeline,
    observation: &topics::Observation,
) -> BTreeMap<String, ComponentLag> {
    let observed = match observation {
        topics::Observation::Reachable(observed) => Some(observed),
        topics::Observation::Unreachable { .. } => None,
    };
    pipeline
        .components()
        .iter()
        .filter_map(|component| {
            let (group, _) = pipeline.reads(component)?;
            let lag = observed.and_then(|observed| observed.groups.get(&group));
            Some((
                component.to_string(),
                lag.map_or_else(ComponentLag::default, |lag| ComponentLag {
                    messages: lag.lag.messages(),
                    seconds: lag.time.seconds(),
                }),
            ))
        })
        .collect()
}

/// What came of the tables in this pass.
pub struct TablesOutcome {
    /// For the condition; `None` for a pipeline without tables.
    pub dependency: Option<Dependency>,
    /// Tables that an export cannot be started for at present, with the reason.
    pub unusable: BTreeMap<WantedTable, String>,
    /// Tables whose servers see another cluster than the spec has: an export that runs is not changed either, since it
    /// would write where nobody reads.
    pub disputed: BTreeMap<WantedTable, String>,
    /// For people.
    pub notices: Vec<Notice>,
}

/// Creates and completes tables, refusing what would destroy or reinterpret data. What one server of a cluster has to do
/// with keeps none of the others from being completed.
pub async fn apply_tables(
    outside: &Outside,
    wanted: &Tables,
    observations: &BTreeMap<WantedTable, tables::Observation>,
    metrics: &Metrics,
) -> TablesOutcome {
    let mut troubles = Vec::new();
    let mut unreachable: Vec<Failure> = Vec::new();
    let mut failures: Vec<Failure> = Vec::new();
    let mut notices = Vec::new();
    let mut unusable = BTreeMap::new();
    let mut disputed = BTreeMap::new();
    for (table, owner) in wanted {
        let Some(observation) = observations.get(table) else { continue };
        for server in table.servers() {
            if let Some(tables::Answer::Unreachable { why }) = observation.get(&server.url) {
                let why = match server.place {
                    tables::Place::Alone => why.clone(),
                    tables::Place::Replica { .. } | tables::Place::Entry => {
                        Failure::new(why.cause, format!("{}: {why}", server.label()))
                    }
                };
                unusable.insert(table.clone(), why.to_string());
                unreachable.push(why);
            }
        }
        let plan = tables::plan(table, observation, owner.management);
        for finding in plan.findings {
            let trouble = Trouble {
                severity: severity(finding.severity()),
                reason: finding.reason(),
                message: finding.to_string(),
            };
            if trouble.severity == Severity::Broken {
                unusable.insert(table.clone(), trouble.message.clone());
            }
            if finding.what.disputes_topology() {
                disputed.insert(table.clone(), trouble.message.clone());
            }
            troubles.push(trouble);
        }
        for applied in tables::apply(&outside.servers, &owner.access, plan.changes).await {
            let change = applied.change;
            match applied.result {
                Ok(()) => {
                    metrics.changed_outside("clickhouse");
                    tracing::info!(
                        reason = change.action.reason(),
                        table = change.table.table,
                        server = change.server,
                        "changed a table"
                    );
                    notices.push(Notice::normal(change.action.reason(), "Apply", change.note()));
                }
                Err(error) => {
                    unusable.insert(table.clone(), error.to_string());
                    failures.push(error.into());
                }
            }
        }
    }
    let dependency = if wanted.is_empty() {
        None
    } else if !unreachable.is_empty() {
        Some(Dependency::Unreachable { why: Failure::all(&unreachable) })
    } else if !failures.is_empty() {
        Some(Dependency::Failed { why: Failure::all(&failures) })
    } else {
        let managed = wanted.values().filter(|owner| owner.management == Management::Managed).count();
        let summary = format!("{}, {managed} of them managed", counted(wanted.len(), "table"));
        Some(Dependency::Observed { troubles, summary })
    };
    TablesOutcome { dependency, unusable, disputed, notices }
}

/// `1 table`, `2 tables`.
fn counted(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}
