//! How long an event takes from its acknowledgement to a row that a query finds, through all four components, at a steady
//! rate.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{
    Run,
    configs::Way,
    events::{Numbers, TOKEN, sent},
    load::{Connection, requests},
    report::{Aim, Ratio, percentile},
    warehouse::TABLE,
};

/// Events a second.
const RATE: u64 = 1_000;
/// Clients; each sends every hundredth event.
const CLIENTS: u64 = 100;
/// How often the table is looked at: what is measured is late by up to this.
const LOOK: Duration = Duration::from_millis(25);
/// Longest time for the last events to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was seen.
pub struct Latency {
    /// Times from acknowledgement to row, sorted.
    pub to_row: Vec<Duration>,
    /// Times from request to acknowledgement, sorted.
    pub to_acknowledgement: Vec<Duration>,
}

impl Latency {
    /// The lines of the table of ratios.
    pub fn ratios(&self) -> Vec<Ratio> {
        let line = |what: &str, values: &[Duration], percent, aim| Ratio {
            what: format!("{what}, {RATE} events/s, p{percent}"),
            values: vec![percentile(values, percent).as_secs_f64()],
            aim,
            unit: " s",
        };
        let row = "from the acknowledgement to a row that a query finds";
        let answer = "from the request to its acknowledgement";
        vec![
            line(row, &self.to_row, 99.0, Some((Aim::AtMost, 2.0))),
            line(row, &self.to_row, 50.0, None),
            line(answer, &self.to_acknowledgement, 99.0, None),
            line(answer, &self.to_acknowledgement, 50.0, None),
        ]
    }
}

/// Starts all components and sends for so long. The program of the transformation drops none of these events.
///
/// # Errors
/// A process ends, an event is refused, or does not arrive.
pub async fn measure(run: &Run, lasting: Duration) -> Result<Latency> {
    run.warehouse.create_table().await?;
    let captured = run.kafka.create("steady-captured").await?;
    let ingested = run.kafka.create("steady-ingested").await?;
    let transformed = run.kafka.create("steady-transformed").await?;
    let dead_letter = run.kafka.create("steady-dead-letter").await?;
    let way = |from: &str, name: &str, to: &str| Way {
        from: from.to_owned(),
        group: run.kafka.name(name),
        to: to.to_owned(),
        dead_letter: dead_letter.clone(),
    };
    let listen = crate::process::free_address()?;
    let config = run.setup.capture()?;
    let consuming = way(&captured, "steady-consumer", &ingested);
    let transforming = way(&ingested, "steady-transformation", &transformed);
    let exporting = way(&transformed, "steady-export", TABLE);
    let mut components = [
        run.setup.start("capture", |setup, admin| config(setup, admin, listen, &captured, &dead_letter))?,
        run.setup.start("consumer", |setup, admin| {
            setup.consumer(admin, &consuming).expect("its folder could be written a moment ago")
        })?,
        run.setup.start("transformation", |setup, admin| setup.transformation(admin, &transforming))?,
        run.setup.start("export", |setup, admin| {
            setup.export(admin, &exporting, run.warehouse.url(), run.warehouse.database())
        })?,
    ];
    for component in &mut components {
        component.process.wait_ready(component.admin)?;
    }

    // A few seconds of the same come first, so that every client has found its partitions.
    let warm_up = Duration::from_secs(5);
    let total = (warm_up + lasting).as_secs() * RATE;
    run.say(&format!("{total} events at {RATE} a second, through all four components"));
    let begin = Instant::now() + Duration::from_millis(200);
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        clients.spawn(send(listen, client, total / CLIENTS, begin));
    }
    let looking = look(run, total, begin + warm_up + lasting + PATIENCE);
    let sending = async {
        let mut acknowledged = Vec::new();
        while let Some(done) = clients.join_next().await {
            acknowledged.extend(done??);
        }
        anyhow::Ok(acknowledged)
    };
    let (acknowledged, seen) = tokio::try_join!(sending, looking)?;
    for component in &mut components {
        component.process.check()?;
    }
    drop(components);
    run.warehouse.drop_all().await?;

    let measured: Vec<&Acknowledged> = acknowledged.iter().filter(|one| one.at >= begin + warm_up).collect();
    ensure!(!measured.is_empty(), "nothing was acknowledged in time");
    let mut to_row = Vec::with_capacity(measured.len());
    for one in &measured {
        let seen = seen.get(&one.uuid).with_context(|| format!("event {} has no row", one.uuid))?;
        to_row.push(seen.saturating_duration_since(one.at));
    }
    let mut to_acknowledgement: Vec<Duration> = measured.iter().map(|one| one.took).collect();
    to_row.sort_unstable();
    to_acknowledgement.sort_unstable();
    Ok(Latency { to_row, to_acknowledgement })
}

struct Acknowledged {
    uuid: Uuid,
    at: Instant,
    took: Duration,
}

/// One client: an event every tenth of a second, at times that do not depend on the answers.
async fn send(address: SocketAddr, client: u64, count: u64, begin: Instant) -> Result<Vec<Acknowledged>> {
    let mut numbers = Numbers::of(1_000 + client);
    let mut connection = Connection::open(address).await?;
    let mut acknowledged = Vec::with_capacity(usize::try_from(count)?);
    for number in 0..count {
        let event = sent(&mut numbers, Some(TOKEN));
        let request = requests("/i/v0/e/", &[Bytes::from(event.json)], false).remove(0);
        let due = begin + Duration::from_micros((number * CLIENTS + client) * 1_000_000 / RATE);
        tokio::time::sleep_until(due.into()).await;
        let asked = Instant::now();
        let status = connection.ask(&request).await?;
        ensure!(status == 200, "an event was answered {status}");
        let at = Instant::now();
        acknowledged.push(Acknowledged { uuid: event.uuid, at, took: at - asked });
    }
    Ok(acknowledged)
}

/// Looks at the table until it has so many rows. Gives when each event was first seen: rows of a partition appear in the
/// order of their offsets, so that a look at the greatest offsets tells of all rows at little cost.
async fn look(run: &Run, rows: u64, deadline: Instant) -> Result<HashMap<Uuid, Instant>> {
    let table = format!("{}.{TABLE}", run.warehouse.database());
    let ends = format!("SELECT _partition, max(_offset), count() FROM {table} GROUP BY _partition");
    let mut looks: HashMap<u64, Vec<(u64, Instant)>> = HashMap::new();
    loop {
        let seen: Vec<(u64, u64, u64)> = run.warehouse.rows(&ends).await?;
        let at = Instant::now();
        for (partition, end, _) in &seen {
            let of_partition = looks.entry(*partition).or_default();
            if of_partition.last().is_none_or(|(last, _)| last < end) {
                of_partition.push((*end, at));
            }
        }
        let there: u64 = seen.iter().map(|(_, _, count)| count).sum();
        if there >= rows {
            ensure!(there == rows, "the table has {there} rows instead of {rows}");
            break;
        }
        ensure!(at < deadline, "only {there} of {rows} events have become rows");
        tokio::time::sleep(LOOK).await;
    }
    let places: Vec<(Uuid, u64, u64)> =
        run.warehouse.rows(&format!("SELECT uuid, _partition, _offset FROM {table}")).await?;
    let when = |partition: u64, offset: u64| {
        let of_partition = looks.get(&partition)?;
        let first = of_partition.partition_point(|(end, _)| *end < offset);
        of_partition.get(first).map(|(_, at)| *at)
    };
    Ok(places
        .into_iter()
        .filter_map(|(uuid, partition, offset)| Some((uuid, when(partition, offset)?)))
        .collect())
}
