//! The thread that polls Kafka and commits; deliveries run beside it.
//!
//! Deliveries end in any order. What is committed is the offset below which all are resolved. A process that is lost
//! repeats what lay above it, under the same ids.

mod membership;
mod telling;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, Instant},
};

use penstock_pipeline::{
    command::Context,
    config::{ExportConfig, RetryConfig},
    health::{Check, Heartbeat, Kind},
    kafka::{
        Connection, Message, client,
        poll::{Polled, PolledConsumer},
        rights::Needs,
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
use tracing::{debug, error, warn};

use super::{
    deliver::{Delivery, DeliveryMetrics, Endpoint, Gate},
    low_water::LowWater,
};
use crate::{
    ExportError,
    committed::{Metadata, Origin},
    dead_letters::{DeadLetters, Kept},
    filter::Filter,
    metrics::SourceMetrics,
    permitted,
    source::{self, SourceConsumer, TopicNow},
    takeover::{self, Epoch, HoldReason, TakeOver},
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
    epoch: Epoch,
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
    epoch: Epoch,
    /// The topic that its offsets count.
    origin: Origin,
    water: LowWater,
    committed: i64,
    held: Option<HoldReason>,
    paused: bool,
    deliveries: BTreeMap<i64, UnderWay>,
    /// When an event of it was last resolved, or when nothing waited.
    last_progress: Instant,
}

impl Assigned {
    /// Stands still if the topic is another one than that whose offsets these are: librdkafka goes on in a topic that was
    /// made anew, at an offset that means nothing in it.
    fn compare(&mut self, partition: i32, topic_id: &str) {
        if self.held.is_none()
            && let Some(why) = takeover::recreated(&self.origin, topic_id)
        {
            error!(partition, reason = %why, "partition held");
            self.held = Some(why);
        }
    }
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
    take_over: TakeOver,
    topic_now: Receiver<TopicNow>,
    /// Ends of partitions, as last looked at.
    ends: BTreeMap<i32, i64>,
    resolved: Receiver<Resolved>,
    resolve: Sender<Resolved>,
    held_bytes: usize,
    under_pressure: bool,
    stopping: bool,
}

impl Driver {
    /// Prepares everything; connects when run. Call it inside a runtime, which is the one that requests are made in.
    pub fn new(
        config: ExportConfig,
        retry: RetryConfig,
        concurrency: usize,
        filter: Option<Arc<Filter>>,
        endpoint: Endpoint,
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
        let runtime = Handle::current();
        runtime.spawn(source::watch(
            delivery.dead_letters.clone(),
            config.source.topic.clone(),
            context.shutdown.clone(),
            move |now| {
                let _ = tell.send(now);
            },
        ));
        runtime.spawn(permitted::watch(
            delivery.dead_letters.clone(),
            Needs::default()
                .read(&config.source.topic)
                .group(&config.source.group)
                .write(&config.dead_letter),
            context.health.check(Kind::Readiness, "kafka", "Kafka has not answered yet"),
            context.shutdown.clone(),
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
            take_over: TakeOver::default(),
            topic_now,
            ends: BTreeMap::new(),
            resolved,
            resolve,
            held_bytes: 0,
            under_pressure: false,
            stopping: false,
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
                self.kafka_trouble = Some(self.delivery.dead_letters.explain(reason));
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
        assigned.last_progress = Instant::now();
    }

    fn take_topic(&mut self, now: TopicNow) {
        self.compare_topic_id(&now.id);
        self.ends = now.ends;
    }

    /// Holds the partitions that count another topic.
    fn compare_topic_id(&mut self, id: &str) {
        for (&partition, assigned) in &mut self.partitions {
            assigned.compare(partition, id);
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
        let metadata = Metadata::Settled { origin: assigned.origin.clone(), doubt: None };
        let mut list = TopicPartitionList::with_capacity(1);
        let topic = &self.config.source.topic;
        let result = list.add_partition_offset(topic, partition, Offset::Offset(mark)).and_then(|()| {
            if let Some(mut element) = list.find_partition(topic, partition) {
                element.set_metadata(metadata.to_string());
            }
            self.consumer.client().commit(&list, CommitMode::Sync)
        });
        match result {
            Ok(()) => {
                assigned.committed = mark;
                self.kafka_trouble = None;
                self.metrics.committed(partition, mark);
            }
            Err(error) => {
                warn!(partition, mark, %error, "a commit failed; trying again");
                self.metrics.failure("commit");
                self.kafka_trouble =
                    Some(format!("offset {mark} of partition {partition} was not committed: {error}"));
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(topic_id: &str) -> Assigned {
        Assigned {
            epoch: Epoch(1),
            origin: Origin { topic_id: topic_id.into(), first_partitions: 1 },
            water: LowWater::new(10),
            committed: 10,
            held: None,
            paused: false,
            deliveries: BTreeMap::new(),
            last_progress: Instant::now(),
        }
    }

    #[test]
    fn a_partition_that_was_read_before_is_held_when_a_new_assignment_shows_another_topic() {
        let mut one = assigned("old");
        one.compare(3, "old");
        assert_eq!(one.held, None);
        one.compare(3, "new");
        let held = HoldReason::TopicRecreated { committed: "old".into(), current: "new".into() };
        assert_eq!(one.held, Some(held.clone()));
        // For good, and with the reason of the first time.
        one.compare(3, "old");
        one.compare(3, "newer");
        assert_eq!(one.held, Some(held));
    }
}
