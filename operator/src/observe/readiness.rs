//! What a pod that runs says itself about not being ready.
//!
//! A binary talks to nobody in Kubernetes; the operator asks its `/readyz`, where the kubelet asks as well. The answer is
//! read by its own type, bounded in size and time, and worded so that it stays the same while nothing changes.

use std::{net::IpAddr, time::Duration};

use http_body_util::{BodyExt, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;

/// Longest time of one question.
const TIMEOUT: Duration = Duration::from_millis(1_500);
/// Longest answer.
const MAX_ANSWER: usize = 64 << 10;
/// Longest excerpt of a reason.
const MAX_REASON: usize = 400;

/// The answer of `/readyz`, as far as it is read.
#[derive(Deserialize)]
struct Answer {
    checks: Vec<Check>,
}

#[derive(Deserialize)]
struct Check {
    name: String,
    ok: bool,
    reason: Option<String>,
}

/// Why the pod at this address is not ready; `None` when it does not say.
pub async fn ask(address: IpAddr, port: i32) -> Option<String> {
    let host = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let uri = format!("http://{host}:{port}/readyz").parse().ok()?;
    let client = Client::builder(TokioExecutor::new()).build::<_, String>(HttpConnector::new());
    let asked = async {
        let answer = client.get(uri).await.map_err(|error| error.to_string())?;
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        body.map(|body| body.to_bytes()).map_err(|error| error.to_string())
    };
    match tokio::time::timeout(TIMEOUT, asked).await {
        Ok(Ok(body)) => reasons(&body),
        Ok(Err(error)) => {
            tracing::debug!(%address, error, "the pod does not say why it is not ready");
            None
        }
        Err(_) => None,
    }
}

/// The checks that fail, for people.
fn reasons(body: &[u8]) -> Option<String> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let failing: Vec<String> = answer
        .checks
        .iter()
        .filter(|check| !check.ok)
        .map(|check| {
            let reason: String =
                check.reason.iter().flat_map(|reason| reason.chars()).take(MAX_REASON).collect();
            format!("{}: {}", check.name, without_times(&reason))
        })
        .collect();
    if failing.is_empty() { None } else { Some(failing.join("; ")) }
}

/// Times that pass would make the status another one in every pass.
fn without_times(text: &str) -> String {
    let words: Vec<&str> = text.split(' ').collect();
    let is_unit = |word: Option<&&str>| {
        word.is_some_and(|word| {
            matches!(word.trim_end_matches([',', ';', '.', ')', ':']), "s" | "ms" | "seconds")
        })
    };
    words
        .iter()
        .enumerate()
        .map(|(index, word)| {
            let number = word.trim_start_matches('(');
            if number.parse::<f64>().is_ok() && is_unit(words.get(index + 1)) {
                word.replace(number, "…")
            } else {
                (*word).to_owned()
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::{
        health::{Health, Kind, serve_admin},
        lifecycle::Shutdown,
        telemetry,
    };

    use super::*;

    #[test]
    fn what_fails_is_told_and_times_are_left_out() {
        let body = r#"{"status":"failing","checks":[
            {"name":"kafka","ok":false,"reason":"no progress for 12.3 s (at most 90.0 s)"},
            {"name":"projects","ok":true},
            {"name":"source","ok":false,"reason":"partition 2 is held: offset 17 is gone"}]}"#;
        assert_eq!(
            reasons(body.as_bytes()).as_deref(),
            Some("kafka: no progress for … s (at most … s); source: partition 2 is held: offset 17 is gone")
        );
        assert_eq!(reasons(br#"{"status":"ok","checks":[{"name":"kafka","ok":true}]}"#), None);
        assert_eq!(reasons(b"<html>"), None);
    }

    #[test]
    fn a_reason_is_bounded() {
        let body = format!(r#"{{"checks":[{{"name":"a","ok":false,"reason":"{}"}}]}}"#, "x".repeat(5_000));
        assert_eq!(reasons(body.as_bytes()).unwrap().len(), MAX_REASON + "a: ".len());
    }

    #[tokio::test]
    async fn a_pod_is_asked_over_its_admin_port() {
        let identity = penstock_pipeline::config::Identity {
            namespace: "n".into(),
            pipeline: "p".into(),
            component: "c".into(),
        };
        let health = Health::new(Shutdown::new());
        let check = health.check(Kind::Readiness, "kafka", "not connected yet");
        // A port that is free now; nobody else of this process binds it.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        serve_admin(free, health, telemetry::Metrics::new(&identity)).await.unwrap();
        let port = i32::from(free.port());
        assert_eq!(ask(free.ip(), port).await.as_deref(), Some("kafka: not connected yet"));
        check.pass();
        assert_eq!(ask(free.ip(), port).await, None);
    }
}
