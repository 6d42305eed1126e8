//! A webhook on the whole pipeline: what is chosen arrives signed, failures are tried again, refusals are kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use base64::{Engine, prelude::BASE64_STANDARD};
use hmac::{Hmac, Mac};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, ObjectMeta, PostParams},
};
use penstock_e2e::{
    cluster::wait_until,
    pipeline::{TOKEN, TestPipeline},
    receiver::{Delivery, Receiver},
};
use serde_json::{Value, json};
use sha2::Sha256;
use uuid::Uuid;

/// 32 bytes; the receiver knows them.
const KEY: &[u8] = b"a key of the tests, 32 bytes ...";
const ORDERS: u64 = 60;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn chosen_events_arrive_signed_failures_are_tried_again_and_refusals_are_kept() -> Result<()> {
    TestPipeline::with("webhook", run).await
}

/// The number that the test gave an order.
fn number(body: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Value>(body).ok()?["properties"]["number"].as_u64()
}

/// Every seventh order fails once, every eleventh is told to wait, and number 42 is refused for good.
fn answer(body: &axum::body::Bytes, before: &[Delivery]) -> (StatusCode, HeaderMap) {
    let Some(number) = number(body) else { return (StatusCode::BAD_REQUEST, HeaderMap::new()) };
    let first = !before.iter().any(|delivery| delivery.body == *body);
    let wait = HeaderMap::from_iter([(axum::http::header::RETRY_AFTER, HeaderValue::from_static("1"))]);
    match number {
        42 => (StatusCode::GONE, HeaderMap::new()),
        n if first && n % 7 == 0 => (StatusCode::INTERNAL_SERVER_ERROR, HeaderMap::new()),
        n if first && n % 11 == 0 => (StatusCode::SERVICE_UNAVAILABLE, wait),
        _ => (StatusCode::OK, HeaderMap::new()),
    }
}

