//! What is remembered of a pipeline between two passes. All of it can be lost: it spares work, and holds back what would
//! be repeated too soon.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use penstock_crds::IngestionPipelineStatus;

use crate::{
    apply::Verified,
    build::Objects,
    cleanup::Accesses,
    failure::Failure,
    observe::references::References,
    sources::{SourceChange, Sources},
    tables::WantedTable,
    validate::{Problems, ValidatedPipeline},
};

/// First pause after a failure.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Longest pause, and so the longest time until a dependency that came back is noticed.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Failures in a row, and when to try again.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
    until: Option<Instant>,
    why: Failure,
}

impl Backoff {
    /// The last failure, if it is too early to try again.
    pub fn holds(&self, now: Instant) -> Option<&Failure> {
        self.until.filter(|until| now < *until).map(|_| &self.why)
    }

    /// One more failure; the pauses double. The result is the pause.
    pub fn failed(&mut self, why: impl Into<Failure>, now: Instant) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(6)).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + pause);
        self.why = why.into();
        pause
    }

    /// All is well again.
    pub fn succeeded(&mut self) {
        *self = Self::default();
    }
}

/// A spec and its references, and what they came to.
pub struct Planned {
    /// Generation of the spec.
    pub generation: Option<i64>,
    /// What it refers to.
    pub references: References,
    /// The pipeline and its objects, or what is wrong.
    pub result: Result<Arc<(ValidatedPipeline, Objects)>, Problems>,
}

/// The status that was written last.
pub struct Written {
    /// What was written.
    pub status: IngestionPipelineStatus,
    /// Version of the object since.
    pub resource_version: Option<String>,
    /// When.
    pub at: Instant,
}

/// Memory of one pipeline.
#[derive(Default)]
pub struct Memory {
    /// What has been compared with its intent.
    pub verified: Verified,
    /// Deployments as they were applied last; the watches may be behind.
    pub deployments: BTreeMap<String, Arc<Deployment>>,
    /// Validation and building are repeated only when their input changes: programs are compiled in them.
    pub planned: Option<Planned>,
    /// Topics that the exports were last seen to read; they outlast a Deployment that somebody deletes.
    pub sources: Sources,
    /// Changes of those topics that people have been told of, and that are not done yet.
    pub source_changes_told: Vec<SourceChange>,
    /// The status.
    pub written: Option<Written>,
    /// How what is outside was reached when the spec was last in order: a namespace that goes takes its Secrets along,
    /// perhaps before the pipeline.
    pub accesses: Option<Accesses>,
    /// Kafka.
    pub kafka: Backoff,
    /// ClickHouse, by table and URL of a server.
    pub clickhouse: BTreeMap<(WantedTable, String), Backoff>,
    /// Passes that failed.
    pub passes: Backoff,
}

impl Memory {
    /// The Deployments of a pipeline, each in the newest version that is known here.
    pub fn newest(&self, seen: &[Arc<Deployment>]) -> Vec<Arc<Deployment>> {
        seen.iter()
            .map(|seen| match self.deployments.get(&seen.name_any()) {
                Some(applied)
                    if applied.metadata.uid == seen.metadata.uid
                        && applied.metadata.generation > seen.metadata.generation =>
                {
                    applied.clone()
                }
                _ => seen.clone(),
            })
            .collect()
    }
}

/// Memories of all pipelines, by UID.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Memory>>>>);

impl Memories {
    /// That of one pipeline.
    pub fn of(&self, uid: &str) -> Arc<tokio::sync::Mutex<Memory>> {
        self.lock().entry(uid.to_owned()).or_default().clone()
    }

    /// Forgets pipelines that are gone.
    pub fn retain(&self, is_there: impl Fn(&str) -> bool) {
        self.lock().retain(|uid, _| is_there(uid));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<Memory>>>> {
        // Entries are only added and removed whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_bounded() {
        let now = Instant::now();
        let mut backoff = Backoff::default();
        let pauses: Vec<u64> = (0..10).map(|_| backoff.failed("no answer", now).as_secs()).collect();
        assert_eq!(pauses, [2, 4, 8, 16, 30, 30, 30, 30, 30, 30]);
        assert_eq!(backoff.holds(now), Some(&Failure::from("no answer")));
        assert_eq!(backoff.holds(now + LONGEST_PAUSE), None);
        backoff.succeeded();
        assert_eq!(backoff.holds(now), None);
    }
}
