//! Does what the protocol says: one thread that polls Kafka, decides and commits; inserts run beside it.
//!
//! Rebalances, plans, commits and the answers of inserts are all handled by this one thread, one after the other. That is
//! the lock under which the epoch of a partition is checked: an answer that belongs to an assignment of the past is
//! dropped, and nothing is planned, inserted or committed for a partition that was given away.

mod collecting;
mod deciding;
mod membership;
mod memory;
mod requests;
mod telling;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use penstock_pipeline::{
    command::Context,
    config::{ClickHouseDestination, ExportConfig, RetryConfig},
    health::{Check, Health, Heartbeat, Kind},
    kafka::{
        Connection, client,
        poll::{Polled, PolledConsumer},
        rights::Needs,
    },
    lifecycle::Shutdown,
};
use rdkafka::consumer::Consumer;
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
};
use tracing::{debug, warn};

use super::{
    block::{Block, Collector, Limits},
    metrics::TableMetrics,
    protocol::{Action, Partition},
    servers::Servers,
    steps::Observer,
    table::{TableError, TableFacts},
    token::TokenScope,
    topology::Topology,
};
use crate::{
    ExportError,
    dead_letters::DeadLetters,
    filter::Filter,
    metrics::SourceMetrics,
    permitted,
    source::{SourceConsumer, TopicNow},
    takeover::{Epoch, TakeOver},
};

/// Inserts and read-backs under way at once.
const CONCURRENT_REQUESTS: usize = 4;

/// How often limits of age, pauses and pressure are looked at.
const TICK: Duration = Duration::from_millis(20);

/// How long nothing is written after this process stood still: the group says within that time what it still owns.
const DISTRUST: Duration = Duration::from_secs(4);

/// Something that was going on beside the thread has ended.
#[derive(Debug)]
enum Answer {
    Inserted { partition: i32, epoch: Epoch, result: Result<u32, TableError>, facts: Option<Vec<TableFacts>> },
    ReadBack { partition: i32, epoch: Epoch, result: Result<(u32, BTreeSet<i64>), TableError> },
    DeadLetterKept { partition: i32, epoch: Epoch, offset: i64, bytes: usize },
    Topic(TopicNow),
}

/// A block whose dead letters are not all acknowledged.
#[derive(Debug)]
struct Waiting {
    block: Block,
    dead_letters: usize,
}

/// One assigned partition, with what is held for it in memory.
#[derive(Debug)]
struct Assigned {
    machine: Partition,
    collector: Collector,
    /// Dead letters of the block that is being collected, not yet acknowledged.
    dead_letters: usize,
    /// Memory of all dead letters that are not yet acknowledged, bytes.
    dead_letter_bytes: usize,
    /// The writing of them; ends with the assignment.
    putting_aside: JoinSet<()>,
    waiting: VecDeque<Waiting>,
    /// Complete blocks; the machine knows the first `known`.
    blocks: VecDeque<Arc<Block>>,
    known: usize,
    /// What the last read-back did not find.
    missing: BTreeSet<i64>,
    /// All messages below this offset were delivered.
    end_seen: i64,
    resume_at: Option<Instant>,
    request: Option<AbortHandle>,
    paused: bool,
    /// What the last failure says, when it needs somebody to act.
    refused: Option<String>,
    /// When something of it was last exported, or when nothing waited.
    last_progress: Instant,
}

impl Assigned {
    /// Nothing is collected and nothing is under way, though more than what is committed was seen: transaction markers.
    fn idles_behind(&self) -> Option<i64> {
        let idle = self.collector.age_since().is_none()
            && !self.collector.is_planned()
            && self.blocks.is_empty()
            && self.waiting.is_empty()
            && !self.machine.is_busy();
        (idle && self.end_seen > self.machine.committed()).then_some(self.end_seen)
    }

