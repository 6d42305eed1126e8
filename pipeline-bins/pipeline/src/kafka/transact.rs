//! Read, process, write: the engine of the components that stand between two topics.
//!
//! Every message of the source topic has exactly one [`Outcome`]: written to the sink, written to the dead-letter topic,
//! or dropped on purpose. Output and progress are one Kafka transaction, so that a reader with
//! `isolation.level=read_committed` sees each outcome once, whatever is killed and whenever. What the engine does, and
//! why it may rely on it, is told in `docs/concepts/delivery.md`.
//!
//! ```no_run
//! use penstock_pipeline::kafka::{Message, transact::{self, Outcome, Process}};
//! # use penstock_pipeline::config::{ConsumerConfig};
//! struct Copy;
//! impl Process for Copy {
//!     fn process(&mut self, message: &Message<'_>, value: &mut Vec<u8>) -> Outcome {
//!         value.extend_from_slice(message.value.unwrap_or_default());
//!         Outcome::Write
//!     }
//! }
//! # async fn run(
//! #     config: ConsumerConfig, kafka: penstock_pipeline::kafka::Connection, pod: String, metrics: penstock_pipeline::telemetry::Metrics,
//! #     health: penstock_pipeline::health::Health, stop: tokio_util::sync::CancellationToken,
//! # ) -> Result<(), transact::Stopped> {
//! let options = transact::Options {
//!     component: config.identity.component.clone(),
//!     kafka,
//!     source: config.source.clone(),
//!     transaction: config.transaction.clone(),
//!     instance: pod,
//!     sink: config.sink.clone(),
//!     dead_letter: config.dead_letter.clone(),
//!     stall_after: std::time::Duration::from_millis(config.admin.stall_after_ms),
//! };
//! let running = transact::start(options, Copy, &metrics, stop);
//! running.watched_by(&health);
//! running.ended().await
//! # }
//! ```

mod driver;
mod faults;
mod lifecycle;
mod metrics;
mod partitions;
mod producer;
mod record;
mod stall;
mod starts;
mod status;

use std::{borrow::Cow, sync::Arc, time::Duration};

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Source, TransactionConfig},
    events::dead_letter::Reason,
    health::{Health, Kind},
    kafka::{Connection, Message},
    telemetry,
};
pub use faults::{Faults, NoFaults, Side};
pub use lifecycle::{Failure, Step};
pub use status::Status;

/// What becomes of one message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// What `process` left in `value` goes to the sink, with the key and the Kafka time of the source message and without
    /// headers.
    Write,
    /// The source message goes to the dead-letter topic: its bytes, key and headers unchanged, and the reason in the
    /// headers of [`crate::events::dead_letter::header`].
    DeadLetter {
        /// Why it can never succeed.
        reason: Reason,
        /// For people: what was wrong. Cut to 1 KiB. Without secrets.
        detail: String,
    },
    /// Nothing is written: somebody wanted it so. Counted by reason.
    Drop {
        /// Label of the counter; a small, fixed set of values (such as the names of steps).
        reason: Cow<'static, str>,
    },
}

impl Outcome {
    /// A dead letter.
    pub fn dead_letter(reason: Reason, detail: impl Into<String>) -> Self {
        Self::DeadLetter { reason, detail: detail.into() }
    }

    /// Dropped on purpose.
    pub fn drop(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::Drop { reason: reason.into() }
    }
}

/// Decides about messages, one after the other in the order of their partition.
///
/// A pure function of the message (and of configuration): after an abort the same message comes again, and must give the
/// same. It runs on the engine's own thread and must return in well under `transaction.timeout.ms`.
pub trait Process: Send + 'static {
    /// Decides about one message. `value` is empty at the start, and kept from call to call so that its memory is used
    /// again; it matters only with [`Outcome::Write`].
    ///
    /// A panic is a fault of ours, not of the neighbours: the message is dead-lettered as
    /// [`Reason::InternalError`], and the next one is processed.
    fn process(&mut self, message: &Message<'_>, value: &mut Vec<u8>) -> Outcome;
}

/// How one engine runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the component, in the headers of dead letters.
    pub component: String,
    /// The cluster.
    pub kafka: Connection,
    /// What is read.
    pub source: Source,
    /// Bounds of a transaction.
    pub transaction: TransactionConfig,
    /// What makes the transactional id unique and stable over a restart of the container: the pod's name.
    pub instance: String,
    /// Topic of [`Outcome::Write`].
    pub sink: String,
    /// Topic of [`Outcome::DeadLetter`].
    pub dead_letter: String,
    /// With lag, and without progress for so long, the engine is not healthy, nor is it when that is so of one partition.
    pub stall_after: Duration,
}

impl Options {
    /// Of the producer.
    fn transactional_id(&self) -> String {
        format!("{}{}", self.transaction.id_prefix, self.instance)
    }
}

