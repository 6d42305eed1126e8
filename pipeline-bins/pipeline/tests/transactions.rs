//! The engine on a real Kafka: what a reader of committed messages finds, after faults of every kind.

mod cluster;
mod engine;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use cluster::{Cluster, TIMEOUT};
use engine::{Engine, assert_exactly_once, load, numbers, topics};
use penstock_pipeline::{
    config::StartFrom,
    kafka::{
        Message,
        client::{self, LogContext},
        transact::{Options, Outcome, Process},
    },
};
use rdkafka::producer::{BaseProducer, Producer};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn every_message_has_its_outcome_once_and_idle_is_idle() {
    let mut cluster = Cluster::new("outcomes");
    let (source, sink, dead) = topics(&mut cluster, 4);
    load(&cluster, &source, 0..5_000);
    let engine = Engine::start(&cluster, "pod-0", |_| {});
    cluster.wait_for_no_lag(&source, TIMEOUT);
    assert_exactly_once(&cluster, &sink, &dead, 0..5_000);
    assert_eq!(engine.metric("penstock_messages_read_total"), 5_000);
    assert_eq!(
        engine.metric("penstock_messages_dropped_total"),
        (0..5_000).filter(|n| n % 7 == 0 && n % 10 != 0).count() as u64
    );
    assert_eq!(engine.metric("penstock_messages_dead_lettered_total"), 500);
    assert_eq!(engine.running.status().liveness(), Ok(()));
    assert_eq!(engine.running.status().readiness(), Ok(()));

    // Key and time are those of the source, so that a person's events keep their order.
    let times: BTreeMap<_, _> = cluster
        .read(&source)
        .into_iter()
        .map(|record| (record.value.clone(), (record.timestamp_ms, record.key)))
        .collect();
    for record in cluster.read(&sink) {
        assert_eq!(times[&record.value], (record.timestamp_ms, record.key));
        assert!(record.headers.is_empty());
    }
    let letter = &cluster.read(&dead)[0];
    assert_eq!(letter.header("dlq_reason"), Some("malformed"));
    assert_eq!(letter.header("dlq_step"), Some("engine"));
    assert_eq!(letter.header("dlq_source_topic"), Some(source.as_str()));
    assert!(letter.header("dlq_detail").is_some_and(|detail| detail.ends_with("is a multiple of 10")));

    // A second engine reads what the first one wrote: its source ends with transaction markers.
    let second = Cluster::new("outcomes-second");
    let reader = Engine::start(&second, "pod-0", |options| {
        options.source.topic.clone_from(&sink);
        options.sink.clone_from(&dead);
    });
    let deadline = Instant::now() + TIMEOUT;
    while second.lag(&sink) > 0 {
        assert!(Instant::now() < deadline, "markers are left: {:?}", second.progress(&sink));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // And stays there without writing anything.
    let before = (second.progress(&sink), reader.metric("penstock_transactions_total"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((second.progress(&sink), reader.metric("penstock_transactions_total")), before);
    reader.stop().await;
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn members_come_and_go_without_loss_or_repetition() {
    let mut cluster = Cluster::new("members");
    let (source, sink, dead) = topics(&mut cluster, 6);
    load(&cluster, &source, 0..20_000);
    // Slow enough that partitions move in the middle of batches.
    let pause = Duration::from_micros(300);
    let first = Engine::start_with(&cluster, "pod-0", pause, |_| {});
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let second = Engine::start_with(&cluster, "pod-1", pause, |_| {});
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let third = Engine::start_with(&cluster, "pod-2", pause, |_| {});
    tokio::time::sleep(Duration::from_millis(1500)).await;
    first.stop().await;
    load(&cluster, &source, 20_000..22_000);
    cluster.wait_for_no_lag(&source, Duration::from_secs(60));
    assert!(second.calls.load(Ordering::Relaxed) > 0 && third.calls.load(Ordering::Relaxed) > 0);
    assert_exactly_once(&cluster, &sink, &dead, 0..22_000);
    second.stop().await;
    third.stop().await;
}

const VICTIM_PREFIX: &str = "PENSTOCK_TEST_VICTIM_PREFIX";
const VICTIM_POD: &str = "PENSTOCK_TEST_VICTIM_POD";

/// Not a test by itself: the process that `what_a_killed_process_left_open_never_happened` starts and kills. Its
/// transactions stay open for long, so that a kill meets one.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn victim() {
    let (Ok(prefix), Ok(pod)) = (std::env::var(VICTIM_PREFIX), std::env::var(VICTIM_POD)) else { return };
    let cluster = Cluster::existing(prefix);
    let engine = Engine::start_with(&cluster, &pod, Duration::from_millis(5), slowly);
    engine.running.ended().await.expect("it runs until it is killed");
}

/// A process of its own, killed with SIGKILL when it is dropped.
struct Victim(std::process::Child);

impl Victim {
    fn start(program: &std::path::Path, prefix: &str, pod: &str) -> Self {
        let child = std::process::Command::new(program)
            .args(["--ignored", "--exact", "victim"])
            .env(VICTIM_PREFIX, prefix)
            .env(VICTIM_POD, pod)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn();
        Self(child.expect("a process"))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("gone");
    }
}

fn slowly(options: &mut Options) {
    options.transaction.max_wait_ms = 3_000;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn what_a_killed_process_left_open_never_happened() {
    let mut cluster = Cluster::new("killed");
    let (source, sink, dead) = topics(&mut cluster, 1);
    load(&cluster, &source, 0..6_000);
    let this = std::env::current_exe().expect("the path of this test");
    // The same pod restarts twice, then another one takes its place.
    for round in 0..3 {
        let before = cluster.end(&sink);
        let victim = Victim::start(&this, &cluster.prefix, "pod-0");
        // A transaction takes 500 messages, of which it writes about 430: this is the second one, in its middle.
        cluster.wait_for_growth(&sink, before + 500);
        drop(victim);
        let committed = cluster.read_now(&sink).len();
        let written = cluster.read_uncommitted(&sink).len();
        println!("round {round}: {written} records in the log, {committed} of them committed");
        assert!(committed < written, "the kill met no open transaction");
    }
    let started = Instant::now();
    let engine = Engine::start(&cluster, "pod-1", |_| {});
    cluster.wait_for_no_lag(&source, Duration::from_secs(60));
    println!("another pod was done after {:.1} s", started.elapsed().as_secs_f64());
    assert_exactly_once(&cluster, &sink, &dead, 0..6_000);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn a_fenced_engine_repeats_its_transaction_with_a_new_producer() {
    let mut cluster = Cluster::new("fenced");
    let (source, sink, dead) = topics(&mut cluster, 2);
    load(&cluster, &source, 0..10_000);
    let engine = Engine::start_with(&cluster, "pod-0", Duration::from_micros(200), |_| {});
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let id = format!("{}pod-0", cluster.transaction().id_prefix);
        let thief: BaseProducer<LogContext> =
            client::transactional_producer(&cluster.kafka, "thief", &id, 10_000, 64 << 20)
                .create_with_context(cluster.kafka.context())
                .expect("a producer");
        thief.init_transactions(TIMEOUT).expect("initialised");
    }
    cluster.wait_for_no_lag(&source, Duration::from_secs(60));
    assert_exactly_once(&cluster, &sink, &dead, 0..10_000);
    assert!(engine.metric("penstock_transaction_producers_total") >= 2, "it was fenced at least once");
    assert!(engine.calls.load(Ordering::Relaxed) > 10_000, "something was taken back");
    assert_eq!(engine.metric("penstock_messages_read_total"), 10_000, "what was taken back was not counted");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn a_panic_and_a_result_that_is_too_large_are_dead_letters_and_neighbours_are_unharmed() {
    struct Grow;
    impl Process for Grow {
        fn process(&mut self, message: &Message<'_>, value: &mut Vec<u8>) -> Outcome {
            match message.value {
                Some(b"panic") => panic!("a fault in processing"),
                Some(b"large") => value.resize(5 << 20, b'x'),
                other => value.extend_from_slice(other.unwrap_or_default()),
            }
            Outcome::Write
        }
    }
    let mut cluster = Cluster::new("large");
    let (source, sink, dead) = topics(&mut cluster, 1);
    cluster.produce(&source, ["1", "panic", "2", "large", "3"].map(|value| ("k", value.to_owned())));
    let engine = Engine::start_process(&cluster, "pod-0", Grow, Arc::default(), |_| {});
    cluster.wait_for_no_lag(&source, TIMEOUT);
    assert_eq!(numbers(&cluster.read(&sink)), [1, 2, 3]);
    let letters: Vec<_> = cluster
        .read(&dead)
        .iter()
        .map(|letter| (letter.text().to_owned(), letter.header("dlq_reason").unwrap_or_default().to_owned()))
        .collect();
    assert_eq!(letters, [("panic".into(), "internal_error".into()), ("large".into(), "too_large".into())]);
    engine.stop().await;
}

async fn wait_for_hold(engine: &Engine, words: &str) {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        match engine.running.status().readiness() {
            Err(reason) if reason.contains(words) => return,
            other => assert!(Instant::now() < deadline, "expected {words:?}, it says {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn a_partition_whose_offset_is_gone_is_held_and_the_others_go_on() {
    let mut cluster = Cluster::new("held");
    let (source, sink, _) = topics(&mut cluster, 7);
    load(&cluster, &source, 0..700);
    let victim =
        cluster.progress(&source).iter().position(|(end, _)| *end >= 100).expect("a partition with messages");
    cluster.commit(&source, victim as i32, 10);
    cluster.delete_records_before(&source, victim as i32, 50).await;
    let engine = Engine::start(&cluster, "pod-0", |_| {});
    wait_for_hold(&engine, "40 messages are gone").await;
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let progress = cluster.progress(&source);
        let others_done = progress
            .iter()
            .enumerate()
            .all(|(partition, (end, committed))| partition == victim || committed.unwrap_or(0) == *end);
        if others_done {
            assert_eq!(progress[victim].1, Some(10), "the held offset is as it was");
            break;
        }
        assert!(Instant::now() < deadline, "{progress:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let reached: BTreeSet<_> = cluster.read(&sink).iter().map(|record| record.partition).collect();
    assert!(!reached.contains(&(victim as i32)), "nothing of the held partition was read");
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn a_topic_that_was_made_again_is_held_even_where_its_log_is_longer() {
    let mut cluster = Cluster::new("again");
    let (source, sink, _) = topics(&mut cluster, 1);
    load(&cluster, &source, 1..10);
    let engine = Engine::start(&cluster, "pod-0", |_| {});
    cluster.wait_for_no_lag(&source, TIMEOUT);
    engine.stop().await;
    let before = cluster.read(&sink);
    let committed = cluster.committed(&source, 0);
    cluster.delete(&source);
    cluster.create(&source, 1);
    load(&cluster, &source, 1..100);
    // This broker deletes the offsets of groups together with the topic. One that does not get to it leaves them: the
    // offset of before is put back, with what the engine had written beside it.
    let (offset, metadata) = committed;
    cluster.commit_with_metadata(&source, 0, offset, &metadata);
    let engine = Engine::start(&cluster, "pod-0", |_| {});
    wait_for_hold(&engine, "deleted and made again").await;
    assert_eq!(cluster.read(&sink), before);
    engine.stop().await;
    assert_eq!(cluster.progress(&source)[0].1, Some(offset), "the offset is as it was");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn a_topic_that_is_made_again_while_it_is_read_is_held() {
    let mut cluster = Cluster::new("beneath");
    let (source, sink, _) = topics(&mut cluster, 1);
    load(&cluster, &source, 1..10);
    let engine = Engine::start(&cluster, "pod-0", |_| {});
    cluster.wait_for_no_lag(&source, TIMEOUT);
    let before = cluster.read(&sink);
    cluster.delete(&source);
    cluster.create(&source, 1);
    load(&cluster, &source, 101..103);
    wait_for_hold(&engine, "made").await;
    assert_eq!(cluster.read(&sink), before);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn latest_is_the_end_at_the_first_assignment_also_after_a_restart() {
    let mut cluster = Cluster::new("latest");
    let (source, sink, _) = topics(&mut cluster, 1);
    load(&cluster, &source, 1..10);
    let latest = |options: &mut Options| options.source.start_from = StartFrom::Latest;
    let engine = Engine::start(&cluster, "pod-0", latest);
    cluster.wait_for_no_lag(&source, TIMEOUT);
    engine.stop().await;
    load(&cluster, &source, 11..14);
    let engine = Engine::start(&cluster, "pod-0", latest);
    cluster.wait_for_no_lag(&source, TIMEOUT);
    assert_eq!(numbers(&cluster.read(&sink)), [11, 12, 13]);
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn an_engine_that_has_waited_for_long_goes_on_with_a_new_consumer() {
    let mut cluster = Cluster::new("waits");
    let (sink, dead) = (cluster.topic("sink", 1), cluster.topic("dead-letter", 1));
    let engine = Engine::start(&cluster, "pod-0", |_| {});
    let deadline = Instant::now() + TIMEOUT.max(Duration::from_secs(120));
    while engine.metric("penstock_source_consumers_total") < 2 {
        assert!(Instant::now() < deadline, "{:?}", engine.running.status());
        assert_eq!(engine.running.status().liveness(), Ok(()), "a restart would not bring the topic");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let told = engine.running.status().readiness().expect_err("there is nothing to read");
    assert!(told.contains("topic"), "{told}");

    let source = cluster.topic("source", 1);
    load(&cluster, &source, 0..100);
    cluster.wait_for_no_lag(&source, TIMEOUT);
    assert_exactly_once(&cluster, &sink, &dead, 0..100);
    engine.stop().await;
}
