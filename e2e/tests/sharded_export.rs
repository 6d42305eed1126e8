//! A pipeline whose export writes to a cluster of two ClickHouse servers, one of which dies while events flow.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_e2e::{
    audit::account::Account,
    chaos::{
        ordeal::{self, Ground, Size},
        strike::Striker,
    },
    cluster::wait_until,
    load::Pace,
    pipeline::TestPipeline,
    servers::Wanted,
    warehouse::{Warehouse, quoted},
};
use penstock_pipeline::events::sharding::shard_of;
use serde::Deserialize;
use serde_json::{Value, json};

const EVENTS: u64 = 15_000;
const SHARDS: Wanted = Wanted { brokers: 1, shards: 2 };
/// As the servers of a test have them.
const WEIGHTS: [u32; 2] = [1, 1];

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn a_shard_that_dies_while_events_flow_loses_and_doubles_nothing() -> Result<()> {
    let size = Size { events: EVENTS, rate: 1_000, patience: Duration::from_secs(180) };
    ordeal::run_on(Ground { servers: SHARDS, spec }, "shards", size, trouble, judge).await
}

fn spec(pipeline: &TestPipeline, spec: &mut Value) {
    let shards: Vec<Value> = (0..SHARDS.shards)
        .zip(WEIGHTS)
        .map(|(shard, weight)| json!({"replicas": [pipeline.cluster.shard(shard).url()], "weight": weight}))
        .collect();
    spec["exports"][0]["clickhouse"]["cluster"] =
        json!({"name": "penstock", "replication": "None", "shards": shards});
}

/// The second shard's process dies, comes back, and is taken away for a while.
async fn trouble(striker: &mut Striker<'_>, pace: &Pace) -> Result<()> {
    let pipeline = striker.pipeline();
    let (cluster, shard) = (&pipeline.cluster, pipeline.cluster.shard(1));
    let flows = async |events: u64| {
        let goal = pace.acknowledged() + events;
        wait_until("events flow", Duration::from_secs(120), async || Ok(pace.acknowledged() >= goal)).await
    };
    flows(3_000).await?;
    cluster.kill_process(&shard.namespace, &shard.pod()).await?;
    println!("{} events: the second shard is killed", pace.acknowledged());
    flows(2_000).await?;
    cluster.set_replicas(&shard.namespace, &shard.name, 0).await?;
    let named = wait_until("the status names the shard that is away", Duration::from_secs(90), async || {
        let condition =
            pipeline.condition("ClickHouseReady").await?.context("no condition ClickHouseReady")?;
        Ok(condition.status == "False" && condition.message.contains(&format!("shard 2 ({}.", shard.name)))
    });
    named.await?;
    println!("{} events: it is away, and the status says so", pace.acknowledged());
    flows(1_000).await?;
    cluster.set_replicas(&shard.namespace, &shard.name, 1).await?;
    cluster.wait_pods(&shard.namespace, &shard.name, 1).await
}

#[derive(Deserialize)]
struct Person {
    distinct_id: String,
    rows: u64,
}

/// Every person's rows are on one shard, the one that the table over both looks for them on.
async fn judge(pipeline: &TestPipeline, account: &Account) -> Result<()> {
    let sent = account.sent.context("there is a journal")?;
    ensure!(sent.acknowledged >= EVENTS, "only {} events are acknowledged", sent.acknowledged);
    let mut rows = 0;
    for shard in 0..SHARDS.shards {
        let place = pipeline.cluster.shard(shard);
        let forward = pipeline.cluster.forward_to_service(&place.namespace, &place.name, 8123).await?;
        let warehouse = Warehouse::at(forward.url());
        let local = format!("{}.events_local", quoted(&pipeline.database));
        let persons: Vec<Person> = warehouse
            .rows(&format!("SELECT distinct_id, count() AS rows FROM {local} GROUP BY distinct_id"))
            .await?;
        ensure!(!persons.is_empty(), "nothing is on shard {shard}");
        for person in &persons {
            let belongs = shard_of(&person.distinct_id, WEIGHTS.into_iter());
            ensure!(belongs == usize::from(shard), "{} is on shard {shard}", person.distinct_id);
            rows += person.rows;
        }
        let all = warehouse.number(&format!("SELECT count() FROM {}", pipeline.table())).await?;
        ensure!(all == account.table.rows, "shard {shard} sees {all} rows of {}", account.table.rows);
    }
    ensure!(rows == account.table.rows, "{rows} rows on the shards, {} in all", account.table.rows);
    Ok(())
}
