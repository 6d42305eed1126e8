//! The platform itself: its ways in, and that each fault does what its name says and can be taken back.

use std::{process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use penstock_e2e::{
    cluster::{Cluster, wait_until},
    faults::Server,
};
use penstock_platform::{cgroup, layout::Layout, services::clickhouse_answers};
use rdkafka::{
    ClientConfig,
    consumer::{BaseConsumer, Consumer},
};

/// The time that a client of Kafka is given; a broker that runs answers in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

async fn kafka_metadata(cluster: &Cluster) -> Result<(String, i32)> {
    let bootstrap = cluster.kafka();
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", bootstrap).create()?;
        let metadata = consumer.fetch_metadata(None, PATIENCE)?;
        let broker = metadata.brokers().first().context("no broker in the metadata")?;
        Ok((broker.host().to_owned(), broker.port()))
    })
    .await?
}

/// What a command in Kafka's pod says when it asks ClickHouse through its Service.
fn ping_from_kafka(cluster: &Cluster) -> Result<bool> {
    let output = Command::new(cluster.info.bin.join("kubectl"))
        .arg("--kubeconfig")
        .arg(&cluster.info.kubeconfig)
        .args(["--namespace", "streaming", "exec", "kafka-0", "--"])
        .args(["sh", "-c", "timeout 3 wget -q -O - http://clickhouse.warehouse:8123/ping"])
        .output()?;
    Ok(output.status.success() && output.stdout.starts_with(b"Ok"))
}

async fn restarts(cluster: &Cluster, server: Server) -> Result<i32> {
    let pod = Api::<Pod>::namespaced(cluster.client.clone(), server.namespace()).get(&server.pod()).await?;
    let statuses = pod.status.and_then(|status| status.container_statuses).context("no container")?;
    Ok(statuses.first().context("no container")?.restart_count)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn kafka_tells_clients_on_this_machine_an_address_that_they_can_reach() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let broker = kafka_metadata(&cluster).await?;
    ensure!(
        broker == ("127.0.0.1".to_owned(), i32::from(cluster.info.ports.kafka)),
        "Kafka advertises {broker:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn a_forward_leads_to_a_service_and_ends_when_it_is_dropped() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let forward = cluster.forward_to_service("warehouse", "clickhouse", 8123).await?;
    let port = forward.address().port();
    tokio::task::spawn_blocking(move || clickhouse_answers(port)).await??;
    drop(forward);
    tokio::time::sleep(Duration::from_millis(100)).await;
    ensure!(std::net::TcpStream::connect(("127.0.0.1", port)).is_err(), "somebody still listens on {port}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn a_killed_process_is_started_anew_in_the_same_pod_with_its_data() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let (clickhouse, table) = (&cluster.warehouse, "default.survives_a_kill");
    clickhouse
        .text(&format!("CREATE OR REPLACE TABLE {table} (n UInt8) ENGINE = MergeTree ORDER BY n"))
        .await?;
    clickhouse.text(&format!("INSERT INTO {table} VALUES (7)")).await?;
    let before = restarts(&cluster, Server::ClickHouse).await?;

    cluster.kill_process(Server::ClickHouse.namespace(), &Server::ClickHouse.pod()).await?;
    wait_until("the container was started again", Duration::from_secs(60), async || {
        Ok(restarts(&cluster, Server::ClickHouse).await? == before + 1)
    })
    .await?;
    cluster.wait_for(Server::ClickHouse).await?;
    ensure!(clickhouse.text(&format!("SELECT n FROM {table}")).await?.trim() == "7", "the row is gone");
    clickhouse.text(&format!("DROP TABLE {table}")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn a_frozen_process_answers_nobody_and_goes_on_as_if_nothing_had_been() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let before = restarts(&cluster, Server::ClickHouse).await?;
    let port = cluster.info.ports.clickhouse;
    let frozen = cluster.freeze(Server::ClickHouse.namespace(), &Server::ClickHouse.pod()).await?;
    let answer = tokio::task::spawn_blocking(move || clickhouse_answers(port)).await?;
    drop(frozen);
    ensure!(answer.is_err(), "a frozen ClickHouse answered");
    cluster.wait_for(Server::ClickHouse).await?;
    ensure!(
        restarts(&cluster, Server::ClickHouse).await? == before,
        "it was started anew instead of going on"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn a_cut_network_stops_one_pod_from_reaching_another_until_it_is_healed() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let (kafka, clickhouse) = (Server::Kafka.pod(), Server::ClickHouse.pod());
    ensure!(ping_from_kafka(&cluster)?, "Kafka's pod does not reach ClickHouse to begin with");
    let cut = cluster.cut_network(("streaming", &kafka), ("warehouse", &clickhouse)).await?;
    let through = ping_from_kafka(&cluster)?;
    ensure!(cluster.warehouse.text("SELECT 1").await?.trim() == "1", "others must not notice");
    drop(cut);
    ensure!(!through, "the cut let a request through");
    ensure!(ping_from_kafka(&cluster)?, "the healed network lets nothing through");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn a_stopped_server_is_gone_until_the_outage_ends() -> Result<()> {
    let cluster = Cluster::connect().await?;
    for server in [Server::Kafka, Server::ClickHouse] {
        let outage = cluster.stop(server).await?;
        match server {
            Server::Kafka => ensure!(kafka_metadata(&cluster).await.is_err(), "a stopped Kafka answered"),
            Server::ClickHouse => {
                ensure!(cluster.warehouse.text("SELECT 1").await.is_err(), "a stopped ClickHouse answered")
            }
        }
        outage.end().await?;
    }
    kafka_metadata(&cluster).await?;
    ensure!(cluster.warehouse.text("SELECT 1").await?.trim() == "1");
    Ok(())
}

/// The rule that keeps pod, service and node addresses from ever leaving the platform.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn the_node_has_no_link_to_the_machines_network() -> Result<()> {
    Cluster::connect().await?;
    ensure!(!cgroup::processes().is_empty(), "no process of the platform is known");
    let links = |args: &[&str]| -> Result<Vec<serde_json::Value>> {
        let output =
            Command::new("ip").args(["-json", "-details"]).args(args).args(["link", "show"]).output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let here = links(&[])?;
    ensure!(
        !here.iter().any(|link| link["linkinfo"]["info_kind"] == "veth"),
        "a veth ends in the machine's namespace: {here:?}"
    );
    let node = links(&["-netns", "penstock"])?;
    ensure!(node.len() > 2, "the node has no pods");
    let outside = links(&["-netns", "penstock-outside"])?;
    ensure!(
        outside.len() == 2,
        "the far end of the node's default route has more than loopback and that link: {outside:?}"
    );
    ensure!(Layout::from_env()?.state.exists());
    Ok(())
}
