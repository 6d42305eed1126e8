//! From the acknowledged request to the row: nothing lost, nothing doubled, every column right.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::DeleteParams};
use penstock_e2e::{
    cluster::wait_until,
    load::{self, Load, Progress},
    pipeline::{TOKEN, TestPipeline},
};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

const EVENTS: u64 = 100_000;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn a_hundred_thousand_events_arrive_once_while_each_component_is_killed_once() -> Result<()> {
    TestPipeline::with("delivery", run).await
}

async fn run(pipeline: &TestPipeline) -> Result<()> {
    let mut spec = pipeline.spec();
    spec["transformation"] =
        json!({"steps": [{"name": "mark", "vrl": ".properties.seen_by = \"transformation\""}]});
    spec["exports"][0]["block"] = json!({"maxRows": "20k", "maxAge": "1s"});
    pipeline.apply(&spec).await?;
    pipeline.wait_ready(Duration::from_secs(120)).await?;
    // Merges would fold repeated rows, and with them the evidence.
    pipeline.cluster.warehouse.text(&format!("SYSTEM STOP MERGES {}", pipeline.table())).await?;

    let forward = pipeline.capture().await?;
    let progress = Arc::new(Progress::default());
    let began = Instant::now();
    let sending = tokio::spawn(load::send(
        Load {
            url: forward.url(),
            token: TOKEN.to_owned(),
            acknowledged: EVENTS,
            batch: 100,
            connections: 8,
            run_id: pipeline.namespace.clone(),
        },
        Arc::clone(&progress),
    ));

    let components = ["export-warehouse", "consumer-main", "transformation", "capture"];
    for (number, component) in components.iter().enumerate() {
        let due = EVENTS * (number as u64 + 1) / (components.len() as u64 + 1);
        wait_until(&format!("{due} events are acknowledged"), Duration::from_secs(240), async || {
            Ok(progress.acknowledged() >= due || sending.is_finished())
        })
        .await?;
        let killed = kill_one(pipeline, component).await?;
        println!("{:>6} events acknowledged: killed {killed}", progress.acknowledged());
    }
    let account = sending.await??;
    println!(
        "acknowledged {} events, uncertain {}, in {:.1} s",
        account.acknowledged.len(),
        account.uncertain.len(),
        began.elapsed().as_secs_f64()
    );

    let captured = settled(pipeline, "captured").await?;
    let rows_wanted = captured.len() as u64;
    pipeline.wait_rows(rows_wanted, Duration::from_secs(120)).await?;
    // Whatever would still come twice comes within a take-over.
    tokio::time::sleep(Duration::from_secs(5)).await;

    let ingested = pipeline.read("ingested").await?;
    let transformed = pipeline.read("transformed").await?;
    let dead = pipeline.read("dead-letter").await?;
    println!(
        "captured {}, ingested {}, transformed {}, dead letters {}",
        captured.len(),
        ingested.len(),
        transformed.len(),
        dead.len()
    );
    ensure!(dead.is_empty(), "no event of this load is bad, but there are {} dead letters", dead.len());
    ensure!(
        ingested.len() == captured.len() && transformed.len() == captured.len(),
        "a stage lost or doubled events"
    );

    #[derive(Deserialize)]
    struct Totals {
        rows: u64,
        uuids: u64,
        topic_ids: u64,
        origins: u64,
    }
    let table = pipeline.table();
    let totals: Vec<Totals> = pipeline
        .cluster
        .warehouse
        .rows(&format!(
            "SELECT count() AS rows, uniqExact(uuid) AS uuids, uniqExact(_topic_id) AS topic_ids, \
             uniqExact(_topic_id, _partition, _offset) AS origins FROM {table}"
        ))
        .await?;
    let totals = totals.first().context("no totals")?;
    println!("ClickHouse: {} rows, {} UUIDs, {} origins", totals.rows, totals.uuids, totals.origins);
    ensure!(totals.topic_ids == 1, "rows name {} topic ids", totals.topic_ids);
    ensure!(
        totals.rows == rows_wanted && totals.uuids == rows_wanted && totals.origins == rows_wanted,
        "Kafka has {rows_wanted} events, ClickHouse {} rows, {} UUIDs, {} origins",
        totals.rows,
        totals.uuids,
        totals.origins
    );

    #[derive(Deserialize)]
    struct Origin {
        uuid: Uuid,
        _partition: i32,
        _offset: i64,
    }
    let origins: HashMap<(i32, i64), Uuid> = pipeline
        .cluster
        .warehouse
        .rows::<Origin>(&format!("SELECT uuid, _partition, _offset FROM {table}"))
        .await?
        .into_iter()
        .map(|row| ((row._partition, row._offset), row.uuid))
        .collect();
    let mut uuids = HashSet::new();
    for record in &transformed {
        let uuid: Uuid = record.json()?["uuid"].as_str().context("an event without uuid")?.parse()?;
        ensure!(
            origins.get(&(record.partition, record.offset)) == Some(&uuid),
            "partition {} offset {} holds {uuid}, ClickHouse has {:?}",
            record.partition,
            record.offset,
            origins.get(&(record.partition, record.offset))
        );
        uuids.insert(uuid);
    }
    let lost = account.acknowledged.iter().filter(|uuid| !uuids.contains(uuid)).count();
    let unknown =
        uuids.iter().filter(|u| !account.acknowledged.contains(u) && !account.uncertain.contains(u)).count();
    ensure!(lost == 0, "{lost} acknowledged events are not in ClickHouse");
    ensure!(unknown == 0, "{unknown} events are in ClickHouse that nobody sent");

    check_columns(pipeline).await?;
    order_is_kept(&transformed)?;
    idle_is_idle(pipeline).await
}

