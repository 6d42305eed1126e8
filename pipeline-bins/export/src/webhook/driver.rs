//! The thread that polls Kafka and commits; deliveries run beside it.
//!
//! Deliveries end in any order. What is committed is the offset below which all are resolved. A process that is lost
//! repeats what lay above it, under the same ids.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    time::{Duration, Instant},
};

use penstock_pipeline::{
    command::Context,
    config::{ExportConfig, RetryConfig, StartFrom},
    health::{Check, Heartbeat, Kind},
    kafka::{
        Message, client,
        client::LogContext,
        poll::{Polled, PolledConsumer},
    },
    lifecycle::Shutdown,
};
use prometheus_client::metrics::histogram::Histogram;
use rdkafka::{
    consumer::{CommitMode, Consumer},
    error::RDKafkaErrorCode,
    topic_partition_list::{Offset, TopicPartitionList},
};
use tokio::{runtime::Handle, sync::Semaphore, task::AbortHandle};
use tracing::{debug, error, info, warn};

use super::{
    deliver::{Delivery, DeliveryMetrics, Endpoint, Gate},
    low_water::LowWater,
};
use crate::{
    ExportError,
    clickhouse::{
        plan::{Metadata, Origin},
        protocol::{Assignment, Committed, Epoch, HoldReason, Partition, StartAt},
    },
    dead_letters::{DeadLetters, Kept},
    filter::Filter,
    metrics::SourceMetrics,
    source::{self, SourceConsumer, TopicNow},
};

/// Bytes of events in memory.
const BUDGET_BYTES: usize = 64 << 20;

/// Unresolved events per slot of concurrency: how far the others may run ahead of one that is slow.
const WINDOW_PER_SLOT: usize = 64;

/// Least window.
const LEAST_WINDOW: usize = 1000;

/// How often offsets are committed.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// How long a revocation or a stop waits for attempts under way.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest wait for a message.
const TICK: Duration = Duration::from_millis(50);

/// A delivery has ended.
#[derive(Debug)]
struct Resolved {
    partition: i32,
    epoch: u64,
    offset: i64,
}

/// A delivery that has not ended.
#[derive(Debug)]
struct UnderWay {
    task: AbortHandle,
    bytes: usize,
}

#[derive(Debug)]
struct Assigned {
    epoch: u64,
    water: LowWater,
    committed: i64,
    held: Option<HoldReason>,
    paused: bool,
    deliveries: BTreeMap<i64, UnderWay>,
}

/// The thread's state.
pub struct Driver {
    config: ExportConfig,
    consumer: SourceConsumer,
    runtime: Handle,
    filter: Option<Arc<Filter>>,
    delivery: Arc<Delivery>,
    heart: Heartbeat,
    progress: Check,
    alive: Check,
    kafka_trouble: Option<String>,
    stop: Shutdown,
    metrics: SourceMetrics,
    window: usize,
    partitions: BTreeMap<i32, Assigned>,
    origin: Origin,
    topic_now: Receiver<TopicNow>,
    /// Ends of partitions, as last looked at.
    ends: BTreeMap<i32, i64>,
    last_epoch: u64,
    resolved: Receiver<Resolved>,
    resolve: Sender<Resolved>,
    held_bytes: usize,
    under_pressure: bool,
    stopping: bool,
    last_progress: Instant,
}

