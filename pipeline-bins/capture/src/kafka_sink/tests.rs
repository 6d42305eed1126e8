//! Messages, acknowledgements, and producers that are given up.

use penstock_pipeline::{config::Identity, telemetry::Metrics};
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    bindings::rd_kafka_test_fatal_error,
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Headers, Message},
    mocking::MockCluster,
    types::RDKafkaRespErr,
};

use super::*;
use crate::{
    event,
    record::{Receipt, captured},
    timestamp::UnixMicros,
};

fn record_of(name: &str) -> Record {
    let data = &format!(r#"{{"event":"{name}","distinct_id":"u"}}"#);
    let now = UnixMicros::now();
    let receipt = Receipt {
        now,
        now_text: now.rfc3339(),
        sent_at: None,
        sent_at_text: None,
        ip: "203.0.113.9".into(),
        token: "phc_a".into(),
        project_id: 1,
        historical_migration: false,
    };
    captured(&receipt, &event::parse(data).event.unwrap(), data)
}

fn sink_at(bootstrap: &str, topic: &str, delivery_timeout_ms: u32) -> (Arc<KafkaSink>, CaptureMetrics) {
    let mut config: CaptureConfig = serde_yaml_ng::from_str(include_str!("../../tests/config.yaml")).unwrap();
    config.kafka.bootstrap_servers = bootstrap.to_owned();
    config.topic = topic.to_owned();
    config.limits.delivery_timeout_ms = delivery_timeout_ms;
    let identity = Identity { namespace: "n".into(), pipeline: "p".into(), component: "capture".into() };
    let metrics = CaptureMetrics::new(&Metrics::new(&identity));
    let sink = KafkaSink::new(&config, Connection::plaintext(bootstrap), "pod", metrics.clone()).unwrap();
    (sink, metrics)
}

async fn write(sink: Arc<KafkaSink>, name: &str) -> Result<(), WriteError> {
    let mut claim = sink.queue.claim();
    let record = record_of(name);
    claim.grow(record.cost()).unwrap();
    sink.write(vec![record], claim).await
}

/// Names of the events in the only partition of a topic.
fn stored(bootstrap: &str, topic: &str) -> Vec<String> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", "none")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let mut names = Vec::new();
    loop {
        match consumer.poll(Duration::from_secs(30)).expect("the end of the partition") {
            Ok(message) => {
                let headers = message.headers().unwrap();
                let name = headers.iter().find(|header| header.key == "event").unwrap().value.unwrap();
                names.push(String::from_utf8(name.to_vec()).unwrap());
            }
            Err(KafkaError::PartitionEOF(_)) => return names,
            Err(error) => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_broker_has_and_could_not_acknowledge_is_never_sent_again_after_something_timed_out() {
    let kafka = MockCluster::new(1).unwrap();
    kafka.create_topic("captured", 1, 1).unwrap();
    let bootstrap = kafka.bootstrap_servers();
    let (sink, metrics) = sink_at(&bootstrap, "captured", 6_000);
    assert_eq!(write(sink.clone(), "before").await, Ok(()));

    // The broker takes both, and dies before it has said so.
    kafka.broker_round_trip_time(1, Duration::from_secs(60)).unwrap();
    let first = tokio::spawn(write(sink.clone(), "first"));
    tokio::time::sleep(Duration::from_millis(4_500)).await;
    let second = tokio::spawn(write(sink.clone(), "second"));
    tokio::time::sleep(Duration::from_millis(500)).await;
    kafka.broker_down(1).unwrap();
    kafka.broker_round_trip_time(1, Duration::ZERO).unwrap();
    assert!(matches!(first.await.unwrap(), Err(WriteError::Undelivered(_))));
    kafka.broker_up(1).unwrap();
    assert!(matches!(second.await.unwrap(), Err(WriteError::Undelivered(_))), "it was not sent again");
    assert_eq!(metrics.producers_replaced.get(), 1);
    assert_eq!(write(sink.clone(), "after").await, Ok(()));
    // Whatever an old producer would still send, it would send now.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let stored = tokio::task::spawn_blocking(move || stored(&bootstrap, "captured")).await.unwrap();
    assert_eq!(stored, ["before", "first", "second", "after"], "each once");
    assert_eq!(sink.queue.used(), 0, "memory is given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_of_a_client_that_went_away_are_given_up_in_time_as_well() {
    let (sink, metrics) = sink_at("127.0.0.1:1", "captured", 1_000);
    let gone = tokio::spawn(write(sink.clone(), "gone"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    assert!(sink.queue.used() > 0, "they are still there");
    let begun = Instant::now();
    while sink.queue.used() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "memory is not given back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(metrics.producers_replaced.get(), 1);
}

#[tokio::test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn after_a_fatal_error_a_new_producer_takes_over_and_memory_is_given_back() {
    let bootstrap = std::env::var("PENSTOCK_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:19092".into());
    let topic = format!("capture-test.fatal.{}", uuid::Uuid::now_v7().simple());
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &bootstrap).create().unwrap();
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1));
    admin.create_topics(&[new], &AdminOptions::new()).await.unwrap();
    let (sink, metrics) = sink_at(&bootstrap, &topic, 5_000);
    let write = async || write(sink.clone(), "a").await;

    assert_eq!(write().await, Ok(()));
    let broken = sink.producer.load_full();
    // SAFETY: the client lives as long as `broken`; the reason is a C string of the program.
    unsafe {
        rd_kafka_test_fatal_error(
            broken.client().native_ptr(),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
            c"made by a test".as_ptr(),
        );
    }
    assert!(matches!(write().await, Err(WriteError::Undelivered(_))));
    assert_eq!(write().await, Ok(()));
    assert_eq!(metrics.producers_replaced.get(), 1);
    // The thread of the last report may hold it for a moment longer than the report takes.
    for _ in 0..100 {
        if sink.queue.used() == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(sink.queue.used(), 0);
    admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
}
