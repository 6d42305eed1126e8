//! A topic, a dead-letter topic, a database, and processes that export from one to the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use penstock_pipeline::{
    config::{
        Admin, BlockLimits, ClickHouseDestination, ClickHouseShard, Destination, ExportConfig, Identity,
        KafkaConnection, RetryConfig, Source, StartFrom,
    },
    events::ingested::IngestedEvent,
    kafka::admin::{self, Isolation, NewTopic, OffsetSpec},
};
use penstock_platform::shards::Shards;
use rdkafka::{
    ClientConfig, Message,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
    util::Timeout,
};

use super::warehouse::{self, LOCAL, clickhouse, run_sql};

pub fn kafka() -> String {
    std::env::var("PENSTOCK_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:19092".into())
}

const PATIENCE: Duration = Duration::from_secs(10);

pub struct World {
    pub name: String,
    pub topic: String,
    pub dead_letter: String,
    pub group: String,
    pub database: String,
    pub partitions: i32,
    /// Where the table `events` is read.
    warehouse: String,
    /// Of a cluster, whose servers end with the test; none: the server is everybody's.
    shards: Vec<ClickHouseShard>,
    directory: tempfile::TempDir,
    consumer: BaseConsumer,
    producer: ThreadedProducer<DefaultProducerContext>,
}

impl World {
    pub fn new(what: &str, partitions: i32) -> Self {
        let world = Self::without_tables(what, partitions, clickhouse(), Vec::new());
        world.sql(&format!("CREATE DATABASE {}", world.database));
        world.create_table();
        world
    }

    /// On servers of the test's own: on each the rows in `events_local`, and `events` distributed over all of them.
    pub fn sharded(what: &str, partitions: i32, servers: &Shards) -> Self {
        let weights: Vec<u32> = servers.weights().collect();
        let shards = (0..).zip(weights);
        let shards: Vec<_> = shards
            .map(|(shard, weight)| ClickHouseShard { weight, replicas: vec![servers.url(shard)] })
            .collect();
        let world = Self::without_tables(what, partitions, servers.url(0), shards);
        for shard in 0..world.shards.len() {
            warehouse::create_shard(&servers.url(shard), &world.database);
        }
        world
    }

    fn without_tables(what: &str, partitions: i32, warehouse: String, shards: Vec<ClickHouseShard>) -> Self {
        let name = format!("exporttest_{what}_{}", super::unique());
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", kafka());
        let producer = config
            .clone()
            .set("enable.idempotence", "true")
            .set("queue.buffering.max.messages", "0")
            .set("linger.ms", "20")
            .create()
            .unwrap();
        let world = Self {
            topic: format!("{name}.ingested"),
            dead_letter: format!("{name}.dead-letter"),
            group: format!("{name}.export-test"),
            database: name.clone(),
            partitions,
            warehouse,
            shards,
            directory: tempfile::tempdir().unwrap(),
            consumer: config.create().unwrap(),
            producer,
            name,
        };
        for (topic, partitions) in [(&world.topic, partitions), (&world.dead_letter, 1)] {
            let topic = NewTopic {
                name: topic.clone(),
                partitions,
                replication_factor: Some(1),
                config: BTreeMap::new(),
            };
            admin::create_topic(world.consumer.client(), &topic, PATIENCE).unwrap();
        }
        world
    }

    /// The table as the operator makes it. Merges are stopped, so that nothing hides a duplicate.
    pub fn create_table(&self) {
        self.sql(&warehouse::rows_table(&self.database, "events"));
        self.sql(&format!("SYSTEM STOP MERGES {}.events", self.database));
    }

    /// Deletes the topic and makes another of the same name.
    pub fn recreate_topic(&self) {
        admin::delete_topic(self.consumer.client(), &self.topic, PATIENCE).unwrap();
        std::thread::sleep(Duration::from_secs(1));
        let topic = NewTopic {
            name: self.topic.clone(),
            partitions: self.partitions,
            replication_factor: Some(1),
            config: BTreeMap::new(),
        };
        admin::create_topic(self.consumer.client(), &topic, PATIENCE).unwrap();
        std::thread::sleep(Duration::from_secs(1));
    }

    pub fn sql(&self, sql: &str) -> String {
        run_sql(&self.warehouse, sql)
    }

    pub fn config(&self, url: &str, block: BlockLimits) -> ExportConfig {
        ExportConfig {
            identity: Identity {
                namespace: "test".into(),
                pipeline: self.name.clone(),
                component: "export-test".into(),
            },
            admin: Admin { listen: "127.0.0.1:0".parse().unwrap(), stall_after_ms: 60_000 },
            kafka: KafkaConnection::plaintext(kafka()),
            source: Source {
                topic: self.topic.clone(),
                group: self.group.clone(),
                start_from: StartFrom::Earliest,
                session_timeout_ms: 6000,
                max_poll_interval_ms: 60_000,
            },
            dead_letter: self.dead_letter.clone(),
            where_: None,
            destination: Destination::ClickHouse(ClickHouseDestination {
                url: url.to_owned(),
                tls: None,
                auth: None,
                database: self.database.clone(),
                table: if self.shards.is_empty() { "events" } else { LOCAL }.into(),
                shards: self.shards.clone(),
                block,
                insert_timeout_ms: 10_000,
                retry: RetryConfig { max_attempts: None, min_backoff_ms: 50, max_backoff_ms: 1000 },
            }),
        }
    }

