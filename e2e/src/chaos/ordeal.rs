//! One run: servers and a pipeline, a load, whatever strikes meanwhile, and the account.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::strike::Striker;
use crate::{
    audit::{self, Sources, account::Account, content::Ignored, journal::Journal, table::Table},
    cluster::wait_until,
    load::{self, Campaign, Deaths, Pace},
    pipeline::{TOKEN, TestPipeline},
    servers::{OwnServers, Wanted},
    warehouse::{Warehouse, quoted},
};

/// The size of a run.
#[derive(Clone, Debug)]
pub struct Size {
    /// Events that are to be acknowledged at least.
    pub events: u64,
    /// Events a second while faults strike.
    pub rate: u64,
    /// How long the pipeline may take to be itself again after the last fault.
    pub patience: Duration,
}

/// What a run is made on.
#[derive(Clone, Copy)]
pub struct Ground {
    /// The servers.
    pub servers: Wanted,
    /// Changes the spec before it is applied.
    pub spec: fn(&TestPipeline, &mut Value),
}

impl Default for Ground {
    fn default() -> Self {
        Self { servers: Wanted::default(), spec: |_, _| () }
    }
}

/// Runs a pipeline with a Kafka and a ClickHouse of its own under load, lets `trouble` strike, and gives the account to
/// `judge`. Everything is taken away at the end, whatever became of it.
///
/// # Errors
/// Trouble's or the judge's, events are refused, the pipeline does not become quiet, or a dead letter is there that was not
/// meant to be.
pub async fn run(
    purpose: &str,
    size: Size,
    trouble: impl AsyncFnOnce(&mut Striker<'_>, &Pace) -> Result<()>,
    judge: impl AsyncFnOnce(&TestPipeline, &Account) -> Result<()>,
) -> Result<()> {
    run_on(Ground::default(), purpose, size, trouble, judge).await
}

/// The same on other servers.
///
/// # Errors
/// As [`run`].
pub async fn run_on(
    ground: Ground,
    purpose: &str,
    size: Size,
    trouble: impl AsyncFnOnce(&mut Striker<'_>, &Pace) -> Result<()>,
    judge: impl AsyncFnOnce(&TestPipeline, &Account) -> Result<()>,
) -> Result<()> {
    OwnServers::with(purpose, ground.servers, async |cluster| {
        TestPipeline::on(cluster, purpose, async |pipeline| {
            let mut spec = spec(pipeline);
            (ground.spec)(pipeline, &mut spec);
            with_journal(pipeline, spec, ground.servers.shards, &size, trouble, judge).await
        })
        .await
    })
    .await
}

/// The same on servers that are there already, with this spec, which has the steps of [`steps`] and writes to one ClickHouse.
///
/// # Errors
/// As [`run`].
pub async fn on(
    pipeline: &TestPipeline,
    spec: Value,
    size: Size,
    trouble: impl AsyncFnOnce(&mut Striker<'_>, &Pace) -> Result<()>,
    judge: impl AsyncFnOnce(&TestPipeline, &Account) -> Result<()>,
) -> Result<()> {
    with_journal(pipeline, spec, 1, &size, trouble, judge).await
}

/// Keeps the journal when something was wrong.
async fn with_journal(
    pipeline: &TestPipeline,
    spec: Value,
    shards: u16,
    size: &Size,
    trouble: impl AsyncFnOnce(&mut Striker<'_>, &Pace) -> Result<()>,
    judge: impl AsyncFnOnce(&TestPipeline, &Account) -> Result<()>,
) -> Result<()> {
    let directory = tempfile_in_target()?;
    let journal = directory.join(format!("{}.journal", pipeline.namespace));
    let outcome = under_fire(pipeline, (spec, shards), size, &journal, trouble, judge).await;
    if outcome.is_ok() {
        std::fs::remove_file(&journal)?;
    } else {
        eprintln!("the journal is kept: {}", journal.display());
    }
    outcome
}

fn tempfile_in_target() -> Result<PathBuf> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/journals");
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

/// A transformation that marks what it sees, and fails on some; a small block, so that there are many.
fn spec(pipeline: &TestPipeline) -> Value {
    let mut spec = pipeline.spec();
    spec["kafka"]["topics"]["defaults"]["partitions"] = json!(4);
    spec["transformation"] = json!({"steps": steps()});
    spec["exports"][0]["block"] = json!({"maxRows": "20k", "maxAge": "1s"});
    spec
}

/// Transformation steps: one that marks what it sees, and one that fails on some.
pub fn steps() -> Value {
    json!([
        {"name": "mark", "vrl": ".properties.seen_by = \"transformation\""},
        {"name": "poison", "onError": "DeadLetter", "vrl": load::POISON},
    ])
}

async fn under_fire(
    pipeline: &TestPipeline,
    (spec, shards): (Value, u16),
    size: &Size,
    journal: &std::path::Path,
    trouble: impl AsyncFnOnce(&mut Striker<'_>, &Pace) -> Result<()>,
    judge: impl AsyncFnOnce(&TestPipeline, &Account) -> Result<()>,
) -> Result<()> {
    pipeline.apply(&spec).await?;
    pipeline.wait_ready(Duration::from_secs(180)).await?;
    stop_merges(pipeline, shards).await?;

    let forward = pipeline.capture().await?;
    let pace = Arc::new(Pace::default());
    let began = tokio::time::Instant::now();
    let campaign = Campaign {
        url: forward.url(),
        token: TOKEN.to_owned(),
        acknowledged: size.events,
        batch: 100,
        clients: 8,
        rate: size.rate,
        run_id: pipeline.namespace.clone(),
    };
    let writer = Arc::new(Journal::create(journal)?);
    // Ends with this function: nothing is sent any more while the state is looked at and everything is removed.
    let mut sending = tokio::task::JoinSet::new();
    sending.spawn(load::campaign(campaign, writer, Arc::clone(&pace)));
    let mut striker = Striker::new(pipeline, spec);
    let deaths = tokio::select! {
        Some(ended) = sending.join_next() => ended??,
        struck = trouble(&mut striker, &pace) => {
            struck?;
            pace.release();
            sending.join_next().await.context("the load has ended twice")???
        }
    };
    println!("{:5.1} s: {} events are acknowledged", began.elapsed().as_secs_f64(), pace.acknowledged());
    let grown = striker.grown;

    pipeline.wait_ready(size.patience).await.context("the pipeline is not ready after the faults")?;
    wait_until("the pipeline reports a lag of 0", size.patience, async || {
        Ok(pipeline.get().await?.status.and_then(|status| status.lag) == Some(0))
    })
    .await?;
    let sources = Sources {
        bootstrap_servers: pipeline.cluster.kafka(),
        kafka_properties: Vec::new(),
        topic_prefix: pipeline.topic(""),
        table: Table {
            url: pipeline.cluster.info.clickhouse_on_host(),
            user: None,
            password: None,
            name: pipeline.table(),
        },
        journal: Some(journal.to_owned()),
        ignored: Ignored::default().and(["seen_by".to_owned()]),
        partitions_grown: grown,
        others_send: false,
        progress: size.events > 500_000,
    };
    // Whatever would still come twice comes within a take-over.
    audit::settle(&sources, Duration::from_secs(5), size.patience).await?;
    let account = audit::take(&sources).await?;
    println!("{:5.1} s: the account\n{account}", began.elapsed().as_secs_f64());
    ensure!(account.is_clean(), "the account is not clean");
    ensure!(account.table.merged_parts == 0, "merges were not stopped: repeated rows may have been folded");
    ensure!(account.table.topic_ids == 1, "rows name {} topic ids", account.table.topic_ids);
    only_those_died_that_should(&account, &deaths)?;
    judge(pipeline, &account).await
}

/// Merges would fold repeated rows, and with them the evidence. The setting outlives a restart of the server; without
/// merges, parts pile up beyond what is usual.
async fn stop_merges(pipeline: &TestPipeline, shards: u16) -> Result<()> {
    let table = if shards > 1 { "events_local" } else { "events" };
    for shard in 0..shards {
        let place = pipeline.cluster.shard(shard);
        let forward = pipeline.cluster.forward_to_service(&place.namespace, &place.name, 8123).await?;
        Warehouse::at(forward.url())
            .text(&format!(
                "ALTER TABLE {}.{table} MODIFY SETTING max_bytes_to_merge_at_max_space_in_pool = 1, \
                 max_bytes_to_merge_at_min_space_in_pool = 1, parts_to_delay_insert = 100000, \
                 parts_to_throw_insert = 100000, max_parts_in_total = 1000000",
                quoted(&pipeline.database)
            ))
            .await?;
    }
    Ok(())
}

fn only_those_died_that_should(account: &Account, deaths: &Deaths) -> Result<()> {
    let letters = |step: &str, reason: &str| {
        account.dead_letters.get(&(step.to_owned(), reason.to_owned())).copied().unwrap_or_default()
    };
    let transformation = letters("transformation", "transformation_failed");
    let capture = letters("capture", "invalid_distinct_id");
    ensure!(
        transformation + capture == account.dead(),
        "dead letters that were not meant to be: {:?}",
        account.dead_letters
    );
    ensure!(
        (deaths.in_transformation..=deaths.in_transformation + deaths.uncertain).contains(&transformation)
            && (deaths.in_capture..=deaths.in_capture + deaths.uncertain).contains(&capture),
        "{transformation} and {capture} dead letters, where {deaths:?}"
    );
    Ok(())
}
