//! The thread of the engine: does what [`super::lifecycle`] and [`super::partitions`] decide, and tells them what came
//! of it.

use std::{
    collections::BTreeMap,
    ffi::CString,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata, RebalanceProtocol},
    error::{KafkaError, RDKafkaErrorCode},
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    Options, Outcome, Process, Status, Stopped,
    lifecycle::{self, Action, Event, Failure, Limits, Remedy, State, Step},
    metrics::{ByPartition, ByResult, Metrics, Tally},
    partitions::{Accept, CommittedOffset, Hold, Origin, Partitions, Seen, Start, start},
    producer::{Producer, native_headers},
    record,
};
use crate::{
    events::dead_letter::{Reason, header},
    kafka::{
        Message, client,
        client::LogContext,
        poll::{Polled, PolledConsumer},
        topic_ids,
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
        transactional_id = format!("{}{}", options.transaction.id_prefix, options.instance),
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
        value: Vec::new(),
        tally: Tally::default(),
        last_timestamp_ms: BTreeMap::new(),
        failures: 0,
        looked_at: Duration::ZERO,
        topic_looked_at: Duration::ZERO,
        options,
        metrics,
        status,
        stop,
    };
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
            .create_with_context(LogContext)?;
    consumer.subscribe(&[&options.source.topic])?;
    PolledConsumer::new(consumer)
        .ok_or_else(|| KafkaError::ClientCreation("a consumer without a queue".to_owned()))
}

struct Driver<'a, P> {
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
    value: Vec<u8>,
    tally: Tally,
    last_timestamp_ms: BTreeMap<i32, i64>,
    failures: u32,
    looked_at: Duration,
    topic_looked_at: Duration,
    metrics: Metrics,
    status: &'a Status,
    stop: &'a CancellationToken,
}

