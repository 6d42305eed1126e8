//! The consumer and the transformation, each on a backlog of its own: from the start of the process to the committed end.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{
    Run,
    configs::{Component, Way},
    events::{Numbers, captured, ingested},
    report::{Aim, Pass, Ratio, Series},
};

/// CPU seconds that Vector 0.58 needs for a million events of such a program, from Kafka to Kafka, measured apart from this
/// on a machine like the one that the aims were set on.
const VECTOR: f64 = 34.0;
/// Longest time for one pass.
const PATIENCE: Duration = Duration::from_secs(600);

/// Fills a topic with `captured` messages.
///
/// # Errors
/// Kafka does not take them.
pub async fn fill_captured(run: &Run) -> Result<String> {
    let topic = run.kafka.create("captured").await?;
    let mut numbers = Numbers::of(11);
    run.kafka.fill(&topic, run.events, || captured(&mut numbers), |done| run.filling("captured", done))?;
    Ok(topic)
}

/// Fills a topic with `ingested` messages. Gives how many of them the transformation keeps.
///
/// # Errors
/// Kafka does not take them.
pub async fn fill_ingested(run: &Run) -> Result<(String, u64)> {
    let topic = run.kafka.create("ingested").await?;
    let mut numbers = Numbers::of(13);
    let next = || ingested(&mut numbers);
    let kept = run.kafka.fill(&topic, run.events, next, |done| run.filling("ingested", done))?;
    Ok((topic, kept))
}

/// Measures the consumer.
///
/// # Errors
/// It ends, takes too long, or does not write what it should.
pub async fn consumer(run: &Run, captured: &str) -> Result<Series> {
    let mut series = Series::new("consumer");
    for repeat in 0..run.repeats {
        let way = way(run, captured, "consumer", repeat).await?;
        let component = run.setup.start("consumer", |setup, admin| {
            setup.consumer(admin, &way).expect("its folder could be written a moment ago")
        })?;
        series.passes.push(pass(run, component, &way, run.events, "consumer", repeat).await?);
    }
    Ok(series)
}

/// Measures the transformation, and holds it against what Vector is known to need.
///
/// # Errors
/// It ends, takes too long, or does not write what it should.
pub async fn transformation(run: &Run, ingested: &str, kept: u64) -> Result<(Ratio, Series)> {
    let mut series = Series::new("transformation");
    for repeat in 0..run.repeats {
        let way = way(run, ingested, "transformation", repeat).await?;
        let component =
            run.setup.start("transformation", |setup, admin| setup.transformation(admin, &way))?;
        series.passes.push(pass(run, component, &way, kept, "transformation", repeat).await?);
    }
    let ratio = Ratio {
        what: format!("transformation / Vector ({VECTOR} CPU-s per million, of another run), CPU per event"),
        values: series.passes.iter().map(|pass| pass.cpu_per_million() / VECTOR * 100.0).collect(),
        aim: Some((Aim::AtMost, 50.0)),
        unit: " %",
    };
    Ok((ratio, series))
}

async fn way(run: &Run, from: &str, name: &str, repeat: usize) -> Result<Way> {
    let dead_letter = run.kafka.create(&format!("dead-letter-of-{name}-{repeat}")).await?;
    Ok(Way {
        from: from.to_owned(),
        group: run.kafka.name(&format!("{name}-{repeat}")),
        to: run.kafka.create(&format!("out-of-{name}-{repeat}")).await?,
        dead_letter,
    })
}

/// One pass over the whole backlog; `written` messages must come of it.
async fn pass(
    run: &Run,
    mut component: Component,
    way: &Way,
    written: u64,
    name: &str,
    repeat: usize,
) -> Result<Pass> {
    let began = Instant::now();
    run.kafka.wait_committed(&way.from, &way.group, &mut component.process, PATIENCE).await?;
    let took = began.elapsed();
    let used = component.process.used()?;
    drop(component);
    let there = run.kafka.count(&way.to)?;
    ensure!(there == written, "the {name} has written {there} messages instead of {written}");
    run.kafka.delete(&way.to).await?;
    let pass = Pass {
        events: run.events,
        took,
        cpu: used.cpu,
        server_cpu: Duration::ZERO,
        load_cpu: Duration::ZERO,
        peak_memory: used.peak_memory,
        answers: None,
    };
    run.say(&format!(
        "{name} {}/{}: {:.2} CPU-s per million events, {there} written",
        repeat + 1,
        run.repeats,
        pass.cpu_per_million()
    ));
    Ok(pass)
}
