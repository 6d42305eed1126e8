//! The thread of the engine: does what [`super::lifecycle`] and [`super::partitions`] decide, and tells them what came
//! of it.

mod membership;
mod positions;
mod transactions;
mod watch;

use std::{
    collections::BTreeMap,
    ffi::CString,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use rdkafka::{
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata},
    error::{KafkaError, RDKafkaErrorCode},
    message::OwnedHeaders,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{
    Faults, Options, Outcome, Process, Side, Status, Stopped,
    lifecycle::{self, Action, Event, Failure, Limits, Remedy, State, Step},
    metrics::{Metrics, Tally},
    partitions::{Accept, Partitions},
    producer::{Producer, native_headers},
    record,
    stall::Progress,
    starts::{Hold, Origin},
};
use crate::{
    events::dead_letter::{Reason, header},
    kafka::{
        Message, client,
        client::LogContext,
        poll::{Polled, PolledConsumer},
        rights::{self, Needs},
    },
};

/// Longest single call that asks a broker something.
const CALL: Duration = Duration::from_secs(5);
/// How often lag and held partitions are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// How often a running engine makes sure that its topic is still the same one.
const LOOK_AT_TOPIC: Duration = Duration::from_secs(30);

/// Runs until `stop`, or until librdkafka refuses the configuration.
pub(super) fn run(
    options: Options,
    process: impl Process,
    faults: impl Faults,
    metrics: Metrics,
    status: &Status,
    stop: &CancellationToken,
) -> Result<(), Stopped> {
    let refused = |error: KafkaError| Stopped::Client {
        topic: options.source.topic.clone(),
        reason: error.to_string(),
    };
    let consumer = connect(&options).map_err(refused)?;
    let topic_name = CString::new(options.source.topic.as_str()).map_err(|error| Stopped::Client {
        topic: options.source.topic.clone(),
        reason: error.to_string(),
    })?;
    info!(
        source = options.source.topic,
        sink = options.sink,
        group = options.source.group,
        transactional_id = options.transactional_id(),
        "the engine starts"
    );
    let mut driver = Driver {
        limits: Limits::of(&options.transaction),
        state: State::NoProducer,
        partitions: Partitions::default(),
        topic: None,
        topic_name,
        consumer,
        producer: None,
        group: None,
        process,
        faults,
        value: Vec::new(),
        tally: Tally::default(),
        last_timestamp_ms: BTreeMap::new(),
        progress: Progress::default(),
        found_nothing: false,
        failures: 0,
        renewed: (0, Duration::ZERO),
        placing: (0, Duration::ZERO),
        looked_at: Duration::ZERO,
        topic_looked_at: Duration::ZERO,
        rights: Needs::default()
            .read(&options.source.topic)
            .group(&options.source.group)
            .write(&options.sink)
            .write(&options.dead_letter)
            .asker(),
        rights_looked_at: None,
        options,
        metrics,
        status,
        stop,
    };
    driver.metrics.consumers.inc();
    let result = driver.run();
    info!("the engine leaves its consumer group");
    result.map_err(|error| Stopped::Client {
        topic: driver.options.source.topic.clone(),
        reason: error.to_string(),
    })
    // Dropping the consumer closes it: partitions are given back and the group is left.
}

fn connect(options: &Options) -> Result<PolledConsumer<LogContext>, KafkaError> {
    let consumer: BaseConsumer<LogContext> =
        client::consumer(&options.kafka, &options.source, &options.component)
            .create_with_context(options.kafka.context())?;
    consumer.subscribe(&[&options.source.topic])?;
    PolledConsumer::new(consumer)
        .ok_or_else(|| KafkaError::ClientCreation("a consumer without a queue".to_owned()))
}

struct Driver<'a, P, F> {
    options: Options,
    limits: Limits,
    state: State,
    partitions: Partitions,
    /// The topic as it is now, once known.
    topic: Option<Origin>,
    topic_name: CString,
    consumer: PolledConsumer<LogContext>,
    producer: Option<Producer>,
    /// Captured when the transaction began: the broker refuses its offsets if the group has moved on since.
    group: Option<ConsumerGroupMetadata>,
    process: P,
    faults: F,
    value: Vec<u8>,
    tally: Tally,
    last_timestamp_ms: BTreeMap<i32, i64>,
    progress: Progress,
    /// Since the last look there was a moment at which nothing was there to be taken.
    found_nothing: bool,
    failures: u32,
    /// New consumers in the present trouble, and when the last one was made.
    renewed: (u32, Duration),
    /// Tries to place partitions since one succeeded, and when the next one is due.
    placing: (u32, Duration),
    looked_at: Duration,
    topic_looked_at: Duration,
    rights: rights::Asker,
    /// When the brokers were last asked what is allowed; `None` before the first time.
    rights_looked_at: Option<Duration>,
    metrics: Metrics,
    status: &'a Status,
    stop: &'a CancellationToken,
}

