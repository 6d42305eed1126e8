//! Records to Kafka, by an idempotent producer whose acknowledgements are awaited.
//!
//! The wait is bounded here, and not by `message.timeout.ms`: when librdkafka gives one message up, it goes on with the others
//! under another epoch, and what it had sent before without an answer is sent again, which brokers cannot tell from something
//! new any more. So a producer that owes a report for too long is given up as a whole: another takes its place, and
//! what the old one still has fails, in its queue and on its way. No message is ever in the hands of two producers or
//! of two epochs, and nothing lands after a failure was told, but for what a broker had already received without being able to
//! say so, and that once.

use std::{
    error::Error,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use penstock_pipeline::{
    config::CaptureConfig,
    health::Verdict,
    kafka::{
        Connection,
        client::{LogContext, idempotent_producer},
        connection::{self, Secured},
        rights::{self, Needs},
    },
};
use rdkafka::{
    ClientContext,
    client::OAuthToken,
    config::RDKafkaLogLevel,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, PurgeConfig, ThreadedProducer},
};
use tokio::sync::Notify;
use tracing::{error, warn};

use crate::{
    budget::{Budget, Claim},
    metrics::CaptureMetrics,
    record::{Record, Stage},
    sink::{Sink, WriteError},
};

/// Largest message that librdkafka lets through: what brokers take unless a topic says otherwise, and more than
/// [`crate::record::MAX_RECORD_BYTES`] with its framing.
const MAX_BATCH_BYTES: u32 = 1_048_500;
/// How often Kafka is asked whether it is there.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(4);
/// Without a sign of life for so long, Kafka is away.
const LONGEST_SILENCE: Duration = Duration::from_secs(15);
/// What librdkafka may need to report the messages of a producer that was given up.
const REPORT_SLACK: Duration = Duration::from_secs(10);
/// How long a producer that was given up is kept for requests that still hold it.
const LINGERING: Duration = Duration::from_secs(30);

type CaptureProducer = ThreadedProducer<Reports>;

/// Kafka as a [`Sink`].
pub struct KafkaSink {
    /// For what goes on when a request is no longer there.
    me: Weak<Self>,
    config: CaptureConfig,
    kafka: Connection,
    client_id: String,
    queue: Budget,
    producer: ArcSwap<CaptureProducer>,
    /// Held while a producer is replaced, so that one trouble makes one new producer.
    replacing: Mutex<()>,
    metrics: CaptureMetrics,
    signs: Arc<SignsOfLife>,
    last_problem: Mutex<Option<String>>,
    needs: Needs,
    /// What Kafka does not allow.
    denied: Mutex<Option<String>>,
}

/// When Kafka was last seen to work.
#[derive(Debug)]
struct SignsOfLife {
    origin: Instant,
    /// Milliseconds since `origin`, plus one; 0 is never.
    last: AtomicU64,
}

impl SignsOfLife {
    fn mark(&self) {
        self.last.store(self.origin.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn silence(&self) -> Option<Duration> {
        let last = self.last.load(Ordering::Relaxed);
        (last > 0).then(|| self.origin.elapsed().saturating_sub(Duration::from_millis(last - 1)))
    }
}

/// The fate of the messages of one request. It holds their memory until the last report.
struct Fate {
    /// Messages without report, plus one while they are being handed over.
    waiting: AtomicUsize,
    failure: Mutex<Option<KafkaError>>,
    settled: Notify,
    _claim: Claim,
}

impl Fate {
    fn report(&self, failure: Option<KafkaError>) {
        if let Some(failure) = failure {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(failure);
        }
        if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.settled.notify_one();
        }
    }

    fn is_settled(&self) -> bool {
        self.waiting.load(Ordering::Acquire) == 0
    }
}

/// Messages that are due at some time, whether their client waits for them or has gone away.
struct Due<'a> {
    sink: &'a KafkaSink,
    producer: &'a Arc<CaptureProducer>,
    fate: &'a Arc<Fate>,
    at: tokio::time::Instant,
}