/// Kills the process of one pod of a component, without warning.
async fn kill_one(pipeline: &TestPipeline, component: &str) -> Result<String> {
    let pods = pipeline.cluster.pods(&pipeline.namespace, component).await?;
    let pod = pods.first().with_context(|| format!("{component} has no pod"))?.name_any();
    let api: Api<Pod> = Api::namespaced(pipeline.cluster.client.clone(), &pipeline.namespace);
    api.delete(&pod, &DeleteParams::default().grace_period(0)).await?;
    Ok(pod)
}

/// A topic, once it no longer grows.
async fn settled(pipeline: &TestPipeline, stage: &str) -> Result<Vec<penstock_e2e::truth::Record>> {
    let mut before = pipeline.read(stage).await?;
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = pipeline.read(stage).await?;
        if now.len() == before.len() {
            return Ok(now);
        }
        before = now;
    }
}

/// A sample of rows against what was sent, column by column.
async fn check_columns(pipeline: &TestPipeline) -> Result<()> {
    let rows: Vec<Value> = pipeline
        .cluster
        .warehouse
        .rows(&format!(
            "SELECT *, toString(timestamp) AS time, person_mode, `$session_id` FROM {} ORDER BY cityHash64(uuid) LIMIT 500",
            pipeline.table()
        ))
        .await?;
    ensure!(rows.len() == 500, "only {} rows to look at", rows.len());
    for row in &rows {
        let properties: Value =
            serde_json::from_str(row["properties"].as_str().context("properties is no string")?)?;
        let number = properties["number"].as_u64().context("an event without number")?;
        let uuid: Uuid = row["uuid"].as_str().context("no uuid")?.parse()?;
        let sent = load::event(number, uuid, &pipeline.namespace);
        ensure!(row["event"] == sent["event"], "event of {row}");
        ensure!(row["distinct_id"] == sent["distinct_id"], "distinct_id of {row}");
        ensure!(row["team_id"] == 1 && row["project_id"] == 1, "project of {row}");
        ensure!(row["time"] == "2026-11-24 12:00:00.123000", "timestamp of {row}");
        ensure!(row["person_mode"] == "propertyless" && row["person_properties"] == "{}", "person of {row}");
        ensure!(row["elements_chain"] == "" && row["historical_migration"] == false, "rest of {row}");
        for (key, value) in sent["properties"].as_object().context("load makes objects")? {
            ensure!(properties[key] == *value, "property {key} of {row}: sent {value}");
        }
        ensure!(properties["seen_by"] == "transformation", "the transformation did not see {row}");
        ensure!(properties["$ip"].is_string(), "no $ip in {row}");
    }
    Ok(())
}

/// The events of one visitor lie in one partition.
fn order_is_kept(records: &[penstock_e2e::truth::Record]) -> Result<()> {
    let mut partition_of: BTreeMap<String, i32> = BTreeMap::new();
    for record in records {
        let visitor = record.json()?["distinct_id"].as_str().context("no distinct_id")?.to_owned();
        let partition = *partition_of.entry(visitor.clone()).or_insert(record.partition);
        ensure!(
            partition == record.partition,
            "{visitor} is in partitions {partition} and {}",
            record.partition
        );
    }
    ensure!(partition_of.values().collect::<HashSet<_>>().len() > 1, "all visitors lie in one partition");
    Ok(())
}

/// When nothing is under way, no component reports lag.
async fn idle_is_idle(pipeline: &TestPipeline) -> Result<()> {
    wait_until("the pipeline reports a lag of 0", Duration::from_secs(90), async || {
        Ok(pipeline.get().await?.status.and_then(|status| status.lag) == Some(0))
    })
    .await
}
