//! Kafka and ClickHouse in the cluster, from the manifests that also serve other clusters.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::addons::{apply_command, exchange};
use crate::command::{wait_until, write_atomically};
use crate::control_plane::kubectl;
use crate::images::{Archive, PlatformImages};
use crate::layout::Layout;
use crate::pki;

/// A server in the cluster.
struct Service {
    namespace: &'static str,
    name: &'static str,
    /// The folder below `manifests` that is applied, and the one that it builds upon.
    manifests: [&'static str; 2],
}

const KAFKA: Service =
    Service { namespace: "streaming", name: "kafka", manifests: ["kafka-secured", "kafka"] };
const CLICKHOUSE: Service =
    Service { namespace: "warehouse", name: "clickhouse", manifests: ["clickhouse-secured", "clickhouse"] };

/// Applies both, with the images made here, their certificates, and Kafka's addresses on this machine.
///
/// # Errors
/// The API refuses something, or a data folder cannot be made.
pub fn ensure(layout: &Layout, images: &PlatformImages) -> Result<()> {
    // subPath folders are made by the kubelet, as root.
    for (name, owner) in [("kafka", 1000), ("kafka/logs", 1000), ("clickhouse", 101), ("clickhouse-2", 101)] {
        let dir = layout.data().join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        chown(&dir, Some(owner), Some(owner))
            .with_context(|| format!("giving {} to its server", dir.display()))?;
    }

    let pki = |file: &str| {
        let path = layout.services_pki().join(file);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    // The broker checks tokens of service accounts with the keys that the API server publishes.
    let jwks = kubectl(layout).args(["get", "--raw", "/openid/v1/jwks"]).output()?;
    let files = [
        ("ca.crt", pki("services-ca.crt")?),
        ("kafka.pem", format!("{}{}", pki("kafka.key")?, pki("kafka.crt")?)),
        ("jwks.json", jwks),
    ];
    install(layout, &KAFKA, &files, &[("apache/kafka", &images.kafka)])?;
    let files = [
        ("ca.crt", pki("services-ca.crt")?),
        ("tls.crt", pki("clickhouse.crt")?),
        ("tls.key", pki("clickhouse.key")?),
    ];
    let replaced = [("clickhouse/clickhouse-server", &images.clickhouse), ("penstock/tls", &images.tls)];
    install(layout, &CLICKHOUSE, &files, &replaced)
}

fn install(
    layout: &Layout,
    service: &Service,
    files: &[(&str, String)],
    images: &[(&str, &Archive)],
) -> Result<()> {
    let dir = overlay(layout, service, files, images)?;
    apply_command(layout).arg("-k").arg(&dir).quiet().with_context(|| format!("installing {}", service.name))
}

/// A StatefulSet does not replace a pod that never became ready; without this, one bad image or setting would stay for ever.
fn replace_a_pod_that_cannot_start(layout: &Layout, service: &Service) -> Result<()> {
    let get = |what: &str, output: &str| {
        kubectl(layout)
            .args(["--namespace", service.namespace, "get", what, "--ignore-not-found"])
            .arg(format!("--output=jsonpath={output}"))
            .output()
    };
    let pod = format!("pod/{}-0", service.name);
    let running = get(
        &pod,
        "{.metadata.labels.controller-revision-hash} {.status.conditions[?(@.type==\"Ready\")].status}",
    )?;
    let wanted = get(&format!("statefulset/{}", service.name), "{.status.updateRevision}")?;
    let Some((revision, ready)) = running.split_once(' ') else { return Ok(()) };
    if revision != wanted && ready != "True" {
        let delete = ["--namespace", service.namespace, "delete", &pod, "--wait=false", "--ignore-not-found"];
        kubectl(layout).args(delete).quiet()?;
    }
    Ok(())
}

/// A copy of the manifests with what only this platform knows: our images in the public ones' place, the ports of this
/// machine, certificates. Gives the folder to apply.
fn overlay(
    layout: &Layout,
    service: &Service,
    files: &[(&str, String)],
    images: &[(&str, &Archive)],
) -> Result<PathBuf> {
    let dir = layout.config().join("manifests").join(service.name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    // Private keys are among the files.
    pki::restrict(&dir)?;
    let ports = &layout.ports;
    for manifests in service.manifests {
        let base = layout.sources.join("manifests").join(manifests);
        for entry in std::fs::read_dir(&base).with_context(|| format!("reading {}", base.display()))? {
            let entry = entry?;
            let text = std::fs::read_to_string(entry.path())?
                .replace("127.0.0.1:19092", &format!("127.0.0.1:{}", ports.kafka))
                .replace("127.0.0.1:19093", &format!("127.0.0.1:{}", ports.kafka_tls))
                .replace("127.0.0.1:19095", &format!("127.0.0.1:{}", ports.kafka_sasl));
            write_atomically(&dir.join(manifests).join(entry.file_name()), text.as_bytes())?;
        }
    }
    let [applied, _] = service.manifests;
    for (name, content) in files {
        write_atomically(&dir.join(applied).join(name), content.as_bytes())?;
    }
    let mut kustomization = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [{applied}]\nimages:\n"
    );
    for (public, archive) in images {
        let (name, tag) =
            archive.name.rsplit_once(':').with_context(|| format!("{} has no tag", archive.name))?;
        kustomization.push_str(&format!("- {{name: {public}, newName: {name}, newTag: {tag}}}\n"));
    }
    write_atomically(&dir.join("kustomization.yaml"), kustomization.as_bytes())?;
    Ok(dir)
}

/// Waits until both answer on this machine. After a restart their pods are called ready before they run again.
///
/// # Errors
/// One does not answer in time; what its pod says is in the message.
pub fn wait(layout: &Layout) -> Result<()> {
    let limit = Duration::from_secs(120);
    let ports = layout.ports;
    let rolled_out = |service: &Service| {
        let statefulset = format!("statefulset/{}", service.name);
        kubectl(layout)
            .args(["--namespace", service.namespace, "rollout", "status", &statefulset, "--timeout=2s"])
            .quiet()
    };
    wait_until("Kafka", limit, || {
        replace_a_pod_that_cannot_start(layout, &KAFKA)?;
        kafka_answers(ports.kafka)?;
        rolled_out(&KAFKA)?;
        listens(ports.kafka_tls)?;
        listens(ports.kafka_sasl)
    })
    .map_err(|error| error.context(said(layout, &KAFKA)))?;
    wait_until("ClickHouse", limit, || {
        replace_a_pod_that_cannot_start(layout, &CLICKHOUSE)?;
        clickhouse_answers(ports.clickhouse)?;
        rolled_out(&CLICKHOUSE)?;
        listens(ports.clickhouse_tls)
    })
    .map_err(|error| error.context(said(layout, &CLICKHOUSE)))
}

/// Greets a server that speaks TLS on a port of 127.0.0.1, and takes any answer that TLS allows: a forwarder accepts
/// connections for servers that are not there.
fn listens(port: u16) -> Result<()> {
    // A ClientHello without content: a TLS server answers with an alert.
    const EMPTY_HELLO: [u8; 9] = [22, 3, 1, 0, 4, 1, 0, 0, 0];
    let answer = exchange(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), &EMPTY_HELLO, 3)?;
    ensure!(answer[1] == 3, "what listens on 127.0.0.1:{port} does not speak TLS");
    Ok(())
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

/// The events and the log of a server's pod, for a message about it.
fn said(layout: &Layout, service: &Service) -> String {
    let pod = format!("{}-0", service.name);
    let run = |args: &[&str]| {
        kubectl(layout).args(["--namespace", service.namespace]).args(args).output().unwrap_or_default()
    };
    let described = run(&["describe", "pod", &pod]);
    let events: Vec<&str> = described.lines().skip_while(|line| !line.starts_with("Events:")).collect();
    let logs = run(&["logs", &pod, "--tail=20", "--all-containers"]);
    format!("{pod} does not become ready\n{}\n{logs}", events.join("\n"))
}
