//! The consumer's binary on a real Kafka: started, killed and stopped as in a cluster.

#[path = "../../pipeline/tests/cluster/mod.rs"]
mod cluster;

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cluster::{Cluster, TIMEOUT};
use penstock_pipeline::{
    config::{Admin, ConsumerConfig, Identity, KafkaConnection},
    events::ingested::IngestedEvent,
};
use serde_json::json;

/// A running consumer. Killed when it is dropped.
struct Consumer {
    process: Child,
    admin: std::net::SocketAddr,
}

struct World {
    cluster: Cluster,
    captured: String,
    ingested: String,
    dead_letter: String,
    files: tempfile::TempDir,
}

impl World {
    fn new(test: &str) -> Self {
        let mut cluster = Cluster::new(test);
        let captured = cluster.topic("captured", 6);
        let ingested = cluster.topic("ingested", 6);
        let dead_letter = cluster.topic("dead-letter", 2);
        let files = tempfile::tempdir().expect("a directory");
        let world = Self { cluster, captured, ingested, dead_letter, files };
        world.write_projects(r#"[{"id": 7, "name": "web", "token": "phc_a"}]"#);
        world
    }

    fn projects(&self) -> PathBuf {
        self.files.path().join("projects.yaml")
    }

    fn write_projects(&self, list: &str) {
        fs::write(self.projects(), list).expect("the projects are written");
    }

    fn config(&self, admin: std::net::SocketAddr) -> ConsumerConfig {
        ConsumerConfig {
            identity: Identity {
                namespace: "test".into(),
                pipeline: "web".into(),
                component: "consumer-main".into(),
            },
            admin: Admin { listen: admin, stall_after_ms: 30_000 },
            kafka: KafkaConnection::plaintext(self.cluster.kafka.bootstrap_servers()),
            source: self.cluster.source(&self.captured),
            transaction: self.cluster.transaction(),
            sink: self.ingested.clone(),
            dead_letter: self.dead_letter.clone(),
            projects_file: self.projects(),
        }
    }

    fn start(&self, pod: &str) -> Consumer {
        // Free a moment ago, which is enough on loopback.
        let admin = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
        let file = self.files.path().join(format!("{}.yaml", admin.port()));
        fs::write(&file, serde_json::to_string(&self.config(admin)).expect("JSON, which is YAML"))
            .expect("the configuration is written");
        let process = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .arg("--config")
            .arg(&file)
            .env("POD_NAME", pod)
            .stdout(Stdio::null())
            .spawn()
            .expect("the consumer starts");
        Consumer { process, admin }
    }
}

impl Consumer {
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
    }