    fn held_bytes(&self) -> usize {
        self.collector.held_bytes()
            + self.dead_letter_bytes
            + self.blocks.iter().map(|block| block.held_bytes()).sum::<usize>()
            + self.waiting.iter().map(|waiting| waiting.block.held_bytes()).sum::<usize>()
    }
}

/// The thread's state.
pub struct Driver {
    config: ExportConfig,
    consumer: SourceConsumer,
    runtime: Handle,
    servers: Servers,
    topology: Topology,
    /// One for each server.
    tokens: Vec<TokenScope>,
    filter: Option<Filter>,
    dead_letters: DeadLetters,
    observer: Arc<dyn Observer>,
    metrics: SourceMetrics,
    table_metrics: TableMetrics,
    heart: Heartbeat,
    progress: Check,
    alive: Check,
    stop: Shutdown,

    limits: Limits,
    max_age: Duration,
    retry: RetryConfig,
    session_timeout: Duration,
    /// Bytes of blocks, half-blocks and dead letters that may be in memory.
    budget: usize,

    partitions: BTreeMap<i32, Assigned>,
    take_over: TakeOver,
    /// Ends of partitions, as last looked at.
    ends: BTreeMap<i32, i64>,
    requests: Arc<Semaphore>,
    answers: Receiver<Answer>,
    answer: Sender<Answer>,
    outbox: VecDeque<(i32, Epoch, Action)>,
    last_turn: Instant,
    /// After this process stood still, nothing is written until the group has had time to say that others took over.
    distrust_until: Option<Instant>,
    under_pressure: bool,
    stopping: bool,
    last_trouble: Option<String>,
}

impl Driver {
    /// Prepares everything; connects when run. Call it inside a runtime, which is the one that requests are made in.
    pub fn new(
        config: ExportConfig,
        destination: &ClickHouseDestination,
        (servers, topology, facts): (Servers, Topology, Vec<TableFacts>),
        filter: Option<Filter>,
        observer: Arc<dyn Observer>,
        kafka: Connection,
        context: &Context,
    ) -> Result<Self, ExportError> {
        let consumer = client::consumer(&kafka, &config.source, &context.pod)
            .create_with_context(kafka.context())
            .map_err(ExportError::Kafka)?;
        let consumer = PolledConsumer::new(consumer).ok_or(ExportError::NoQueue)?;
        let dead_letters =
            DeadLetters::new(kafka, &config.dead_letter, &config.identity.component, &config.source.topic)
                .map_err(ExportError::Kafka)?;
        Handle::current().spawn(permitted::watch(
            dead_letters.clone(),
            Needs::default()
                .read(&config.source.topic)
                .group(&config.source.group)
                .write(&config.dead_letter),
            context.health.check(Kind::Readiness, "kafka", "Kafka has not answered yet"),
            context.shutdown.clone(),
        ));
        let limits = limits_of(destination);
        let (answer, answers) = channel();
        Ok(Self {
            consumer,
            runtime: Handle::current(),
            tokens: scopes(&config, &topology, facts),
            servers,
            topology,
            filter,
            dead_letters,
            observer,
            metrics: SourceMetrics::new(&context.metrics, &config.source.topic),
            table_metrics: TableMetrics::new(&context.metrics),
            heart: context.health.heartbeat(
                Kind::Liveness,
                "source loop",
                Duration::from_millis(config.source.max_poll_interval_ms.into()),
            ),
            progress: context.health.check(Kind::Readiness, "export", "nothing was assigned yet"),
            alive: started(&context.health),
            stop: context.shutdown.clone(),
            limits,
            max_age: Duration::from_millis(destination.block.max_age_ms.into()),
            retry: destination.retry.clone(),
            session_timeout: Duration::from_millis(config.source.session_timeout_ms.into()),
            budget: (limits.bytes * 3).clamp(32 << 20, 256 << 20),
            partitions: BTreeMap::new(),
            take_over: TakeOver::default(),
            ends: BTreeMap::new(),
            requests: Arc::new(Semaphore::new(CONCURRENT_REQUESTS)),
            answers,
            answer,
            outbox: VecDeque::new(),
            last_turn: Instant::now(),
            distrust_until: None,
            under_pressure: false,
            stopping: false,
            last_trouble: None,
            config,
        })
    }

