//! Topics and lag against a real broker: planned, applied, observed again.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use penstock_crds::v1alpha1::Management;
use penstock_operator::topics::{
    self, Access, Clusters, Finding, GroupReading, ManagedKeys, Observation, Observed, TopicAction,
    WantedTopic,
    lag::{GroupLag, Lag, LagTime, Unknown},
};
use penstock_pipeline::{
    config::StartFrom,
    kafka::admin::{ConfigChange, ConfigSource, change_config},
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer},
    producer::{BaseProducer, BaseRecord, Producer},
};

const TIMEOUT: Duration = Duration::from_secs(10);

fn kafka() -> String {
    std::env::var("PENSTOCK_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:19092".to_owned())
}

fn config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka());
    config
}

/// What an operator has of one pipeline: wanted topics, and its memory.
struct Pipeline {
    clusters: Clusters,
    wanted: Vec<WantedTopic>,
    groups: Vec<GroupReading>,
    management: Management,
    managed: ManagedKeys,
}

impl Pipeline {
    fn new(name: &str, partitions: i32, config: &[(&str, &str)]) -> Self {
        let name = format!("test.{name}.{}", uuid::Uuid::new_v4());
        let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Self {
            clusters: Clusters::new(),
            groups: vec![GroupReading {
                group: format!("{name}.group"),
                topic: name.clone(),
                start_from: StartFrom::Earliest,
            }],
            wanted: vec![WantedTopic {
                name,
                partitions,
                replication_factor: None,
                config,
                largest_message: 0,
            }],
            management: Management::Managed,
            managed: ManagedKeys::new(),
        }
    }

    fn topic(&self) -> &str {
        &self.wanted[0].name
    }

    async fn observe(&self) -> Observed {
        match topics::observe(&self.clusters, &Access::plaintext(kafka()), &self.wanted, &self.groups).await {
            Observation::Reachable(observed) => observed,
            Observation::Unreachable { why } => panic!("{why}"),
        }
    }

    /// One pass of an operator; what it did and what it found.
    async fn pass(&mut self) -> (Vec<TopicAction>, Vec<Finding>) {
        let observed = self.observe().await;
        let plan = topics::plan(&self.wanted, &observed.topics, self.management, &self.managed);
        self.managed = plan.managed_keys;
        for applied in topics::apply(&self.clusters, &Access::plaintext(kafka()), plan.actions.clone()).await
        {
            applied.result.unwrap();
        }
        (plan.actions, plan.findings)
    }

