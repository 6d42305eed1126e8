//! Does what the protocol says: one thread that polls Kafka, decides and commits; inserts run beside it.
//!
//! Rebalances, plans, commits and the answers of inserts are all handled by this one thread, one after the other. That is
//! the lock under which the epoch of a partition is checked: an answer that belongs to an assignment of the past is
//! dropped, and nothing is planned, inserted or committed for a partition that was given away.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use penstock_pipeline::{
    command::Context,
    config::{ClickHouseDestination, ExportConfig, StartFrom},
    events::dead_letter::Reason,
    health::{Check, Health, Heartbeat, Kind},
    kafka::{
        Message, client,
        client::LogContext,
        poll::{Polled, PolledConsumer},
        topic_ids,
    },
};
use rdkafka::{
    consumer::{CommitMode, Consumer},
    error::RDKafkaErrorCode,
    topic_partition_list::{Offset, TopicPartitionList},
};
use tokio::{runtime::Handle, sync::Semaphore, task::AbortHandle};
use tracing::{debug, error, info, warn};

use super::{
    block::{Block, Collector, Extent, Limits, Taken, Verdict},
    metrics::TableMetrics,
    plan::{Metadata, Origin, Plan, Token, TokenScope},
    protocol::{Action, Assignment, Committed, Content, Epoch, Found, Input, Partition, Sealed, StartAt},
    row::{self, Place, RowError},
    steps::{Moment, Observer},
    table::{BlockSource, Table, TableError, TableFacts},
};
use crate::{
    ExportError, backoff,
    dead_letters::{DeadLetter, DeadLetters},
    filter::Filter,
    metrics::SourceMetrics,
    source::{self, SourceConsumer, TopicNow},
};

/// Inserts and read-backs under way at once.
const CONCURRENT_REQUESTS: usize = 4;

/// How long a revocation may wait for inserts under way.
const REVOKE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a stop may wait for inserts under way.
const STOP_PATIENCE: Duration = Duration::from_secs(15);

/// How long the brokers may take to say a topic's id.
const TOPIC_PATIENCE: Duration = Duration::from_secs(5);

/// How often limits of age, pauses and pressure are looked at.
const TICK: Duration = Duration::from_millis(20);

/// Something that was going on beside the thread has ended.
#[derive(Debug)]
enum Answer {
    Inserted { partition: i32, epoch: Epoch, result: Result<u32, TableError>, facts: Option<TableFacts> },
    ReadBack { partition: i32, epoch: Epoch, result: Result<(u32, BTreeSet<i64>), TableError> },
    DeadLetterKept { partition: i32, epoch: Epoch, offset: i64 },
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
    /// The last failure needs somebody to act.
    refused: bool,
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
            + self.blocks.iter().map(|block| block.held_bytes()).sum::<usize>()
            + self.waiting.iter().map(|waiting| waiting.block.held_bytes()).sum::<usize>()
    }
}

/// The thread's state.
pub struct Driver {
    config: ExportConfig,
    consumer: SourceConsumer,
    runtime: Handle,
    table: Table,
    tokens: TokenScope,
    filter: Option<Filter>,
    dead_letters: DeadLetters,
    observer: Arc<dyn Observer>,
    metrics: SourceMetrics,
    table_metrics: TableMetrics,
    heart: Heartbeat,
    progress: Check,
    alive: Check,
    stop: penstock_pipeline::lifecycle::Shutdown,

    limits: Limits,
    max_age: Duration,
    retry: penstock_pipeline::config::RetryConfig,
    session_timeout: Duration,
    /// Bytes of blocks and half-blocks that may be in memory.
    budget: usize,

    partitions: BTreeMap<i32, Assigned>,
    origin: Origin,
    /// Ends of partitions, as last looked at.
    ends: BTreeMap<i32, i64>,
    last_epoch: u64,
    requests: Arc<Semaphore>,
    answers: Receiver<Answer>,
    answer: Sender<Answer>,
    outbox: VecDeque<(i32, Epoch, Action)>,
    last_turn: Instant,
    /// After this process stood still, nothing is written until the group has had time to say that others took over.
    distrust_until: Option<Instant>,
    under_pressure: bool,
    stopping: bool,
    last_progress: Instant,
    last_trouble: Option<String>,
}

