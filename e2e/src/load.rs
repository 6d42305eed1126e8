//! Sends events through the HTTP API and keeps account of what was answered.
//!
//! Nothing is retried: an answer that never came, or a 503, may or may not have landed. Such events are counted apart,
//! and new ones are sent in their place until the wanted number is acknowledged.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail};
use serde_json::json;
use uuid::Uuid;

/// What to send.
#[derive(Clone, Debug)]
pub struct Load {
    /// Base URL of capture.
    pub url: String,
    /// Token of the project.
    pub token: String,
    /// Events that are to be acknowledged.
    pub acknowledged: u64,
    /// Events of one request.
    pub batch: usize,
    /// Requests under way at once.
    pub connections: usize,
    /// Value of the property `run_id`.
    pub run_id: String,
}

/// What became of the events.
#[derive(Debug, Default)]
pub struct Account {
    /// UUIDs of the events answered 200.
    pub acknowledged: HashSet<Uuid>,
    /// UUIDs of the events whose request was answered 503 or not at all: each may have landed or not.
    pub uncertain: HashSet<Uuid>,
}

/// How far a load is; shared with whoever makes trouble meanwhile.
#[derive(Debug, Default)]
pub struct Progress {
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

impl Progress {
    /// Events acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// The body of one event: deterministic from its number, so that a column can be checked.
pub fn event(number: u64, uuid: Uuid, run_id: &str) -> serde_json::Value {
    json!({
        "uuid": uuid,
        "event": EVENTS[(number % EVENTS.len() as u64) as usize],
        "distinct_id": format!("visitor-{}", number % 997),
        "timestamp": "2026-11-24T12:00:00.123Z",
        "properties": {
            "run_id": run_id,
            "number": number,
            "$current_url": format!("https://shop.example.com/products/{}", number % 211),
            "$lib": "load",
            "price": 19.5,
            "title": "Ünïcode ☕ \"quoted\"",
        }
    })
}

/// Names of the events that [`event`] makes, by number.
pub const EVENTS: [&str; 4] = ["$pageview", "product viewed", "order completed", "$identify"];

/// Sends until so many events are acknowledged.
///
/// # Errors
/// Capture refuses the events (a 4xx answer), or nothing is acknowledged for three minutes.
pub async fn send(load: Load, progress: Arc<Progress>) -> Result<Account> {
    let account = Arc::new(Mutex::new(Account::default()));
    let next = Arc::new(AtomicU64::new(0));
    // A new connection for every request would hide keep-alive faults; the pool is what clients have.
    let http = reqwest::Client::builder().timeout(Duration::from_secs(40)).build()?;
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..load.connections {
        workers.spawn(worker(
            load.clone(),
            http.clone(),
            Arc::clone(&next),
            Arc::clone(&progress),
            Arc::clone(&account),
        ));
    }
    let mut last = (0, tokio::time::Instant::now());
    loop {
        match tokio::time::timeout(Duration::from_secs(1), workers.join_next()).await {
            Ok(None) => break,
            Ok(Some(done)) => done??,
            Err(_) => {
                let now = progress.acknowledged();
                if now != last.0 {
                    last = (now, tokio::time::Instant::now());
                } else if last.1.elapsed() > Duration::from_secs(180) {
                    bail!("capture has acknowledged nothing for three minutes; {now} events before that");
                }
            }
        }
    }
    Ok(Arc::into_inner(account).expect("all workers have ended").into_inner().expect("no worker panicked"))
}

async fn worker(
    load: Load,
    http: reqwest::Client,
    next: Arc<AtomicU64>,
    progress: Arc<Progress>,
    account: Arc<Mutex<Account>>,
) -> Result<()> {
    while !progress.stop.load(Ordering::Relaxed) && progress.acknowledged() < load.acknowledged {
        let first = next.fetch_add(load.batch as u64, Ordering::Relaxed);
        let uuids: Vec<Uuid> = (0..load.batch).map(|_| Uuid::now_v7()).collect();
        let batch: Vec<_> =
            uuids.iter().zip(first..).map(|(&uuid, number)| event(number, uuid, &load.run_id)).collect();
        let body = json!({"api_key": load.token, "batch": batch});
        let answer = http.post(format!("{}/batch/", load.url)).json(&body).send().await;
        let status = answer.as_ref().ok().map(|response| response.status().as_u16());
        // The whole answer must have arrived: a cut connection after the status line is an answer all the same, but the
        // body is read so that the connection can be used again.
        if let Ok(response) = answer {
            let text = response.text().await.unwrap_or_default();
            if matches!(status, Some(400..500)) {
                progress.stop.store(true, Ordering::Relaxed);
                bail!("capture refuses events: {status:?} {text}");
            }
        }
        if status == Some(200) {
            account.lock().expect("no worker panicked").acknowledged.extend(uuids);
            progress.acknowledged.fetch_add(load.batch as u64, Ordering::Relaxed);
        } else {
            account.lock().expect("no worker panicked").uncertain.extend(uuids);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(())
}
