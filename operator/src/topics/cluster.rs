//! One client per Kafka cluster and identity, shared by all pipelines that name the same.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use penstock_pipeline::kafka::{
    failure::{self, Failure as Seen},
    security::Auth,
};
use rdkafka::{
    ClientConfig, ClientContext,
    client::{Client, OAuthToken},
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Access, lag};
use crate::failure::Failure;

/// Longest time of one request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests under way at once per cluster.
const CONCURRENCY: usize = 4;

/// A cluster that did not answer is not asked again for so long, so that many pipelines do not wait for it in turn.
const FAILURE_HOLDS: Duration = Duration::from_secs(3);

/// A client that nobody used for so long is closed.
const UNUSED_AFTER: Duration = Duration::from_secs(15 * 60);

/// Groups that nobody answers about for so long, while the cluster answers, take another client.
///
/// librdkafka 2.12 remembers the coordinator of a group as a broker that it has given up meanwhile, and then no question about
/// that group is ever answered to this client.
const GROUPS_SILENT: Duration = Duration::from_secs(45);

/// Group of the consumer that looks at single messages. It joins nothing and commits nothing.
const GROUP: &str = "penstock-operator";

/// The clients.
#[derive(Default)]
pub struct Clusters {
    clusters: Mutex<HashMap<Access, (Arc<Cluster>, Instant)>>,
}

/// The client of one cluster.
pub struct Cluster {
    consumer: BaseConsumer<Silent>,
    access: Access,
    gate: Semaphore,
    failure: Mutex<Option<(Instant, Failure)>>,
    /// Groups that nobody answers about, and since when.
    silent_groups: Mutex<HashMap<String, Instant>>,
    looking: Mutex<lag::Memory>,
}

impl Clusters {
    /// No clients yet; they are made when they are asked for.
    pub fn new() -> Self {
        Self::default()
    }

    /// The client for a cluster, as somebody. Connects to nobody yet; fails only when the client cannot be made.
    pub fn get(&self, access: &Access) -> Result<Arc<Cluster>, String> {
        let mut clusters = lock(&self.clusters);
        let now = Instant::now();
        let stuck = clusters.get(access).is_some_and(|(cluster, _)| is_stuck(cluster.longest_silence()));
        let mut unused: Vec<_> = Vec::new();
        if stuck && let Some((cluster, _)) = clusters.remove(access) {
            tracing::info!(
                bootstrap_servers = access.bootstrap_servers,
                "the coordinators of groups do not answer this client, and the cluster does; making another client"
            );
            unused.push(cluster);
        }
        let cluster = match clusters.get_mut(access) {
            Some((cluster, used)) => {
                *used = now;
                cluster.clone()
            }
            None => {
                let cluster = Arc::new(Cluster::new(access)?);
                clusters.insert(access.clone(), (cluster.clone(), now));
                cluster
            }
        };
        let old = clusters.extract_if(|_, (_, used)| now.duration_since(*used) > UNUSED_AFTER);
        unused.extend(old.map(|(_, (cluster, _))| cluster));
        drop(clusters);
        if !unused.is_empty() {
            // Closing a client waits for its threads.
            std::thread::spawn(move || drop(unused));
        }
        Ok(cluster)
    }
}