impl Driver {
    /// Prepares everything; connects when run.
    pub fn new(
        config: ExportConfig,
        destination: &ClickHouseDestination,
        facts: TableFacts,
        filter: Option<Filter>,
        observer: Arc<dyn Observer>,
        context: &Context,
        runtime: Handle,
    ) -> Result<Self, ExportError> {
        let consumer = client::consumer(&config.kafka, &config.source, &context.pod)
            .create_with_context(LogContext)
            .map_err(ExportError::Kafka)?;
        let consumer = PolledConsumer::new(consumer).ok_or(ExportError::NoQueue)?;
        let dead_letters = DeadLetters::new(
            &config.kafka,
            &config.dead_letter,
            &config.identity.component,
            &config.source.topic,
        )
        .map_err(ExportError::Kafka)?;
        let limits = limits_of(destination);
        let (answer, answers) = channel();
        let stall = Duration::from_millis(config.admin.stall_after_ms);
        Ok(Self {
            consumer,
            runtime,
            table: Table::new(destination),
            tokens: TokenScope { group: config.source.group.clone(), table_uuid: facts.uuid },
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
            origin: Origin { topic_id: String::new(), first_partitions: 1 },
            ends: BTreeMap::new(),
            last_epoch: 0,
            requests: Arc::new(Semaphore::new(CONCURRENT_REQUESTS)),
            answers,
            answer,
            outbox: VecDeque::new(),
            last_turn: Instant::now(),
            distrust_until: None,
            under_pressure: false,
            stopping: false,
            last_progress: Instant::now() + stall,
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
            self.work_off(now);
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
            self.distrust_until = Some(now + Duration::from_secs(4));
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
                self.last_trouble = Some(format!("Kafka: {reason}"));
            }
            Polled::Nothing => {}
        }
        Ok(())
    }

    // --- collecting ---------------------------------------------------------------------------------------------------

    fn message(&mut self, message: &Message<'_>, now: Instant) {
        if self.stopping {
            return;
        }
        let Some(assigned) = self.partitions.get_mut(&message.partition) else { return };
        if assigned.machine.held().is_some() || message.offset < assigned.collector.next_offset() {
            return;
        }
        let mut letter = None;
        let mut filtered = false;
        let taken = assigned.collector.take(message.offset, now, self.limits, |out| {
            match row_of(message, &self.origin.topic_id, self.filter.as_ref(), out) {
                Ok(Some(facts)) => Verdict::Row(facts),
                Ok(None) => {
                    filtered = true;
                    Verdict::NoRow
                }
                Err((reason, detail)) => {
                    letter = Some(DeadLetter::new(message, reason, detail));
                    Verdict::NoRow
                }
            }
        });
        if filtered {
            self.metrics.filtered.inc();
        }
        // In the range of a plan as well, whose dead letters were acknowledged before it was made: by another `where` (or one
        // that ran out of time only now) an event that was a row then may be none now, and must not vanish. A repeated
        // letter is recognised by its key.
        let pending = usize::from(letter.is_some());
        let block = match taken {
            Taken::Collecting => {
                assigned.dead_letters += pending;
                None
            }
            Taken::Complete(block) => {
                Some(Waiting { block, dead_letters: std::mem::take(&mut assigned.dead_letters) + pending })
            }
            Taken::CompleteBefore(block) => {
                let before = std::mem::replace(&mut assigned.dead_letters, pending);
                Some(Waiting { block, dead_letters: before })
            }
        };
        let epoch = assigned.machine.epoch();
        if let Some(letter) = letter {
            self.put_aside(letter, epoch);
        }
        if let Some(waiting) = block {
            self.sealed(message.partition, waiting);
        }
    }

    fn put_aside(&self, letter: DeadLetter, epoch: Epoch) {
        self.metrics.dead_letter(letter.reason());
        let (letters, answer) = (self.dead_letters.clone(), self.answer.clone());
        self.runtime.spawn(async move {
            letters.put(&letter).await;
            let (partition, offset) = (letter.partition(), letter.offset());
            let _ = answer.send(Answer::DeadLetterKept { partition, epoch, offset });
        });
    }