impl Drop for Due<'_> {
    fn drop(&mut self) {
        if self.fate.is_settled() {
            return;
        }
        // The client went away, and the request with it; its messages have not.
        let (Some(sink), Ok(runtime)) = (self.sink.me.upgrade(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let (producer, fate, at) = (Arc::clone(self.producer), Arc::clone(self.fate), self.at);
        runtime.spawn(async move {
            if tokio::time::timeout_at(at, fate.settled.notified()).await.is_err() {
                sink.give_up(&producer);
            }
        });
    }
}

/// Receives librdkafka's reports.
struct Reports {
    signs: Arc<SignsOfLife>,
    context: LogContext,
}

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.context.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.context.error(error, reason);
    }

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.context.generate_oauth_token(config)
    }
}

impl Secured for Reports {
    fn secured(&self) -> Option<&LogContext> {
        Some(&self.context)
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Fate>;

    fn delivery(&self, result: &DeliveryResult<'_>, fate: Arc<Fate>) {
        match result {
            Ok(_) => {
                self.signs.mark();
                fate.report(None);
            }
            Err((error, _)) => fate.report(Some(error.clone())),
        }
    }
}

impl KafkaSink {
    /// Makes the producer. It connects by itself, now and whenever it has to.
    pub fn new(
        config: &CaptureConfig,
        kafka: Connection,
        pod: &str,
        metrics: CaptureMetrics,
    ) -> Result<Arc<Self>, KafkaError> {
        let signs = Arc::new(SignsOfLife { origin: Instant::now(), last: AtomicU64::new(0) });
        let client_id = format!("{}-{pod}", config.identity.component);
        let producer = ArcSwap::from_pointee(producer(config, &kafka, &client_id, &signs)?);
        Ok(Arc::new_cyclic(|me| Self {
            me: me.clone(),
            config: config.clone(),
            kafka,
            client_id,
            queue: Budget::new(config.limits.producer_queue_bytes),
            producer,
            replacing: Mutex::new(()),
            metrics,
            signs,
            last_problem: Mutex::new(None),
            needs: Needs::default().write(&config.topic).write(&config.dead_letter),
            denied: Mutex::new(None),
        }))
    }

    /// Asks Kafka for the topics again and again, until the process ends: what [`KafkaSink::verdict`] is made of.
    pub fn watch(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(sink) = weak.upgrade() {
                let probe = tokio::task::spawn_blocking(move || sink.probe());
                if probe.await.is_err() {
                    error!("the watch over Kafka has panicked");
                }
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        });
    }

    fn probe(&self) {
        let producer = self.producer.load_full();
        connection::refresh(producer.client());
        // Before a client's events are on their way: without a right, each would be told to come again, for ever.
        if let Ok(missing) = self.needs.clone().asker().missing(producer.client(), PROBE_TIMEOUT) {
            let denied = rights::told(&missing);
            if let Some(denied) = &denied {
                warn!("{denied}");
            }
            *self.denied.lock().unwrap_or_else(PoisonError::into_inner) = denied;
        }
        let problem = [&self.config.topic, &self.config.dead_letter].into_iter().find_map(|topic| {
            let metadata = match producer.client().fetch_metadata(Some(topic), PROBE_TIMEOUT) {
                Ok(metadata) => metadata,
                Err(error) => {
                    return Some(format!(
                        "Kafka at {} does not answer: {error}",
                        self.config.kafka.bootstrap_servers
                    ));
                }
            };
            let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
            if partitions.is_empty() {
                return Some(format!("the topic {topic} does not exist, or may not be written"));
            }
            let led = partitions.iter().filter(|partition| partition.leader() >= 0).count();
            (led == 0).then(|| format!("no partition of the topic {topic} has a leader"))
        });
        match &problem {
            None => self.signs.mark(),
            Some(problem) => warn!(problem, "Kafka cannot take events now"),
        }
        *self.last_problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
        self.replace_if_broken(&producer);
    }

