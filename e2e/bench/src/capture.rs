//! Capture beside a bare handler that parses the same bodies: the same requests, taking turns.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Result, ensure};
use bytes::Bytes;

use crate::{
    Run,
    events::{Shape, bodies},
    load,
    process::{Process, free_address, own_cpu, used},
    report::{Aim, Pass, Ratio, Series, percentile},
};

/// Different bodies of each shape.
const BODIES: usize = 200;

struct Kind {
    shape: Shape,
    name: &'static str,
    path: &'static str,
    connections: usize,
    /// Requests of one pass.
    requests: u64,
    aim: Option<(Aim, f64)>,
}

fn kinds(events: u64) -> [Kind; 3] {
    let batches = (events / 2 / Shape::Batch.events() as u64).max(1);
    [
        Kind {
            shape: Shape::Single,
            name: "single events",
            path: "/i/v0/e/",
            connections: 256,
            requests: (events / 5).max(1),
            aim: None,
        },
        Kind {
            shape: Shape::Batch,
            name: "batches of 50",
            path: "/batch/",
            connections: 32,
            requests: batches,
            aim: Some((Aim::AtLeast, 50.0)),
        },
        Kind {
            shape: Shape::GzipBatch,
            name: "batches of 50, gzip",
            path: "/batch/",
            connections: 32,
            requests: batches,
            aim: None,
        },
    ]
}

/// Measures both, and what comes of it.
///
/// # Errors
/// A process ends, an event is refused, or not every acknowledged event lies in Kafka.
pub async fn measure(run: &Run) -> Result<(Vec<Ratio>, Vec<Series>)> {
    let topic = run.kafka.create("captured-over-http").await?;
    let dead_letter = run.kafka.create("dead-letter-of-capture").await?;
    let listen = free_address()?;
    let config = run.setup.capture()?;
    let mut capture =
        run.setup.start("capture", |setup, admin| config(setup, admin, listen, &topic, &dead_letter))?;
    capture.process.wait_ready(capture.admin)?;
    let at = free_address()?;
    let mut reference =
        Process::start(&run.setup.directory, "reference", &std::env::current_exe()?, |command| {
            command.arg("reference").arg("--listen").arg(at.to_string());
        })?;
    reference.wait_listening(at)?;

    let mut acknowledged = 0;
    let (mut ratios, mut series) = (Vec::new(), Vec::new());
    for kind in kinds(run.events) {
        let bodies = bodies(kind.shape, BODIES)?;
        let requests = Arc::new(load::requests(kind.path, &bodies, kind.shape == Shape::GzipBatch));
        let mut ours = Series::new(&format!("capture, {}", kind.name));
        let mut bare = Series::new(&format!("bare handler, {}", kind.name));
        // What is warm in one is warm in the other.
        let warm = (kind.requests / 20).max(1);
        load::send(listen, Arc::clone(&requests), warm, kind.connections).await?;
        load::send(at, Arc::clone(&requests), warm, kind.connections).await?;
        acknowledged += warm * kind.shape.events() as u64;
        for repeat in 0..run.repeats {
            for turn in 0..2 {
                // Whoever comes first changes from one repetition to the next.
                let is_ours = (repeat + turn) % 2 == 0;
                let (address, pid) =
                    if is_ours { (listen, capture.process.pid()) } else { (at, reference.pid()) };
                let pass = pass(address, pid, &requests, &kind).await?;
                let into = if is_ours { &mut ours } else { &mut bare };
                run.say(&format!(
                    "{} {}/{}: {:.2} CPU-s per million events",
                    into.name,
                    repeat + 1,
                    run.repeats,
                    pass.cpu_per_million()
                ));
                into.passes.push(pass);
                if is_ours {
                    acknowledged += pass.events;
                }
            }
            capture.process.check()?;
            reference.check()?;
        }
        let what = format!("capture / bare handler, events per CPU-second, {}", kind.name);
        ratios.push(Ratio::of_speed(&what, &ours, &bare, kind.aim));
        series.extend([ours, bare]);
    }
    let there = run.kafka.length(&topic)?;
    ensure!(there == acknowledged, "{there} events lie in Kafka, {acknowledged} were acknowledged");
    run.say(&format!("all {acknowledged} acknowledged events lie in Kafka"));
    drop((capture, reference));
    run.kafka.delete(&topic).await?;
    Ok((ratios, series))
}

async fn pass(address: SocketAddr, pid: u32, requests: &Arc<Vec<Bytes>>, kind: &Kind) -> Result<Pass> {
    let (before, load_before) = (used(pid)?, own_cpu()?);
    let answered = load::send(address, Arc::clone(requests), kind.requests, kind.connections).await?;
    let (after, load_after) = (used(pid)?, own_cpu()?);
    Ok(Pass {
        events: kind.requests * kind.shape.events() as u64,
        took: answered.took,
        cpu: after.cpu - before.cpu,
        server_cpu: std::time::Duration::ZERO,
        load_cpu: load_after - load_before,
        peak_memory: after.peak_memory,
        answers: Some((percentile(&answered.latencies, 50.0), percentile(&answered.latencies, 99.0))),
    })
}