impl Driver {
    /// Prepares everything; connects when run.
    pub fn new(
        config: ExportConfig,
        retry: RetryConfig,
        concurrency: usize,
        filter: Option<Arc<Filter>>,
        endpoint: Endpoint,
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
        let metrics = SourceMetrics::new(&context.metrics, &config.source.topic);
        let delivery_metrics = DeliveryMetrics::default();
        let attempt_seconds = Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]);
        context.metrics.register(|registry| {
            let counters = delivery_metrics.clone();
            registry.register(
                "export_delivered_events",
                "Events that the destination took",
                counters.delivered,
            );
            registry.register("export_attempts", "Attempts to deliver an event", counters.attempts);
            registry.register("export_attempt_seconds", "Duration of attempts", attempt_seconds.clone());
        });
        let delivery = Arc::new(Delivery {
            endpoint,
            retry,
            slots: Semaphore::new(concurrency),
            gate: Gate::new(),
            dead_letters,
            source_metrics: metrics.clone(),
            metrics: delivery_metrics,
            attempt_seconds,
            last_trouble: None.into(),
        });
        let (resolve, resolved) = channel();
        let (tell, topic_now) = channel();
        runtime.spawn(source::watch(
            delivery.dead_letters.clone(),
            config.source.topic.clone(),
            context.shutdown.clone(),
            move |now| {
                let _ = tell.send(now);
            },
        ));
        let alive = context.health.check(Kind::Liveness, "progress", "");
        alive.pass();
        Ok(Self {
            consumer,
            runtime,
            filter,
            delivery,
            heart: context.health.heartbeat(
                Kind::Liveness,
                "source loop",
                Duration::from_millis(config.source.max_poll_interval_ms.into()),
            ),
            progress: context.health.check(Kind::Readiness, "export", "nothing was assigned yet"),
            alive,
            kafka_trouble: None,
            stop: context.shutdown.clone(),
            metrics,
            window: (concurrency * WINDOW_PER_SLOT).max(LEAST_WINDOW),
            partitions: BTreeMap::new(),
            origin: Origin { topic_id: String::new(), first_partitions: 1 },
            topic_now,
            ends: BTreeMap::new(),
            last_epoch: 0,
            resolved,
            resolve,
            held_bytes: 0,
            under_pressure: false,
            stopping: false,
            last_progress: Instant::now(),
            config,
        })
    }

    /// Runs until asked to stop, or until something happens after which only a new process can go on.
    pub fn run(mut self) -> Result<(), ExportError> {
        self.consumer.client().subscribe(&[&self.config.source.topic]).map_err(ExportError::Kafka)?;
        let mut last_commit = Instant::now();
        while !self.stop.is_requested() {
            self.heart.beat();
            self.poll()?;
            while let Ok(resolved) = self.resolved.try_recv() {
                self.take(&resolved);
            }
            while let Ok(now) = self.topic_now.try_recv() {
                self.take_topic(now);
            }
            self.relieve();
            if last_commit.elapsed() >= COMMIT_INTERVAL {
                last_commit = Instant::now();
                self.commit_all();
                self.tell();
            }
        }
        self.leave();
        Ok(())
    }

    fn poll(&mut self) -> Result<(), ExportError> {
        let Some(event) = self.consumer.poll(TICK) else { return Ok(()) };
        match self.consumer.read(&event) {
            Polled::Message(message) => self.message(&message),
            Polled::EndOfPartition { partition, offset } => {
                if let Some(assigned) = self.partitions.get_mut(&partition) {
                    assigned.water.pass(offset);
                }
            }
            Polled::Assign(partitions) => self.assign(&partitions)?,
            Polled::Revoke(partitions) => self.revoke(&partitions)?,
            Polled::PartitionError { partition, code, reason } => {
                self.partition_error(partition, code, &reason);
            }
            Polled::Error { fatal: true, reason, .. } => return Err(ExportError::FatalClient(reason)),
            Polled::Error { fatal: false, code, reason } => {
                debug!(?code, reason, "Kafka reported an error that passes by itself");
                self.kafka_trouble = Some(reason);
            }
            Polled::Nothing => {}
        }
        Ok(())
    }

    fn message(&mut self, message: &Message<'_>) {
        if self.stopping {
            return;
        }
        let Some(assigned) = self.partitions.get_mut(&message.partition) else { return };
        if assigned.held.is_some() || message.offset < assigned.water.end() {
            return;
        }
        assigned.water.begin(message.offset);
        let admitted = match &self.filter {
            Some(filter) => filter.admits(message.value.unwrap_or_default()),
            None => Ok(true),
        };
        let refusal = match admitted {
            Ok(true) => None,
            Ok(false) => {
                self.metrics.filtered.inc();
                assigned.water.resolve(message.offset);
                return;
            }
            Err((reason, detail)) => Some((reason, detail)),
        };
        let kept = Kept::new(message);
        let (partition, offset, epoch) = (message.partition, message.offset, assigned.epoch);
        // The message and the body that is made of it.
        let bytes = message.size() * 2;
        self.held_bytes += bytes;
        let (delivery, resolve) = (Arc::clone(&self.delivery), self.resolve.clone());
        let task = self.runtime.spawn(async move {
            match refusal {
                None => delivery.run(kept).await,
                Some((reason, detail)) => {
                    delivery.source_metrics.dead_letter(reason);
                    delivery.dead_letters.put(&kept.dead_letter(reason, detail)).await;
                }
            }
            let _ = resolve.send(Resolved { partition, epoch, offset });
        });
        assigned.deliveries.insert(offset, UnderWay { task: task.abort_handle(), bytes });
    }

    fn take(&mut self, resolved: &Resolved) {
        let Some(assigned) = self.partitions.get_mut(&resolved.partition) else { return };
        if assigned.epoch != resolved.epoch {
            return;
        }
        if let Some(ended) = assigned.deliveries.remove(&resolved.offset) {
            self.held_bytes = self.held_bytes.saturating_sub(ended.bytes);
        }
        assigned.water.resolve(resolved.offset);
        self.last_progress = Instant::now();
    }

    /// librdkafka goes on in a topic that was made anew, at an offset that means nothing in it.
    fn take_topic(&mut self, now: TopicNow) {
        self.ends = now.ends;
        if self.partitions.is_empty() || now.id == self.origin.topic_id {
            return;
        }
        for (&partition, assigned) in &mut self.partitions {
            if assigned.held.is_none() {
                let why = HoldReason::TopicRecreated {
                    committed: self.origin.topic_id.clone(),
                    current: now.id.clone(),
                };
                error!(partition, reason = %why, "partition held");
                assigned.held = Some(why);
            }
        }
    }

    /// Pauses while too much is unresolved, and goes on at half. One partition's slow event counts for that partition.
    fn relieve(&mut self) {
        let bytes = if self.under_pressure { BUDGET_BYTES / 2 } else { BUDGET_BYTES };
        self.under_pressure = self.held_bytes > bytes;
        self.metrics.buffered_bytes.set(i64::try_from(self.held_bytes).unwrap_or(i64::MAX));
        let mut changes = Vec::new();
        for (&partition, assigned) in &self.partitions {
            let window = if assigned.paused { self.window / 2 } else { self.window };
            let paused = self.stopping
                || self.under_pressure
                || assigned.held.is_some()
                || assigned.water.held() > window;
            if paused != assigned.paused {
                changes.push((partition, paused));
            }
        }
        for (partition, paused) in changes {
            let mut list = TopicPartitionList::with_capacity(1);
            list.add_partition(&self.config.source.topic, partition);
            let client = self.consumer.client();
            let result = if paused { client.pause(&list) } else { client.resume(&list) };
            match (result, self.partitions.get_mut(&partition)) {
                (Ok(()), Some(assigned)) => assigned.paused = paused,
                (Err(error), _) => warn!(partition, paused, %error, "could not pause or resume a partition"),
                (Ok(()), None) => {}
            }
        }
    }

    fn commit_all(&mut self) {
        for partition in self.partitions.keys().copied().collect::<Vec<_>>() {
            self.commit(partition);
        }
    }

    fn commit(&mut self, partition: i32) {
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        let mark = assigned.water.mark();
        if mark <= assigned.committed || assigned.held.is_some() || self.consumer.client().assignment_lost() {
            return;
        }
        let mut list = TopicPartitionList::with_capacity(1);
        let topic = &self.config.source.topic;
        let result = list.add_partition_offset(topic, partition, Offset::Offset(mark)).and_then(|()| {
            if let Some(mut element) = list.find_partition(topic, partition) {
                element.set_metadata(Metadata::Settled(self.origin.clone()).to_string());
            }
            self.consumer.client().commit(&list, CommitMode::Sync)
        });
        match result {
            Ok(()) => {
                assigned.committed = mark;
                self.kafka_trouble = None;
                self.metrics.committed(partition, mark);
            }
            Err(error) => warn!(partition, mark, %error, "a commit failed; trying again"),
        }
    }

    fn tell(&mut self) {
        let name = std::ffi::CString::new(self.config.source.topic.as_str()).unwrap_or_default();
        let (mut lag, mut held, mut reason) = (0, 0, None);
        for (&partition, assigned) in &self.partitions {
            if let Some(why) = &assigned.held {
                held += 1;
                reason = Some(format!("partition {partition} is held: {why}"));
            }
            let fetched = self.consumer.known_watermarks(&name, partition).map(|(_, end)| end);
            if let Some(end) = fetched.max(self.ends.get(&partition).copied()) {
                let behind = (end - assigned.committed.max(assigned.water.mark())).max(0);
                self.metrics.lag(partition, behind);
                lag += behind;
            }
        }
        self.metrics.held_partitions.set(held);
        if lag == 0 {
            self.last_progress = Instant::now();
        }
        let stall = Duration::from_millis(self.config.admin.stall_after_ms);
        let is_explained = held > 0
            || self.kafka_trouble.is_some()
            || self.partitions.values().any(|assigned| !assigned.deliveries.is_empty());
        if self.last_progress.elapsed() > stall && !is_explained {
            self.alive
                .fail(format!("{lag} messages wait, none is taken, and nothing is known to be in the way"));
        } else {
            self.alive.pass();
        }
        match reason {
            Some(reason) => self.progress.fail(reason),
            None if lag > 0 && self.last_progress.elapsed() > stall => {
                let trouble =
                    self.delivery.last_trouble.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let trouble = trouble.or_else(|| self.kafka_trouble.clone());
                let trouble = trouble.unwrap_or_else(|| "no trouble was reported".to_owned());
                self.progress
                    .fail(format!("{lag} messages wait and nothing was delivered for {stall:?}; {trouble}"));
            }
            None => self.progress.pass(),
        }
    }

    fn assign(&mut self, partitions: &[i32]) -> Result<(), ExportError> {
        let observed = self.observe(partitions)?;
        let start_at = match self.config.source.start_from {
            StartFrom::Earliest => StartAt::LogStart,
            StartFrom::Latest => StartAt::LogEnd,
        };
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for one in observed {
            self.last_epoch += 1;
            let is_new = one.committed.is_none();
            let (start, _) = Partition::assign(Assignment {
                epoch: Epoch(self.last_epoch),
                partition: one.partition,
                origin: self.origin.clone(),
                committed: one.committed.map(|(offset, metadata)| Committed { offset, metadata }),
                log_start: one.log_start,
                log_end: one.log_end,
                start_at,
            });
            if let Some(reason) = start.held() {
                error!(partition = one.partition, %reason, "partition held");
            }
            let position =
                if start.held().is_some() { Offset::End } else { Offset::Offset(start.committed()) };
            list.add_partition_offset(&self.config.source.topic, one.partition, position)
                .map_err(ExportError::Kafka)?;
            let assigned = Assigned {
                epoch: self.last_epoch,
                water: LowWater::new(start.committed()),
                // A first position is written down, so that it is the same after a crash.
                committed: if is_new { -1 } else { start.committed() },
                held: start.held().cloned(),
                paused: false,
                deliveries: BTreeMap::new(),
            };
            self.partitions.insert(one.partition, assigned);
        }
        self.consumer.client().incremental_assign(&list).map_err(ExportError::Kafka)?;
        // A pause outlives the assignment that it was made in.
        self.consumer.client().resume(&list).map_err(ExportError::Kafka)?;
        info!(?partitions, topic_id = self.origin.topic_id, "partitions assigned");
        self.relieve();
        self.last_progress = Instant::now();
        self.commit_all();
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
                    self.origin = origin;
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
            self.settle(partitions);
        }
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition(&self.config.source.topic, partition);
            if let Some(assigned) = self.partitions.remove(&partition) {
                for under_way in assigned.deliveries.values() {
                    under_way.task.abort();
                    self.held_bytes = self.held_bytes.saturating_sub(under_way.bytes);
                }
            }
        }
        self.metrics.forget(partitions);
        self.consumer.client().incremental_unassign(&list).map_err(ExportError::Kafka)?;
        info!(?partitions, lost, "partitions revoked");
        Ok(())
    }

    /// Waits a little for deliveries under way, and commits how far it is.
    fn settle(&mut self, partitions: &[i32]) {
        let deadline = Instant::now() + PATIENCE;
        let busy = |this: &Self| {
            partitions.iter().any(|p| this.partitions.get(p).is_some_and(|a| !a.deliveries.is_empty()))
        };
        while busy(self) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.resolved.recv_timeout(left.min(Duration::from_millis(200))) {
                Ok(resolved) => self.take(&resolved),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => break,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.heart.beat();
        }
        for &partition in partitions {
            self.commit(partition);
        }
    }

    fn leave(mut self) {
        self.stopping = true;
        self.progress.fail("stopping");
        self.relieve();
        let partitions: Vec<i32> = self.partitions.keys().copied().collect();
        if !self.consumer.client().assignment_lost() {
            self.settle(&partitions);
        }
        for assigned in self.partitions.values() {
            assigned.deliveries.values().for_each(|under_way| under_way.task.abort());
        }
        info!("deliveries are settled; leaving the group");
    }

    fn partition_error(&mut self, partition: i32, code: RDKafkaErrorCode, reason: &str) {
        if !matches!(code, RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange) {
            warn!(partition, ?code, reason, "Kafka cannot read on in a partition; it tries again");
            return;
        }
        let ends = source::log_ends(&self.consumer, &self.config.source.topic, &[partition]);
        let (log_start, log_end) =
            ends.ok().and_then(|ends| ends.get(&partition).copied()).unwrap_or((-1, -1));
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        let why = HoldReason::OutOfRange { offset: assigned.water.end(), log_start, log_end };
        error!(partition, reason = %why, "partition held");
        assigned.held = Some(why);
    }
}