    /// Whether Kafka has given a sign of life lately, and allows what capture does.
    pub fn verdict(&self) -> Verdict {
        if let Some(denied) = self.denied.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Err(denied);
        }
        let silence = self.signs.silence();
        if silence.is_some_and(|silence| silence <= LONGEST_SILENCE) {
            return Ok(());
        }
        let problem = self.last_problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Err(self.kafka.explain(problem.unwrap_or_else(|| "Kafka has not answered yet".to_owned())))
    }

    /// Messages that librdkafka holds.
    pub fn queued_messages(&self) -> i32 {
        self.producer.load().in_flight_count()
    }

    /// Waits until every message has its report. Blocks.
    pub fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        self.producer.load_full().flush(timeout)
    }

    /// Hands messages over. Every one that is taken will be reported to `fate`.
    fn enqueue(
        &self,
        producer: &CaptureProducer,
        records: &[Record],
        fate: &Arc<Fate>,
    ) -> Result<(), KafkaError> {
        for record in records {
            let topic = match record.stage {
                Stage::Captured => &self.config.topic,
                Stage::DeadLetter => &self.config.dead_letter,
            };
            let mut headers = OwnedHeaders::new_with_capacity(record.headers.len());
            for (key, value) in record.headers.iter() {
                headers = headers.insert(Header { key, value: Some(value) });
            }
            fate.waiting.fetch_add(1, Ordering::AcqRel);
            let message = BaseRecord::with_opaque_to(topic, Arc::clone(fate))
                .key(record.key.as_str())
                .payload(record.value.as_slice())
                .headers(headers);
            if let Err((error, _)) = producer.send(message) {
                fate.waiting.fetch_sub(1, Ordering::AcqRel);
                return Err(error);
            }
        }
        Ok(())
    }

    fn is_current(&self, producer: &Arc<CaptureProducer>) -> bool {
        Arc::ptr_eq(&self.producer.load(), producer)
    }

    /// A producer that has lost its sequence takes no message any more; a new one begins another.
    fn replace_if_broken(&self, broken: &Arc<CaptureProducer>) {
        let Some((code, reason)) = broken.client().fatal_error() else { return };
        if self.is_current(broken) {
            error!(%code, reason, "the producer is broken for good; a new one takes its place");
            self.give_up(broken);
        }
    }

    /// Puts a new producer in the place of this one, and fails everything that it has. The first that asks does it.
    fn give_up(&self, old: &Arc<CaptureProducer>) {
        let _one_at_a_time = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.is_current(old) {
            return;
        }
        match producer(&self.config, &self.kafka, &self.client_id, &self.signs) {
            Ok(fresh) => {
                self.producer.store(Arc::new(fresh));
                self.metrics.producers_replaced.inc();
            }
            Err(error) => {
                error!(%error, "no new producer can be made; the old one goes on, without what it has");
            }
        }
        let old = Arc::clone(old);
        let leaving = std::thread::Builder::new().name("given-up".to_owned()).spawn(move || {
            purge(&old);
            // Its end waits for its threads, and a request that still holds it must not.
            let begun = Instant::now();
            while Arc::strong_count(&old) > 1 && begun.elapsed() < LINGERING {
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        if let Err(error) = leaving {
            error!(%error, "no thread can be had; what waits for Kafka goes on waiting");
        }
    }

    fn failed(&self, error: &KafkaError, producer: &Arc<CaptureProducer>) -> WriteError {
        self.metrics.write_failed(error_code(error));
        self.replace_if_broken(producer);
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::MessageSizeTooLarge) => WriteError::TooLarge,
            _ => WriteError::Undelivered(error.to_string()),
        }
    }
}

impl Sink for KafkaSink {
    fn queue(&self) -> &Budget {
        &self.queue
    }