    /// Starts the binary with this configuration, on an admin port of its own.
    pub fn start(&self, name: &str, config: &ExportConfig) -> Exporter {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut config = config.clone();
        config.admin.listen.set_port(port);
        let path = self.directory.path().join(format!("{name}.yaml"));
        fs::write(&path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
        let log = self.directory.path().join(format!("{name}.log"));
        let out = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_export"))
            .arg("--config")
            .arg(&path)
            .env("POD_NAME", name)
            .stdout(Stdio::from(out.try_clone().unwrap()))
            .stderr(Stdio::from(out))
            .spawn()
            .unwrap();
        Exporter { child, log, port }
    }

    /// Sends messages; the bad ones are of every kind that is no row.
    pub fn produce(&self, first: u64, count: u64, is_bad: impl Fn(u64) -> bool) {
        for number in first..first + count {
            let value = if is_bad(number) { bad_event(number) } else { event(number) };
            let key = format!("token:user-{}", number % 997);
            let mut record = BaseRecord::to(&self.topic)
                .key(&key)
                .payload(&value)
                .partition(partition_of(number, self.partitions));
            while let Err((_, back)) = self.producer.send(record) {
                record = back;
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.producer.flush(Timeout::After(Duration::from_secs(30))).unwrap();
    }

    pub fn log_ends(&self) -> BTreeMap<i32, i64> {
        let partitions: Vec<_> = (0..self.partitions).map(|p| (self.topic.as_str(), p)).collect();
        admin::list_offsets(
            self.consumer.client(),
            &partitions,
            OffsetSpec::Latest,
            Isolation::ReadUncommitted,
            PATIENCE,
        )
        .unwrap()
        .into_iter()
        .map(|((_, partition), end)| (partition, end.unwrap()))
        .collect()
    }

    pub fn committed(&self) -> BTreeMap<i32, (i64, String)> {
        let partitions: Vec<_> = (0..self.partitions).map(|p| (self.topic.as_str(), p)).collect();
        admin::committed_offsets(self.consumer.client(), &self.group, &partitions, PATIENCE)
            .unwrap()
            .into_iter()
            .filter_map(|((_, partition), committed)| {
                let committed = committed.ok()??;
                Some((partition, (committed.offset, String::from_utf8(committed.metadata).unwrap())))
            })
            .collect()
    }

    /// Waits until the group has committed everything.
    pub fn wait_until_exported(&self, patience: Duration) {
        let begun = Instant::now();
        loop {
            let (ends, committed) = (self.log_ends(), self.committed());
            let done = ends.iter().all(|(partition, end)| {
                committed
                    .get(partition)
                    .map_or(*end == 0, |(offset, metadata)| offset == end && !metadata.contains(".."))
            });
            if done {
                return;
            }
            assert!(
                begun.elapsed() < patience,
                "not exported within {patience:?}: ends {ends:?}, committed {committed:?}; logs in {:?}:\n{}",
                self.directory.path(),
                self.last_log_lines()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn last_log_lines(&self) -> String {
        let mut text = String::new();
        for file in fs::read_dir(self.directory.path()).unwrap().flatten() {
            if file.path().extension().is_some_and(|extension| extension == "log") {
                let log = fs::read_to_string(file.path()).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                text += &format!(
                    "--- {:?}\n{}\n",
                    file.file_name(),
                    lines[lines.len().saturating_sub(30)..].join("\n")
                );
            }
        }
        text
    }

    /// Every good message of the topic is in the table exactly once, and nothing else is.
    pub fn assert_exactly_once(&self, sent: u64, is_bad: impl Fn(u64) -> bool) {
        let mut expected: BTreeSet<(i32, i64)> = BTreeSet::new();
        let mut next: BTreeMap<i32, i64> = BTreeMap::new();
        for number in 0..sent {
            let partition = partition_of(number, self.partitions);
            let offset = next.entry(partition).or_default();
            if !is_bad(number) {
                expected.insert((partition, *offset));
            }
            *offset += 1;
        }
        let counts = self.sql(&format!(
            "SELECT count(), uniqExact(_partition, _offset), uniqExact(uuid), uniqExact(_topic_id) FROM {}.events FORMAT TSV",
            self.database
        ));
        let wanted = expected.len();
        assert_eq!(counts.trim(), format!("{wanted}\t{wanted}\t{wanted}\t1"), "rows, places, uuids, topics");
        let places =
            self.sql(&format!("SELECT _partition, _offset FROM {}.events FORMAT TSV", self.database));
        let found: BTreeSet<(i32, i64)> = places
            .lines()
            .map(|line| {
                let (partition, offset) = line.split_once('\t').unwrap();
                (partition.parse().unwrap(), offset.parse().unwrap())
            })
            .collect();
        assert_eq!(found, expected);
    }

    /// Keys of all dead letters, with the reason of each.
    pub fn dead_letters(&self) -> Vec<(String, String)> {
        let end = admin::list_offsets(
            self.consumer.client(),
            &[(self.dead_letter.as_str(), 0)],
            OffsetSpec::Latest,
            Isolation::ReadUncommitted,
            PATIENCE,
        )
        .unwrap()
        .into_values()
        .next()
        .unwrap()
        .unwrap();
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", kafka()).set("group.id", "none").create().unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition_offset(&self.dead_letter, 0, rdkafka::Offset::Beginning).unwrap();
        consumer.assign(&list).unwrap();
        let mut letters = Vec::new();
        while letters.len() < usize::try_from(end).unwrap() {
            let message = consumer.poll(Duration::from_secs(10)).expect("a dead letter").unwrap();
            let reason = message
                .headers()
                .unwrap()
                .iter()
                .find(|header| header.key == "dlq_reason")
                .and_then(|header| header.value)
                .unwrap();
            letters.push((
                String::from_utf8(message.key().unwrap().to_vec()).unwrap(),
                String::from_utf8(reason.to_vec()).unwrap(),
            ));
        }
        letters
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.last_log_lines());
        }
        let _ = admin::delete_topic(self.consumer.client(), &self.topic, PATIENCE);
        let _ = admin::delete_topic(self.consumer.client(), &self.dead_letter, PATIENCE);
        if self.shards.is_empty() {
            self.sql(&format!("DROP DATABASE IF EXISTS {}", self.database));
        }
    }
}

/// One running process.
pub struct Exporter {
    child: Child,
    pub log: PathBuf,
    pub port: u16,
}

impl Exporter {
    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and waits.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        self.signal("TERM");
        self.child.wait().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }

    /// What `/readyz` answers: status line and body.
    pub fn readiness(&self) -> String {
        self.get("/readyz")
    }

    /// The sum of a metric over its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let values = text
            .lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])));
        values.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// How many partitions it owns and has looked at.
    pub fn partitions(&self) -> usize {
        let text = self.get("/metrics");
        text.lines().filter(|line| line.starts_with("penstock_source_lag_messages{")).count()
    }

    fn get(&self, path: &str) -> String {
        use std::io::{Read, Write};
        let begun = Instant::now();
        let mut stream = loop {
            match std::net::TcpStream::connect(("127.0.0.1", self.port)) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() > Duration::from_secs(20) => panic!("no admin port: {error}"),
                // It has only just been started.
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn logged(&self, text: &str) -> usize {
        fs::read_to_string(&self.log).unwrap_or_default().lines().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn partition_of(number: u64, partitions: i32) -> i32 {
    // Uneven on purpose.
    let partitions = u64::try_from(partitions).unwrap();
    i32::try_from((number * number / 3 + number) % partitions).unwrap()
}

/// An event of one of four months, with a UUID that is made of its number.
pub fn event(number: u64) -> Vec<u8> {
    let month = 8 + number % 4;
    let event = IngestedEvent {
        uuid: uuid::Uuid::from_u64_pair(0x0190_f3d2_7c1a_7e2b, 0x8000_0000_0000_0000 | number).to_string(),
        event: format!("event {}", number % 20),
        properties: format!(
            "{{\"number\":{number},\"$session_id\":\"s\\\"{number}\",\"filler\":\"{}\"}}",
            "x".repeat(200)
        ),
        timestamp: format!("2026-{month:02}-10 12:{:02}:00.{:06}", number % 60, number % 1_000_000),
        team_id: 1,
        project_id: 1,
        distinct_id: format!("user-{}", number % 997),
        elements_chain: String::new(),
        created_at: "2026-11-25 00:00:00.000000".into(),
        captured_at: "2026-11-25 00:00:00.000000".into(),
        person_id: "00006c09-0000-4000-a000-00000d0dea67".into(),
        person_created_at: "1970-01-01 00:00:05.000000".into(),
        person_properties: "{}".into(),
        person_mode: "propertyless".into(),
        historical_migration: false,
    };
    serde_json::to_vec(&event).unwrap()
}

fn bad_event(number: u64) -> Vec<u8> {
    match number % 3 {
        0 => b"not json".to_vec(),
        1 => Vec::new(),
        _ => String::from_utf8(event(number)).unwrap().replace("2026-", "20x6-").into_bytes(),
    }
}
