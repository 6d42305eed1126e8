//! The last part of `make quickstart`: applies the example pipeline, has a real client library send the events of a web
//! shop, and shows what came of them.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use penstock_crds::IngestionPipeline;
use penstock_e2e::{cluster::Cluster, truth, warehouse::quoted};
use serde::Deserialize;

/// Events that the shop's visitors make.
const EVENTS: u32 = 3_000;

#[tokio::main]
async fn main() -> Result<()> {
    let began = Instant::now();
    let repository =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("e2e lies in the repository")?.to_owned();
    let cluster = Cluster::connect().await?;

    let (pipeline, api) = apply(&cluster, &repository).await?;
    let namespace = pipeline.namespace().context("the example has a namespace")?;
    let pipeline = wait_ready(&api, &pipeline.name_any()).await?;

    let token = pipeline.spec.projects[0].token.clone().context("the example's token is in its spec")?;
    let forward =
        cluster.forward_to_service(&namespace, &format!("{}-capture", pipeline.name_any()), 80).await?;
    let run_id = format!("quickstart-{}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs());
    send(&repository, &forward.url(), &token, &run_id)?;

    let database = pipeline
        .spec
        .exports
        .iter()
        .find_map(|export| export.clickhouse.as_ref())
        .map(|clickhouse| clickhouse.database.clone())
        .context("the example exports to ClickHouse")?;
    let table = format!("{}.{}", quoted(&database), quoted("events"));
    wait_rows(&cluster, &table, &run_id).await?;

    let pipeline = api.get(&pipeline.name_any()).await?;
    print_status(&pipeline);
    print_counts(&cluster, &table, &run_id).await?;
    print_latency(&cluster, &table, &run_id).await?;
    print_dead_letters(&cluster, &namespace, &pipeline.name_any()).await?;
    print_dropped(&cluster, &namespace).await?;
    print_next(&cluster, &namespace, &pipeline.name_any(), &table);
    println!(
        "\nFrom the applied YAML to these figures: {:.0} s. The platform keeps running.",
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn headline(text: &str) {
    println!("\n\x1b[1m{text}\x1b[0m");
}

async fn apply(cluster: &Cluster, repository: &Path) -> Result<(IngestionPipeline, Api<IngestionPipeline>)> {
    let path = repository.join("docs/examples/quickstart.yaml");
    headline(&format!("==> kubectl apply -f {}", path.strip_prefix(repository)?.display()));
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let parameters = PatchParams::apply("kubectl").force();
    let mut applied = None;
    for document in serde_yaml_ng::Deserializer::from_str(&text) {
        let value = serde_json::Value::deserialize(document)?;
        let name = value["metadata"]["name"].as_str().context("an object without a name")?.to_owned();
        match value["kind"].as_str() {
            Some("Namespace") => {
                let api: Api<Namespace> = Api::all(cluster.client.clone());
                api.patch(&name, &parameters, &Patch::Apply(&value)).await?;
                println!("    namespace/{name} applied");
            }
            Some("IngestionPipeline") => {
                let namespace = value["metadata"]["namespace"].as_str().context("no namespace")?;
                let api: Api<IngestionPipeline> = Api::namespaced(cluster.client.clone(), namespace);
                let object = api.patch(&name, &parameters, &Patch::Apply(&value)).await?;
                println!("    ingestionpipeline.penstock.dev/{name} applied");
                applied = Some((object, api));
            }
            kind => bail!("{} holds an object of kind {kind:?}", path.display()),
        }
    }
    applied.with_context(|| format!("{} holds no IngestionPipeline", path.display()))
}

async fn wait_ready(api: &Api<IngestionPipeline>, name: &str) -> Result<IngestionPipeline> {
    println!("    waiting until it is Ready (about 30 s)");
    let began = Instant::now();
    let mut shown = String::new();
    loop {
        let object = api.get(name).await?;
        let generation = object.meta().generation;
        let status = object.status.clone().unwrap_or_default();
        let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let current = status.observed_generation == generation;
        if current && ready.is_some_and(|condition| condition.status == "True") {
            println!("    Ready after {:.0} s", began.elapsed().as_secs_f64());
            return Ok(object);
        }
        let line = ready.map_or_else(String::new, |c| format!("{}: {}", c.reason, c.message));
        if line != shown {
            println!("    {:>3.0} s  {line}", began.elapsed().as_secs_f64());
            shown = line;
        }
        ensure!(
            began.elapsed() < Duration::from_secs(180),
            "the pipeline is not Ready after three minutes; look at `kubectl describe ipl {name}` and \
             `kubectl -n penstock-system logs deploy/penstock`. Last: {shown}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn send(repository: &Path, url: &str, token: &str, run_id: &str) -> Result<()> {
    headline("==> A web shop sends events with the PostHog Python library");
    let sources = repository.join("docs/examples/quickstart");
    let cache = penstock_platform::layout::Layout::from_env()?.cache;
    let python = virtual_environment(&sources.join("requirements.txt"), &cache)?;
    std::io::stdout().flush()?;
    run(Command::new(python)
        .arg(sources.join("send.py"))
        .args(["--host", url, "--token", token, "--run-id", run_id])
        .args(["--events", &EVENTS.to_string()]))
}

/// A virtual environment with these requirements, made once and kept in the cache.
fn virtual_environment(requirements: &Path, cache: &Path) -> Result<PathBuf> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    std::fs::read(requirements)
        .with_context(|| format!("reading {}", requirements.display()))?
        .hash(&mut hasher);
    let home = cache.join(format!("quickstart-python-{:016x}", hasher.finish()));
    let python = home.join("bin/python");
    if !home.join("complete").exists() {
        println!("    installing the library (once, about 15 s)");
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home))?;
        run(Command::new(&python)
            .args(["-m", "pip", "install", "--quiet", "--requirement"])
            .arg(requirements))?;
        std::fs::write(home.join("complete"), "")?;
    }
    Ok(python)
}

fn of_run(run_id: &str) -> String {
    format!("JSONExtractString(properties, 'run_id') = '{run_id}'")
}

/// Waits until the rows of this run have stopped to grow.
async fn wait_rows(cluster: &Cluster, table: &str, run_id: &str) -> Result<()> {
    let sql = format!("SELECT count() FROM {table} WHERE {}", of_run(run_id));
    let began = Instant::now();
    let (mut rows, mut since) = (0, Instant::now());
    loop {
        let now = cluster.warehouse.number(&sql).await?;
        if now != rows {
            (rows, since) = (now, Instant::now());
        }
        if rows > 0 && since.elapsed() > Duration::from_secs(4) {
            return Ok(());
        }
        ensure!(
            began.elapsed() < Duration::from_secs(90),
            "no event of this run is in ClickHouse after 90 s"
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn print_status(pipeline: &IngestionPipeline) {
    headline("==> kubectl get ipl: the pipeline's status");
    let status = pipeline.status.clone().unwrap_or_default();
    for condition in &status.conditions {
        println!(
            "    {:<16} {:<8} {} {}",
            condition.type_, condition.status, condition.reason, condition.message
        );
    }
    println!("    {:<22} {:>6} {:>8} {:>12}", "component", "ready", "lag", "revision");
    for component in &status.components {
        println!(
            "    {:<22} {:>6} {:>8} {:>12}",
            component.name,
            format!("{}/{}", component.ready_replicas, component.replicas),
            component.lag.map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
            component.revision.as_deref().unwrap_or("-"),
        );
    }
}

async fn print_counts(cluster: &Cluster, table: &str, run_id: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Count {
        event: String,
        rows: u64,
        visitors: u64,
    }
    headline("==> Events read back from ClickHouse");
    let counts: Vec<Count> = cluster
        .warehouse
        .rows(&format!(
            "SELECT event, count() AS rows, uniqExact(distinct_id) AS visitors FROM {table} WHERE {} \
             GROUP BY event ORDER BY rows DESC",
            of_run(run_id)
        ))
        .await?;
    println!("    {:<28} {:>8} {:>9}", "event", "rows", "visitors");
    for count in &counts {
        println!("    {:<28} {:>8} {:>9}", count.event, count.rows, count.visitors);
    }
    println!("    {:<28} {:>8}", "all", counts.iter().map(|count| count.rows).sum::<u64>());
    Ok(())
}

async fn print_latency(cluster: &Cluster, table: &str, run_id: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Latency {
        p50: f64,
        p99: f64,
    }
    let latency: Vec<Latency> = cluster
        .warehouse
        .rows(&format!(
            "SELECT quantileExact(0.5)(ms) AS p50, quantileExact(0.99)(ms) AS p99 FROM (SELECT \
             dateDiff('microsecond', captured_at, assumeNotNull(inserted_at)) / 1000 AS ms FROM {table} WHERE {})",
            of_run(run_id)
        ))
        .await?;
    let latency = latency.first().context("no latency")?;
    headline("==> End-to-end latency, from the receipt of the request to the row in ClickHouse");
    println!("    p50 {:.0} ms, p99 {:.0} ms", latency.p50, latency.p99);
    Ok(())
}

async fn print_dead_letters(cluster: &Cluster, namespace: &str, name: &str) -> Result<()> {
    let (servers, topic) = (cluster.kafka(), format!("{namespace}.{name}.dead-letter"));
    let shown = topic.clone();
    let records = tokio::task::spawn_blocking(move || truth::read_topic(&servers, &topic)).await??;
    headline(&format!("==> Dead letters (topic {shown}), kept with their reason"));
    let mut reasons: BTreeMap<(String, String), (u64, String)> = BTreeMap::new();
    for record in records {
        let header = |name: &str| record.headers.get(name).cloned().unwrap_or_default();
        let entry = reasons.entry((header("dlq_step"), header("dlq_reason"))).or_default();
        entry.0 += 1;
        entry.1 = header("dlq_detail");
    }
    if reasons.is_empty() {
        println!("    none");
    }
    for ((step, reason), (count, detail)) in reasons {
        println!("    {count:>5}  {step:<14} {reason:<24} {detail}");
    }
    Ok(())
}

/// What steps dropped on purpose, by the metrics of the transformation's pods.
async fn print_dropped(cluster: &Cluster, namespace: &str) -> Result<()> {
    headline("==> Events that a transformation step dropped on purpose, since its pod started");
    let mut dropped: BTreeMap<String, f64> = BTreeMap::new();
    for pod in cluster.pods(namespace, "transformation").await? {
        let forward = cluster.forward_to_pod(namespace, &pod.name_any(), 9090).await?;
        let metrics = reqwest::get(format!("{}/metrics", forward.url())).await?.text().await?;
        for line in metrics.lines().filter(|line| line.starts_with("penstock_") && line.contains("dropped")) {
            let (name, count) = line.rsplit_once(' ').context("a metric without value")?;
            let step = name.split('"').nth(1).unwrap_or(name);
            *dropped.entry(step.to_owned()).or_default() += count.parse::<f64>()?;
        }
    }
    for (step, count) in dropped.into_iter().filter(|(_, count)| *count > 0.0) {
        println!("    {count:>5}  {step}");
    }
    Ok(())
}

fn print_next(cluster: &Cluster, namespace: &str, name: &str, table: &str) {
    headline("==> What to try next");
    println!("    export KUBECONFIG={}", cluster.info.kubeconfig.display());
    println!("    export PATH={}:$PATH", cluster.info.bin.display());
    println!("    kubectl -n {namespace} get ipl {name}            # the pipeline");
    println!("    kubectl -n {namespace} describe ipl {name}       # conditions and events");
    println!("    kubectl -n {namespace} edit ipl {name}           # add a VRL step, a project, a webhook");
    println!(
        "    curl '{}' --data-binary 'SELECT * FROM {table} LIMIT 1 FORMAT Vertical'",
        cluster.info.clickhouse_on_host()
    );
    println!("    docs/how-to/change-the-pipeline.md          # step by step");
    println!("    make platform-down                          # stop everything");
}