impl<P: Process> Driver<'_, P> {
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

    // ---- messages -------------------------------------------------------------------------------------------------

    /// Takes one event, or waits for one.
    fn poll(&mut self, timeout: Duration) -> Result<(), KafkaError> {
        let Some(event) = self.consumer.poll(timeout) else {
            if let Some(producer) = &self.producer {
                producer.serve(Duration::ZERO);
            }
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
        headers: Option<rdkafka::message::OwnedHeaders>,
    ) -> bool {
        let Some(producer) = &self.producer else { return false };
        let name = match topic {
            Topic::Sink => &self.options.sink,
            Topic::DeadLetter => &self.options.dead_letter,
        };
        let started = self.status.now();
        loop {
            let failure = match producer.send(name, message.key, value, message.timestamp_ms, headers.clone())
            {
                Ok(()) => return true,
                Err(failure) => failure,
            };
            let patience = self.status.now().saturating_sub(started) < self.patience();
            match lifecycle::remedy(Step::Produce, &failure, patience) {
                Remedy::Retry => producer.serve(Duration::from_millis(1)),
                remedy => {
                    self.failed(Step::Produce, &failure, remedy);
                    return false;
                }
            }
        }
    }

    // ---- transactions ---------------------------------------------------------------------------------------------

    /// How long one step may be tried again: the broker aborts the transaction after this time anyway.
    fn patience(&self) -> Duration {
        Duration::from_millis(u64::from(self.options.transaction.timeout_ms))
    }

    fn failed(&mut self, step: Step, failure: &Failure, remedy: Remedy) {
        match failure.code {
            // Every member of a group meets these when the group rebalances.
            RDKafkaErrorCode::IllegalGeneration
            | RDKafkaErrorCode::UnknownMemberId
            | RDKafkaErrorCode::RebalanceInProgress => {
                info!(
                    ?step,
                    ?remedy,
                    reason = failure.reason,
                    "the group has moved on; the transaction is repeated"
                );
            }
            _ => {
                warn!(?step, ?remedy, code = ?failure.code, reason = failure.reason, "a step of a transaction failed")
            }
        }
        self.failures = self.failures.saturating_add(1);
        // One failure is no trouble: it is repeated at once.
        if self.failures > 1 || matches!(step, Step::Init) {
            self.trouble(format!("{step:?}: {}", failure.reason));
        }
        self.happened(Event::Failed(remedy));
    }

    fn trouble(&self, reason: String) {
        let mut facts = self.status.facts();
        let since = facts.trouble.take().map_or_else(|| self.status.now(), |(since, _)| since);
        facts.trouble = Some((since, reason));
    }

    fn make_producer(&mut self) -> Result<(), KafkaError> {
        self.give_up_transaction("unknown");
        // The old client goes first: two of them with one id would fence each other.
        self.producer = None;
        self.back_off()?;
        if self.stop.is_cancelled() {
            return Ok(());
        }
        let producer = Producer::new(&self.options)?;
        match producer.init(CALL) {
            Ok(()) => {
                self.producer = Some(producer);
                self.metrics.producers.inc();
                self.status.facts().ready = true;
                self.happened(Event::ProducerMade);
            }
            Err(failure) => self.failed(Step::Init, &failure, Remedy::NewProducer),
        }
        Ok(())
    }

    /// Waits after failures, and stays a member of the group while it does. Messages that come are read again later.
    fn back_off(&mut self) -> Result<(), KafkaError> {
        let until = self.status.now() + lifecycle::back_off(self.failures);
        loop {
            let left = until.saturating_sub(self.status.now());
            if left < Duration::from_millis(1) || self.stop.is_cancelled() {
                return Ok(());
            }
            self.status.turn(self.status.now());
            self.pass_time(left.min(Duration::from_millis(100)))?;
        }
    }

    /// Polls without processing: for rebalances, and so that the group does not take this member for dead.
    fn pass_time(&mut self, timeout: Duration) -> Result<(), KafkaError> {
        let Some(event) = self.consumer.poll(timeout) else { return Ok(()) };
        match self.consumer.read(&event) {
            Polled::Message(message) => {
                self.partitions.pass_over(message.partition, message.offset);
                Ok(())
            }
            Polled::EndOfPartition { .. } => Ok(()),
            other => {
                let other = Other::of(other);
                drop(event);
                self.handle(other)
            }
        }
    }

    fn begin(&mut self) -> bool {
        let Some(producer) = &self.producer else { return false };
        match producer.begin() {
            Ok(()) => {
                self.tally.clear();
                self.group = self.consumer.client().group_metadata();
                self.happened(Event::Begun);
                true
            }
            Err(failure) => {
                let remedy = lifecycle::remedy(Step::Begin, &failure, false);
                self.failed(Step::Begin, &failure, remedy);
                false
            }
        }
    }

    /// Commits positions in a transaction of their own, which leaves no trace in the topics.
    fn commit_positions(&mut self) {
        if !self.partitions.has_to_commit() {
            self.happened(Event::NothingToCommit);
        } else if self.begin() {
            self.commit();
        }
    }

    /// Sends the offsets and commits. Afterwards the state says what is next.
    fn commit(&mut self) {
        let started = self.status.now();
        let positions = self.partitions.to_commit();
        let mut offsets = TopicPartitionList::with_capacity(positions.len());
        let metadata = self.topic.as_ref().map(Origin::encode).unwrap_or_default();
        for position in &positions {
            let mut element = offsets.add_partition(&self.options.source.topic, position.partition);
            // An offset is never negative, which is all that this can refuse.
            if element.set_offset(Offset::Offset(position.offset)).is_err() {
                continue;
            }
            element.set_metadata(&metadata);
        }
        let done = self.try_step(Step::SendOffsets, started, |driver, timeout| {
            let Some(producer) = &driver.producer else { return Ok(()) };
            producer.flush(timeout)?;
            match &driver.group {
                Some(group) if !positions.is_empty() => producer.send_offsets(&offsets, group, timeout),
                _ => Ok(()),
            }
        }) && self.try_step(Step::Commit, started, |driver, timeout| match &driver.producer {
            Some(producer) => producer.commit(timeout),
            None => Ok(()),
        });
        if !done {
            return;
        }
        let now = self.status.now();
        self.partitions.committed(&positions);
        self.tally.count(&self.metrics, &self.options.source.topic, &self.options.sink);
        self.metrics.transactions.get_or_create(&ByResult { result: "committed" }).inc();
        self.metrics.transaction_messages.observe(self.tally.read as f64);
        self.metrics.commit_seconds.observe((now - started).as_secs_f64());
        if let State::Open { since, .. } = self.state {
            self.metrics.transaction_seconds.observe(now.saturating_sub(since).as_secs_f64());
        }
        self.tally.clear();
        self.failures = 0;
        {
            let mut facts = self.status.facts();
            facts.trouble = None;
            facts.progress_at = now;
        }
        self.happened(Event::Committed);
    }

    fn abort(&mut self) {
        let started = self.status.now();
        let done = self.try_step(Step::Abort, started, |driver, timeout| match &driver.producer {
            Some(producer) => producer.abort(timeout),
            None => Ok(()),
        });
        if done {
            self.give_up_transaction("aborted");
            self.happened(Event::Aborted);
        }
    }

    /// Makes a call again as long as that is the remedy. True when it succeeded; else the state says what is next.
    fn try_step(
        &mut self,
        step: Step,
        started: Duration,
        call: impl Fn(&Self, Duration) -> Result<(), Failure>,
    ) -> bool {
        loop {
            let Err(failure) = call(self, CALL.min(self.patience())) else { return true };
            self.status.turn(self.status.now());
            let patience = self.status.now().saturating_sub(started) < self.patience();
            match lifecycle::remedy(step, &failure, patience) {
                Remedy::Retry => debug!(?step, reason = failure.reason, "trying again"),
                remedy => {
                    self.failed(step, &failure, remedy);
                    return false;
                }
            }
        }
    }

    fn give_up_transaction(&mut self, result: &'static str) {
        if self.group.take().is_some() {
            self.metrics.transactions.get_or_create(&ByResult { result }).inc();
        }
        self.tally.clear();
    }

    // ---- positions ------------------------------------------------------------------------------------------------

    /// Reads the committed offsets and puts the consumer there.
    fn rewind(&mut self) -> Result<(), KafkaError> {
        self.back_off()?;
        if self.stop.is_cancelled() || !matches!(self.state, State::Rewinding) {
            return Ok(());
        }
        let mut partitions = self.partitions.consuming();
        partitions.extend(self.partitions.unplaced());
        match self.place(&partitions) {
            Ok(()) => self.happened(Event::Rewound),
            Err(reason) => {
                warn!(reason, "cannot put the consumer at its committed offsets yet");
                self.failures = self.failures.saturating_add(1);
                self.trouble(format!("reading positions: {reason}"));
                return Ok(());
            }
        }
        if self.partitions.has_to_commit() {
            self.happened(Event::Moved);
        }
        Ok(())
    }

    /// Decides where partitions begin, and moves the consumer there.
    fn place(&mut self, partitions: &[i32]) -> Result<(), String> {
        let starts = self.starts(partitions)?;
        let mut seek = TopicPartitionList::with_capacity(starts.len());
        for (partition, start) in &starts {
            if let Start::At { offset, .. } = start {
                seek.add_partition_offset(&self.options.source.topic, *partition, Offset::Offset(*offset))
                    .map_err(|error| error.to_string())?;
            }
        }
        if seek.count() > 0 {
            let sought =
                self.consumer.client().seek_partitions(seek, CALL).map_err(|error| error.to_string())?;
            for element in sought.elements() {
                element.error().map_err(|error| format!("partition {}: {error}", element.partition()))?;
            }
        }
        let mut resume = TopicPartitionList::new();
        for (partition, start) in starts {
            match start {
                Start::Held(hold) => self.hold(partition, hold),
                Start::At { .. } => {
                    resume.add_partition(&self.options.source.topic, partition);
                    self.partitions.place(partition, start);
                }
            }
        }
        if resume.count() > 0 {
            self.consumer.client().resume(&resume).map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Asks the brokers where partitions begin.
    fn starts(&mut self, partitions: &[i32]) -> Result<Vec<(i32, Start)>, String> {
        if partitions.is_empty() {
            return Ok(Vec::new());
        }
        let source = self.options.source.clone();
        let client = self.consumer.client();
        let topic_id = topic_ids::topic_id(client.client(), &source.topic, CALL)
            .map_err(|error| format!("asking for the id of {}: {error}", source.topic))?
            .ok_or_else(|| format!("there is no topic {}", source.topic))?
            .to_string();
        let metadata = client.fetch_metadata(Some(&source.topic), CALL).map_err(|error| error.to_string())?;
        let count = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        let count = i32::try_from(count).unwrap_or(i32::MAX);
        // The offsets of all partitions, those of others as well: they say how many there were at first.
        let mut list = TopicPartitionList::with_capacity(usize::try_from(count).unwrap_or(0));
        for partition in 0..count {
            list.add_partition(&source.topic, partition);
        }
        let committed = client
            .committed_offsets(list, CALL)
            .map_err(|error| format!("reading the offsets of group {}: {error}", source.group))?;
        let mut offsets = BTreeMap::new();
        for element in committed.elements() {
            element
                .error()
                .map_err(|error| format!("offset of partition {}: {error}", element.partition()))?;
            if let Offset::Offset(offset) = element.offset() {
                let origin = Origin::parse(element.metadata());
                offsets.insert(element.partition(), CommittedOffset { offset, origin });
            }
        }
        let first_partitions = offsets
            .values()
            .filter_map(|committed| committed.origin.as_ref())
            .filter(|origin| origin.topic_id == topic_id)
            .map(|origin| origin.first_partitions)
            .min()
            .unwrap_or(count);
        let topic = Origin { topic_id, first_partitions };
        let mut starts = Vec::with_capacity(partitions.len());
        for &partition in partitions {
            let (low, high) = client
                .fetch_watermarks(&source.topic, partition, CALL)
                .map_err(|error| format!("asking for the range of partition {partition}: {error}"))?;
            let seen = Seen { committed: offsets.remove(&partition), low, high };
            starts.push((partition, start(partition, &seen, &topic, source.start_from)));
        }
        self.topic = Some(topic);
        Ok(starts)
    }

    fn hold(&mut self, partition: i32, hold: Hold) {
        error!(topic = self.options.source.topic, partition, reason = %hold, "the partition is held");
        self.pause(&[partition]);
        self.status.facts().held.insert(partition, hold.to_string());
        self.partitions.hold(partition, hold);
        self.metrics.held.set(self.partitions.held().count() as i64);
    }

    fn pause(&self, partitions: &[i32]) {
        let mut list = TopicPartitionList::new();
        for &partition in partitions {
            list.add_partition(&self.options.source.topic, partition);
        }
        if let Err(error) = self.consumer.client().pause(&list) {
            // What comes from it is ignored all the same.
            debug!(%error, "cannot pause");
        }
    }

    // ---- what is not a message ------------------------------------------------------------------------------------

    fn handle(&mut self, other: Other) -> Result<(), KafkaError> {
        match other {
            Other::Nothing => {}
            Other::End { partition, offset } => match self.partitions.end(partition, offset) {
                Accept::Take => self.happened(Event::Moved),
                Accept::Ignore => {}
                Accept::Broken { expected } => {
                    error!(
                        partition,
                        offset, expected, "the consumer skipped a message; making a new consumer"
                    );
                    self.replace_consumer();
                }
            },
            Other::Assign(partitions) => self.assigned(&partitions)?,
            Other::Revoke(partitions) => self.revoked(&partitions)?,
            Other::PartitionError { partition, code, reason } => {
                self.partition_error(partition, code, &reason)
            }
            Other::Error { code, fatal, reason } => {
                if fatal {
                    error!(?code, reason, "the consumer cannot go on; making a new one");
                    self.replace_consumer();
                } else {
                    info!(?code, reason, "the consumer reports an error; it tries again by itself");
                    if matches!(
                        code,
                        RDKafkaErrorCode::AllBrokersDown
                            | RDKafkaErrorCode::UnknownTopicOrPartition
                            | RDKafkaErrorCode::UnknownTopic
                            | RDKafkaErrorCode::TopicAuthorizationFailed
                            | RDKafkaErrorCode::GroupAuthorizationFailed
                            | RDKafkaErrorCode::SaslAuthenticationFailed
                    ) {
                        self.trouble(format!("{code:?}: {reason}"));
                    }
                }
            }
        }
        Ok(())
    }

    fn assigned(&mut self, partitions: &[i32]) -> Result<(), KafkaError> {
        info!(topic = self.options.source.topic, ?partitions, "partitions assigned");
        self.metrics.rebalances.inc();
        self.partitions.assign(partitions);
        // Explicit places, so that no position is ever chosen by librdkafka. A partition without a place waits, paused,
        // at its end, where nothing can be mistaken for a message to process.
        let starts = match self.starts(partitions) {
            Ok(starts) => starts,
            Err(reason) => {
                warn!(reason, "positions are not known yet");
                self.trouble(format!("reading positions: {reason}"));
                Vec::new()
            }
        };
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        let mut waiting = Vec::new();
        for &partition in partitions {
            let offset = match starts.iter().find(|(other, _)| *other == partition) {
                Some((_, Start::At { offset, .. })) => Offset::Offset(*offset),
                _ => {
                    waiting.push(partition);
                    Offset::End
                }
            };
            list.add_partition_offset(&self.options.source.topic, partition, offset)?;
        }
        let client = self.consumer.client();
        match client.rebalance_protocol() {
            RebalanceProtocol::Eager => client.assign(&list)?,
            _ => client.incremental_assign(&list)?,
        }
        if !waiting.is_empty() {
            self.pause(&waiting);
        }
        for (partition, start) in starts {
            match start {
                Start::Held(hold) => self.hold(partition, hold),
                start @ Start::At { .. } => self.partitions.place(partition, start),
            }
        }
        self.metrics.assigned.set(self.partitions.owned().len() as i64);
        if self.partitions.has_to_commit() {
            self.happened(Event::Moved);
        }
        Ok(())
    }

    fn revoked(&mut self, partitions: &[i32]) -> Result<(), KafkaError> {
        let lost = self.consumer.client().assignment_lost();
        info!(topic = self.options.source.topic, ?partitions, lost, "partitions revoked");
        self.metrics.rebalances.inc();
        // Ends: every step either finishes the transaction or takes it nearer to its end.
        while let Some(action) = lifecycle::before_revocation(self.state, lost) {
            match action {
                Action::Commit => self.commit(),
                Action::CommitPositions => self.commit_positions(),
                _ => self.abort(),
            }
        }
        self.partitions.revoke(partitions);
        for partition in partitions {
            self.last_timestamp_ms.remove(partition);
            self.status.facts().held.remove(partition);
            let by = ByPartition { topic: self.options.source.topic.clone(), partition: *partition };
            self.metrics.lag.remove(&by);
            self.metrics.lag_seconds.remove(&by);
        }
        self.metrics.held.set(self.partitions.held().count() as i64);
        self.metrics.assigned.set(self.partitions.owned().len() as i64);
        let mut list = TopicPartitionList::with_capacity(partitions.len());
        for &partition in partitions {
            list.add_partition(&self.options.source.topic, partition);
        }
        let client = self.consumer.client();
        match client.rebalance_protocol() {
            RebalanceProtocol::Eager => client.unassign()?,
            _ => client.incremental_unassign(&list)?,
        }
        Ok(())
    }

    fn partition_error(&mut self, partition: i32, code: RDKafkaErrorCode, reason: &str) {
        use RDKafkaErrorCode as E;
        match code {
            E::AutoOffsetReset | E::OffsetOutOfRange => {
                let Some(offset) = self.partitions.position(partition) else { return };
                let topic = &self.options.source.topic;
                match self.consumer.client().fetch_watermarks(topic, partition, CALL) {
                    Ok((low, high)) => self.hold(partition, Hold::OutOfRange { offset, low, high }),
                    // The broker said so; the range is only for people.
                    Err(_) => self.hold(partition, Hold::OutOfRange { offset, low: -1, high: -1 }),
                }
            }
            E::UnknownTopicOrPartition
            | E::UnknownTopic
            | E::UnknownPartition
            | E::TopicAuthorizationFailed => {
                warn!(partition, ?code, reason, "the partition cannot be read at the moment");
                self.trouble(format!("partition {partition}: {reason}"));
            }
            _ => info!(partition, ?code, reason, "the partition reports an error; it is tried again"),
        }
    }

    /// Gives the consumer up and joins the group again with a new one.
    fn replace_consumer(&mut self) {
        match connect(&self.options) {
            Ok(consumer) => {
                self.partitions.clear();
                self.status.facts().held.clear();
                self.happened(Event::ConsumerReplaced);
                // Closes the old one, which leaves the group.
                self.consumer = consumer;
            }
            Err(error) => self.trouble(format!("making a consumer: {error}")),
        }
    }

    // ---- how it is ------------------------------------------------------------------------------------------------

    fn look(&mut self, now: Duration) {
        self.looked_at = now;
        let mut total = Some(0u64);
        for partition in self.partitions.owned() {
            let by = ByPartition { topic: self.options.source.topic.clone(), partition };
            let known = self.consumer.known_watermarks(&self.topic_name, partition);
            let lag = match (self.partitions.position(partition), known) {
                (Some(position), Some((_, high))) => u64::try_from(high - position).unwrap_or(0),
                _ => {
                    total = None;
                    continue;
                }
            };
            total = total.map(|total| total + lag);
            self.metrics.lag.get_or_create(&by).set(lag as i64);
            let age = match self.last_timestamp_ms.get(&partition) {
                Some(&last) if lag > 0 => {
                    let now_ms = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
                    (now_ms - i128::from(last)).max(0) as f64 / 1000.0
                }
                _ => 0.0,
            };
            self.metrics.lag_seconds.get_or_create(&by).set(age);
        }
        let unplaced = self.partitions.unplaced();
        let nothing_waits = total == Some(0)
            && unplaced.is_empty()
            && !self.partitions.has_to_commit()
            && matches!(self.state, State::Idle { .. });
        let in_trouble = {
            let mut facts = self.status.facts();
            facts.lag = total;
            // An unknown lag is no stall; the clock begins when it is known.
            if nothing_waits || total.is_none() {
                facts.progress_at = now;
            }
            facts.trouble.is_some()
        };
        if !unplaced.is_empty() && matches!(self.state, State::Idle { .. } | State::Open { .. }) {
            match self.place(&unplaced) {
                Ok(()) => self.happened(Event::Moved),
                Err(reason) => self.trouble(format!("reading positions: {reason}")),
            }
        }
        // With nothing to do, an answer of a broker is what tells that a trouble is over.
        let hopeful = in_trouble && nothing_waits;
        if hopeful || now.saturating_sub(self.topic_looked_at) >= LOOK_AT_TOPIC {
            self.topic_looked_at = now;
            if self.look_at_topic() && hopeful {
                self.failures = 0;
                self.status.facts().trouble = None;
            }
        }
    }

    /// Holds all partitions when the topic is another one than before. True when it is there and the same.
    fn look_at_topic(&mut self) -> bool {
        let name = &self.options.source.topic;
        let id = match topic_ids::topic_id(self.consumer.client().client(), name, CALL) {
            Ok(Some(id)) => id.to_string(),
            Ok(None) => {
                self.trouble(format!("there is no topic {name}"));
                return false;
            }
            Err(error) => {
                self.trouble(format!("Kafka does not tell about topic {name}: {error}"));
                return false;
            }
        };
        let Some(was) = self.topic.as_ref().map(|topic| topic.topic_id.clone()).filter(|was| *was != id)
        else {
            return true;
        };
        if matches!(self.state, State::Open { .. }) {
            self.happened(Event::Failed(Remedy::Abort));
        }
        for partition in self.partitions.owned() {
            self.hold(partition, Hold::OtherTopic { was: was.clone(), is: id.clone() });
        }
        false
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