/// What parsing a configuration cannot know. The error says which field, why, and what to write instead.
pub fn check(source: &Source, transaction: &TransactionConfig) -> Result<(), String> {
    if source.topic.is_empty() || source.group.is_empty() {
        return Err("source.topic and source.group must not be empty".to_owned());
    }
    if source.session_timeout_ms < 1_000 {
        return Err("source.sessionTimeoutMs must be at least 1000".to_owned());
    }
    if source.max_poll_interval_ms < source.session_timeout_ms {
        return Err("source.maxPollIntervalMs must not be below source.sessionTimeoutMs".to_owned());
    }
    if transaction.max_messages == 0 || transaction.max_bytes == 0 {
        return Err("transaction.maxMessages and transaction.maxBytes must be at least 1".to_owned());
    }
    if !(1_000..=900_000).contains(&transaction.timeout_ms) {
        return Err(
            "transaction.timeoutMs must be between 1000 and 900000, the most that brokers take".to_owned()
        );
    }
    if transaction.max_wait_ms > transaction.timeout_ms / 2 {
        return Err(format!(
            "transaction.maxWaitMs must be at most half of transaction.timeoutMs ({}), after which the broker aborts",
            transaction.timeout_ms / 2
        ));
    }
    if transaction.timeout_ms >= source.max_poll_interval_ms {
        return Err("transaction.timeoutMs must be below source.maxPollIntervalMs".to_owned());
    }
    Ok(())
}

/// Why an engine ended without being told to.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// The configuration is one that librdkafka does not take.
    #[error("cannot make a Kafka client for topic {topic}: {reason}")]
    Client {
        /// The source topic.
        topic: String,
        /// What librdkafka says.
        reason: String,
    },
    /// The engine's thread panicked: a fault of ours.
    #[error("the engine that reads {topic} has panicked; its transaction is aborted by the broker")]
    Panicked {
        /// The source topic.
        topic: String,
    },
}

/// A running engine. Dropping it stops nothing: cancel the token that [`start`] was given.
#[derive(Debug)]
pub struct Running {
    status: Arc<Status>,
    topic: String,
    ended: oneshot::Receiver<Result<(), Stopped>>,
}

impl Running {
    /// How it is, for health and readiness; may be asked from any thread.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Makes liveness and readiness of the process depend on the engine.
    pub fn watched_by(&self, health: &Health) {
        let status = self.status();
        health.probe(Kind::Liveness, "transactions", move || status.liveness());
        let status = self.status();
        health.probe(Kind::Readiness, "transactions", move || status.readiness());
    }

    /// Waits until the engine has ended: after its token was cancelled (the open transaction is finished and the group
    /// is left first, which the caller bounds with a time-out), or because it cannot go on.
    pub async fn ended(self) -> Result<(), Stopped> {
        match self.ended.await {
            Ok(result) => result,
            Err(_) => Err(Stopped::Panicked { topic: self.topic }),
        }
    }
}

/// Starts an engine on a thread of its own.
///
/// It begins at once, waits for Kafka as long as it takes, and tells how it is by [`Running::status`] and by metrics in
/// `metrics`. When `stop` is cancelled, it commits what it has (or aborts it when that fails), leaves the consumer
/// group and ends.
pub fn start(
    options: Options,
    process: impl Process,
    metrics: &telemetry::Metrics,
    stop: CancellationToken,
) -> Running {
    start_with_faults(options, process, NoFaults, metrics, stop)
}

/// The same with faults, for tests.
pub fn start_with_faults(
    options: Options,
    process: impl Process,
    faults: impl Faults,
    metrics: &telemetry::Metrics,
    stop: CancellationToken,
) -> Running {
    let status = Arc::new(Status::new(options.source.topic.clone(), options.stall_after));
    let metrics = metrics.register(metrics::Metrics::register);
    let topic = options.source.topic.clone();
    let (tell, ended) = oneshot::channel();
    let thread_status = Arc::clone(&status);
    std::thread::Builder::new()
        .name("transact".to_owned())
        .spawn(move || {
            let result = driver::run(options, process, faults, metrics, &thread_status, &stop);
            // Nobody waits any more when the process is about to exit: then nobody needs the answer.
            let _ = tell.send(result);
        })
        .expect("a thread can be made at the start of the process");
    Running { status, topic, ended }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StartFrom;

    #[test]
    fn a_configuration_that_cannot_work_is_refused_by_the_name_of_its_field() {
        let source = || Source {
            topic: "t".into(),
            group: "g".into(),
            start_from: StartFrom::Earliest,
            session_timeout_ms: 10_000,
            max_poll_interval_ms: 60_000,
        };
        let transaction = || TransactionConfig {
            id_prefix: "p.".into(),
            timeout_ms: 10_000,
            max_messages: 1_000,
            max_bytes: 1 << 20,
            max_wait_ms: 100,
        };
        assert_eq!(check(&source(), &transaction()), Ok(()));
        for (source, transaction, field) in [
            (Source { group: String::new(), ..source() }, transaction(), "source.group"),
            (Source { session_timeout_ms: 10, ..source() }, transaction(), "source.sessionTimeoutMs"),
            (Source { max_poll_interval_ms: 9_000, ..source() }, transaction(), "source.maxPollIntervalMs"),
            (source(), TransactionConfig { max_messages: 0, ..transaction() }, "transaction.maxMessages"),
            (source(), TransactionConfig { timeout_ms: 999, ..transaction() }, "transaction.timeoutMs"),
            (source(), TransactionConfig { timeout_ms: 60_000, ..transaction() }, "source.maxPollIntervalMs"),
            (source(), TransactionConfig { max_wait_ms: 5_001, ..transaction() }, "transaction.maxWaitMs"),
        ] {
            let reason = check(&source, &transaction).unwrap_err();
            assert!(reason.contains(field), "{reason}");
        }
    }
}
