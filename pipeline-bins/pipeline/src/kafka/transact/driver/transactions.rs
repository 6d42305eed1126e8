//! Transactions: begun, committed, aborted, and the producer that they are made with.

use std::time::Duration;

use rdkafka::{
    Offset, TopicPartitionList,
    consumer::Consumer,
    error::{KafkaError, RDKafkaErrorCode},
};
use tracing::{debug, info, warn};

use super::{CALL, Driver, Other};
use crate::kafka::{
    admin::Operation,
    failure::Resource,
    poll::Polled,
    rights::{self, Missing},
    transact::{
        Faults, Process, Side,
        lifecycle::{self, Event, Failure, Membership, Remedy, State, Step},
        metrics::ByResult,
        producer::Producer,
        starts::Origin,
    },
};

impl<P: Process, F: Faults> Driver<'_, P, F> {
    /// How long one step may be tried again: the broker aborts the transaction after this time anyway.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_millis(u64::from(self.options.transaction.timeout_ms))
    }

    /// The producer, or why there is none: a state that nothing leads to, in which nothing may look as if it were written.
    pub(super) fn producer(&self) -> Result<&Producer, Failure> {
        self.producer.as_ref().ok_or_else(|| Failure {
            code: RDKafkaErrorCode::Fatal,
            fatal: true,
            retriable: false,
            requires_abort: false,
            reason: "there is no producer".to_owned(),
        })
    }

    pub(super) fn failed(&mut self, step: Step, failure: &Failure, remedy: Remedy) {
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
        if failure.code == RDKafkaErrorCode::TransactionalIdAuthorizationFailed {
            let missing = Missing {
                operation: Operation::Write,
                resource: Resource::TransactionalId,
                name: self.options.transactional_id(),
            };
            self.status.facts().transactions_denied = rights::told(&[missing]);
        }
        // One failure is no trouble: it is repeated at once.
        if self.failures > 1 || matches!(step, Step::Init) {
            self.trouble(format!("{step:?}: {}", failure.reason));
        }
        self.happened(Event::Failed(remedy));
    }

    pub(super) fn trouble(&self, reason: String) {
        let reason = self.options.kafka.explain(reason);
        let mut facts = self.status.facts();
        let since = match facts.trouble.take() {
            Some((since, known)) if known == reason => since,
            before => {
                info!(topic = self.options.source.topic, reason, "what keeps the engine from going on");
                before.map_or_else(|| self.status.now(), |(since, _)| since)
            }
        };
        facts.trouble = Some((since, reason));
    }

    pub(super) fn make_producer(&mut self) -> Result<(), KafkaError> {
        self.give_up_transaction("unknown");
        // The old client goes first: two of them with one id would fence each other.
        self.producer = None;
        self.back_off()?;
        if self.stop.is_cancelled() {
            return Ok(());
        }
        let producer = Producer::new(&self.options)?;
        let made = self
            .faults
            .strike(Side::Before, Step::Init)
            .and_then(|()| producer.init(CALL))
            .and_then(|()| self.faults.strike(Side::After, Step::Init));
        match made {
            Ok(()) => {
                self.producer = Some(producer);
                self.metrics.producers.inc();
                {
                    let mut facts = self.status.facts();
                    facts.ready = true;
                    facts.transactions_denied = None;
                }
                self.happened(Event::ProducerMade);
            }
            Err(failure) => self.failed(Step::Init, &failure, Remedy::NewProducer),
        }
        Ok(())
    }

    /// Waits after failures, and stays a member of the group while it does. Messages that come are read again later.
    pub(super) fn back_off(&mut self) -> Result<(), KafkaError> {
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
    pub(super) fn pass_time(&mut self, timeout: Duration) -> Result<(), KafkaError> {
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

    pub(super) fn begin(&mut self) -> bool {
        match self.try_begin() {
            Ok(()) => {
                self.tally.clear();
                self.happened(Event::Begun);
                true
            }
            Err(failure) => {
                self.group = None;
                let remedy = lifecycle::remedy(Step::Begin, &failure, false);
                self.failed(Step::Begin, &failure, remedy);
                false
            }
        }
    }

    fn try_begin(&mut self) -> Result<(), Failure> {
        self.faults.strike(Side::Before, Step::Begin)?;
        // Asked in this order, a membership that ends in between is seen, or the captured one is refused by the broker.
        self.group = self.consumer.client().group_metadata();
        lifecycle::may_begin(self.membership())?;
        self.producer()?.begin()?;
        self.faults.strike(Side::After, Step::Begin)
    }

    fn membership(&self) -> Option<Membership> {
        let (member_id, generation) = self.consumer.membership()?;
        Some(Membership { member_id, generation })
    }

    /// Commits positions in a transaction of their own, which leaves no trace in the topics.
    pub(super) fn commit_positions(&mut self) {
        if !self.partitions.has_to_commit() {
            self.happened(Event::NothingToCommit);
        } else if self.begin() {
            self.commit();
        }
    }

    /// Sends the offsets and commits. Afterwards the state says what is next.
    pub(super) fn commit(&mut self) {
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
            let producer = driver.producer()?;
            producer.flush(timeout)?;
            match &driver.group {
                _ if positions.is_empty() => Ok(()),
                Some(group) => producer.send_offsets(&offsets, group, timeout),
                // Without them the messages would be read, and written, once more.
                None => Err(Failure {
                    code: RDKafkaErrorCode::UnknownGroup,
                    fatal: false,
                    retriable: false,
                    requires_abort: true,
                    reason: "the consumer does not say which group it is in".to_owned(),
                }),
            }
        }) && self
            .try_step(Step::Commit, started, |driver, timeout| driver.producer()?.commit(timeout));
        if !done {
            return;
        }
        let now = self.status.now();
        self.partitions.committed(&positions);
        for position in &positions {
            self.progress.moved(position.partition, now);
        }
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
            facts.transactions_denied = None;
            facts.progress_at = now;
        }
        self.happened(Event::Committed);
    }

    pub(super) fn abort(&mut self) {
        let started = self.status.now();
        let done = self.try_step(Step::Abort, started, |driver, timeout| driver.producer()?.abort(timeout));
        if done {
            self.give_up_transaction("aborted");
            self.happened(Event::Aborted);
        }
    }

    /// Makes a call again as long as that is the remedy. True when it succeeded; else the state says what is next.
    pub(super) fn try_step(
        &mut self,
        step: Step,
        started: Duration,
        call: impl Fn(&Self, Duration) -> Result<(), Failure>,
    ) -> bool {
        loop {
            let made = self
                .faults
                .strike(Side::Before, step)
                .and_then(|()| call(self, CALL.min(self.patience())))
                .and_then(|()| self.faults.strike(Side::After, step));
            let Err(failure) = made else { return true };
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

    pub(super) fn give_up_transaction(&mut self, result: &'static str) {
        if self.group.take().is_some() {
            self.metrics.transactions.get_or_create(&ByResult { result }).inc();
        }
        self.tally.clear();
    }
}
