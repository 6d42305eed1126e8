//! Real client libraries: what they say that they sent is what ClickHouse has.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use penstock_e2e::pipeline::{TOKEN, TestPipeline};
use penstock_platform::layout::Layout;

const EVENTS: u64 = 500;

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Sends with a client, and holds the rows against its account.
async fn client_delivers(
    purpose: &str,
    sender: impl AsyncFnOnce(&str, &str) -> Result<String>,
) -> Result<()> {
    TestPipeline::with(purpose, async |pipeline| {
        pipeline.apply(&pipeline.spec()).await?;
        pipeline.wait_ready(Duration::from_secs(120)).await?;
        let forward = pipeline.capture().await?;
        let account = sender(&forward.url(), &pipeline.namespace).await?;
        println!("{purpose}: {}", account.trim());
        pipeline.wait_rows(EVENTS, Duration::from_secs(60)).await?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let sql = format!(
            "SELECT uniqExact(uuid) FROM {} WHERE JSONExtractString(properties, 'run_id') = '{}'",
            pipeline.table(),
            pipeline.namespace
        );
        let (rows, uuids) = (pipeline.rows().await?, pipeline.cluster.warehouse.number(&sql).await?);
        ensure!(
            rows == EVENTS && uuids == EVENTS,
            "sent {EVENTS}, ClickHouse has {rows} rows and {uuids} UUIDs"
        );
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn posthog_python_delivers_what_it_sends() -> Result<()> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/python");
    client_delivers("python", async |url, run_id| {
        let home = Layout::from_env()?.cache.join("client-python");
        let python = home.join("bin/python");
        if !python.exists() {
            output(Command::new("python3").args(["-m", "venv"]).arg(&home))?;
        }
        output(
            Command::new(&python)
                .args(["-m", "pip", "install", "--quiet", "-r"])
                .arg(sources.join("requirements.txt")),
        )?;
        output(Command::new(&python).arg(sources.join("send.py")).args([
            "--host",
            url,
            "--token",
            TOKEN,
            "--run-id",
            run_id,
            "--count",
            &EVENTS.to_string(),
        ]))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn posthog_node_delivers_what_it_sends() -> Result<()> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/node");
    client_delivers("node", async |url, run_id| {
        let home = Layout::from_env()?.cache.join("client-node");
        std::fs::create_dir_all(&home)?;
        for file in ["package.json", "package-lock.json", "send.mjs"] {
            std::fs::copy(sources.join(file), home.join(file)).with_context(|| format!("copying {file}"))?;
        }
        output(Command::new("npm").args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(&home))?;
        output(
            Command::new("node")
                .arg("send.mjs")
                .args(["--host", url, "--token", TOKEN, "--run-id", run_id, "--count", &EVENTS.to_string()])
                .current_dir(&home),
        )
    })
    .await
}