    /// Passes until nothing is left to do: brokers need a moment until what was done is seen.
    async fn settle(&mut self) -> Vec<TopicAction> {
        let deadline = Instant::now() + TIMEOUT;
        let mut done: Vec<TopicAction> = Vec::new();
        loop {
            let (actions, _) = self.pass().await;
            if actions.is_empty() {
                return done;
            }
            done.extend(actions);
            assert!(Instant::now() < deadline, "not at rest within {TIMEOUT:?}: {done:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn lag(&self) -> GroupLag {
        self.observe().await.groups.remove(&self.groups[0].group).unwrap()
    }

    async fn eventually_lag(&self, what: &str, expected: impl Fn(&GroupLag) -> bool) -> GroupLag {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let lag = self.lag().await;
            if expected(&lag) {
                return lag;
            }
            assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}; last {lag:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn end(self) {
        let names = self.wanted.iter().map(|topic| topic.name.clone()).collect();
        topics::delete(&self.clusters, &Access::plaintext(kafka()), names).await.unwrap();
    }

    fn commit(&self, partition: i32, offset: i64) {
        let consumer: BaseConsumer = config().set("group.id", &self.groups[0].group).create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(self.topic(), partition, Offset::Offset(offset)).unwrap();
        consumer.commit(&list, CommitMode::Sync).unwrap();
    }
}

fn send(producer: &BaseProducer, topic: &str, partition: i32, messages: usize) {
    for _ in 0..messages {
        producer
            .send(BaseRecord::<(), _>::to(topic).partition(partition).payload("x"))
            .map_err(|(error, _)| error)
            .unwrap();
    }
    producer.flush(TIMEOUT).unwrap();
}

/// By hand, as another person would.
fn alter(topic: &str, key: &str, value: &str) {
    let producer: BaseProducer = config().create().unwrap();
    let change = ConfigChange::Set { key: key.to_owned(), value: value.to_owned() };
    change_config(producer.client(), topic, &[change], TIMEOUT).unwrap();
}

#[tokio::test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn topics_are_created_kept_grown_and_never_shrunk() {
    let mut pipeline = Pipeline::new(
        "plan",
        2,
        &[("retention.ms", "3600000"), ("segment.ms", "600000"), ("cleanup.policy", "compact, delete")],
    );
    let done = pipeline.settle().await;
    assert_eq!(done, [TopicAction::Create(pipeline.wanted[0].clone())], "created, and then at rest");

    // Somebody changes a key of ours, and sets one of their own.
    alter(pipeline.topic(), "retention.ms", "5000");
    alter(pipeline.topic(), "max.message.bytes", "2000000");
    let reasons: Vec<_> = pipeline.settle().await.iter().map(TopicAction::reason).collect();
    assert!(reasons.contains(&"TopicConfigChanged"), "{reasons:?}");
    let observed = pipeline.observe().await;
    let config = &observed.topics[pipeline.topic()].config;
    assert_eq!(config["retention.ms"].value.as_deref(), Some("3600000"));
    assert_eq!(config["max.message.bytes"].value.as_deref(), Some("2000000"), "somebody else's key");

    // A key goes out of the spec, and back to the brokers' value; a partition comes.
    pipeline.wanted[0].config.remove("segment.ms");
    pipeline.wanted[0].partitions = 3;
    pipeline.settle().await;
    let observed = pipeline.observe().await;
    let topic = &observed.topics[pipeline.topic()];
    assert_eq!(topic.partitions, 3);
    assert_eq!(topic.config["segment.ms"].source, ConfigSource::Broker);
    assert_eq!(topic.config["max.message.bytes"].value.as_deref(), Some("2000000"));

    pipeline.wanted[0].partitions = 1;
    for _ in 0..2 {
        let (actions, findings) = pipeline.pass().await;
        assert_eq!(actions, []);
        assert_eq!(
            findings,
            [Finding::ShrinkRefused { topic: pipeline.topic().to_owned(), has: 3, wanted: 1 }]
        );
    }
    pipeline.end().await;
}

#[tokio::test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn external_topics_are_reported_and_a_deleted_one_stays_deleted() {
    let mut pipeline = Pipeline::new("external", 1, &[("retention.ms", "3600000")]);
    pipeline.settle().await;
    pipeline.management = Management::External;
    alter(pipeline.topic(), "retention.ms", "5000");
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let (actions, findings) = pipeline.pass().await;
        assert_eq!(actions, []);
        if matches!(findings.as_slice(), [Finding::ConfigDiffers { key, .. }] if key == "retention.ms") {
            break;
        }
        assert!(Instant::now() < deadline, "{findings:?}");
    }

    let name = pipeline.topic().to_owned();
    let named = vec![name.clone(), format!("{name}.never")];
    let deleted = topics::delete(&pipeline.clusters, &Access::plaintext(kafka()), named).await.unwrap();
    assert_eq!(deleted, [name]);
    let deadline = Instant::now() + TIMEOUT;
    loop {
        let (actions, findings) = pipeline.pass().await;
        assert_eq!(actions, []);
        if matches!(findings.as_slice(), [Finding::Missing { .. }]) {
            break;
        }
        assert!(Instant::now() < deadline, "{findings:?}");
    }
    assert_eq!(pipeline.lag().await.lag, Lag::Unknown(Unknown::NoTopic));
}