async fn run(pipeline: &TestPipeline) -> Result<()> {
    let receiver = Receiver::start(answer).await?;
    let secret = Secret {
        metadata: ObjectMeta { name: Some("crm".to_owned()), ..ObjectMeta::default() },
        string_data: Some([("whsec".to_owned(), format!("whsec_{}", BASE64_STANDARD.encode(KEY)))].into()),
        ..Secret::default()
    };
    Api::<Secret>::namespaced(pipeline.cluster.client.clone(), &pipeline.namespace)
        .create(&PostParams::default(), &secret)
        .await?;
    let mut spec = pipeline.spec();
    spec["exports"] = json!([{
        "name": "crm",
        "where": ".event == \"order completed\"",
        "webhook": {
            "url": receiver.url(),
            "allowedNetworks": [receiver.network()],
            "signing": {"secret": "crm", "key": "whsec"},
            "retry": {"maxAttempts": 5, "minBackoff": "100ms", "maxBackoff": "2s"},
        },
    }]);
    pipeline.apply(&spec).await?;
    pipeline.wait_ready(Duration::from_secs(120)).await?;

    let forward = pipeline.capture().await?;
    let batch: Vec<Value> = (0..ORDERS * 2)
        .map(|n| {
            json!({
                "uuid": Uuid::new_v4(),
                "event": if n % 2 == 0 { "order completed" } else { "$pageview" },
                "distinct_id": format!("buyer-{}", n % 5),
                "properties": {"number": n / 2, "total": 99.90, "title": "Ünïcode ☕"},
            })
        })
        .collect();
    let answered = reqwest::Client::new()
        .post(format!("{}/batch/", forward.url()))
        .json(&json!({"api_key": TOKEN, "batch": batch}))
        .send()
        .await?;
    ensure!(answered.status() == 200, "capture answered {}", answered.status());

    let settled = |deliveries: &[Delivery]| {
        let resolved = deliveries.iter().filter(|d| d.answered == 200 || d.answered == 410);
        resolved.filter_map(|delivery| number(&delivery.body)).collect::<BTreeSet<_>>().len()
    };
    wait_until("every order was taken or refused", Duration::from_secs(120), async || {
        Ok(settled(&receiver.deliveries()) as u64 == ORDERS)
    })
    .await?;
    wait_until("the refused order is a dead letter", Duration::from_secs(60), async || {
        Ok(!pipeline.read("dead-letter").await?.is_empty())
    })
    .await?;

    let uuids: BTreeMap<u64, &str> = (0..ORDERS)
        .map(|n| Ok((n, batch[n as usize * 2]["uuid"].as_str().context("no uuid")?)))
        .collect::<Result<_>>()?;
    let check = |deliveries: &[Delivery]| -> Result<BTreeMap<u64, (String, u32)>> {
        let mut attempts: BTreeMap<u64, (String, u32)> = BTreeMap::new();
        for delivery in deliveries {
            check_signature(delivery)?;
            let event: Value = serde_json::from_slice(&delivery.body)?;
            ensure!(event["event"] == "order completed", "not asked for: {event}");
            let n = event["properties"]["number"].as_u64().context("no number")?;
            ensure!(event["uuid"].as_str() == uuids.get(&n).copied(), "another event: {event}");
            ensure!(event["properties"]["title"] == "Ünïcode ☕", "a changed property: {event}");
            ensure!(delivery.body.windows(7).any(|w| w == b"\"total\""), "no total: {event}");
            let id = delivery.header("webhook-id")?.to_owned();
            let entry = attempts.entry(n).or_insert_with(|| (id.clone(), 0));
            ensure!(entry.0 == id, "order {n} came as {} and as {id}", entry.0);
            entry.1 += 1;
        }
        Ok(attempts)
    };
    let deliveries = receiver.deliveries();
    let attempts = check(&deliveries)?;
    ensure!(attempts.keys().copied().eq(0..ORDERS), "not every order came: {:?}", attempts.keys());
    let ids: BTreeSet<&String> = attempts.values().map(|(id, _)| id).collect();
    ensure!(ids.len() as u64 == ORDERS, "two orders share an id");
    for (n, (_, count)) in &attempts {
        let failed_once = *n != 42 && (n % 7 == 0 || n % 11 == 0);
        ensure!(*count == if failed_once { 2 } else { 1 }, "order {n} came {count} times");
    }
    let dead = pipeline.read("dead-letter").await?;
    ensure!(dead.len() == 1, "{} dead letters", dead.len());
    ensure!(
        dead[0].headers.get("dlq_reason").is_some_and(|r| r == "destination_refused"),
        "{:?}",
        dead[0].headers
    );
    println!("{} orders, {} requests, 1 dead letter", attempts.len(), deliveries.len());

    // At least once: a successor may repeat what was not committed, under the same ids, and loses nothing.
    let pod = pipeline.cluster.pods(&pipeline.namespace, "export-crm").await?;
    let pod = pod.first().and_then(|pod| pod.metadata.name.clone()).context("no pod of the webhook")?;
    let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(
        pipeline.cluster.client.clone(),
        &pipeline.namespace,
    );
    pods.delete(&pod, &DeleteParams::default().grace_period(0)).await?;
    let late = json!({
        "api_key": TOKEN, "uuid": Uuid::new_v4(), "event": "order completed", "distinct_id": "late",
        "properties": {"number": 1000},
    });
    let answered = reqwest::Client::new().post(format!("{}/e/", forward.url())).json(&late).send().await?;
    ensure!(answered.status() == 200, "capture answered {}", answered.status());
    wait_until("the successor delivers", Duration::from_secs(90), async || {
        Ok(receiver.deliveries().iter().any(|delivery| number(&delivery.body) == Some(1000)))
    })
    .await?;
    for delivery in &receiver.deliveries()[deliveries.len()..] {
        check_signature(delivery)?;
        let n = number(&delivery.body).context("no number")?;
        ensure!(
            n == 1000 || attempts[&n].0 == delivery.header("webhook-id")?,
            "order {n} came again under another id"
        );
    }
    Ok(())
}

/// By the rules of Standard Webhooks, as a receiver does it.
fn check_signature(delivery: &Delivery) -> Result<()> {
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY)?;
    mac.update(
        format!("{}.{}.", delivery.header("webhook-id")?, delivery.header("webhook-timestamp")?).as_bytes(),
    );
    mac.update(&delivery.body);
    let wanted = format!("v1,{}", BASE64_STANDARD.encode(mac.finalize().into_bytes()));
    ensure!(delivery.header("webhook-signature")? == wanted, "the signature is wrong");
    Ok(())
}