    /// Runs until asked to stop, or until something happens after which only a new process can go on.
    pub fn run(mut self) -> Result<(), ExportError> {
        self.consumer.client().subscribe(&[&self.config.source.topic]).map_err(ExportError::Kafka)?;
        self.watch_topic();
        let mut last_tick = Instant::now();
        let mut told = Instant::now();
        while !self.stop.is_requested() {
            let now = self.turn();
            let waits_for_answer = self.partitions.values().any(|assigned| assigned.request.is_some());
            self.poll(if waits_for_answer { TICK / 4 } else { TICK }, now)?;
            self.take_answers();
            if now.duration_since(last_tick) >= TICK {
                last_tick = now;
                self.tick(now);
            }
            self.work_off();
            if now.duration_since(told) >= Duration::from_secs(1) {
                told = now;
                self.tell();
            }
        }
        self.leave()
    }

    /// Notes that the thread is alive, and when it was not for a while.
    fn turn(&mut self) -> Instant {
        let now = Instant::now();
        if now.duration_since(self.last_turn) > self.session_timeout / 2 {
            warn!(
                stood_still_ms = now.duration_since(self.last_turn).as_millis() as u64,
                "stood still for long: asking the group before writing anything"
            );
            self.distrust_until = Some(now + DISTRUST);
        }
        self.last_turn = now;
        self.heart.beat();
        now
    }

    fn poll(&mut self, timeout: Duration, now: Instant) -> Result<(), ExportError> {
        let Some(event) = self.consumer.poll(timeout) else { return Ok(()) };
        // What is read borrows from the event, not from `self`.
        match self.consumer.read(&event) {
            Polled::Message(message) => self.message(&message, now),
            Polled::EndOfPartition { partition, offset } => self.end_of_partition(partition, offset),
            Polled::Assign(partitions) => self.assign(&partitions)?,
            Polled::Revoke(partitions) => self.revoke(&partitions)?,
            Polled::PartitionError { partition, code, reason } => {
                self.partition_error(partition, code, &reason);
            }
            Polled::Error { fatal: true, reason, .. } => return Err(ExportError::FatalClient(reason)),
            Polled::Error { fatal: false, code, reason } => {
                debug!(?code, reason, "Kafka reported an error that passes by itself");
                self.last_trouble = Some(format!("Kafka: {}", self.dead_letters.explain(reason)));
            }
            Polled::Nothing => {}
        }
        Ok(())
    }

    fn current(&mut self, partition: i32, epoch: Epoch) -> Option<&mut Assigned> {
        self.partitions.get_mut(&partition).filter(|assigned| assigned.machine.epoch() == epoch)
    }

    fn epoch_of(&self, partition: i32) -> Option<Epoch> {
        self.partitions.get(&partition).map(|assigned| assigned.machine.epoch())
    }
}

/// A check of liveness that is fine until something is wrong.
fn started(health: &Health) -> Check {
    let check = health.check(Kind::Liveness, "progress", "");
    check.pass();
    check
}

fn scopes(config: &ExportConfig, topology: &Topology, facts: Vec<TableFacts>) -> Vec<TokenScope> {
    let scope = |facts: TableFacts| TokenScope {
        group: config.source.group.clone(),
        table: facts.identity,
        topology: topology.fingerprint().map(ToOwned::to_owned),
    };
    facts.into_iter().map(scope).collect()
}

fn limits_of(destination: &ClickHouseDestination) -> Limits {
    let bytes = usize::try_from(destination.block.max_bytes).unwrap_or(usize::MAX);
    Limits {
        rows: destination.block.max_rows.clamp(1, Limits::SERVER_ROWS),
        bytes: bytes.clamp(1, Limits::SERVER_BYTES),
        months: Limits::SERVER_PARTITIONS,
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