    async fn write(&self, records: Vec<Record>, claim: Claim) -> Result<(), WriteError> {
        let started = Instant::now();
        let producer = self.producer.load_full();
        let fate = Arc::new(Fate {
            waiting: AtomicUsize::new(1),
            failure: Mutex::new(None),
            settled: Notify::new(),
            _claim: claim,
        });
        let longest = Duration::from_millis(self.config.limits.delivery_timeout_ms.into());
        let due =
            Due { sink: self, producer: &producer, fate: &fate, at: tokio::time::Instant::now() + longest };
        let refused = self.enqueue(&producer, &records, &fate).err();
        drop(records);
        fate.report(refused);
        if !self.is_current(&producer) {
            // It was given up meanwhile, and may have been purged before these messages came.
            let producer = Arc::clone(&producer);
            tokio::task::spawn_blocking(move || purge(&producer));
        }
        let overdue = tokio::time::timeout_at(due.at, fate.settled.notified()).await.is_err();
        if overdue {
            warn!(
                waited_ms = longest.as_millis() as u64,
                "Kafka has not acknowledged in time; giving up what waits"
            );
            self.give_up(&producer);
            if tokio::time::timeout(REPORT_SLACK, fate.settled.notified()).await.is_err() {
                error!(waiting = fate.waiting.load(Ordering::Acquire), "librdkafka owes reports of messages");
                self.metrics.write_failed("no_report");
                return Err(WriteError::Undelivered("no report".to_owned()));
            }
        }
        let failure = fate.failure.lock().unwrap_or_else(PoisonError::into_inner).take();
        match failure {
            Some(_) if overdue => {
                self.metrics.write_failed("timed_out");
                Err(WriteError::Undelivered(format!("not acknowledged within {longest:?}")))
            }
            Some(error) => Err(self.failed(&error, &producer)),
            None => {
                self.metrics.acknowledgement_seconds.observe(started.elapsed().as_secs_f64());
                Ok(())
            }
        }
    }
}

fn producer(
    config: &CaptureConfig,
    kafka: &Connection,
    client_id: &str,
    signs: &Arc<SignsOfLife>,
) -> Result<CaptureProducer, KafkaError> {
    let limits = &config.limits;
    // The budget keeps the queue below `producer_queue_bytes`; librdkafka's own bound only backs it up.
    let mut client = idempotent_producer(
        kafka,
        client_id,
        limits.delivery_timeout_ms,
        limits.producer_queue_bytes * 2,
        MAX_BATCH_BYTES,
    );
    client.set("linger.ms", limits.linger_ms.to_string());
    // Messages are given up together or not at all, by `KafkaSink::give_up`.
    client.set("message.timeout.ms", "0");
    let producer: CaptureProducer =
        client.create_with_context(Reports { signs: Arc::clone(signs), context: kafka.context() })?;
    connection::refresh(producer.client());
    Ok(producer)
}

/// Fails all messages of a producer: those that wait, and those on their way, whose answers nobody listens to any more. Waits
/// for the threads of its brokers to take note, which look a name up now and then: not for a thread that serves requests.
fn purge(producer: &CaptureProducer) {
    producer.purge(PurgeConfig::default().queue().inflight());
}

/// A short stable name of an error, for metrics.
fn error_code(error: &KafkaError) -> &'static str {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageTimedOut) => "timed_out",
        Some(RDKafkaErrorCode::QueueFull) => "queue_full",
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => "too_large",
        Some(RDKafkaErrorCode::UnknownTopic | RDKafkaErrorCode::UnknownTopicOrPartition) => "unknown_topic",
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => "not_authorized",
        Some(RDKafkaErrorCode::NotEnoughReplicas | RDKafkaErrorCode::NotEnoughReplicasAfterAppend) => {
            "not_enough_replicas"
        }
        Some(RDKafkaErrorCode::Fatal) => "fatal",
        Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight) => "purged",
        _ => "other",
    }
}

#[cfg(test)]
mod tests;
