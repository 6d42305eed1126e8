//! An engine that sorts numbers, and what must be found after it.

#![allow(dead_code)] // each test file uses a part of it

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use penstock_pipeline::{
    config::Identity,
    events::dead_letter::Reason,
    kafka::{
        Message,
        transact::{self, Faults, NoFaults, Options, Outcome, Process, Running},
    },
    telemetry::Metrics,
};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Record, TIMEOUT};

/// Copies; multiples of 10 are dead letters, other multiples of 7 are dropped. Numbers come as decimal text.
pub struct Sort {
    pub calls: Arc<AtomicU64>,
    pub pause: Duration,
}

impl Process for Sort {
    fn process(&mut self, message: &Message<'_>, value: &mut Vec<u8>) -> Outcome {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if !self.pause.is_zero() {
            std::thread::sleep(self.pause);
        }
        let bytes = message.value.unwrap_or_default();
        match std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<u64>().ok()) {
            None => panic!("a fault in processing"),
            Some(n) if n % 10 == 0 => {
                Outcome::dead_letter(Reason::Malformed, format!("{n} is a multiple of 10"))
            }
            Some(n) if n % 7 == 0 => Outcome::drop("seven"),
            Some(_) => {
                value.extend_from_slice(bytes);
                Outcome::Write
            }
        }
    }
}

pub struct Engine {
    pub running: Running,
    stop: CancellationToken,
    metrics: Metrics,
    pub calls: Arc<AtomicU64>,
}

impl Engine {
    pub fn start(cluster: &Cluster, instance: &str, change: impl FnOnce(&mut Options)) -> Self {
        Self::start_with(cluster, instance, Duration::ZERO, change)
    }

    pub fn start_with(
        cluster: &Cluster,
        instance: &str,
        pause: Duration,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let calls = Arc::new(AtomicU64::new(0));
        let process = Sort { calls: Arc::clone(&calls), pause };
        Self::start_process(cluster, instance, process, calls, change)
    }

    /// One that meets faults at its steps.
    pub fn start_faulty(
        cluster: &Cluster,
        instance: &str,
        faults: impl Faults,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let calls = Arc::new(AtomicU64::new(0));
        let process = Sort { calls: Arc::clone(&calls), pause: Duration::ZERO };
        Self::start_all(cluster, instance, process, faults, calls, change)
    }

    pub fn start_process(
        cluster: &Cluster,
        instance: &str,
        process: impl Process,
        calls: Arc<AtomicU64>,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        Self::start_all(cluster, instance, process, NoFaults, calls, change)
    }

    fn start_all(
        cluster: &Cluster,
        instance: &str,
        process: impl Process,
        faults: impl Faults,
        calls: Arc<AtomicU64>,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let mut options = Options {
            component: "engine".into(),
            kafka: cluster.kafka.clone(),
            source: cluster.source(&cluster.name("source")),
            transaction: cluster.transaction(),
            instance: instance.into(),
            sink: cluster.name("sink"),
            dead_letter: cluster.name("dead-letter"),
            stall_after: Duration::from_secs(30),
        };
        change(&mut options);
        let identity =
            Identity { namespace: "test".into(), pipeline: "test".into(), component: "engine".into() };
        let metrics = Metrics::new(&identity);
        let stop = CancellationToken::new();
        let running = transact::start_with_faults(options, process, faults, &metrics, stop.clone());
        Self { running, stop, metrics, calls }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(TIMEOUT, self.running.ended())
            .await
            .expect("it ends in time")
            .expect("it ends well");
    }

    /// Value of a metric, summed over its labels.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.metrics.encode().expect("metrics");
        let lines = text.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }
}

pub fn numbers(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.text().parse().expect("a number")).collect()
}

pub fn topics(cluster: &mut Cluster, partitions: i32) -> (String, String, String) {
    let source = cluster.topic("source", partitions);
    let sink = cluster.topic("sink", partitions);
    let dead = cluster.topic("dead-letter", 1);
    (source, sink, dead)
}

pub const KEYS: [&str; 7] = ["a", "b", "c", "d", "e", "f", "g"];

pub fn key(n: u64) -> &'static str {
    KEYS[(n % 7) as usize]
}

pub fn load(cluster: &Cluster, source: &str, range: std::ops::Range<u64>) {
    cluster.produce(source, range.map(|n| (key(n), n.to_string())));
}

/// Every number of a range is where it belongs, once, and in order for its key.
pub fn assert_exactly_once(cluster: &Cluster, sink: &str, dead: &str, range: std::ops::Range<u64>) {
    let written = cluster.read(sink);
    let mut found = numbers(&written);
    let mut last = BTreeMap::new();
    for record in &written {
        let n: u64 = record.text().parse().expect("a number");
        if let Some(before) = last.insert(record.key.clone(), n) {
            assert!(before < n, "{n} came after {before} for key {:?}", record.key);
        }
    }
    found.sort_unstable();
    let expected: Vec<u64> = range.clone().filter(|n| n % 10 != 0 && n % 7 != 0).collect();
    assert_eq!(found.len(), expected.len(), "written");
    assert_eq!(found, expected);
    let mut found = numbers(&cluster.read(dead));
    found.sort_unstable();
    assert_eq!(found, range.filter(|n| n % 10 == 0).collect::<Vec<_>>(), "dead letters");
}
