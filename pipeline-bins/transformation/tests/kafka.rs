//! The binary on a real Kafka: every event of `ingested` has exactly one outcome, also when the process is killed.

#![allow(clippy::unwrap_used, reason = "a test ends where it fails")]

use std::{
    collections::BTreeMap,
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Headers, OwnedMessage},
    producer::{BaseRecord, Producer, ThreadedProducer},
};
use serde_json::{Value, json};

const PARTITIONS: i32 = 3;
const EVENTS: usize = 6_000;

/// What is done to an event, by its number.
const KINDS: [&str; 6] = ["changed", "dropped", "failed", "passed", "untouched", "malformed"];

const STEPS: &str = r#"
- name: drop
  onError: deadLetter
  vrl: 'if .event == "dropped" { abort }'
- name: hash
  onError: deadLetter
  vrl: 'if .event == "changed" { .properties.email = sha2(string!(.properties.email)) }'
- name: strict
  onError: deadLetter
  vrl: 'if .event == "failed" { .properties.n = to_int!(.properties.email) }'
- name: lenient
  onError: pass
  vrl: |
    if .event == "passed" {
      .event = "half done"
      .properties.n = to_int!(.properties.email)
    }
"#;

struct Topics {
    kafka: String,
    prefix: String,
    admin: AdminClient<DefaultClientContext>,
}

impl Topics {
    fn name(&self, stage: &str) -> String {
        format!("{}{stage}", self.prefix)
    }

    fn names(&self) -> [String; 3] {
        ["ingested", "transformed", "dead-letter"].map(|stage| self.name(stage))
    }

    async fn create() -> Self {
        let kafka = std::env::var("PENSTOCK_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:19092".to_owned());
        let unique = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros();
        let prefix = format!("test.transformation-{}-{unique}.", std::process::id());
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &kafka).create().unwrap();
        let topics = Self { kafka, prefix, admin };
        let names = topics.names();
        let new = names.iter().map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)));
        for result in
            topics.admin.create_topics(new.collect::<Vec<_>>().iter(), &AdminOptions::new()).await.unwrap()
        {
            result.unwrap();
        }
        topics
    }

    async fn delete(self) {
        let names = self.names();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        self.admin.delete_topics(&names, &AdminOptions::new()).await.unwrap();
        let group = format!("{}transformation", self.prefix);
        // The broker forgets the group by itself when the last member has not left yet.
        let _ = self.admin.delete_groups(&[&group], &AdminOptions::new()).await;
    }

    fn produce(&self, events: impl Iterator<Item = (String, String)>) {
        let producer: ThreadedProducer<_> = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .set("partitioner", "murmur2_random")
            .set("linger.ms", "20")
            .create()
            .unwrap();
        let topic = self.name("ingested");
        for (key, value) in events {
            producer
                .send(BaseRecord::to(&topic).key(&key).payload(&value))
                .map_err(|(error, _)| error)
                .unwrap();
        }
        producer.flush(Duration::from_secs(20)).unwrap();
    }

    /// Committed messages, once there are as many as expected and no more come for a while.
    fn consume(&self, stage: &str, expected: usize) -> Vec<OwnedMessage> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.kafka)
            .set("group.id", format!("{}reader", self.prefix))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()
            .unwrap();
        let mut assignment = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            assignment.add_partition_offset(&self.name(stage), partition, Offset::Beginning).unwrap();
        }
        consumer.assign(&assignment).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut quiet_since = Instant::now();
        let mut messages = Vec::new();
        while Instant::now() < deadline
            && (messages.len() < expected || quiet_since.elapsed() < Duration::from_secs(3))
        {
            if let Some(message) = consumer.poll(Duration::from_millis(200)) {
                messages.push(message.unwrap().detach());
                quiet_since = Instant::now();
            }
        }
        messages
    }
}

