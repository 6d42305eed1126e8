//! The engine on a real Kafka, struck before and after each of its steps: what a reader of committed messages finds is what it
//! would find without the fault.

mod cluster;
mod engine;

use std::{
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cluster::Cluster;
use engine::{Engine, assert_exactly_once, load, topics};
use penstock_pipeline::kafka::transact::{Failure, Faults, Side, Step};
use rdkafka::error::RDKafkaErrorCode;

const MESSAGES: u64 = 4_000;

/// Every side of every step that is part of each transaction.
const PLACES: [(Side, Step); 8] = [
    (Side::Before, Step::Begin),
    (Side::After, Step::Begin),
    (Side::Before, Step::Produce),
    (Side::After, Step::Produce),
    (Side::Before, Step::SendOffsets),
    (Side::After, Step::SendOffsets),
    (Side::Before, Step::Commit),
    (Side::After, Step::Commit),
];

/// Which occurrence of a place is struck: the third transaction, or a message in its middle. Earlier ones are committed then,
/// later ones are still to come.
fn occurrence(step: Step) -> u64 {
    if step == Step::Produce { 1_000 } else { 3 }
}

/// Kills this process at a place.
struct Kill {
    place: (Side, Step),
    left: u64,
}

impl Faults for Kill {
    fn strike(&mut self, side: Side, step: Step) -> Result<(), Failure> {
        if (side, step) == self.place {
            self.left -= 1;
            if self.left == 0 {
                // SAFETY: a signal to the process itself; nothing runs after it.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            }
        }
        Ok(())
    }
}

const VICTIM_PREFIX: &str = "PENSTOCK_TEST_FAULT_PREFIX";
const VICTIM_PLACE: &str = "PENSTOCK_TEST_FAULT_PLACE";

/// Not a test by itself: the process that dies at a place.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn victim() {
    let (Ok(prefix), Ok(place)) = (std::env::var(VICTIM_PREFIX), std::env::var(VICTIM_PLACE)) else { return };
    let place = PLACES[place.parse::<usize>().expect("an index")];
    let cluster = Cluster::existing(prefix);
    let engine = Engine::start_faulty(&cluster, "pod-0", Kill { place, left: occurrence(place.1) }, |_| {});
    engine.running.ended().await.expect("it runs until it is killed");
}

/// A child process that is not left behind.
struct Victim(Child);

impl Victim {
    fn start(prefix: &str, place: usize) -> Self {
        let child = Command::new(std::env::current_exe().expect("the path of this test"))
            .args(["--ignored", "--exact", "victim"])
            .env(VICTIM_PREFIX, prefix)
            .env(VICTIM_PLACE, place.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.expect("a process"))
    }

    fn end(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.0.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "the process never came to the place where it is killed");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn a_process_killed_before_or_after_any_step_leaves_nothing_lost_or_doubled() {
    use std::os::unix::process::ExitStatusExt;

    let cases = (0..PLACES.len()).map(|index| {
        tokio::task::spawn_blocking(move || {
            let (side, step) = PLACES[index];
            let mut cluster = Cluster::new(&format!("fault-kill-{index}"));
            let (source, sink, dead) = topics(&mut cluster, 3);
            load(&cluster, &source, 0..MESSAGES);
            let status = Victim::start(&cluster.prefix, index).end(Duration::from_secs(90));
            assert_eq!(status.signal(), Some(libc::SIGKILL), "{side:?} {step:?}: {status}");
            let committed = cluster.read_now(&sink).len();
            // Another pod: it waits for what the dead one left open to time out.
            let engine = Engine::start(&cluster, "pod-1", |_| {});
            cluster.wait_for_no_lag(&source, Duration::from_secs(90));
            assert_exactly_once(&cluster, &sink, &dead, 0..MESSAGES);
            println!(
                "{side:?} {step:?}: {committed} committed when it was killed, all exactly once at the end"
            );
            engine
        })
    });
    for case in cases.collect::<Vec<_>>() {
        case.await.expect("the case holds").stop().await;
    }
}

/// What a step answers instead of what it would have.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Retriable,
    MustAbort,
    Fatal,
}

/// Fails one occurrence of a place, and counts that it was met.
struct Fail {
    place: (Side, Step),
    answer: Answer,
    left: u64,
    met: Arc<AtomicU64>,
}

impl Faults for Fail {
    fn strike(&mut self, side: Side, step: Step) -> Result<(), Failure> {
        if (side, step) != self.place || self.left == 0 {
            return Ok(());
        }
        self.left -= 1;
        if self.left > 0 {
            return Ok(());
        }
        self.met.fetch_add(1, Ordering::Relaxed);
        Err(Failure {
            code: RDKafkaErrorCode::OperationTimedOut,
            fatal: matches!(self.answer, Answer::Fatal),
            retriable: matches!(self.answer, Answer::Retriable),
            requires_abort: matches!(self.answer, Answer::MustAbort),
            reason: "a fault of the test".to_owned(),
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn a_step_that_fails_or_whose_answer_is_lost_leaves_nothing_lost_or_doubled() {
    let answers = [Answer::Retriable, Answer::MustAbort, Answer::Fatal];
    let cases: Vec<_> = PLACES
        .into_iter()
        .flat_map(|place| answers.map(|answer| (place, answer)))
        // Handing a message over is a call within the process: it cannot succeed and ask to be made again.
        .filter(|case| !matches!(case, ((Side::After, Step::Produce), Answer::Retriable)))
        .collect();
    // Some at a time: each has a consumer, a producer and a topic of three partitions.
    for chunk in cases.chunks(8) {
        let running = chunk.iter().copied().map(|(place, answer)| {
            tokio::task::spawn_blocking(move || {
                let (side, step) = place;
                let name = format!("fault-{side:?}-{step:?}-{answer:?}").to_lowercase();
                let mut cluster = Cluster::new(&name);
                let (source, sink, dead) = topics(&mut cluster, 3);
                load(&cluster, &source, 0..MESSAGES);
                let met = Arc::new(AtomicU64::new(0));
                let faults = Fail { place, answer, left: occurrence(step), met: Arc::clone(&met) };
                let engine = Engine::start_faulty(&cluster, "pod-0", faults, |_| {});
                cluster.wait_for_no_lag(&source, Duration::from_secs(90));
                assert_exactly_once(&cluster, &sink, &dead, 0..MESSAGES);
                assert_eq!(met.load(Ordering::Relaxed), 1, "{side:?} {step:?} was never reached");
                println!("{side:?} {step:?} {answer:?}: exactly once");
                engine
            })
        });
        for case in running.collect::<Vec<_>>() {
            case.await.expect("the case holds").stop().await;
        }
    }
}