impl Cluster {
    fn new(access: &Access) -> Result<Self, String> {
        let security = access.security()?;
        let mut config = ClientConfig::new();
        security.apply(&mut config);
        let consumer: BaseConsumer<Silent> = config
            .set("bootstrap.servers", &access.bootstrap_servers)
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
            // A listener that hangs up is told at this level.
            .set_log_level(RDKafkaLogLevel::Info)
            .create_with_context(Silent { auth: security.auth, seen: Mutex::new(None) })
            .map_err(|error| error.to_string())?;
        // One who comes with a token is asked for it before the first connection.
        consumer.poll(Duration::ZERO);
        Ok(Self {
            consumer,
            access: access.clone(),
            gate: Semaphore::new(CONCURRENCY),
            failure: Mutex::new(None),
            silent_groups: Mutex::default(),
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

    /// How it is reached.
    pub(super) fn access(&self) -> &Access {
        &self.access
    }

    /// What the client last complained about, since the last answer.
    pub(super) fn seen(&self) -> Option<Seen> {
        self.drain();
        *lock(&self.consumer.context().seen)
    }

    /// Keeps whether somebody answered about a group. Said only when the cluster itself has answered. Each group has a
    /// coordinator of its own, so that an answer about one says nothing about the others.
    pub(super) fn note_group(&self, group: &str, answered: bool) {
        let mut silent = lock(&self.silent_groups);
        if answered {
            silent.remove(group);
        } else {
            silent.entry(group.to_owned()).or_insert_with(Instant::now);
        }
    }

    fn longest_silence(&self) -> Option<Duration> {
        lock(&self.silent_groups).values().map(Instant::elapsed).max()
    }

    /// Why the cluster did not answer, if that was a moment ago.
    pub(super) fn recent_failure(&self) -> Option<Failure> {
        lock(&self.failure)
            .as_ref()
            .filter(|(when, _)| when.elapsed() < FAILURE_HOLDS)
            .map(|(_, why)| why.clone())
    }

    /// Keeps that the cluster did not answer, or that it did.
    pub(super) fn note(&self, failure: Option<&Failure>) {
        if failure.is_none() {
            // librdkafka says what stays the same only once in a while: until there is an answer, it holds.
            *lock(&self.consumer.context().seen) = None;
        }
        *lock(&self.failure) = failure.map(|why| (Instant::now(), why.clone()));
    }
}

/// Whether another client is due, by how long nobody has answered about groups.
fn is_stuck(silence: Option<Duration>) -> bool {
    silence.is_some_and(|silence| silence > GROUPS_SILENT)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Callbacks of the client. What goes wrong is answered to the request that it concerns; of the client's own voice is kept
/// what stands in its way, and the rest is for the debug log.
pub(super) struct Silent {
    auth: Option<Auth>,
    seen: Mutex<Option<Seen>>,
}

impl Silent {
    fn keep(&self, code: RDKafkaErrorCode, text: &str) {
        if let Some(seen) = failure::of(code, text) {
            *lock(&self.seen) = Some(seen);
        }
    }
}

impl ClientContext for Silent {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // A connection that ends is an error only in the log.
        if facility == "FAIL" {
            self.keep(RDKafkaErrorCode::BrokerTransportFailure, message);
        }
        tracing::debug!(?level, facility, message, "Kafka client");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.keep(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown), reason);
        tracing::debug!(%error, reason, "Kafka client");
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        // A new token in the Secret is a new identity, and so a new client.
        self.auth.as_ref().and_then(Auth::oauth_token).ok_or_else(|| "there is no token".into())
    }
}

impl ConsumerContext for Silent {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_whose_groups_stay_silent_is_replaced_and_one_that_hears_of_them_is_not() {
        let clusters = Clusters::new();
        let access = Access::plaintext("127.0.0.1:1");
        let first = clusters.get(&access).unwrap();
        first.note_group("a", false);
        let since = lock(&first.silent_groups)["a"];
        first.note_group("a", false);
        first.note_group("b", false);
        assert_eq!(lock(&first.silent_groups)["a"], since, "the first silence counts");
        assert!(Arc::ptr_eq(&first, &clusters.get(&access).unwrap()));
        first.note_group("a", true);
        first.note_group("b", true);
        assert_eq!(first.longest_silence(), None);

        // Another pipeline shares the client, and its group is answered about.
        let long_ago = Instant::now().checked_sub(GROUPS_SILENT * 2).expect("the machine runs for longer");
        lock(&first.silent_groups).insert("a".to_owned(), long_ago);
        first.note_group("b", true);
        assert!(!Arc::ptr_eq(&first, &clusters.get(&access).unwrap()));
    }

    #[test]
    fn a_short_silence_is_an_election() {
        assert!(!is_stuck(None) && !is_stuck(Some(Duration::from_secs(10))));
        assert!(is_stuck(Some(GROUPS_SILENT + Duration::from_secs(1))));
    }
}
