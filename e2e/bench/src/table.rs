//! The export beside ClickHouse's own Kafka engine: the same topic into the same table, taking turns. What the server does
//! for it counts on both sides, with the merges that follow.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{
    Run,
    configs::Way,
    process::{Used, used},
    report::{Aim, Pass, Ratio, Series},
    warehouse::TABLE,
};

/// Longest time for one pass.
const PATIENCE: Duration = Duration::from_secs(600);
/// Longest time for the merges after it.
const MERGES: Duration = Duration::from_secs(180);

/// Measures both.
///
/// # Errors
/// A process ends, takes too long, or the table does not have every row once.
pub async fn measure(run: &Run, ingested: &str) -> Result<(Ratio, Vec<Series>)> {
    let dead_letter = run.kafka.create("dead-letter-of-export").await?;
    let mut ours = Series::new("export into ClickHouse");
    let mut engine = Series::new("Kafka engine of ClickHouse");
    for repeat in 0..run.repeats {
        for turn in 0..2 {
            let is_ours = (repeat + turn) % 2 == 0;
            let into = if is_ours { &mut ours } else { &mut engine };
            let pass = if is_ours {
                by_export(run, ingested, &dead_letter, repeat).await?
            } else {
                by_engine(run, ingested, repeat).await?
            };
            run.say(&format!(
                "{} {}/{}: {:.2} CPU-s per million rows ({:.2} + {:.2} of the server), {} parts left",
                into.name,
                repeat + 1,
                run.repeats,
                pass.cpu_per_million(),
                pass.cpu.as_secs_f64() / pass.events as f64 * 1e6,
                pass.server_cpu.as_secs_f64() / pass.events as f64 * 1e6,
                run.warehouse.parts().await?,
            ));
            into.passes.push(pass);
        }
    }
    run.warehouse.drop_all().await?;
    let what = "export with server / Kafka engine, CPU per row";
    Ok((Ratio::of_cost(what, &ours, &engine, Some((Aim::AtMost, 65.0))), vec![ours, engine]))
}

async fn by_export(run: &Run, ingested: &str, dead_letter: &str, repeat: usize) -> Result<Pass> {
    let server = Server::with_an_empty_table(run).await?;
    let way = Way {
        from: ingested.to_owned(),
        group: run.kafka.name(&format!("export-{repeat}")),
        to: TABLE.to_owned(),
        dead_letter: dead_letter.to_owned(),
    };
    let mut component = run.setup.start("export", |setup, admin| {
        setup.export(admin, &way, run.warehouse.url(), run.warehouse.database())
    })?;
    run.kafka.wait_committed(&way.from, &way.group, &mut component.process, PATIENCE).await?;
    let used = component.process.used()?;
    drop(component);
    server.pass(run, used).await
}

async fn by_engine(run: &Run, ingested: &str, repeat: usize) -> Result<Pass> {
    let server = Server::with_an_empty_table(run).await?;
    let group = run.kafka.name(&format!("engine-{repeat}"));
    run.warehouse.load_by_engine(&run.kafka_of_clickhouse, ingested, &group).await?;
    run.warehouse.wait_rows(run.events, PATIENCE).await?;
    server.pass(run, Used::default()).await
}

/// The server at the beginning of a pass.
struct Server {
    pid: u32,
    before: Used,
    began: Instant,
}

impl Server {
    async fn with_an_empty_table(run: &Run) -> Result<Self> {
        run.warehouse.create_table().await?;
        let pid = run.warehouse.pid().await?;
        // What the tables before it have left to do is not of this pass.
        tokio::time::sleep(Duration::from_secs(2)).await;
        Ok(Self { pid, before: used(pid)?, began: Instant::now() })
    }

    async fn pass(self, run: &Run, ours: Used) -> Result<Pass> {
        let took = self.began.elapsed();
        run.warehouse.wait_rows(run.events, PATIENCE).await?;
        run.warehouse.wait_merged(MERGES).await?;
        Ok(Pass {
            events: run.events,
            took,
            cpu: ours.cpu,
            server_cpu: used(self.pid)?.cpu.saturating_sub(self.before.cpu),
            load_cpu: Duration::ZERO,
            peak_memory: ours.peak_memory,
            answers: None,
        })
    }
}
