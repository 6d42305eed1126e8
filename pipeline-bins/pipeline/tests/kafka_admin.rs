//! The admin requests against a real broker.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use penstock_pipeline::kafka::{
    admin::{
        self, Allowed, ConfigChange, ConfigSource, Isolation, NewTopic, OffsetSpec, Operation, change_config,
        committed_offsets, create_partitions, create_topic, delete_topic, describe_configs, describe_topics,
        list_offsets,
    },
    rights::Needs,
    topic_ids::topic_id,
};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    client::Client,
    consumer::{BaseConsumer, CommitMode, Consumer},
    error::RDKafkaErrorCode,
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer},
};

const TIMEOUT: Duration = Duration::from_secs(10);

fn kafka() -> ClientConfig {
    let address = std::env::var("PENSTOCK_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:19092".to_owned());
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address);
    config
}

fn producer() -> BaseProducer {
    kafka().create().unwrap()
}

/// A topic of its own that is deleted when the test ends.
struct Topic<'a> {
    client: &'a Client<DefaultProducerContext>,
    name: String,
}

impl<'a> Topic<'a> {
    fn create(
        client: &'a Client<DefaultProducerContext>,
        name: &str,
        partitions: i32,
        config: &[(&str, &str)],
    ) -> Self {
        let topic = Self { client, name: format!("test.{name}.{}", uuid::Uuid::new_v4()) };
        topic.create_again(partitions, config);
        topic
    }