    fn end_of_partition(&mut self, partition: i32, offset: i64) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        assigned.end_seen = assigned.end_seen.max(offset);
        if let Some(block) = assigned.collector.seal_planned(offset, self.limits) {
            let dead_letters = std::mem::take(&mut assigned.dead_letters);
            self.sealed(partition, Waiting { block, dead_letters });
        }
    }

    /// Closes what is being collected, whatever its size.
    fn seal(&mut self, partition: i32) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        if let Some(block) = assigned.collector.seal(self.limits) {
            let dead_letters = std::mem::take(&mut assigned.dead_letters);
            self.sealed(partition, Waiting { block, dead_letters });
        }
    }

    fn sealed(&mut self, partition: i32, waiting: Waiting) {
        if let Some(assigned) = self.partitions.get_mut(&partition) {
            assigned.waiting.push_back(waiting);
        }
        self.hand_over(partition);
    }

    /// Moves blocks whose dead letters are kept on to the machine, as far as it takes them.
    fn hand_over(&mut self, partition: i32) {
        loop {
            let Some(assigned) = self.partitions.get_mut(&partition) else { return };
            while assigned.waiting.front().is_some_and(|waiting| waiting.dead_letters == 0) {
                if let Some(waiting) = assigned.waiting.pop_front() {
                    assigned.blocks.push_back(Arc::new(waiting.block));
                }
            }
            if !assigned.machine.takes_blocks() {
                return;
            }
            let Some(block) = assigned.blocks.get(assigned.known) else { return };
            let sealed = Sealed { range: block.range, rows: block.row_count() };
            assigned.known += 1;
            let epoch = assigned.machine.epoch();
            self.observer.at(Moment::Sealed, partition, sealed.range.start());
            self.input(partition, epoch, Input::Sealed(sealed));
        }
    }

    // --- deciding -----------------------------------------------------------------------------------------------------

    fn input(&mut self, partition: i32, epoch: Epoch, input: Input) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        let action = assigned.machine.on(epoch, input, now_ms());
        self.act(partition, epoch, action);
    }

    fn act(&mut self, partition: i32, epoch: Epoch, action: Action) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        match action {
            Action::Nothing | Action::Collect | Action::CollectExactly(_) => {}
            Action::Pause { failures } => {
                let failures = if assigned.refused { u32::MAX } else { failures };
                let pause = backoff::pause(&self.retry, failures, rand::random());
                assigned.resume_at = Some(Instant::now() + pause);
            }
            Action::Hold(reason) => {
                error!(partition, %reason, "partition held");
                assigned.blocks.clear();
                assigned.waiting.clear();
                assigned.known = 0;
                assigned.collector = Collector::new(assigned.machine.committed(), Extent::Open(self.limits));
                self.set_paused(partition, true);
                self.tell();
            }
            Action::Commit { offset, .. } => {
                // What lies before the new offset is in the table, or is no row.
                while assigned.blocks.front().is_some_and(|block| block.range.end() <= offset) {
                    assigned.blocks.pop_front();
                    assigned.known = assigned.known.saturating_sub(1);
                }
                assigned.collector.skip_to(offset);
                self.outbox.push_back((partition, epoch, action));
            }
            Action::Insert { .. } | Action::ReadBack { .. } => {
                self.outbox.push_back((partition, epoch, action));
            }
        }
    }

    /// Does what was decided, if this process may still speak for the group.
    fn work_off(&mut self, now: Instant) {
        if self.outbox.is_empty() {
            return;
        }
        if self.distrust_until.is_some_and(|until| now < until) || self.consumer.client().assignment_lost() {
            return;
        }
        self.distrust_until = None;
        let plans = |(_, _, action): &(i32, Epoch, Action)| {
            matches!(action, Action::Commit { metadata: Metadata::Planned(_), .. })
        };
        // Looked at after the messages of a block were read and before it is planned: librdkafka goes on in a topic that was
        // made anew, and its offsets would pass for those of the old one.
        if self.outbox.iter().any(plans) && !self.is_same_topic(now) {
            return;
        }
        while let Some((partition, epoch, action)) = self.outbox.pop_front() {
            if self.partitions.get(&partition).is_none_or(|assigned| assigned.machine.epoch() != epoch) {
                continue;
            }
            match action {
                Action::Commit { offset, metadata } => {
                    self.commit_and_go_on(partition, epoch, offset, &metadata);
                }
                Action::Insert { plan, content, token } => {
                    self.insert(partition, epoch, &plan, content, token);
                }
                Action::ReadBack { plan, allow_folded } => {
                    self.read_back(partition, epoch, &plan, allow_folded);
                }
                _ => {}
            }
        }
    }

    /// Whether the topic is the one whose offsets these are. If it is not, everything is held; if nobody answers, it is
    /// asked again later.
    fn is_same_topic(&mut self, now: Instant) -> bool {
        match topic_ids::topic_id(self.consumer.client().client(), &self.config.source.topic, TOPIC_PATIENCE)
        {
            Ok(Some(id)) if id.to_string() == self.origin.topic_id => true,
            Ok(Some(id)) => {
                self.compare_topic_id(&id.to_string());
                self.outbox.clear();
                false
            }
            Ok(None) => self.ask_later(now, "the topic is not there"),
            Err(error) => self.ask_later(now, &error.to_string()),
        }
    }

    fn ask_later(&mut self, now: Instant, trouble: &str) -> bool {
        warn!(trouble, "cannot compare the topic's id; planning nothing meanwhile");
        self.last_trouble = Some(format!("Kafka: {trouble}"));
        self.distrust_until = Some(now + Duration::from_secs(1));
        self.last_turn = Instant::now();
        false
    }

    /// Holds the partitions that count another topic.
    fn compare_topic_id(&mut self, id: &str) {
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            if let Some(epoch) = self.epoch_of(partition) {
                self.input(partition, epoch, Input::TopicId(id.to_owned()));
            }
        }
    }

    fn commit_and_go_on(&mut self, partition: i32, epoch: Epoch, offset: i64, metadata: &Metadata) {
        let input = match self.commit(partition, offset, metadata) {
            Ok(()) => {
                self.last_progress = Instant::now();
                self.last_trouble.take_if(|trouble| trouble.starts_with("Kafka"));
                match metadata {
                    Metadata::Planned(_) => self.observer.at(Moment::Planned, partition, offset),
                    _ => self.observer.at(Moment::Advanced, partition, offset),
                }
                self.metrics.committed(partition, offset);
                Input::Committed
            }
            Err(error) => {
                warn!(partition, offset, %error, "a commit failed; trying again");
                self.metrics.failure("commit");
                Input::CommitFailed
            }
        };
        self.input(partition, epoch, input);
        self.hand_over(partition);
    }

    /// One partition at a time: a synchronous commit of several hides the failure of some.
    fn commit(
        &self,
        partition: i32,
        offset: i64,
        metadata: &Metadata,
    ) -> Result<(), rdkafka::error::KafkaError> {
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(&self.config.source.topic, partition, Offset::Offset(offset))?;
        if let Some(mut element) = list.find_partition(&self.config.source.topic, partition) {
            element.set_metadata(metadata.to_string());
        }
        self.consumer.client().commit(&list, CommitMode::Sync)
    }

    fn insert(&mut self, partition: i32, epoch: Epoch, plan: &Plan, content: Content, token: Token) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        let Some(block) = assigned.blocks.front().filter(|block| block.range == plan.range).cloned() else {
            error!(partition, range = %plan.range, "the block of a plan is not at hand; this is a fault of ours");
            self.stop.request("the block of a plan is not at hand");
            return;
        };
        let rows = match content {
            Content::Whole => vec![block.bytes()],
            Content::Missing => block.rows_at(&assigned.missing).into_iter().map(|(_, row)| row).collect(),
        };
        let count = match content {
            Content::Whole => block.row_count(),
            Content::Missing => u32::try_from(rows.len()).unwrap_or(u32::MAX),
        };
        if content == Content::Missing {
            warn!(partition, range = %plan.range, rows = count, "repairing: inserting what the table lacks of a block");
            self.table_metrics.repaired.inc_by(count.into());
        }
        let token = self.tokens.deduplication_token(partition, plan, token);
        let query_id = self.tokens.query_id(partition, plan);
        let (table, answer, requests) = (self.table.clone(), self.answer.clone(), self.requests.clone());
        let (decided, patience) = (Instant::now(), self.session_timeout);
        let seconds = self.table_metrics.insert_seconds.clone();
        let request = self.runtime.spawn(async move {
            let Ok(_permit) = requests.acquire().await else { return };
            // While this waited, the process may have stood still and the partition may have gone to another.
            let result = if decided.elapsed() < patience {
                let begun = Instant::now();
                let result = table.insert(rows, &token, &query_id).await;
                seconds.observe(begun.elapsed().as_secs_f64());
                result
            } else {
                Err(TableError::Passing("waited too long for its turn".to_owned()))
            };
            let facts = match &result {
                Err(error) if error.is_refusal() => table.facts().await.ok(),
                _ => None,
            };
            let result = result.map(|()| count);
            let _ = answer.send(Answer::Inserted { partition, epoch, result, facts });
        });
        assigned.request = Some(request.abort_handle());
    }

    fn read_back(&mut self, partition: i32, epoch: Epoch, plan: &Plan, allow_folded: bool) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        let Some(block) = assigned.blocks.front().filter(|block| block.range == plan.range).cloned() else {
            error!(partition, range = %plan.range, "the block of a plan is not at hand; this is a fault of ours");
            self.stop.request("the block of a plan is not at hand");
            return;
        };
        let query_id = self.tokens.query_id(partition, plan);
        let source = BlockSource { topic_id: self.origin.topic_id.clone(), partition, query_id };
        let (table, answer, requests) = (self.table.clone(), self.answer.clone(), self.requests.clone());
        let request = self.runtime.spawn(async move {
            let Ok(_permit) = requests.acquire().await else { return };
            let result = table.missing(&block, &source, allow_folded).await;
            let result = result.map(|missing| (block.row_count(), missing.offsets));
            let _ = answer.send(Answer::ReadBack { partition, epoch, result });
        });
        assigned.request = Some(request.abort_handle());
    }

    fn take_answers(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            self.take_answer(answer);
        }
    }

    fn take_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Topic(now) => {
                self.compare_topic_id(&now.id);
                self.ends = now.ends;
            }
            Answer::DeadLetterKept { partition, epoch, offset } => {
                let Some(assigned) = self.current(partition, epoch) else { return };
                match assigned.waiting.iter_mut().find(|waiting| offset < waiting.block.range.end()) {
                    Some(waiting) => waiting.dead_letters = waiting.dead_letters.saturating_sub(1),
                    None => assigned.dead_letters = assigned.dead_letters.saturating_sub(1),
                }
                self.hand_over(partition);
            }
            Answer::Inserted { partition, epoch, result, facts } => {
                if let Some(facts) = facts
                    && facts.uuid != self.tokens.table_uuid
                {
                    warn!(uuid = facts.uuid, "the table was recreated");
                    self.tokens.table_uuid = facts.uuid;
                }
                let Some(assigned) = self.current(partition, epoch) else { return };
                assigned.request = None;
                let committed = assigned.machine.committed();
                let input = match result {
                    Ok(rows) => {
                        assigned.refused = false;
                        self.last_trouble = None;
                        self.last_progress = Instant::now();
                        self.table_metrics.rows.inc_by(rows.into());
                        self.table_metrics.blocks.inc();
                        self.observer.at(Moment::Inserted, partition, committed);
                        Input::Inserted
                    }
                    Err(error) => {
                        self.request_failed(partition, &error, "insert");
                        Input::InsertUnclear
                    }
                };
                self.input(partition, epoch, input);
                self.hand_over(partition);
            }
            Answer::ReadBack { partition, epoch, result } => {
                let Some(assigned) = self.current(partition, epoch) else { return };
                assigned.request = None;
                let input = match result {
                    Ok((rows, missing)) => {
                        let lacking = u32::try_from(missing.len()).unwrap_or(u32::MAX);
                        assigned.missing = missing;
                        let committed = assigned.machine.committed();
                        self.observer.at(Moment::ReadBack, partition, committed);
                        Input::ReadBack(Found { present: rows.saturating_sub(lacking), missing: lacking })
                    }
                    Err(error) => {
                        self.request_failed(partition, &error, "read_back");
                        Input::ReadBackFailed
                    }
                };
                self.input(partition, epoch, input);
                self.hand_over(partition);
            }
        }
    }

    fn request_failed(&mut self, partition: i32, error: &TableError, what: &'static str) {
        self.metrics.failure(if error.is_refusal() { "refused" } else { what });
        if let Some(assigned) = self.partitions.get_mut(&partition) {
            assigned.refused = error.is_refusal();
        }
        if error.is_refusal() {
            error!(partition, what, %error, "ClickHouse refuses; somebody has to change the table, grants or settings");
        } else {
            warn!(partition, what, %error, "ClickHouse did not answer as wished; reading back before trying again");
        }
        self.last_trouble = Some(format!("ClickHouse: {error}"));
    }

    fn current(&mut self, partition: i32, epoch: Epoch) -> Option<&mut Assigned> {
        self.partitions.get_mut(&partition).filter(|assigned| assigned.machine.epoch() == epoch)
    }

    fn epoch_of(&self, partition: i32) -> Option<Epoch> {
        self.partitions.get(&partition).map(|assigned| assigned.machine.epoch())
    }

    // --- time and pressure --------------------------------------------------------------------------------------------

    fn tick(&mut self, now: Instant) {
        let mut due = Vec::new();
        let mut old = Vec::new();
        for (&partition, assigned) in &mut self.partitions {
            if assigned.resume_at.is_some_and(|at| at <= now) {
                assigned.resume_at = None;
                due.push((partition, Input::Elapsed));
            }
            if let Some(position) = assigned.idles_behind() {
                due.push((partition, Input::EndOfPartition { position }));
            }
            let aged =
                assigned.collector.age_since().is_some_and(|since| now.duration_since(since) >= self.max_age);
            // While an earlier block is under way, the next may grow as well as wait.
            if aged && assigned.blocks.is_empty() && assigned.waiting.is_empty() {
                old.push(partition);
            }
        }
        for (partition, input) in due {
            if let Some(epoch) = self.epoch_of(partition) {
                self.input(partition, epoch, input);
            }
        }
        for partition in old {
            self.seal(partition);
        }
        self.relieve();
    }

    /// Stops taking messages while blocks wait for ClickHouse, so that memory stays bounded; goes on at half.
    fn relieve(&mut self) {
        let held: usize = self.partitions.values().map(Assigned::held_bytes).sum();
        self.metrics.buffered_bytes.set(i64::try_from(held).unwrap_or(i64::MAX));
        let pressure = if self.under_pressure { held > self.budget / 2 } else { held > self.budget };
        if pressure && !self.under_pressure {
            debug!(held, "pausing: ClickHouse takes less than Kafka gives");
            // Many half-blocks may hold the budget: they go out as they are. A plan's block has to be completed.
            for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
                self.seal(partition);
            }
        }
        self.under_pressure = pressure;
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            let planned = self.partitions.get(&partition).is_some_and(|a| a.collector.is_planned());
            self.set_paused(partition, pressure && !planned);
        }
    }

    fn set_paused(&mut self, partition: i32, paused: bool) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        let paused = paused || assigned.machine.held().is_some() || self.stopping;
        if paused == assigned.paused {
            return;
        }
        assigned.paused = paused;
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(&self.config.source.topic, partition);
        let client = self.consumer.client();
        let result = if paused { client.pause(&list) } else { client.resume(&list) };
        if let Err(error) = result {
            warn!(partition, paused, %error, "could not pause or resume a partition");
        }
    }

    /// Metrics and health, once a second.
    fn tell(&mut self) {
        let mut lag = 0;
        let mut held = 0;
        let mut reason = None;
        let name = std::ffi::CString::new(self.config.source.topic.as_str()).unwrap_or_default();
        for (&partition, assigned) in &self.partitions {
            if let Some(why) = assigned.machine.held() {
                held += 1;
                reason = Some(format!("partition {partition} is held: {why}"));
            }
            let fetched = self.consumer.known_watermarks(&name, partition).map(|(_, end)| end);
            if let Some(end) = fetched.max(self.ends.get(&partition).copied()) {
                let behind = (end - assigned.machine.committed()).max(0);
                self.metrics.lag(partition, behind);
                lag += behind;
            }
        }
        self.metrics.held_partitions.set(held);
        let stall = Duration::from_millis(self.config.admin.stall_after_ms);
        if lag == 0 {
            self.last_progress = Instant::now();
        }
        let stalled = self.last_progress.elapsed() > stall;
        let verdict = if let Some(reason) = reason {
            Err(reason)
        } else if self.partitions.values().any(|assigned| assigned.refused) {
            Err(self.last_trouble.clone().unwrap_or_else(|| "ClickHouse refuses inserts".to_owned()))
        } else if stalled {
            let trouble = self.last_trouble.as_deref().unwrap_or("no trouble was reported");
            Err(format!("{lag} messages wait and nothing was exported for {stall:?}; {trouble}"))
        } else {
            Ok(())
        };
        // A restart helps against what nobody can explain, and against nothing else.
        let is_explained = held > 0
            || self.last_trouble.is_some()
            || self
                .partitions
                .values()
                .any(|a| a.request.is_some() || a.dead_letters > 0 || !a.waiting.is_empty());
        if stalled && !is_explained {
            self.alive
                .fail(format!("{lag} messages wait, none is taken, and nothing is known to be in the way"));
        } else {
            self.alive.pass();
        }
        match verdict {
            Ok(()) => self.progress.pass(),
            Err(reason) => self.progress.fail(reason),
        }
    }

    // --- coming and going ---------------------------------------------------------------------------------------------

    fn assign(&mut self, partitions: &[i32]) -> Result<(), ExportError> {
        let observed = self.observe(partitions)?;
        let start_at = match self.config.source.start_from {
            StartFrom::Earliest => StartAt::LogStart,
            StartFrom::Latest => StartAt::LogEnd,
        };
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        let mut actions = Vec::with_capacity(partitions.len());
        for one in observed {
            self.last_epoch += 1;
            let epoch = Epoch(self.last_epoch);
            let (machine, action) = Partition::assign(Assignment {
                epoch,
                partition: one.partition,
                origin: self.origin.clone(),
                committed: one.committed.map(|(offset, metadata)| Committed { offset, metadata }),
                log_start: one.log_start,
                log_end: one.log_end,
                start_at,
            });
            let start = machine.committed();
            let extent = match &action {
                Action::CollectExactly(range) => {
                    info!(partition = one.partition, %range, "taking over a block that may be in the table");
                    Extent::Planned(*range)
                }
                _ => Extent::Open(self.limits),
            };
            let position = if machine.held().is_some() { Offset::End } else { Offset::Offset(start) };
            list.add_partition_offset(&self.config.source.topic, one.partition, position)
                .map_err(ExportError::Kafka)?;
            let assigned = Assigned {
                machine,
                collector: Collector::new(start, extent),
                dead_letters: 0,
                waiting: VecDeque::new(),
                blocks: VecDeque::new(),
                known: 0,
                missing: BTreeSet::new(),
                end_seen: 0,
                resume_at: None,
                request: None,
                paused: false,
                refused: false,
            };
            self.partitions.insert(one.partition, assigned);
            actions.push((one.partition, epoch, action));
        }
        self.consumer.client().incremental_assign(&list).map_err(ExportError::Kafka)?;
        // A pause outlives the assignment that it was made in.
        self.consumer.client().resume(&list).map_err(ExportError::Kafka)?;
        info!(?partitions, topic_id = self.origin.topic_id, "partitions assigned");
        for (partition, epoch, action) in actions {
            self.act(partition, epoch, action);
        }
        self.relieve();
        self.last_progress = Instant::now();
        self.tell();
        Ok(())
    }

    /// Asks until the brokers answer; a process that never learns what it was given gives it back by leaving.
    fn observe(&mut self, partitions: &[i32]) -> Result<Vec<source::Observed>, ExportError> {
        let patience = Duration::from_millis(self.config.source.max_poll_interval_ms.into()) / 2;
        let begun = Instant::now();
        loop {
            match source::observe(&self.consumer, &self.config.source.topic, partitions) {
                Ok((origin, observed)) => {
                    // Partitions that are here already and count another topic are held.
                    self.compare_topic_id(&origin.topic_id);
                    self.origin = origin;
                    self.last_turn = Instant::now();
                    return Ok(observed);
                }
                Err(error) if begun.elapsed() < patience && !self.stop.is_requested() => {
                    warn!(%error, "cannot look at the assigned partitions yet");
                    self.heart.beat();
                    std::thread::sleep(Duration::from_millis(500));
                }
                Err(error) => return Err(ExportError::Source(error)),
            }
        }
    }

    fn revoke(&mut self, partitions: &[i32]) -> Result<(), ExportError> {
        let lost = self.consumer.client().assignment_lost();
        if !lost {
            self.settle(partitions, REVOKE_PATIENCE.min(self.session_timeout));
        }
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition(&self.config.source.topic, partition);
            if let Some(Assigned { request: Some(request), .. }) = self.partitions.remove(&partition) {
                request.abort();
            }
        }
        self.metrics.forget(partitions);
        self.consumer.client().incremental_unassign(&list).map_err(ExportError::Kafka)?;
        info!(?partitions, lost, "partitions revoked");
        self.last_turn = Instant::now();
        Ok(())
    }

    /// Lets the inserts under way of `partitions` end, commits what they did, and begins nothing new.
    fn settle(&mut self, partitions: &[i32], patience: Duration) {
        let deadline = Instant::now() + patience;
        for partition in partitions {
            if let Some(assigned) = self.partitions.get_mut(partition) {
                assigned.machine.forget_ready();
                assigned.waiting.clear();
                let begun = assigned.known.min(usize::from(assigned.machine.is_busy()));
                assigned.blocks.truncate(begun);
                assigned.known = begun;
                assigned.collector = Collector::new(i64::MAX - 1, Extent::Open(self.limits));
            }
        }
        // No new plan: what is sealed and not planned is left to the next owner.
        self.outbox.retain(|(partition, _, action)| {
            !partitions.contains(partition)
                || !matches!(action, Action::Commit { metadata: Metadata::Planned(_), .. })
        });
        self.work_off(Instant::now());
        while partitions.iter().any(|p| self.partitions.get(p).is_some_and(|a| a.request.is_some())) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.answers.recv_timeout(left.min(Duration::from_millis(200))) {
                Ok(answer) => self.take_answer(answer),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => break,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.heart.beat();
            self.work_off(Instant::now());
        }
        for &partition in partitions {
            let unsettled = self.partitions.get(&partition).and_then(|a| a.machine.unsettled_advance());
            if let Some((offset, metadata)) = unsettled
                && let Err(error) = self.commit(partition, offset, &metadata)
            {
                // The next owner finds the plan and the rows.
                warn!(partition, offset, %error, "a last commit failed");
            }
        }
        self.last_turn = Instant::now();
    }

    fn leave(mut self) -> Result<(), ExportError> {
        self.stopping = true;
        self.progress.fail("stopping");
        let partitions: Vec<i32> = self.partitions.keys().copied().collect();
        for &partition in &partitions {
            self.set_paused(partition, true);
        }
        if !self.consumer.client().assignment_lost() {
            self.settle(&partitions, STOP_PATIENCE);
        }
        for assigned in self.partitions.values() {
            if let Some(request) = &assigned.request {
                request.abort();
            }
        }
        info!("inserts are settled; leaving the group");
        Ok(())
    }

    fn partition_error(&mut self, partition: i32, code: RDKafkaErrorCode, reason: &str) {
        if !matches!(code, RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) {
            warn!(partition, ?code, reason, "Kafka cannot read on in a partition; it tries again");
            return;
        }
        let Some(assigned) = self.partitions.get(&partition) else { return };
        let (epoch, offset) = (assigned.machine.epoch(), assigned.collector.next_offset());
        let ends = source::log_ends(&self.consumer, &self.config.source.topic, &[partition]);
        let (log_start, log_end) = match ends {
            Ok(ends) => ends.get(&partition).copied().unwrap_or((-1, -1)),
            Err(error) => {
                warn!(partition, %error, "cannot ask for the ends of a partition");
                (-1, -1)
            }
        };
        self.input(partition, epoch, Input::OutOfRange { offset, log_start, log_end });
    }

    fn watch_topic(&self) {
        let answer = self.answer.clone();
        self.runtime.spawn(source::watch(
            self.dead_letters.clone(),
            self.config.source.topic.clone(),
            self.stop.clone(),
            move |now| {
                let _ = answer.send(Answer::Topic(now));
            },
        ));
    }
}

