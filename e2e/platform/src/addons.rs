//! Objects without which a cluster is not whole: DNS, resource metrics, the rights of kube-proxy, a storage class.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::command::{Run, wait_until};
use crate::control_plane::kubectl;
use crate::forward::Forward;
use crate::images::PlatformImages;
use crate::layout::{DNS_IP, Layout};
use crate::pki;

/// Applies a manifest, giving way to nobody: these objects are the platform's.
fn apply(layout: &Layout, manifest: String) -> Result<()> {
    apply_command(layout).args(["-f", "-"]).input(manifest).quiet()
}

/// `kubectl apply` as the platform uses it.
pub fn apply_command(layout: &Layout) -> Run {
    kubectl(layout).args(["apply", "--server-side", "--force-conflicts", "--field-manager=penstock-platform"])
}

/// Puts values into `{{name}}`.
fn render(template: &str, values: &[(&str, &str)]) -> Result<String> {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("{{{{{name}}}}}"), value);
    }
    if let Some(start) = text.find("{{") {
        bail!("a manifest has no value for {}", text[start..].lines().next().unwrap_or_default());
    }
    Ok(text)
}

/// Applies all add-ons.
///
/// # Errors
/// The API refuses one.
pub fn ensure(layout: &Layout, images: &PlatformImages) -> Result<()> {
    let dir = layout.sources.join("manifests/addons");
    let data = layout.data().display().to_string();
    let (ca, certificate, key) = (
        pki::base64_of(layout, "ca.crt")?,
        pki::base64_of(layout, "metrics-server.crt")?,
        pki::base64_of(layout, "metrics-server.key")?,
    );
    let values = [
        ("coredns", images.coredns.name.as_str()),
        ("metrics_server", images.metrics_server.name.as_str()),
        ("dns_ip", DNS_IP),
        ("data", data.as_str()),
        ("ca", ca.as_str()),
        ("metrics_certificate", certificate.as_str()),
        ("metrics_key", key.as_str()),
    ];
    let mut whole = String::new();
    for file in ["kube-proxy.yaml", "storage.yaml", "volumes.yaml", "coredns.yaml", "metrics-server.yaml"] {
        whole.push_str(
            &render(&read(&dir.join(file))?, &values).with_context(|| format!("the add-on {file}"))?,
        );
        whole.push_str("\n---\n");
    }
    apply(layout, whole)
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

/// Waits until the add-ons serve. After a restart their pods are called ready before they run again, so each is asked.
///
/// # Errors
/// One does not answer in time.
pub fn wait(layout: &Layout) -> Result<()> {
    let limit = Duration::from_secs(90);
    wait_until("the cluster's DNS", limit, resolves)?;
    wait_until("the resource metrics", limit, || {
        let nodes = kubectl(layout)
            .args(["--request-timeout=3s", "get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes"])
            .output()?;
        ensure!(nodes.contains("\"cpu\""), "metrics-server has no measurement of the node yet");
        Ok(())
    })
}

/// Asks the cluster's DNS for the API server, over TCP.
fn resolves() -> Result<()> {
    let forward = Forward::to(format!("{DNS_IP}:53").parse().context("the address of the DNS service")?)?;
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in ["kubernetes", "default", "svc", "cluster", "local"] {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    let answer =
        exchange(forward.address(), &[&(query.len() as u16).to_be_bytes()[..], &query].concat(), 2 + 12)?;
    // The low half of the fourth byte is the code, the seventh and eighth count the answers.
    ensure!(answer[2 + 3] & 0xf == 0 && answer[2 + 7] > 0, "the cluster's DNS does not know the API server");
    Ok(())
}

/// Sends a request and reads so many bytes of the answer.
///
/// # Errors
/// Nobody answers within three seconds.
pub fn exchange(address: SocketAddr, request: &[u8], length: usize) -> Result<Vec<u8>> {
    let limit = Duration::from_secs(3);
    let mut stream =
        TcpStream::connect_timeout(&address, limit).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(request).with_context(|| format!("writing to {address}"))?;
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).with_context(|| format!("no answer from {address}"))?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_without_a_value_is_refused_by_name() {
        assert_eq!(render("a: {{x}}", &[("x", "1")]).ok().as_deref(), Some("a: 1"));
        let error = render("a: {{x}}\nb: {{y}}\n", &[("x", "1")]).expect_err("y has no value");
        assert!(error.to_string().ends_with("{{y}}"), "{error}");
    }
}
