//! The webhook export against real Kafka and a receiver that fails in every way it can.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, Mac};
use penstock_pipeline::config::{BlockLimits, Destination, ExportConfig, RetryConfig, WebhookDestination};
use sha2::Sha256;
use support::world::World;

const OLD_KEY: [u8; 32] = [1; 32];
const NEW_KEY: [u8; 32] = [2; 32];

/// What came, by the number of the event.
#[derive(Default)]
struct Seen {
    ids: BTreeMap<u64, Vec<String>>,
    delivered: BTreeSet<u64>,
    trapped: u64,
    wrong: Vec<String>,
}

type Shared = Arc<Mutex<Seen>>;

/// A receiver on a port of its own.
struct Receiver {
    url: String,
    seen: Shared,
    _runtime: tokio::runtime::Runtime,
}

impl Receiver {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let seen = Shared::default();
        let app = Router::new()
            .route("/in", post(receive))
            .route("/trap", post(trap).get(trap))
            .with_state(seen.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let url = format!("http://{}/in", listener.local_addr().unwrap());
        runtime.spawn(async move { axum::serve(listener, app).await });
        Self { url, seen, _runtime: runtime }
    }
}

async fn trap(State(seen): State<Shared>) {
    seen.lock().unwrap().trapped += 1;
}

async fn receive(State(seen): State<Shared>, headers: HeaderMap, body: Bytes) -> Response {
    let event: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let number = event["properties"]["number"].as_u64().unwrap();
    let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    let expected = [NEW_KEY, OLD_KEY].map(|key| {
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(&body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    });
    let attempt = {
        let mut seen = seen.lock().unwrap();
        if header("webhook-signature") != expected.join(" ") {
            seen.wrong.push(format!("{number}: {}", header("webhook-signature")));
        }
        if header("content-type") != "application/json" || header("x-own") != "yes" {
            seen.wrong.push(format!("{number}: headers"));
        }
        let ids = seen.ids.entry(number).or_default();
        ids.push(id);
        ids.len()
    };
    match (number % 50, attempt) {
        (3, ..=2) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        (5, 1) => (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "0")]).into_response(),
        (7, _) => (StatusCode::BAD_REQUEST, "no\nthanks").into_response(),
        (9, _) => (StatusCode::FOUND, [("location", "/trap")]).into_response(),
        (11, 1) => {
            tokio::time::sleep(Duration::from_secs(3)).await;
            StatusCode::OK.into_response()
        }
        _ => {
            seen.lock().unwrap().delivered.insert(number);
            StatusCode::NO_CONTENT.into_response()
        }
    }
}

fn config(world: &World, receiver: &Receiver, directory: &std::path::Path) -> ExportConfig {
    let keys = directory.join("whsec");
    let lines = [NEW_KEY, OLD_KEY].map(|key| format!("whsec_{}\n", STANDARD.encode(key)));
    fs::write(&keys, lines.concat()).unwrap();
    let block = BlockLimits { max_rows: 1, max_bytes: 1, max_age_ms: 1 };
    let mut config = world.config("http://unused", block);
    config.where_ = Some(".event != \"event 13\"".into());
    config.destination = Destination::Webhook(WebhookDestination {
        url: receiver.url.clone(),
        signing_key_file: Some(keys),
        headers: [("X-Own".to_owned(), "yes".to_owned())].into(),
        timeout_ms: 1000,
        concurrency: 16,
        retry: RetryConfig { max_attempts: Some(4), min_backoff_ms: 20, max_backoff_ms: 200 },
        allowed_networks: vec!["127.0.0.0/8".into()],
    });
    config
}

fn is_admitted(number: u64) -> bool {
    number % 20 != 13
}

fn is_refused(number: u64) -> bool {
    matches!(number % 50, 7 | 9)
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn every_event_is_delivered_or_a_dead_letter_whatever_the_receiver_does() {
    let world = World::new("webhook", 3);
    let receiver = Receiver::start();
    let directory = tempfile::tempdir().unwrap();
    let mut exporter = world.start("one", &config(&world, &receiver, directory.path()));
    let total = 3_000;
    world.produce(0, total, |number| number == 100);
    world.wait_until_exported(Duration::from_secs(90));

    let seen = receiver.seen.lock().unwrap();
    assert_eq!(seen.wrong, Vec::<String>::new());
    assert_eq!(seen.trapped, 0, "a redirection was followed");
    let wanted: BTreeSet<u64> =
        (0..total).filter(|&number| is_admitted(number) && !is_refused(number) && number != 100).collect();
    assert_eq!(seen.delivered, wanted);
    let mut all = BTreeSet::new();
    for (number, ids) in &seen.ids {
        assert!(ids.iter().all(|id| *id == ids[0]), "{number}: {ids:?}");
        assert!(all.insert(ids[0].clone()), "{number} shares its id");
        let attempts = match number % 50 {
            3 => 3,
            5 | 11 => 2,
            9 => 4,
            _ => 1,
        };
        assert_eq!(ids.len(), attempts, "{number}");
    }

    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for (_, reason) in world.dead_letters() {
        *reasons.entry(reason).or_default() += 1;
    }
    let count = |rest: u64| (0..total).filter(|number| is_admitted(*number) && number % 50 == rest).count();
    let expected: BTreeMap<String, usize> = [
        ("destination_refused".to_owned(), count(7)),
        ("attempts_exhausted".to_owned(), count(9)),
        ("malformed".to_owned(), 1),
    ]
    .into();
    assert_eq!(reasons, expected);
    assert!(exporter.stop().success());
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_killed_process_repeats_under_the_same_ids_and_loses_nothing() {
    let world = World::new("webhookkill", 3);
    let receiver = Receiver::start();
    let directory = tempfile::tempdir().unwrap();
    let config = config(&world, &receiver, directory.path());
    let total = 6_000;
    world.produce(0, total, |_| false);
    for round in 0..3 {
        let mut exporter = world.start(&format!("round-{round}"), &config);
        std::thread::sleep(Duration::from_millis(1500));
        exporter.kill();
    }
    let mut exporter = world.start("last", &config);
    world.wait_until_exported(Duration::from_secs(90));
    let seen = receiver.seen.lock().unwrap();
    let wanted: BTreeSet<u64> =
        (0..total).filter(|&number| is_admitted(number) && !is_refused(number)).collect();
    assert!(
        seen.delivered.is_superset(&wanted),
        "{:?}",
        wanted.difference(&seen.delivered).collect::<Vec<_>>()
    );
    for (number, ids) in &seen.ids {
        assert!(ids.iter().all(|id| *id == ids[0]), "{number}: {ids:?}");
    }
    let keys: BTreeSet<String> = world.dead_letters().into_iter().map(|(key, _)| key).collect();
    let refused = (0..total).filter(|&number| is_admitted(number) && is_refused(number)).count();
    assert_eq!(keys.len(), refused, "repeated dead letters have the same key");
    assert!(exporter.stop().success());
}