/// A check of liveness that is fine until something is wrong.
fn started(health: &Health) -> Check {
    let check = health.check(Kind::Liveness, "progress", "");
    check.pass();
    check
}

fn limits_of(destination: &ClickHouseDestination) -> Limits {
    let bytes = usize::try_from(destination.block.max_bytes).unwrap_or(usize::MAX);
    Limits {
        rows: destination.block.max_rows.clamp(1, Limits::SERVER_ROWS),
        bytes: bytes.clamp(1, Limits::SERVER_BYTES),
        months: Limits::SERVER_PARTITIONS,
    }
}

/// The row of a message; `None` when `where` leaves it out; otherwise why it can never be one.
fn row_of(
    message: &Message<'_>,
    topic_id: &str,
    filter: Option<&Filter>,
    out: &mut Vec<u8>,
) -> Result<Option<row::RowFacts>, (Reason, String)> {
    let value = message.value.unwrap_or_default();
    if let Some(filter) = filter
        && !filter.admits(value)?
    {
        return Ok(None);
    }
    let place = Place {
        topic_id,
        partition: message.partition,
        offset: message.offset,
        timestamp_ms: message.timestamp_ms,
    };
    row::write_row(out, value, place).map(Some).map_err(|error| {
        let reason = match &error {
            RowError::Malformed(_) => Reason::Malformed,
            RowError::Value { .. } => Reason::InvalidRow,
        };
        (reason, error.to_string())
    })
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
