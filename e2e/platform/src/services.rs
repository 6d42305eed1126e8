//! Kafka and ClickHouse in the cluster, from the manifests that also serve other clusters.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::addons::{apply_command, exchange};
use crate::command::{wait_until, write_atomically};
use crate::control_plane::kubectl;
use crate::images::{Archive, PlatformImages};
use crate::layout::Layout;

/// Applies both, with the images made here and with Kafka's address on this machine.
///
/// # Errors
/// The API refuses something, or a data folder cannot be made.
pub fn ensure(layout: &Layout, images: &PlatformImages) -> Result<()> {
    for (name, owner) in [("kafka", 1000), ("clickhouse", 101)] {
        let dir = layout.data().join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        chown(&dir, Some(owner), Some(owner))
            .with_context(|| format!("giving {} to its server", dir.display()))?;
    }
    // subPath folders are made by the kubelet, as root.
    let logs = layout.data().join("kafka/logs");
    std::fs::create_dir_all(&logs)?;
    chown(&logs, Some(1000), Some(1000)).with_context(|| format!("giving {} to Kafka", logs.display()))?;

    for (namespace, name, public, archive) in [
        ("streaming", "kafka", "apache/kafka", &images.kafka),
        ("warehouse", "clickhouse", "clickhouse/clickhouse-server", &images.clickhouse),
    ] {
        let dir = layout.config().join("manifests").join(name);
        overlay(layout, &layout.sources.join("manifests").join(name), &dir, public, archive)?;
        apply_command(layout).arg("-k").arg(&dir).quiet().with_context(|| format!("installing {name}"))?;
        replace_pods_of_other_images(layout, namespace, name, &archive.name)?;
    }
    Ok(())
}

/// A StatefulSet does not replace a pod that never became ready; without this, one bad image would stay for ever.
fn replace_pods_of_other_images(layout: &Layout, namespace: &str, name: &str, image: &str) -> Result<()> {
    let pod = format!("pod/{name}-0");
    let query = [
        "--namespace",
        namespace,
        "get",
        &pod,
        "--ignore-not-found",
        "--output",
        "jsonpath={.spec.containers[0].image}",
    ];
    let running = kubectl(layout).args(query).output()?;
    if !running.is_empty() && running != image {
        kubectl(layout).args(["--namespace", namespace, "delete", &pod, "--wait=false"]).quiet()?;
    }
    Ok(())
}

/// A copy of the manifests with our image in the public one's place, and the port of this machine.
fn overlay(layout: &Layout, base: &Path, dir: &Path, public: &str, archive: &Archive) -> Result<()> {
    let _ = std::fs::remove_dir_all(dir);
    for entry in std::fs::read_dir(base).with_context(|| format!("reading {}", base.display()))? {
        let entry = entry?;
        let text = std::fs::read_to_string(entry.path())?
            .replace("127.0.0.1:19092", &format!("127.0.0.1:{}", layout.ports.kafka));
        write_atomically(&dir.join("base").join(entry.file_name()), text.as_bytes())?;
    }
    let (name, tag) =
        archive.name.rsplit_once(':').with_context(|| format!("{} has no tag", archive.name))?;
    let kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [base]\nimages:\n- {{name: {public}, newName: {name}, newTag: {tag}}}\n"
    );
    write_atomically(&dir.join("kustomization.yaml"), kustomization.as_bytes())
}

/// Waits until both answer on this machine. After a restart their pods are called ready before they run again.
///
/// # Errors
/// One does not answer in time; what its pod says is in the message.
pub fn wait(layout: &Layout) -> Result<()> {
    let limit = Duration::from_secs(120);
    let rolled_out = |namespace: &str, name: &str| {
        kubectl(layout)
            .args([
                "--namespace",
                namespace,
                "rollout",
                "status",
                &format!("statefulset/{name}"),
                "--timeout=2s",
            ])
            .quiet()
    };
    wait_until("Kafka", limit, || {
        kafka_answers(layout.ports.kafka)?;
        rolled_out("streaming", "kafka")
    })
    .map_err(|error| error.context(said(layout, "streaming", "kafka")))?;
    wait_until("ClickHouse", limit, || {
        clickhouse_answers(layout.ports.clickhouse)?;
        rolled_out("warehouse", "clickhouse")
    })
    .map_err(|error| error.context(said(layout, "warehouse", "clickhouse")))
}

/// Asks Kafka on a port of 127.0.0.1 for the versions of its protocol.
///
/// # Errors
/// It does not answer within some seconds.
pub fn kafka_answers(port: u16) -> Result<()> {
    const API_VERSIONS: [u8; 16] = [0, 0, 0, 12, 0, 18, 0, 0, 0, 0, 0, 7, 0, 2, b'u', b'p'];
    let answer = exchange(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), &API_VERSIONS, 10)?;
    ensure!(
        answer[4..8] == [0, 0, 0, 7] && answer[8..10] == [0, 0],
        "what listens for Kafka's clients does not speak its protocol"
    );
    Ok(())
}

/// Asks ClickHouse on a port of 127.0.0.1 whether it is well.
///
/// # Errors
/// It does not answer within some seconds.
pub fn clickhouse_answers(port: u16) -> Result<()> {
    let answer = exchange(
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        b"GET /ping HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        12,
    )?;
    ensure!(answer == b"HTTP/1.1 200", "ClickHouse does not say that it is well");
    Ok(())
}

/// The events and the log of a pod, for a message about it.
fn said(layout: &Layout, namespace: &str, name: &str) -> String {
    let pod = kubectl(layout)
        .args(["--namespace", namespace, "describe", &format!("pod/{name}-0")])
        .output()
        .unwrap_or_default();
    let events: Vec<&str> = pod.lines().skip_while(|line| !line.starts_with("Events:")).collect();
    let logs = kubectl(layout)
        .args(["--namespace", namespace, "logs", &format!("{name}-0"), "--tail=20"])
        .output()
        .unwrap_or_default();
    format!("{name} does not become ready\n{}\n{logs}", events.join("\n"))
}