#[tokio::test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn lag_counts_what_waits_and_how_long() {
    let mut pipeline = Pipeline::new("lag", 3, &[]);
    pipeline.settle().await;
    let topic = pipeline.topic().to_owned();
    assert_eq!(pipeline.lag().await, GroupLag { lag: Lag::Known(0), time: LagTime::Idle });

    let producer: BaseProducer = config().create().unwrap();
    send(&producer, &topic, 0, 5);
    send(&producer, &topic, 2, 4);
    let lag = pipeline.eventually_lag("nothing committed", |lag| lag.lag == Lag::Known(9)).await;
    let LagTime::Known(age) = lag.time else { panic!("{lag:?}") };
    assert!(age < Duration::from_secs(20), "{age:?}");

    tokio::time::sleep(Duration::from_millis(1500)).await;
    let LagTime::Known(older) = pipeline.lag().await.time else { panic!("{lag:?}") };
    assert!(older >= age + Duration::from_millis(1400), "{age:?} {older:?}");

    pipeline.commit(0, 3);
    pipeline.commit(2, 4);
    let lag = pipeline.eventually_lag("two wait", |lag| lag.lag == Lag::Known(2)).await;
    assert!(matches!(lag.time, LagTime::Known(_)), "looked at again, from another place: {lag:?}");
    pipeline.commit(0, 5);
    let lag = pipeline.eventually_lag("all read", |lag| lag.lag == Lag::Known(0)).await;
    assert_eq!(lag.time, LagTime::Idle);

    pipeline.groups[0].start_from = StartFrom::Latest;
    assert_eq!(
        pipeline.lag().await.lag,
        Lag::Unknown(Unknown::NothingCommitted { partition: 1 }),
        "its place is not taken yet"
    );
    pipeline.commit(1, 70);
    let lag = pipeline.lag().await;
    assert_eq!(lag.lag, Lag::Unknown(Unknown::BeyondEnd { partition: 1, committed: 70, end: 0 }));
    pipeline.end().await;
}

#[tokio::test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn markers_of_transactions_are_not_lag() {
    let mut pipeline = Pipeline::new("markers", 2, &[]);
    pipeline.settle().await;
    let topic = pipeline.topic().to_owned();
    let producer: BaseProducer = config().set("transactional.id", &topic).create().unwrap();
    producer.init_transactions(TIMEOUT).unwrap();
    for partition in [0, 1] {
        producer.begin_transaction().unwrap();
        send(&producer, &topic, partition, 2);
        producer.commit_transaction(TIMEOUT).unwrap();
        // The committed offset is the one after the last message, where the marker is.
        pipeline.commit(partition, 2);
    }
    let lag = pipeline.eventually_lag("the marker is not a message", |lag| lag.lag == Lag::Known(0)).await;
    assert_eq!(lag.time, LagTime::Idle);

    // An aborted transaction and an open one: nothing that a reader of committed messages would get.
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, 3);
    producer.abort_transaction(TIMEOUT).unwrap();
    producer.begin_transaction().unwrap();
    send(&producer, &topic, 0, 3);
    let lag = pipeline.eventually_lag("nothing committed", |lag| lag.lag == Lag::Known(0)).await;
    assert_eq!(lag.time, LagTime::Idle);

    producer.commit_transaction(TIMEOUT).unwrap();
    let lag =
        pipeline.eventually_lag("three messages and their marker", |lag| lag.lag == Lag::Known(4)).await;
    assert!(matches!(lag.time, LagTime::Known(_)), "{lag:?}");
    pipeline.end().await;
}

#[tokio::test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn an_observation_of_a_group_at_rest_is_quick() {
    let mut pipeline = Pipeline::new("rest", 12, &[]);
    pipeline.settle().await;
    let topic = pipeline.topic().to_owned();
    let producer: BaseProducer = config().set("transactional.id", &topic).create().unwrap();
    producer.init_transactions(TIMEOUT).unwrap();
    producer.begin_transaction().unwrap();
    for partition in 0..12 {
        send(&producer, &topic, partition, 1);
    }
    producer.commit_transaction(TIMEOUT).unwrap();
    for partition in 0..12 {
        pipeline.commit(partition, 1);
    }
    pipeline.eventually_lag("idle", |lag| lag.lag == Lag::Known(0)).await;
    let started = Instant::now();
    for _ in 0..5 {
        assert_eq!(pipeline.lag().await.lag, Lag::Known(0));
    }
    let each = started.elapsed() / 5;
    println!("an observation at rest takes {each:?}");
    assert!(each < Duration::from_millis(500), "{each:?}");
    pipeline.end().await;
}

#[tokio::test]
async fn brokers_that_are_away_are_a_value_and_are_waited_for_once() {
    let clusters = Clusters::new();
    let started = Instant::now();
    let wanted = [WantedTopic {
        name: "t".to_owned(),
        partitions: 1,
        replication_factor: None,
        config: BTreeMap::new(),
        largest_message: 0,
    }];
    for _ in 0..3 {
        match topics::observe(&clusters, &Access::plaintext("127.0.0.1:1"), &wanted, &[]).await {
            Observation::Unreachable { why } => assert!(why.why.contains("127.0.0.1:1"), "{why}"),
            Observation::Reachable(observed) => panic!("{observed:?}"),
        }
    }
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}
