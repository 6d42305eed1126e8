//! What the tests on a real Kafka share: topics of their own, a running `capture`, and an HTTP connection whose every byte
//! is accounted for.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::Headers,
};
use tempfile::TempDir;
use uuid::Uuid;

pub const TOKEN: &str = "phc_test";
const PARTITIONS: i32 = 3;

pub fn bootstrap() -> String {
    std::env::var("PENSTOCK_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:19092".to_owned())
}

/// Two topics of one test; deleted at its end.
pub struct Topics {
    pub captured: String,
    pub dead_letter: String,
}

impl Topics {
    pub fn named(purpose: &str) -> Self {
        let prefix = format!("capture-test.{purpose}.{}", Uuid::now_v7().simple());
        Self { captured: format!("{prefix}.captured"), dead_letter: format!("{prefix}.dead-letter") }
    }

    pub fn create(&self) {
        run(async |admin| {
            let topics = [&self.captured, &self.dead_letter]
                .map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)));
            for result in admin.create_topics(&topics, &AdminOptions::new()).await.unwrap() {
                result.unwrap();
            }
        });
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        run(async |admin| {
            let names = [self.captured.as_str(), self.dead_letter.as_str()];
            let _ = admin.delete_topics(&names, &AdminOptions::new()).await;
        });
    }
}

fn run(work: impl AsyncFnOnce(AdminClient<DefaultClientContext>)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let admin = ClientConfig::new().set("bootstrap.servers", bootstrap()).create().unwrap();
    runtime.block_on(work(admin));
}

/// A message as it lies in Kafka.
#[derive(Clone, Debug)]
pub struct Stored {
    pub key: String,
    pub value: Vec<u8>,
    pub headers: BTreeMap<String, String>,
}

/// All messages of a topic up to its present end, partition by partition.
pub fn read(topic: &str) -> Vec<Stored> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap())
        .set("group.id", "capture-test")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .create()
        .unwrap();
    let mut stored = Vec::new();
    let mut assignment = TopicPartitionList::new();
    let mut expected = 0;
    for partition in 0..PARTITIONS {
        let (low, high) = consumer.fetch_watermarks(topic, partition, Duration::from_secs(10)).unwrap();
        expected += high - low;
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while (stored.len() as i64) < expected {
        assert!(Instant::now() < deadline, "{} of {expected} messages of {topic} were read", stored.len());
        let Some(message) = consumer.poll(Duration::from_millis(200)) else { continue };
        let message = message.unwrap();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        stored.push(Stored {
            key: text(message.key().unwrap()),
            value: message.payload().unwrap().to_vec(),
            headers: message
                .headers()
                .map(|headers| {
                    headers
                        .iter()
                        .map(|header| (header.key.to_owned(), text(header.value.unwrap_or_default())))
                        .collect()
                })
                .unwrap_or_default(),
        });
    }
    stored
}

/// A running `capture`.
pub struct Capture {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    process: Child,
    directory: TempDir,
}

impl Capture {
    pub fn start(bootstrap: &str, topics: &Topics, change: impl FnOnce(String) -> String) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let projects = directory.path().join("projects.yaml");
        fs::write(&projects, format!("- {{id: 1, name: web, token: {TOKEN}}}\n")).unwrap();
        let (address, admin) = (free_address(), free_address());
        let config = include_str!("../config.yaml")
            .replace("listen: 127.0.0.1:0", &format!("listen: {address}"))
            .replace("{listen: '127.0.0.1:0'", &format!("{{listen: '{admin}'"))
            .replace("127.0.0.1:9092", bootstrap)
            .replace("topic: captured", &format!("topic: {}", topics.captured))
            .replace("deadLetter: dead-letter", &format!("deadLetter: {}", topics.dead_letter))
            .replace("projectsFile: projects.yaml", &format!("projectsFile: {}", projects.display()));
        let path = directory.path().join("config.yaml");
        fs::write(&path, change(config)).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_capture"))
            .arg("--config")
            .arg(&path)
            .stdout(if std::env::var_os("SHOW_LOGS").is_some() { Stdio::inherit() } else { Stdio::null() })
            .spawn()
            .unwrap();
        let capture = Self { address, admin, process, directory };
        until("capture answers", Duration::from_secs(10), || TcpStream::connect(address).is_ok());
        capture
    }

    /// Replaces the list of projects, as the kubelet does it: by renaming.
    pub fn write_projects(&self, content: &str) {
        let next = self.directory.path().join("next");
        fs::write(&next, content).unwrap();
        fs::rename(next, self.directory.path().join("projects.yaml")).unwrap();
    }

    /// Status and body of a path of the admin server.
    pub fn admin(&self, path: &str) -> (u16, String) {
        let mut connection = Connection::open(self.admin).unwrap();
        let answer = connection.request("GET", path, b"").unwrap();
        (answer.status, answer.body)
    }

    pub fn wait_ready(&self) {
        until("capture is ready", Duration::from_secs(20), || self.admin("/readyz").0 == 200);
    }

    /// The most memory that the process has ever had.
    pub fn peak_memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.process.wait().unwrap()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn until(what: &str, longest: Duration, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + longest;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An answer of the server.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    pub headers: BTreeMap<String, String>,
}

impl Answer {
    /// Whether the server will take no other request on this connection.
    pub fn closes(&self) -> bool {
        self.headers.get("connection").is_some_and(|value| value == "close")
    }
}

/// An HTTP/1.1 connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub fn post(&mut self, path: &str, body: &[u8]) -> io::Result<Answer> {
        self.request("POST", path, body)
    }

    fn request(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Answer> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: test\r\nx-forwarded-for: 203.0.113.9\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(&[head.as_bytes(), body].concat())?;
        self.answer()
    }

    /// Sends bytes as they are.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    pub fn answer(&mut self) -> io::Result<Answer> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let headers: BTreeMap<String, String> = lines[1..]
            .iter()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let status = lines[0].split(' ').nth(1).unwrap().parse().unwrap();
        Ok(Answer { status, body: String::from_utf8(body).unwrap(), headers })
    }
}
