//! The running binary and a real Kafka: what is answered 200 lies there, whole; what is not, does not come later.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::{
    collections::BTreeSet,
    io::Write,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use nix::sys::signal::Signal;
use penstock_pipeline::events::captured::CapturedEvent;
use support::{Capture, Connection, Stored, TOKEN, Topics, bootstrap, read, until};
use uuid::Uuid;

fn gzip(text: &str) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

fn captured(message: &Stored) -> CapturedEvent {
    serde_json::from_slice(&message.value).unwrap()
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn every_body_shape_lands_with_its_key_headers_and_bytes() {
    let topics = Topics::named("shapes");
    topics.create();
    let capture = Capture::start(&bootstrap(), &topics, |config| config);
    capture.wait_ready();
    let mut connection = Connection::open(capture.address).unwrap();

    let event = |name: &str| {
        format!(r#"{{ "event":"{name}", "distinct_id":"u-{name}",  "token":"{TOKEN}", "n":1.0 }}"#)
    };
    let batch = format!(
        r#"{{"api_key":"{TOKEN}","sent_at":"2026-01-01T00:00:00Z","batch":[{},{},"bad",{{"event":"nameless id"}}]}}"#,
        event("batch 1"),
        event("batch 2")
    );
    let requests: [(&str, Vec<u8>); 5] = [
        ("/capture/", event("single").into()),
        ("/e", format!("[{},{}]", event("array 1"), event("array 2")).into()),
        ("/batch/", batch.into()),
        ("/i/v0/e/", gzip(&event("gzip"))),
        ("/track", event("tracked").into()),
    ];
    for (path, body) in requests {
        let answer = connection.post(path, &body).unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"status":"Ok"}"#), "{path}");
    }

    let names = ["array 1", "array 2", "batch 1", "batch 2", "gzip", "single", "tracked"];
    let messages = read(&topics.captured);
    let landed: BTreeSet<String> = messages.iter().map(|message| captured(message).event).collect();
    assert_eq!(landed, names.iter().map(|name| (*name).to_owned()).collect());
    assert_eq!(messages.len(), names.len());
    for message in &messages {
        let value = captured(message);
        assert_eq!(message.key, format!("{TOKEN}:u-{}", value.event));
        assert_eq!(value.data, event(&value.event), "the event is as it was sent");
        assert_eq!(value.ip, "203.0.113.9");
        assert_eq!(value.sent_at.is_some(), value.event.starts_with("batch"));
        assert_eq!(Uuid::parse_str(&value.uuid).unwrap().get_version_num(), 7);
        let header = |name: &str| message.headers[name].clone();
        assert_eq!(header("token"), TOKEN);
        assert_eq!(header("distinct_id"), value.distinct_id);
        assert_eq!(header("event"), value.event);
        assert_eq!(header("uuid"), value.uuid);
        assert_eq!(header("now"), value.now);
        assert!(header("timestamp").parse::<i64>().unwrap() > 1_700_000_000_000);
    }

    let letters = read(&topics.dead_letter);
    let kept: BTreeSet<(String, Vec<u8>)> =
        letters.iter().map(|letter| (letter.headers["dlq_reason"].clone(), letter.value.clone())).collect();
    let expected = [
        ("malformed".to_owned(), br#""bad""#.to_vec()),
        ("invalid_distinct_id".to_owned(), br#"{"event":"nameless id"}"#.to_vec()),
    ];
    assert_eq!(kept, expected.into());
    assert!(letters.iter().all(|letter| letter.headers["dlq_step"] == "capture"));

    let metrics = capture.admin("/metrics").1;
    assert!(metrics.contains("penstock_capture_events_total 7"), "{metrics}");
    assert!(metrics.contains(r#"penstock_capture_dead_letters_total{reason="malformed"} 1"#), "{metrics}");
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_large_batch_of_one_person_keeps_its_order() {
    const EVENTS: usize = 20_000;
    let topics = Topics::named("order");
    topics.create();
    let capture = Capture::start(&bootstrap(), &topics, |config| config);
    capture.wait_ready();
    let events: Vec<String> =
        (0..EVENTS).map(|number| format!(r#"{{"event":"{number}","distinct_id":"u"}}"#)).collect();
    let body = gzip(&format!(r#"{{"api_key":"{TOKEN}","batch":[{}]}}"#, events.join(",")));
    let started = Instant::now();
    assert_eq!(Connection::open(capture.address).unwrap().post("/batch", &body).unwrap().status, 200);
    println!("{EVENTS} events of one request acknowledged in {:?}", started.elapsed());
    let order: Vec<usize> =
        read(&topics.captured).iter().map(|message| message.headers["event"].parse().unwrap()).collect();
    assert!(order.iter().copied().eq(0..EVENTS), "the order of one key has changed");
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn kafka_out_of_reach_is_503_and_not_ready() {
    let topics = Topics::named("unreachable");
    let capture = Capture::start("127.0.0.1:1", &topics, |config| {
        config.replace("deliveryTimeoutMs: 5000", "deliveryTimeoutMs: 1000")
    });
    let body = format!(r#"{{"event":"a","distinct_id":"u","token":"{TOKEN}"}}"#);
    let started = Instant::now();
    let answer = Connection::open(capture.address).unwrap().post("/e", body.as_bytes()).unwrap();
    assert_eq!(answer.status, 503);
    assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    let (status, report) = capture.admin("/readyz");
    assert!(status == 503 && report.contains("kafka"), "{report}");
    assert_eq!(capture.admin("/healthz").0, 200);
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn what_was_answered_503_does_not_land_later() {
    let topics = Topics::named("late");
    let capture = Capture::start(&bootstrap(), &topics, |config| {
        config.replace("deliveryTimeoutMs: 5000", "deliveryTimeoutMs: 1000")
    });
    let body = |name: &str| format!(r#"{{"event":"{name}","distinct_id":"u","token":"{TOKEN}"}}"#);
    let mut connection = Connection::open(capture.address).unwrap();
    // The topic does not exist yet, so that the messages wait in the producer.
    let early = connection.post("/e", body("early").as_bytes()).unwrap();
    assert_eq!(early.status, 503);
    assert!(capture.admin("/readyz").1.contains("does not exist"), "{:?}", capture.admin("/readyz"));
    topics.create();
    until("capture takes events", Duration::from_secs(60), || {
        connection.post("/e", body("late").as_bytes()).unwrap().status == 200
    });
    capture.wait_ready();
    let events: BTreeSet<String> =
        read(&topics.captured).iter().map(|message| captured(message).event).collect();
    assert_eq!(events, ["late".to_owned()].into());
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn projects_change_while_capture_runs_and_a_bad_list_changes_nothing() {
    let topics = Topics::named("projects");
    topics.create();
    let capture = Capture::start(&bootstrap(), &topics, |config| config);
    capture.wait_ready();
    let mut connection = Connection::open(capture.address).unwrap();
    let mut status = |token: &str| {
        let body = format!(r#"{{"event":"a","distinct_id":"u","token":"{token}"}}"#);
        connection.post("/e", body.as_bytes()).unwrap().status
    };
    assert_eq!((status(TOKEN), status("phc_new")), (200, 401));
    capture.write_projects("- {id: 2, name: new, token: phc_new}\n");
    until("the new project is known", Duration::from_secs(10), || status("phc_new") == 200);
    assert_eq!(status(TOKEN), 401);
    capture.write_projects("- {id: nonsense}\n");
    until("the bad list is told", Duration::from_secs(10), || {
        capture.admin("/metrics").1.contains(r#"penstock_live_file_stale{file="projects"} 1"#)
    });
    assert_eq!(status("phc_new"), 200);
    assert_eq!(capture.admin("/readyz").0, 200);
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn slow_senders_are_408_and_do_not_hold_up_the_others() {
    let topics = Topics::named("slow");
    topics.create();
    let capture = Capture::start(&bootstrap(), &topics, |config| {
        config
            .replace("requestTimeoutMs: 10000", "requestTimeoutMs: 8000")
            .replace("maxConcurrentRequests: 64", "maxConcurrentRequests: 4")
    });
    capture.wait_ready();
    let body = format!(r#"{{"event":"a","distinct_id":"u","token":"{TOKEN}"}}"#);
    // As many requests as are handled at once, whose bodies never come.
    let mut slow: Vec<Connection> = (0..4).map(|_| Connection::open(capture.address).unwrap()).collect();
    for connection in &mut slow {
        connection.write(b"POST /e HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n{").unwrap();
    }
    // Asked from outside: another request could take a place before the last of them.
    until("all places are taken", Duration::from_secs(20), || {
        capture.admin("/metrics").1.contains("penstock_capture_requests_in_flight 4\n")
    });
    let mut connection = Connection::open(capture.address).unwrap();
    assert_eq!(connection.post("/e", body.as_bytes()).unwrap().status, 503);
    for connection in &mut slow {
        assert_eq!(connection.answer().unwrap().status, 408);
    }
    assert_eq!(connection.post("/e", body.as_bytes()).unwrap().status, 200);
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn bombs_sent_at_once_take_no_more_memory_than_allowed() {
    const CLIENTS: usize = 24;
    let topics = Topics::named("bombs");
    topics.create();
    let capture = Capture::start(&bootstrap(), &topics, |config| {
        config.replace("maxInFlightBytes: 134217728", "maxInFlightBytes: 41943040")
    });
    capture.wait_ready();
    // 19 MB of JSON in 20 kB, and 200 MB in 200 kB.
    let padded = |megabytes: usize| {
        gzip(&format!(r#"{{"api_key":"{TOKEN}","batch":[{}7]}}"#, " ".repeat(megabytes * 1_000_000)))
    };
    let (large, bomb) = (padded(19), padded(200));
    let statuses: BTreeSet<u16> = thread::scope(|scope| {
        let send = |index: usize| {
            let body = if index.is_multiple_of(2) { &large } else { &bomb };
            let mut connection = Connection::open(capture.address).unwrap();
            (0..5).map(|_| connection.post("/batch", body).unwrap().status).collect::<Vec<u16>>()
        };
        let senders: Vec<_> = (0..CLIENTS).map(|index| scope.spawn(move || send(index))).collect();
        senders.into_iter().flat_map(|sender| sender.join().unwrap()).collect()
    });
    // The large one has no good event; the bomb is too large; both may meet a server that is full.
    assert!(statuses.is_subset(&[400, 413, 503].into()), "{statuses:?}");
    assert!(statuses.contains(&400), "{statuses:?}");
    assert_eq!(Connection::open(capture.address).unwrap().post("/batch", &bomb).unwrap().status, 413);
    let peak = capture.peak_memory_bytes();
    println!("peak memory {} MB, statuses {statuses:?}", peak / 1_000_000);
    assert!(peak < 110_000_000, "{peak} bytes at the peak");
    until("memory is given back", Duration::from_secs(5), || {
        capture.admin("/metrics").1.contains("penstock_capture_in_flight_bytes 0\n")
    });
}

/// What clients on connections of their own have seen.
#[derive(Default)]
struct Account {
    acknowledged: Mutex<BTreeSet<String>>,
    /// Requests that were sent whole and had no answer, or another one than 200.
    dropped: Mutex<Vec<String>>,
    requests: AtomicU64,
    told_to_close: AtomicU64,
}

/// Clients that send one event after another, keep their connection as long as the server does, and stop when nobody
/// listens any more.
fn clients(
    capture: &Capture,
    count: usize,
    account: &Arc<Account>,
    stop: &Arc<AtomicBool>,
) -> Vec<thread::JoinHandle<()>> {
    let address = capture.address;
    let client = move |account: &Account, stop: &AtomicBool| {
        let mut connection: Option<Connection> = None;
        while !stop.load(Ordering::Relaxed) {
            let current = match connection.take() {
                Some(connection) => connection,
                None => match Connection::open(address) {
                    Ok(connection) => connection,
                    // Nobody listens: this client would now be sent to another pod.
                    Err(_) => return,
                },
            };
            let mut current = current;
            let uuid = Uuid::now_v7().to_string();
            let body = format!(r#"{{"event":"a","distinct_id":"{uuid}","uuid":"{uuid}","token":"{TOKEN}"}}"#);
            account.requests.fetch_add(1, Ordering::Relaxed);
            match current.post("/e", body.as_bytes()) {
                Ok(answer) if answer.status == 200 => {
                    account.acknowledged.lock().unwrap().insert(uuid);
                    if answer.closes() {
                        account.told_to_close.fetch_add(1, Ordering::Relaxed);
                    } else {
                        connection = Some(current);
                    }
                }
                Ok(answer) => account.dropped.lock().unwrap().push(format!("{uuid}: {}", answer.status)),
                Err(error) => account.dropped.lock().unwrap().push(format!("{uuid}: {error}")),
            }
        }
    };
    (0..count)
        .map(|_| {
            let (account, stop) = (Arc::clone(account), Arc::clone(stop));
            thread::spawn(move || client(&account, &stop))
        })
        .collect()
}

fn stored_uuids(topics: &Topics) -> BTreeSet<String> {
    let messages = read(&topics.captured);
    let uuids: BTreeSet<String> = messages.iter().map(|message| message.headers["uuid"].clone()).collect();
    assert_eq!(uuids.len(), messages.len(), "an event lies in Kafka twice");
    uuids
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn stopping_under_load_drops_no_request() {
    let topics = Topics::named("sigterm");
    topics.create();
    let mut capture = Capture::start(&bootstrap(), &topics, |config| config);
    capture.wait_ready();
    let (account, stop) = (Arc::new(Account::default()), Arc::new(AtomicBool::new(false)));
    let clients = clients(&capture, 16, &account, &stop);
    thread::sleep(Duration::from_secs(2));
    capture.signal(Signal::SIGTERM);
    thread::sleep(Duration::from_millis(300));
    let (status, report) = capture.admin("/readyz");
    assert!(status == 503 && report.contains("SIGTERM"), "{report}");
    for client in clients {
        client.join().unwrap();
    }
    let exit = capture.wait();
    assert!(exit.success(), "{exit}");

    let dropped = account.dropped.lock().unwrap().clone();
    let acknowledged = account.acknowledged.lock().unwrap().clone();
    println!(
        "{} requests, {} of them told to close their connection, {} dropped",
        account.requests.load(Ordering::Relaxed),
        account.told_to_close.load(Ordering::Relaxed),
        dropped.len()
    );
    assert!(acknowledged.len() > 200, "{} requests are no load", acknowledged.len());
    assert!(account.told_to_close.load(Ordering::Relaxed) > 0);
    assert_eq!(dropped, Vec::<String>::new());
    assert_eq!(stored_uuids(&topics), acknowledged);
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn what_was_acknowledged_before_a_kill_lies_in_kafka() {
    let topics = Topics::named("sigkill");
    topics.create();
    let mut capture = Capture::start(&bootstrap(), &topics, |config| config);
    capture.wait_ready();
    let (account, stop) = (Arc::new(Account::default()), Arc::new(AtomicBool::new(false)));
    let clients = clients(&capture, 16, &account, &stop);
    thread::sleep(Duration::from_secs(2));
    capture.signal(Signal::SIGKILL);
    capture.wait();
    for client in clients {
        client.join().unwrap();
    }
    let acknowledged = account.acknowledged.lock().unwrap().clone();
    let stored = stored_uuids(&topics);
    println!("{} acknowledged, {} in Kafka", acknowledged.len(), stored.len());
    assert!(acknowledged.len() > 200, "{} requests are no load", acknowledged.len());
    assert!(
        acknowledged.is_subset(&stored),
        "{} acknowledged events are lost",
        acknowledged.difference(&stored).count()
    );
}
