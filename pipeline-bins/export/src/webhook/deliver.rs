//! One event on its way to the endpoint: attempt after attempt, until it is delivered or a dead letter.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use penstock_pipeline::{config::RetryConfig, events::dead_letter::Reason, live_file::LiveFile};
use prometheus_client::metrics::{counter::Counter, histogram::Histogram};
use reqwest::{Client, header::HeaderMap};
use tokio::sync::Semaphore;
use tracing::debug;
use url::Url;

use super::{
    dial,
    payload::{self, Payload},
    signature::SigningKeys,
    verdict::{self, Attempt, Next},
};
use crate::{
    dead_letters::{DeadLetters, Kept},
    metrics::SourceMetrics,
};

/// Bytes of an answer that are read at most.
const EXCERPT_BYTES: usize = 512;

/// Where deliveries go.
pub struct Endpoint {
    /// The HTTP client.
    pub client: Client,
    /// Where to POST.
    pub url: Url,
    /// Further request headers.
    pub headers: HeaderMap,
    /// Keys that sign.
    pub keys: Option<LiveFile<SigningKeys>>,
    /// Longest time of one attempt.
    pub timeout: Duration,
}

impl Endpoint {
    /// One attempt.
    async fn post(&self, payload: &Payload) -> Attempt {
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let timestamp = i64::try_from(timestamp).unwrap_or(i64::MAX);
        let mut request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header("content-type", "application/json")
            .header("webhook-id", &payload.id)
            .header("webhook-timestamp", timestamp.to_string());
        if let Some(keys) = &self.keys {
            // Signed is what is sent, byte for byte.
            let signature = keys.load().sign(&payload.id, timestamp, &payload.body);
            request = request.header("webhook-signature", signature);
        }
        let response = match request.body(payload.body.clone()).send().await {
            Ok(response) => response,
            Err(error) => {
                return match dial::forbidden(&error) {
                    Some(detail) => Attempt::Forbidden(detail),
                    None => Attempt::Failed(with_causes(&error.without_url())),
                };
            }
        };
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|value| value.to_str().ok())
            .map(ToOwned::to_owned);
        let excerpt = if (200..300).contains(&status) { String::new() } else { excerpt(response).await };
        Attempt::Answered { status, retry_after, excerpt }
    }
}

/// The beginning of an answer, as text without control characters.
async fn excerpt(mut response: reqwest::Response) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < EXCERPT_BYTES
        && let Ok(Some(chunk)) = response.chunk().await
    {
        bytes.extend_from_slice(&chunk[..chunk.len().min(EXCERPT_BYTES - bytes.len())]);
    }
    String::from_utf8_lossy(&bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A time before which nothing is sent: the destination said that it is overloaded.
#[derive(Debug)]
pub struct Gate {
    origin: Instant,
    open_at_ms: AtomicU64,
}

impl Gate {
    /// Open.
    pub fn new() -> Self {
        Self { origin: Instant::now(), open_at_ms: AtomicU64::new(0) }
    }

    fn close_for(&self, pause: Duration) {
        let until = (self.origin.elapsed() + pause).as_millis() as u64;
        self.open_at_ms.fetch_max(until, Ordering::Relaxed);
    }

    async fn wait(&self) {
        loop {
            let open_at = Duration::from_millis(self.open_at_ms.load(Ordering::Relaxed));
            let left = open_at.saturating_sub(self.origin.elapsed());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// What deliveries count.
#[derive(Clone, Debug, Default)]
pub struct DeliveryMetrics {
    /// Events that the destination took.
    pub delivered: Counter,
    /// Attempts, successful or not.
    pub attempts: Counter,
}

/// What all deliveries share.
pub struct Delivery {
    /// Where to.
    pub endpoint: Endpoint,
    /// Attempts and pauses.
    pub retry: RetryConfig,
    /// Attempts at once.
    pub slots: Semaphore,
    /// Closed while the destination is overloaded.
    pub gate: Gate,
    /// Where what cannot be delivered goes.
    pub dead_letters: DeadLetters,
    /// Counters of every export.
    pub source_metrics: SourceMetrics,
    /// Counters of deliveries.
    pub metrics: DeliveryMetrics,
    /// Duration of attempts, seconds.
    pub attempt_seconds: Histogram,
    /// What the last failed attempt said; for health.
    pub last_trouble: Mutex<Option<String>>,
}

impl Delivery {
    /// Ends when the event is delivered, or acknowledged as a dead letter. A pause between attempts holds no slot, so that
    /// first attempts do not queue behind repetitions.
    pub async fn run(self: Arc<Self>, kept: Kept) {
        let payload = match payload::payload(kept.value()) {
            Ok(payload) => payload,
            Err(detail) => return self.put_aside(kept, Reason::Malformed, detail).await,
        };
        let mut attempts = 0;
        loop {
            self.gate.wait().await;
            let Ok(slot) = self.slots.acquire().await else { return };
            let begun = Instant::now();
            // reqwest's own limit does not count the time in which an answer is read in pieces after the headers.
            let attempt =
                match tokio::time::timeout(self.endpoint.timeout, self.endpoint.post(&payload)).await {
                    Ok(attempt) => attempt,
                    Err(_) => Attempt::Failed(format!("no answer within {:?}", self.endpoint.timeout)),
                };
            drop(slot);
            self.attempt_seconds.observe(begun.elapsed().as_secs_f64());
            self.metrics.attempts.inc();
            attempts += 1;
            match verdict::next(&attempt, attempts, &self.retry, SystemTime::now(), rand::random()) {
                Next::Delivered => {
                    self.metrics.delivered.inc();
                    self.note(None);
                    return;
                }
                Next::Retry { pause, everybody } => {
                    debug!(
                        partition = kept.partition(),
                        offset = kept.offset(),
                        attempts,
                        ?attempt,
                        "not delivered"
                    );
                    self.note(Some(&attempt));
                    if everybody {
                        self.gate.close_for(pause);
                    }
                    tokio::time::sleep(pause).await;
                }
                Next::GiveUp { reason, detail } => {
                    self.note(Some(&attempt));
                    return self.put_aside(kept, reason, detail).await;
                }
            }
        }
    }

    async fn put_aside(&self, kept: Kept, reason: Reason, detail: String) {
        self.source_metrics.dead_letter(reason);
        self.dead_letters.put(&kept.dead_letter(reason, detail)).await;
    }

    fn note(&self, attempt: Option<&Attempt>) {
        let trouble = attempt.map(|attempt| match attempt {
            Attempt::Answered { status, .. } => format!("the destination answered {status}"),
            Attempt::Failed(detail) | Attempt::Forbidden(detail) => detail.clone(),
        });
        if trouble.is_some() {
            self.source_metrics.failure("delivery");
        }
        *self.last_trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}