    fn wait_until_ready(&self) {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match self.get("/readyz") {
                Some((200, _)) => return,
                other => assert!(Instant::now() < deadline, "not ready: {other:?}"),
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn kill(mut self) {
        self.process.kill().expect("killed");
        self.process.wait().expect("gone");
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        assert!(sent.expect("the signal is sent").success());
    }

    /// Stops it as the kubelet does, and gives the exit code.
    fn terminate(mut self) -> Option<i32> {
        self.signal("TERM");
        let deadline = Instant::now() + TIMEOUT;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait().expect("its state") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("it does not stop");
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // Gone already, after `kill` and `terminate`.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn uuid(n: u64) -> String {
    format!("0198b6a2-5c2a-7e3b-8a52-{n:012x}")
}

/// Message number `n`: every 20th can never be an event, each in another way.
fn message(n: u64) -> (String, Option<&'static str>) {
    let distinct_id = format!("visitor-{}", n % 101);
    let mut message = json!({
        "uuid": uuid(n), "distinct_id": distinct_id, "ip": "203.0.113.9", "token": "phc_a", "event": "pageview",
        "data": format!(r#"{{"event":"pageview","properties":{{"n":{n},"big":123456789012345678901234567890}}}}"#),
        "now": "2026-02-01T00:00:01.000002Z", "timestamp": "2026-01-31T23:59:59.5Z",
    });
    if !n.is_multiple_of(20) {
        return (message.to_string(), None);
    }
    match n / 20 % 6 {
        0 => (format!("{{\"broken\": {n}"), Some("malformed")),
        1 => {
            message["data"] = json!("[]");
            (message.to_string(), Some("malformed_data"))
        }
        2 => {
            message["uuid"] = json!("no uuid");
            (message.to_string(), Some("invalid_uuid"))
        }
        3 => {
            message["token"] = json!("phc_unknown");
            (message.to_string(), Some("unknown_token"))
        }
        4 => {
            message["event"] = json!("");
            message["data"] = json!("{}");
            (message.to_string(), Some("missing_event"))
        }
        _ => {
            message["distinct_id"] = json!("x".repeat(401));
            (message.to_string(), Some("invalid_distinct_id"))
        }
    }
}

fn load(world: &World, range: std::ops::Range<u64>) {
    let keys: Vec<String> = (0..101).map(|n| format!("phc_a:visitor-{n}")).collect();
    world.cluster.produce(&world.captured, range.map(|n| (keys[(n % 101) as usize].as_str(), message(n).0)));
}

/// Every message of `load(0..messages)` is an event or a dead letter, once, whole, and in the order of its person.
fn assert_exactly_once(world: &World, messages: u64) {
    let mut found = BTreeMap::new();
    let mut last: BTreeMap<String, u64> = BTreeMap::new();
    for record in world.cluster.read(&world.ingested) {
        let event: IngestedEvent = serde_json::from_str(record.text()).expect("an ingested event");
        assert!(found.insert(event.uuid.clone(), ()).is_none(), "{} is there twice", event.uuid);
        let n = u64::from_str_radix(event.uuid.rsplit('-').next().unwrap_or_default(), 16).expect("a number");
        // The very digits that were sent.
        let expected = format!(r#"{{"n":{n},"big":123456789012345678901234567890,"$ip":"203.0.113.9"}}"#);
        assert_eq!(event.properties, expected);
        if let Some(before) = last.insert(event.distinct_id.clone(), n) {
            assert!(before < n, "{}: {n} came after {before}", event.distinct_id);
        }
    }
    assert_eq!(found.len() as u64, messages - messages / 20, "events");

    let mut expected: Vec<(String, &str)> =
        (0..messages).map(message).filter_map(|(text, reason)| Some((text, reason?))).collect();
    let letters = world.cluster.read(&world.dead_letter);
    let mut found: Vec<(String, &str)> = letters
        .iter()
        .map(|letter| (letter.text().to_owned(), letter.header("dlq_reason").unwrap_or_default()))
        .collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert!(expected == found, "{} dead letters of {}", found.len(), expected.len());
    assert!(letters.iter().all(|letter| letter.header("dlq_step") == Some("consumer-main")));
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn nothing_is_lost_or_doubled_while_it_is_killed_again_and_again() {
    const MESSAGES: u64 = 30_000;
    let world = World::new("consumer");
    load(&world, 0..MESSAGES / 2);
    let mut kills = 0;
    std::thread::scope(|scope| {
        let producing = scope.spawn(|| load(&world, MESSAGES / 2..MESSAGES));
        // Restarts of one container keep the pod's name; a new pod has another.
        for pod in ["pod-0", "pod-0", "pod-1", "pod-0"] {
            let before = world.cluster.end(&world.ingested);
            let consumer = world.start(pod);
            world.cluster.wait_for_growth(&world.ingested, before);
            consumer.kill();
            kills += 1;
        }
        producing.join().expect("everything was produced");
    });
    let consumer = world.start("pod-2");
    consumer.wait_until_ready();
    let started = Instant::now();
    world.cluster.wait_for_no_lag(&world.captured, Duration::from_secs(60));
    println!("{kills} kills; the last consumer was done after {:.1} s", started.elapsed().as_secs_f64());

    assert_exactly_once(&world, MESSAGES);

    assert_eq!(consumer.get("/healthz").map(|(status, _)| status), Some(200));
    let (_, metrics) = consumer.get("/metrics").expect("metrics");
    assert!(metrics.contains("penstock_messages_read_total"), "{metrics}");
    assert_eq!(consumer.terminate(), Some(0));
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_process_that_was_frozen_writes_nothing_when_it_wakes() {
    const MESSAGES: u64 = 60_000;
    let world = World::new("frozen");
    load(&world, 0..MESSAGES / 2);
    let sleeper = world.start("pod-0");
    world.cluster.wait_for_growth(&world.ingested, 0);
    sleeper.signal("STOP");
    let frozen = Instant::now();
    // Takes the partitions over when the session of the first one is over, and reads what it left behind.
    let successor = world.start("pod-1");
    load(&world, MESSAGES / 2..MESSAGES);
    world.cluster.wait_for_no_lag(&world.captured, Duration::from_secs(60));
    println!("taken over {:.1} s after the freeze", frozen.elapsed().as_secs_f64());
    sleeper.signal("CONT");
    // Long enough for it to try what it had in hand, to be refused, and to join again.
    std::thread::sleep(Duration::from_secs(8));
    assert_exactly_once(&world, MESSAGES);
    load(&world, MESSAGES..MESSAGES + 2_000);
    world.cluster.wait_for_no_lag(&world.captured, Duration::from_secs(60));
    assert_exactly_once(&world, MESSAGES + 2_000);
    sleeper.wait_until_ready();
    assert_eq!((sleeper.terminate(), successor.terminate()), (Some(0), Some(0)));
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_new_project_is_known_without_a_restart_and_a_stop_is_quick() {
    let world = World::new("projects");
    let consumer = world.start("pod-0");
    consumer.wait_until_ready();
    world.write_projects(
        r#"[{"id": 7, "name": "web", "token": "phc_a"}, {"id": 8, "name": "shop", "token": "phc_b"}]"#,
    );
    // The file is looked at every two seconds.
    std::thread::sleep(Duration::from_secs(4));
    let text = message(1).0.replace("phc_a", "phc_b");
    world.cluster.produce(&world.captured, [("phc_b:visitor-1", text)]);
    world.cluster.wait_for_no_lag(&world.captured, TIMEOUT);
    let records = world.cluster.read(&world.ingested);
    let event: IngestedEvent = serde_json::from_str(records[0].text()).expect("an ingested event");
    assert_eq!(event.team_id, 8);
    let started = Instant::now();
    assert_eq!(consumer.terminate(), Some(0));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

/// User and system time of a process, seconds.
fn cpu_seconds(process: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("its state");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    // Ticks of 1/100 s, a part of Linux' interface.
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / 100.0
}

fn resident_mib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("its state");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_backlog_costs_little_processor_time_and_memory() {
    const MESSAGES: u64 = 200_000;
    let world = World::new("backlog");
    load(&world, 0..MESSAGES);
    let consumer = world.start("pod-0");
    let started = Instant::now();
    world.cluster.wait_for_no_lag(&world.captured, Duration::from_secs(120));
    let (seconds, cpu, memory) = (
        started.elapsed().as_secs_f64(),
        cpu_seconds(consumer.process.id()),
        resident_mib(consumer.process.id()),
    );
    let per_million = cpu * 1e6 / MESSAGES as f64;
    println!(
        "{MESSAGES} messages in {seconds:.1} s; {per_million:.1} CPU seconds per million; at most {memory} MiB resident"
    );
    assert!(per_million < 30.0, "{per_million:.1} CPU seconds per million messages");
    assert!(memory < 256, "{memory} MiB");
    assert_eq!(consumer.terminate(), Some(0));
}

#[test]
fn a_configuration_that_cannot_work_is_refused_with_its_field() {
    let files = tempfile::tempdir().expect("a directory");
    let file = files.path().join("config.yaml");
    for (change, expected) in
        [("transaction:\n  maxWaitMs: 1", "missing field"), ("nonsense: 1", "unknown field `nonsense`")]
    {
        fs::write(&file, change).expect("written");
        let output = Command::new(env!("CARGO_BIN_EXE_consumer"))
            .arg("--check-config")
            .arg(&file)
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(2));
        let reason = String::from_utf8_lossy(&output.stderr);
        assert!(reason.contains(expected), "{reason}");
    }
}
