//! A process that ends, without a word, at each moment between the steps of the protocol; then another takes over.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::{
    fs,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use penstock_export::clickhouse::steps::{Moment, Observer};
use penstock_pipeline::{
    command::Context, config::BlockLimits, config::ExportConfig, health::Health, lifecycle::Shutdown,
    telemetry::Metrics,
};
use support::{warehouse::clickhouse, world::World};

const CONFIG: &str = "PENSTOCK_TEST_CRASH_CONFIG";
const MOMENT: &str = "PENSTOCK_TEST_CRASH_MOMENT";
const TIMES: &str = "PENSTOCK_TEST_CRASH_TIMES";

/// Early ones meet blocks that are read back before they are inserted, late ones those that are not.
const CRASHES: [(Moment, u32); 7] = [
    (Moment::Sealed, 2),
    (Moment::Planned, 1),
    (Moment::Planned, 6),
    (Moment::Inserted, 1),
    (Moment::Inserted, 6),
    (Moment::ReadBack, 2),
    (Moment::Advanced, 4),
];

/// Aborts the process when the moment comes for the nth time.
struct Abort {
    moment: String,
    left: AtomicU32,
}

impl Observer for Abort {
    fn at(&self, moment: Moment, _: i32, _: i64) {
        if format!("{moment:?}") == self.moment && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            std::process::abort();
        }
    }
}

/// Not a test by itself: the process that crashes.
#[test]
#[ignore = "the process that the other tests of this file start"]
fn crash_worker() {
    let Ok(path) = std::env::var(CONFIG) else { return };
    let config: ExportConfig = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let observer = Abort {
        moment: std::env::var(MOMENT).unwrap(),
        left: AtomicU32::new(std::env::var(TIMES).unwrap().parse().unwrap()),
    };
    let shutdown = Shutdown::new();
    let context = Context {
        identity: config.identity.clone(),
        pod: "crasher".into(),
        metrics: Metrics::new(&config.identity),
        health: Health::new(shutdown.clone()),
        shutdown,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(penstock_export::run(config, context, Arc::new(observer))).unwrap();
}

fn is_bad(number: u64) -> bool {
    number % 100 == 50
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_process_lost_at_any_moment_loses_and_doubles_nothing() {
    let world = World::new("crash", 3);
    let block = BlockLimits { max_rows: 300, max_bytes: 1 << 20, max_age_ms: 100 };
    let config = world.config(&clickhouse(), block);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let mut sent = 0;
    for (moment, times) in CRASHES {
        world.produce(sent, 4_000, is_bad);
        sent += 4_000;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "crash_worker", "--nocapture"])
            .env(CONFIG, &path)
            .env(MOMENT, format!("{moment:?}"))
            .env(TIMES, times.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut waited = Duration::ZERO;
        while child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(100));
            waited += Duration::from_millis(100);
            if waited > Duration::from_secs(40) {
                child.kill().unwrap();
                panic!("{moment:?} did not come {times} times");
            }
        }
    }
    let mut last = world.start("last", &config);
    world.wait_until_exported(Duration::from_secs(90));
    world.assert_exactly_once(sent, is_bad);
    assert!(last.stop().success());
}
