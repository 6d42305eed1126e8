//! Three brokers, of which one dies while events flow, and then two.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use penstock_e2e::{
    audit::account::Account,
    chaos::{
        ordeal::{self, Ground, Size},
        strike::Striker,
    },
    cluster::wait_until,
    faults::Server,
    load::Pace,
    pipeline::TestPipeline,
    servers::Wanted,
};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};
use serde_json::{Value, json};

const EVENTS: u64 = 20_000;
const BROKERS: Wanted = Wanted { brokers: 3, shards: 1 };
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test-chaos starts it"]
async fn a_broker_that_dies_loses_nothing_and_two_make_capture_refuse_until_they_are_back() -> Result<()> {
    let size = Size { events: EVENTS, rate: 500, patience: Duration::from_secs(300) };
    ordeal::run_on(Ground { servers: BROKERS, spec }, "brokers", size, trouble, judge).await
}

fn spec(_: &TestPipeline, spec: &mut Value) {
    spec["kafka"]["topics"]["defaults"] = json!({"partitions": 6, "replicationFactor": 3});
    spec["kafka"]["topics"]["dead-letter"] = json!({"partitions": 3});
}

async fn trouble(striker: &mut Striker<'_>, pace: &Pace) -> Result<()> {
    let pipeline = striker.pipeline();
    let cluster = &pipeline.cluster;
    let brokers = Brokers { pipeline, namespace: Server::Kafka.namespace_in(cluster) };
    let began = tokio::time::Instant::now();
    let told = |what: &str| {
        println!("{:5.1} s, {:>6} events: {what}", began.elapsed().as_secs_f64(), pace.acknowledged());
    };
    let flows = async |events: u64| {
        let goal = pace.acknowledged() + events;
        wait_until("events flow", PATIENCE, async || Ok(pace.acknowledged() >= goal)).await
    };

    brokers
        .wait("every partition has three replicas in sync", |partition| partition.in_sync.len() == 3)
        .await?;
    flows(2_000).await?;
    ensure!(
        brokers.partitions().await?.iter().any(|partition| partition.leader == 1),
        "broker 1 leads nothing"
    );
    cluster.kill_process(brokers.namespace, "kafka-1").await?;
    told("broker 1 is killed");
    brokers.wait("others lead what broker 1 led", |partition| ![1, -1].contains(&partition.leader)).await?;
    flows(2_000).await?;
    told("others lead, and events flow");
    brokers.wait("broker 1 has caught up", |partition| partition.in_sync.len() == 3).await?;
    told("broker 1 has caught up");

    // Both die at once; then the set is made smaller, so that nobody starts them again.
    cluster.kill_process(brokers.namespace, "kafka-1").await?;
    cluster.kill_process(brokers.namespace, "kafka-2").await?;
    cluster.set_replicas(brokers.namespace, "kafka", 1).await?;
    told("brokers 1 and 2 are killed");
    brokers
        .wait("broker 0 alone is in sync, and leads", |partition| {
            partition.in_sync == [0] && partition.leader == 0
        })
        .await?;
    told("broker 0 alone is in sync");
    let turned_away = turned_away(pipeline).await?;
    wait_until(
        "capture answers 503",
        PATIENCE,
        async || Ok(self::turned_away(pipeline).await? > turned_away),
    )
    .await?;
    let before = pace.acknowledged();
    // Clients go on sending all the while.
    tokio::time::sleep(Duration::from_secs(10)).await;
    ensure!(
        pace.acknowledged() == before,
        "{} events were acknowledged meanwhile",
        pace.acknowledged() - before
    );
    told("capture answers 503");

    cluster.set_replicas(brokers.namespace, "kafka", 3).await?;
    flows(2_000).await?;
    told("they are back, and events flow");
    cluster.wait_pods(brokers.namespace, "kafka", 3).await?;
    brokers.wait("all are in sync again", |partition| partition.in_sync.len() == 3).await?;
    told("all are in sync again");
    striker.all_ready().await
}

/// Requests that capture has answered 503 because Kafka did not take the events.
async fn turned_away(pipeline: &TestPipeline) -> Result<u64> {
    let pods = pipeline.cluster.pods(&pipeline.namespace, "capture").await?;
    let pod = pods.first().context("there is no pod of capture")?.name_any();
    let forward = pipeline.cluster.forward_to_pod(&pipeline.namespace, &pod, 9090).await?;
    let text = reqwest::get(format!("{}/metrics", forward.url())).await?.text().await?;
    let line =
        text.lines().find(|line| line.starts_with("penstock_capture_refusals_total{reason=\"undelivered\""));
    line.map_or(Ok(0), |line| Ok(line.rsplit(' ').next().unwrap_or_default().parse()?))
}

struct Partition {
    leader: i32,
    in_sync: Vec<i32>,
}

struct Brokers<'a> {
    pipeline: &'a TestPipeline,
    namespace: &'a str,
}

impl Brokers<'_> {
    /// The partitions of the pipeline's topics and of those in which Kafka keeps offsets and transactions.
    async fn partitions(&self) -> Result<Vec<Partition>> {
        let (servers, prefix) = (self.pipeline.cluster.kafka(), self.pipeline.topic(""));
        tokio::task::spawn_blocking(move || {
            let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &servers).create()?;
            let metadata =
                client.fetch_metadata(None, Duration::from_secs(20)).context("asking for metadata")?;
            let topics = metadata
                .topics()
                .iter()
                .filter(|topic| topic.name().starts_with(&prefix) || topic.name().starts_with("__"));
            Ok(topics
                .flat_map(|topic| topic.partitions())
                .map(|partition| Partition { leader: partition.leader(), in_sync: partition.isr().to_vec() })
                .collect())
        })
        .await?
    }

    async fn wait(&self, what: &str, so: impl Fn(&Partition) -> bool) -> Result<()> {
        wait_until(what, PATIENCE, async || {
            let partitions = self.partitions().await?;
            Ok(!partitions.is_empty() && partitions.iter().all(&so))
        })
        .await
    }
}

async fn judge(_: &TestPipeline, account: &Account) -> Result<()> {
    let sent = account.sent.context("there is a journal")?;
    ensure!(sent.acknowledged >= EVENTS, "only {} events are acknowledged", sent.acknowledged);
    ensure!(sent.refused == 0, "{} good events were refused", sent.refused);
    ensure!(sent.turned_away > 0, "nothing was answered 503");
    Ok(())
}