fn start(topics: &Topics, directory: &std::path::Path) -> Child {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = json!({
        "identity": {"namespace": "test", "pipeline": "web", "component": "transformation"},
        "admin": {"listen": format!("127.0.0.1:{port}"), "stallAfterMs": 60_000},
        "kafka": {"bootstrapServers": topics.kafka},
        "source": {
            "topic": topics.name("ingested"), "group": topics.name("transformation"), "startFrom": "earliest",
            "sessionTimeoutMs": 6_000, "maxPollIntervalMs": 60_000
        },
        "transaction": {
            "idPrefix": format!("{}transformation.", topics.prefix), "timeoutMs": 10_000, "maxMessages": 500,
            "maxBytes": 1_000_000, "maxWaitMs": 50
        },
        "sink": topics.name("transformed"),
        "deadLetter": topics.name("dead-letter"),
        "eventTimeBudgetMs": 100,
        "steps": serde_yaml_ng::from_str::<Value>(STEPS).unwrap(),
    });
    let path = directory.join("config.yaml");
    fs::write(&path, config.to_string()).unwrap();
    Command::new(env!("CARGO_BIN_EXE_transformation"))
        .arg("--config")
        .arg(path)
        .env("POD_NAME", "transformation-0")
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn event(number: usize) -> (String, String) {
    let person = format!("person-{}", number % 50);
    let kind = KINDS[number % KINDS.len()];
    let value = if kind == "malformed" {
        format!("{{\"number\": {number}")
    } else {
        json!({
            "uuid": format!("00000000-0000-4000-8000-{number:012}"), "event": kind,
            "properties": json!({"email": format!("{number}@example.com")}).to_string(),
            "timestamp": "2026-11-24 12:00:00.000000", "team_id": 1, "distinct_id": person,
        })
        .to_string()
    };
    (format!("phc_test:{person}"), value)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka; make test provides it"]
async fn every_event_has_exactly_one_outcome_although_the_process_is_killed() {
    let topics = Topics::create().await;
    topics.produce((0..EVENTS / 2).map(event));
    let directory = tempfile::tempdir().unwrap();
    let mut process = start(&topics, directory.path());
    // Somewhere in the middle of its transactions.
    let _ = topics.consume("transformed", 1).len();
    topics.produce((EVENTS / 2..EVENTS).map(event));
    std::thread::sleep(Duration::from_millis(120));
    process.kill().unwrap();
    process.wait().unwrap();
    let mut process = start(&topics, directory.path());

    let each = EVENTS / KINDS.len();
    let transformed = topics.consume("transformed", 3 * each);
    let dead = topics.consume("dead-letter", 2 * each);
    process.kill().unwrap();
    process.wait().unwrap();
    let sent: BTreeMap<String, (String, String)> =
        (0..EVENTS).map(event).map(|(key, value)| (value.clone(), (key, value))).collect();

    let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
    let mut uuids = BTreeMap::new();
    let mut last = BTreeMap::new();
    for message in &transformed {
        let value: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        let name = value["event"].as_str().unwrap().to_owned();
        let properties: Value = serde_json::from_str(value["properties"].as_str().unwrap()).unwrap();
        match name.as_str() {
            "changed" => assert_eq!(properties["email"].as_str().unwrap().len(), 64),
            // Not changed in anything, "half done" least of all.
            _ => assert!(sent.contains_key(std::str::from_utf8(message.payload().unwrap()).unwrap())),
        }
        let person = value["distinct_id"].as_str().unwrap().to_owned();
        assert_eq!(message.key().unwrap(), format!("phc_test:{person}").as_bytes());
        let uuid = value["uuid"].as_str().unwrap().to_owned();
        if let Some(before) = last.insert(person, uuid.clone()) {
            assert!(before < uuid, "{before} came before {uuid}: the order of a person is not kept");
        }
        *uuids.entry(uuid).or_insert(0) += 1;
        *outcomes.entry(name).or_default() += 1;
    }
    assert_eq!(uuids.values().max(), Some(&1), "an event was written twice");
    let expected = ["changed", "passed", "untouched"].map(|name| (name.to_owned(), each));
    assert_eq!(outcomes, BTreeMap::from(expected));

    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut originals = BTreeMap::new();
    for message in &dead {
        let headers: BTreeMap<_, _> = message
            .headers()
            .unwrap()
            .iter()
            .map(|header| {
                (header.key, String::from_utf8_lossy(header.value.unwrap_or_default()).into_owned())
            })
            .collect();
        let value = std::str::from_utf8(message.payload().unwrap()).unwrap();
        let (key, _) = sent.get(value).expect("the bytes of a dead letter are those that were read");
        assert_eq!(message.key().unwrap(), key.as_bytes());
        *originals.entry(value.to_owned()).or_insert(0) += 1;
        if headers["dlq_reason"] == "transformation_failed" {
            assert!(headers["dlq_detail"].starts_with("step strict: "), "{headers:?}");
        }
        *reasons.entry(headers["dlq_reason"].clone()).or_default() += 1;
    }
    assert_eq!(originals.values().max(), Some(&1), "a dead letter was written twice");
    let expected = ["transformation_failed", "malformed"].map(|reason| (reason.to_owned(), each));
    assert_eq!(reasons, BTreeMap::from(expected));
    topics.delete().await;
}

/// What `--check-config` says of a configuration that it refuses.
fn refusal(change: impl FnOnce(&mut Value)) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.yaml");
    let mut config = json!({
        "identity": {"namespace": "test", "pipeline": "web", "component": "transformation"},
        "admin": {"listen": "127.0.0.1:9090", "stallAfterMs": 60_000},
        "kafka": {"bootstrapServers": "127.0.0.1:9092"},
        "source": {
            "topic": "a", "group": "g", "startFrom": "earliest", "sessionTimeoutMs": 6_000,
            "maxPollIntervalMs": 60_000
        },
        "transaction": {
            "idPrefix": "t.", "timeoutMs": 10_000, "maxMessages": 500, "maxBytes": 1_000_000, "maxWaitMs": 50
        },
        "sink": "b", "deadLetter": "c", "eventTimeBudgetMs": 100,
        "steps": [{"name": "clock", "onError": "pass", "vrl": "true"}],
    });
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_transformation")).arg("--check-config").arg(path).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_configuration_with_a_broken_program_is_refused_with_the_compilers_words() {
    let text = refusal(|config| config["steps"][0]["vrl"] = ".timestamp = now()".into());
    assert!(text.contains("steps[0] (clock): the program does not compile:"), "{text}");
    assert!(text.contains("error at line 1, column 14: the function now is not available"), "{text}");
}

#[test]
fn a_transaction_that_the_broker_would_abort_is_refused() {
    let text = refusal(|config| config["transaction"]["maxWaitMs"] = 9_000.into());
    assert!(text.contains("transaction.maxWaitMs must be at most half"), "{text}");
}
