//! Under fire: 200,000 events while everything that can fail does, and each is there once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use penstock_e2e::{
    audit::account::Account,
    chaos::{
        ordeal::{self, Size},
        plan::{Component, Fault, Target},
        strike::Striker,
    },
    faults::Server,
    load::{self, Pace},
    pipeline::TestPipeline,
};
use serde_json::Value;
use uuid::Uuid;

const EVENTS: u64 = 200_000;
/// So that the load lasts about as long as the faults on two cores; on a slower machine more is sent.
const RATE: u64 = 1_800;
/// Longer than the session time-out of a consumer, 10 s.
const BEYOND_THE_SESSION: u64 = 13;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn two_hundred_thousand_events_arrive_once_while_everything_fails_in_turn() -> Result<()> {
    let size = Size { events: EVENTS, rate: RATE, patience: Duration::from_secs(300) };
    ordeal::run("fire", size, trouble, judge).await
}

async fn trouble(striker: &mut Striker<'_>, pace: &Pace) -> Result<()> {
    let began = tokio::time::Instant::now();
    let told = |what: String| {
        println!("{:5.1} s, {:>6} events: {what}", began.elapsed().as_secs_f64(), pace.acknowledged());
    };
    let of = |component| Target { component, pod: 0 };

    for component in Component::ALL {
        told(striker.surely(Fault::Kill(of(component))).await?);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    striker.set_replicas(&Component::ALL, 4);
    striker.apply().await?;
    told("scale everything to 4".to_owned());
    striker.all_ready().await?;
    told(striker.surely(Fault::Stop(Server::ClickHouse, 5)).await?);
    for component in Component::ALL {
        told(striker.surely(Fault::Delete(of(component))).await?);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    striker.set_replicas(&Component::ALL, 2);
    striker.apply().await?;
    told("scale everything to 2".to_owned());
    told(striker.surely(Fault::Stop(Server::Kafka, 5)).await?);
    striker.all_ready().await?;
    // One pod of each that reads Kafka is cut off from it, all at once, for longer than its session.
    let readers = [Component::Consumer, Component::Transformation, Component::Export];
    let cuts = readers.map(|component| Fault::CutOff(of(component), Server::Kafka, BEYOND_THE_SESSION));
    for what in striker.at_once(&cuts).await? {
        told(what);
    }
    striker.set_replicas(&Component::ALL, 3);
    striker.apply().await?;
    told("scale everything to 3".to_owned());
    told(striker.surely(Fault::Grow).await?);
    striker.all_ready().await?;
    told(striker.surely(Fault::Restart).await?);
    for component in Component::ALL {
        told(striker.surely(Fault::Kill(of(component))).await?);
    }
    striker.all_ready().await?;
    let frozen = readers.map(|component| Fault::Freeze(of(component), BEYOND_THE_SESSION));
    for what in striker.at_once(&frozen).await? {
        told(what);
    }
    for component in Component::ALL {
        told(striker.surely(Fault::UseUpMemory(of(component))).await?);
        told(striker.surely(Fault::Delete(Target { component, pod: 1 })).await?);
    }
    Ok(())
}

async fn judge(pipeline: &TestPipeline, account: &Account) -> Result<()> {
    let sent = account.sent.context("there is a journal")?;
    ensure!(sent.acknowledged >= EVENTS, "only {} events are acknowledged", sent.acknowledged);
    ensure!(sent.refused == 0, "{} good events were refused", sent.refused);
    columns(pipeline).await
}

/// A sample of rows against what was sent, column by column.
async fn columns(pipeline: &TestPipeline) -> Result<()> {
    let rows: Vec<Value> = pipeline
        .cluster
        .warehouse
        .rows(&format!(
            "SELECT *, person_mode, `$session_id` FROM {} ORDER BY cityHash64(uuid) LIMIT 500",
            pipeline.table()
        ))
        .await?;
    ensure!(rows.len() == 500, "only {} rows to look at", rows.len());
    for row in &rows {
        let text = |column: &str| row[column].as_str().with_context(|| format!("{column} of {row}"));
        let properties: Value = serde_json::from_str(text("properties")?)?;
        let number = properties["number"].as_u64().context("an event without number")?;
        let uuid: Uuid = text("uuid")?.parse()?;
        let sent = load::made(number, uuid, text("distinct_id")?, &pipeline.namespace);
        ensure!(row["event"] == sent.name.as_str(), "event of {row}");
        ensure!(row["team_id"] == 1 && row["project_id"] == 1, "project of {row}");
        let time = sent.timestamp.replace('T', " ").replace('Z', "000");
        ensure!(row["timestamp"] == time.as_str(), "timestamp of {row}");
        ensure!(row["person_mode"] == "propertyless" && row["person_properties"] == "{}", "person of {row}");
        ensure!(row["elements_chain"] == "" && row["historical_migration"] == false, "rest of {row}");
        let wanted: Value = serde_json::from_str(&sent.properties)?;
        for (key, value) in wanted.as_object().context("load makes objects")? {
            ensure!(properties[key] == *value, "property {key} of {row}: sent {value}");
        }
        ensure!(properties["seen_by"] == "transformation", "the transformation did not see {row}");
        ensure!(properties["$ip"].is_string(), "no $ip in {row}");
    }
    Ok(())
}
