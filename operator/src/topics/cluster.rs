//! One client per Kafka cluster, shared by all pipelines that name the same bootstrap servers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    client::Client,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::lag;

/// Longest time of one request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests under way at once per cluster.
const CONCURRENCY: usize = 4;

/// A cluster that did not answer is not asked again for so long, so that many pipelines do not wait for it in turn.
const FAILURE_HOLDS: Duration = Duration::from_secs(3);

/// A client that nobody used for so long is closed.
const UNUSED_AFTER: Duration = Duration::from_secs(15 * 60);

/// Group of the consumer that looks at single messages. It joins nothing and commits nothing.
const GROUP: &str = "penstock-operator";

/// The clients.
#[derive(Default)]
pub struct Clusters {
    clusters: Mutex<HashMap<String, (Arc<Cluster>, Instant)>>,
}

/// The client of one cluster.
pub struct Cluster {
    consumer: BaseConsumer<Silent>,
    gate: Semaphore,
    failure: Mutex<Option<(Instant, String)>>,
    looking: Mutex<lag::Memory>,
}

impl Clusters {
    /// No clients yet; they are made when they are asked for.
    pub fn new() -> Self {
        Self::default()
    }

    /// The client for `bootstrap_servers` (`host:port`, separated by commas). Connects to nobody yet; fails only when the
    /// client cannot be made.
    pub fn get(&self, bootstrap_servers: &str) -> Result<Arc<Cluster>, KafkaError> {
        let mut clusters = lock(&self.clusters);
        let now = Instant::now();
        let cluster = match clusters.get_mut(bootstrap_servers) {
            Some((cluster, used)) => {
                *used = now;
                cluster.clone()
            }
            None => {
                let cluster = Arc::new(Cluster::new(bootstrap_servers)?);
                clusters.insert(bootstrap_servers.to_owned(), (cluster.clone(), now));
                cluster
            }
        };
        let unused: Vec<_> = clusters
            .extract_if(|_, (_, used)| now.duration_since(*used) > UNUSED_AFTER)
            .map(|(_, (cluster, _))| cluster)
            .collect();
        drop(clusters);
        if !unused.is_empty() {
            // Closing a client waits for its threads.
            std::thread::spawn(move || drop(unused));
        }
        Ok(cluster)
    }
}

impl Cluster {
    fn new(bootstrap_servers: &str) -> Result<Self, KafkaError> {
        let consumer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap_servers)
            .set("client.id", GROUP)
            .set("group.id", GROUP)
            .set("allow.auto.create.topics", "false")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            // The end of a partition without a message is an answer.
            .set("enable.partition.eof", "true")
            // One message of a partition is enough. The count is of everything that waits in the client, markers of
            // transactions included, and a partition that reaches it pauses: so it is the bytes that bound.
            .set("queued.min.messages", "1000")
            .set("queued.max.messages.kbytes", "1024")
            .set("max.partition.fetch.bytes", "65536")
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.wait.max.ms", "50")
            .set("socket.connection.setup.timeout.ms", "3000")
            .set("socket.timeout.ms", "5000")
            .set("reconnect.backoff.max.ms", "2000")
            .set_log_level(RDKafkaLogLevel::Warning)
            .create_with_context(Silent)?;
        Ok(Self {
            consumer,
            gate: Semaphore::new(CONCURRENCY),
            failure: Mutex::new(None),
            looking: Mutex::new(lag::Memory::default()),
        })
    }

    /// The handle for admin requests.
    pub(super) fn client(&self) -> &Client<Silent> {
        self.consumer.client()
    }

    /// The consumer, for the one who has [`Cluster::look`].
    pub(super) fn consumer(&self) -> &BaseConsumer<Silent> {
        &self.consumer
    }

    /// Leave to send requests.
    pub(super) async fn enter(&self) -> SemaphorePermit<'_> {
        // The semaphore is never closed, so that this cannot fail.
        self.gate.acquire().await.expect("the gate stays open")
    }

    /// The right to use the consumer for looking at messages, and the memory of what was seen. Blocks.
    pub(super) fn look(&self) -> MutexGuard<'_, lag::Memory> {
        lock(&self.looking)
    }

    /// Takes what the client has to say when nobody looks at messages, so that its queue stays empty.
    pub(super) fn drain(&self) {
        if let Ok(_looking) = self.looking.try_lock() {
            for _ in 0..100 {
                if self.consumer.poll(Duration::ZERO).is_none() {
                    break;
                }
            }
        }
    }

    /// Why the cluster did not answer, if that was a moment ago.
    pub(super) fn recent_failure(&self) -> Option<String> {
        lock(&self.failure)
            .as_ref()
            .filter(|(when, _)| when.elapsed() < FAILURE_HOLDS)
            .map(|(_, why)| why.clone())
    }

    /// Keeps that the cluster did not answer, or that it did.
    pub(super) fn note(&self, failure: Option<&str>) {
        *lock(&self.failure) = failure.map(|why| (Instant::now(), why.to_owned()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Callbacks of the client. What goes wrong is answered to the request that it concerns; the client's own voice is for
/// the debug log.
pub(super) struct Silent;

impl ClientContext for Silent {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, message, "Kafka client");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "Kafka client");
    }
}

impl ConsumerContext for Silent {}