impl<P: Process, F: Faults> Driver<'_, P, F> {
    fn run(&mut self) -> Result<(), KafkaError> {
        loop {
            let now = self.status.now();
            self.status.turn(now);
            if now.saturating_sub(self.looked_at) >= LOOK {
                self.look(now);
            }
            match lifecycle::next(self.state, &self.limits, now, self.stop.is_cancelled()) {
                Action::MakeProducer => self.make_producer()?,
                Action::Rewind => self.rewind()?,
                Action::Poll(timeout) => self.poll(timeout)?,
                Action::Commit => self.commit(),
                Action::CommitPositions => self.commit_positions(),
                Action::Abort => self.abort(),
                Action::Leave => return Ok(()),
            }
        }
    }

    fn happened(&mut self, event: Event) {
        self.state = lifecycle::after(self.state, event, &self.limits, self.status.now());
    }

    /// Takes one event, or waits for one.
    fn poll(&mut self, timeout: Duration) -> Result<(), KafkaError> {
        let Some(event) = self.consumer.poll(timeout) else {
            self.found_nothing = true;
            self.serve(Duration::ZERO);
            return Ok(());
        };
        match self.consumer.read(&event) {
            Polled::Message(message) => self.take(&message),
            other => {
                let other = Other::of(other);
                drop(event);
                self.handle(other)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, message: &Message<'_>) {
        match self.partitions.accept(message.partition, message.offset) {
            Accept::Take => {}
            Accept::Ignore => return,
            Accept::Broken { expected } => {
                error!(
                    partition = message.partition,
                    offset = message.offset,
                    expected,
                    "a message is missing in what the consumer delivers; making a new consumer"
                );
                // Only what was taken before is in the transaction, and it is given up with the positions.
                self.replace_consumer();
                return;
            }
        }
        if !matches!(self.state, State::Open { .. }) && !self.begin() {
            return;
        }
        self.value.clear();
        let outcome = catch_unwind(AssertUnwindSafe(|| self.process.process(message, &mut self.value)))
            .unwrap_or_else(|_| {
                error!(
                    partition = message.partition,
                    offset = message.offset,
                    "processing a message panicked: a fault of ours; the message is dead-lettered"
                );
                Outcome::dead_letter(Reason::InternalError, "processing this message panicked")
            });
        if self.settle(message, outcome) {
            let bytes = message.size() as u64;
            self.tally.read += 1;
            self.tally.read_bytes += bytes;
            self.progress.took(bytes);
            self.last_timestamp_ms.insert(message.partition, message.timestamp_ms);
            self.happened(Event::Taken { bytes });
        }
    }

    /// Hands the outcome of a message to the producer. False when the transaction cannot be committed any more.
    fn settle(&mut self, message: &Message<'_>, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Write if record::fits(message.key, &self.value) => {
                let value = std::mem::take(&mut self.value);
                let sent = self.send(Topic::Sink, message, Some(&value), None);
                self.value = value;
                self.tally.written += u64::from(sent);
                sent
            }
            Outcome::Write => {
                let detail = format!(
                    "the result has {} bytes with its key; a message may have {}",
                    self.value.len() + message.key.map_or(0, <[u8]>::len),
                    record::MAX_SINK_BYTES
                );
                self.dead_letter(message, Reason::TooLarge, &detail)
            }
            Outcome::DeadLetter { reason, detail } => self.dead_letter(message, reason, &detail),
            Outcome::Drop { reason } => {
                *self.tally.dropped.entry(reason).or_default() += 1;
                true
            }
        }
    }

    fn dead_letter(&mut self, message: &Message<'_>, reason: Reason, detail: &str) -> bool {
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        let component = self.options.component.clone();
        let topic = self.options.source.topic.clone();
        let origin = record::Origin { component: &component, topic: &topic, now: &now };
        let letter = match record::dead_letter(message, reason, detail, origin, record::MAX_DEAD_LETTER_BYTES)
        {
            Ok(letter) => letter,
            Err(record::NoRoom { header_bytes }) => {
                // Everything before this message is still good, but a transaction cannot be cut after the fact.
                self.hold(message.partition, Hold::NoDeadLetter { offset: message.offset, header_bytes });
                self.happened(Event::Failed(Remedy::Abort));
                return false;
            }
        };
        for (index, value) in letter.values.iter().enumerate() {
            let part = letter.part(index);
            let plain = letter.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
            let mut headers: Vec<_> = plain.collect();
            headers.extend(part.as_deref().map(|part| (header::PART, Some(part.as_bytes()))));
            if !self.send(Topic::DeadLetter, message, *value, Some(native_headers(headers.into_iter()))) {
                return false;
            }
        }
        *self.tally.dead_lettered.entry(reason).or_default() += 1;
        true
    }

    /// Hands a record to the producer and waits for room in its queue. False when the transaction cannot be committed.
    fn send(
        &mut self,
        topic: Topic,
        message: &Message<'_>,
        value: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
    ) -> bool {
        let started = self.status.now();
        loop {
            let sent = self.try_send(topic, message, value, headers.clone());
            let Err(failure) = sent else { return true };
            let patience = self.status.now().saturating_sub(started) < self.patience();
            match lifecycle::remedy(Step::Produce, &failure, patience) {
                Remedy::Retry => self.serve(Duration::from_millis(1)),
                remedy => {
                    self.failed(Step::Produce, &failure, remedy);
                    return false;
                }
            }
        }
    }

    fn try_send(
        &mut self,
        topic: Topic,
        message: &Message<'_>,
        value: Option<&[u8]>,
        headers: Option<OwnedHeaders>,
    ) -> Result<(), Failure> {
        self.faults.strike(Side::Before, Step::Produce)?;
        let name = match topic {
            Topic::Sink => &self.options.sink,
            Topic::DeadLetter => &self.options.dead_letter,
        };
        self.producer()?.send(name, message.key, value, message.timestamp_ms, headers)?;
        self.faults.strike(Side::After, Step::Produce)
    }

    fn serve(&self, timeout: Duration) {
        if let Some(producer) = &self.producer {
            producer.serve(timeout);
        }
    }
}

#[derive(Clone, Copy)]
enum Topic {
    Sink,
    DeadLetter,
}

/// What came and is no message, without borrowing from the event.
enum Other {
    Nothing,
    End { partition: i32, offset: i64 },
    PartitionError { partition: i32, code: RDKafkaErrorCode, reason: String },
    Error { code: RDKafkaErrorCode, fatal: bool, reason: String },
    Assign(Vec<i32>),
    Revoke(Vec<i32>),
}

impl Other {
    fn of(polled: Polled<'_>) -> Self {
        match polled {
            Polled::Message(_) | Polled::Nothing => Self::Nothing,
            Polled::EndOfPartition { partition, offset } => Self::End { partition, offset },
            Polled::PartitionError { partition, code, reason } => {
                Self::PartitionError { partition, code, reason }
            }
            Polled::Error { code, fatal, reason } => Self::Error { code, fatal, reason },
            Polled::Assign(partitions) => Self::Assign(partitions),
            Polled::Revoke(partitions) => Self::Revoke(partitions),
        }
    }
}