    fn create_again(&self, partitions: i32, config: &[(&str, &str)]) {
        let new = NewTopic {
            name: self.name.clone(),
            partitions,
            replication_factor: None,
            config: config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        };
        let deadline = Instant::now() + TIMEOUT;
        loop {
            match create_topic(self.client, &new, TIMEOUT) {
                Ok(()) => return,
                // A deletion of the same name may still be under way.
                Err(error) if Instant::now() < deadline => {
                    assert_eq!(error.code(), RDKafkaErrorCode::TopicAlreadyExists, "{error}");
                    std::thread::sleep(Duration::from_millis(100));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn config(&self) -> BTreeMap<String, admin::ConfigValue> {
        describe_configs(self.client, &[&self.name], TIMEOUT).unwrap().remove(&self.name).unwrap()
    }
}

impl Drop for Topic<'_> {
    fn drop(&mut self) {
        let _ = delete_topic(self.client, &self.name, TIMEOUT);
    }
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn who_may_do_everything_lacks_nothing_and_of_what_is_not_there_nothing_is_known() {
    let producer = producer();
    let client = producer.client();
    let topic = Topic::create(client, "rights", 1, &[]);
    let missing = format!("{}.missing", topic.name);
    let group = format!("{}.group", topic.name);
    let allowed = admin::allowed_on_topics(client, &[&topic.name, &missing], TIMEOUT).unwrap();
    assert!(
        matches!(&allowed[&topic.name], Allowed::These(operations) if operations.len() > 4),
        "{allowed:?}"
    );
    assert_eq!(allowed[&missing], Allowed::Unknown);
    let described = describe_topics(client, &[&topic.name], TIMEOUT).unwrap();
    assert_eq!(described[&topic.name].allowed, allowed[&topic.name]);
    let needs = Needs::default().read(&topic.name).write(&topic.name).write(&missing).group(&group);
    assert_eq!(needs.asker().missing(client, TIMEOUT).unwrap(), []);
    assert!(!admin::allowed_on_group(client, &group, TIMEOUT).unwrap().denies(Operation::Read));
}

fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {TIMEOUT:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_recreated_topic_has_another_id() {
    let producer = producer();
    let client = producer.client();
    let topic = Topic::create(client, "ids", 2, &[]);
    let first = eventually("the topic is known", || topic_id(client, &topic.name, TIMEOUT).unwrap());
    assert!(!first.is_zero());
    assert_eq!(first.to_string().len(), 22);
    assert_eq!(topic_id(client, &topic.name, TIMEOUT).unwrap(), Some(first), "the same topic, another id");

    delete_topic(client, &topic.name, TIMEOUT).unwrap();
    eventually("the topic is gone", || {
        topic_id(client, &topic.name, TIMEOUT).unwrap().is_none().then_some(())
    });
    topic.create_again(2, &[]);
    let second = eventually("the topic is known", || topic_id(client, &topic.name, TIMEOUT).unwrap());
    assert_ne!(first, second);
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_topic_id_can_be_asked_for_with_a_consumers_handle_from_another_thread() {
    let producer = producer();
    let topic = Topic::create(producer.client(), "handles", 1, &[]);
    let consumer: BaseConsumer = kafka().set("group.id", &topic.name).create().unwrap();
    let (by_producer, by_consumer) = std::thread::scope(|scope| {
        let consumer = scope.spawn(|| {
            eventually("the topic is known", || topic_id(consumer.client(), &topic.name, TIMEOUT).unwrap())
        });
        let producer = scope.spawn(|| {
            eventually("the topic is known", || topic_id(producer.client(), &topic.name, TIMEOUT).unwrap())
        });
        (producer.join().unwrap(), consumer.join().unwrap())
    });
    assert_eq!(by_producer, by_consumer);
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn topics_are_created_grown_described_and_never_twice() {
    let producer = producer();
    let client = producer.client();
    let topic = Topic::create(client, "grow", 2, &[("retention.ms", "3600000")]);
    let again = NewTopic {
        name: topic.name.clone(),
        partitions: 2,
        replication_factor: None,
        config: BTreeMap::new(),
    };
    let error = create_topic(client, &again, TIMEOUT).unwrap_err();
    assert_eq!(error.code(), RDKafkaErrorCode::TopicAlreadyExists);
    assert!(error.to_string().contains(&topic.name), "{error}");

    create_partitions(client, &topic.name, 5, TIMEOUT).unwrap();
    let described = eventually("five partitions with leaders", || {
        let missing = format!("{}.missing", topic.name);
        let described = describe_topics(client, &[&topic.name, &missing], TIMEOUT).unwrap();
        assert!(!described.contains_key(&missing));
        described
            .get(&topic.name)
            .filter(|topic| {
                topic.partitions.len() == 5
                    && topic.partitions.iter().all(|partition| partition.leader.is_some())
            })
            .cloned()
    });
    let numbers: Vec<_> = described.partitions.iter().map(|partition| partition.partition).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
    assert!(described.partitions.iter().all(|partition| partition.replicas >= 1 && partition.in_sync >= 1));

    let error = create_partitions(client, &topic.name, 3, TIMEOUT).unwrap_err();
    assert_eq!(error.code(), RDKafkaErrorCode::InvalidPartitions, "{error}");
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn changing_one_key_leaves_every_other_key_alone() {
    let producer = producer();
    let topic = Topic::create(
        producer.client(),
        "config",
        1,
        &[("retention.ms", "3600000"), ("segment.ms", "600000"), ("cleanup.policy", "compact, delete")],
    );
    eventually("the configuration is there", || {
        (topic.config()["segment.ms"].source == ConfigSource::Topic).then_some(())
    });
    assert_eq!(topic.config()["cleanup.policy"].value.as_deref(), Some("compact,delete"));
    assert_eq!(topic.config()["max.message.bytes"].source, ConfigSource::Broker);

    let set = |key: &str, value: &str| ConfigChange::Set { key: key.to_owned(), value: value.to_owned() };
    change_config(
        producer.client(),
        &topic.name,
        &[set("retention.ms", "7200000"), ConfigChange::Reset { key: "cleanup.policy".to_owned() }],
        TIMEOUT,
    )
    .unwrap();
    let config = eventually("the change is seen", || {
        let config = topic.config();
        (config["retention.ms"].value.as_deref() == Some("7200000")).then_some(config)
    });
    assert_eq!(config["segment.ms"].value.as_deref(), Some("600000"));
    assert_eq!(config["segment.ms"].source, ConfigSource::Topic);
    assert_eq!(config["cleanup.policy"].source, ConfigSource::Broker);

    let error =
        change_config(producer.client(), &topic.name, &[set("retention.ms", "soon")], TIMEOUT).unwrap_err();
    assert_eq!(error.code(), RDKafkaErrorCode::InvalidConfig, "{error}");
    assert!(error.to_string().contains(&topic.name), "{error}");
    assert_eq!(topic.config()["retention.ms"].value.as_deref(), Some("7200000"));
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn ends_and_committed_offsets_are_those_of_the_partition() {
    let producer = producer();
    let topic = Topic::create(producer.client(), "offsets", 2, &[]);
    for number in 0..7 {
        let payload = format!("{number}");
        producer
            .send(BaseRecord::<(), _>::to(&topic.name).partition(1).payload(&payload))
            .map_err(|(error, _)| error)
            .unwrap();
    }
    producer.flush(TIMEOUT).unwrap();
    let client = producer.client();
    let partitions = [(topic.name.as_str(), 0), (topic.name.as_str(), 1), (topic.name.as_str(), 9)];
    let latest =
        list_offsets(client, &partitions, OffsetSpec::Latest, Isolation::ReadCommitted, TIMEOUT).unwrap();
    let of = |partition| latest[&(topic.name.clone(), partition)].clone();
    assert_eq!(of(0), Ok(0));
    assert_eq!(of(1), Ok(7));
    assert!(of(9).unwrap_err().is_unknown_topic());
    let earliest =
        list_offsets(client, &partitions[..2], OffsetSpec::Earliest, Isolation::ReadCommitted, TIMEOUT)
            .unwrap();
    assert_eq!(earliest[&(topic.name.clone(), 1)], Ok(0));

    let group = format!("{}.group", topic.name);
    let nothing = committed_offsets(client, &group, &partitions[..2], TIMEOUT).unwrap();
    assert_eq!(nothing[&(topic.name.clone(), 0)], Ok(None), "a group that does not exist");

    let consumer: BaseConsumer = kafka().set("group.id", &group).create().unwrap();
    let mut commit = TopicPartitionList::new();
    commit.add_partition_offset(&topic.name, 1, Offset::Offset(4)).unwrap();
    commit.find_partition(&topic.name, 1).unwrap().set_metadata("a plan, of 4 to 7");
    consumer.commit(&commit, CommitMode::Sync).unwrap();
    let committed = committed_offsets(client, &group, &partitions[..2], TIMEOUT).unwrap();
    assert_eq!(committed[&(topic.name.clone(), 0)], Ok(None));
    let committed = committed[&(topic.name.clone(), 1)].clone().unwrap().unwrap();
    assert_eq!(committed.offset, 4);
    assert_eq!(committed.metadata, b"a plan, of 4 to 7");
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn an_open_transaction_holds_back_the_last_stable_offset_only() {
    let plain = producer();
    let topic = Topic::create(plain.client(), "transactions", 1, &[]);
    let transactional: BaseProducer = kafka().set("transactional.id", &topic.name).create().unwrap();
    transactional.init_transactions(TIMEOUT).unwrap();
    let send = || {
        transactional
            .send(BaseRecord::<(), _>::to(&topic.name).partition(0).payload("x"))
            .map_err(|(error, _)| error)
            .unwrap();
        transactional.flush(TIMEOUT).unwrap();
    };
    let end = |isolation| {
        let ends = list_offsets(plain.client(), &[(&topic.name, 0)], OffsetSpec::Latest, isolation, TIMEOUT)
            .unwrap();
        ends[&(topic.name.clone(), 0)].clone().unwrap()
    };
    transactional.begin_transaction().unwrap();
    send();
    transactional.commit_transaction(TIMEOUT).unwrap();
    eventually("message and marker", || (end(Isolation::ReadCommitted) == 2).then_some(()));

    transactional.begin_transaction().unwrap();
    send();
    assert_eq!(end(Isolation::ReadUncommitted), 3);
    assert_eq!(end(Isolation::ReadCommitted), 2);
    transactional.abort_transaction(TIMEOUT).unwrap();
    eventually("aborted", || (end(Isolation::ReadCommitted) == 4).then_some(()));
}

#[test]
fn brokers_that_are_not_there_are_unreachable_within_the_time() {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", "127.0.0.1:1").create().unwrap();
    let started = Instant::now();
    let error = topic_id(producer.client(), "nobody.answers", Duration::from_millis(700)).unwrap_err();
    assert!(error.is_unreachable(), "{error}");
    assert!(error.to_string().contains("nobody.answers"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn names_that_librdkafka_cannot_take_are_refused_before_they_reach_it() {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", "127.0.0.1:1").create().unwrap();
    let error = topic_id(producer.client(), "a\0b", TIMEOUT).unwrap_err();
    assert_eq!(error.code(), RDKafkaErrorCode::InvalidArgument);
}
