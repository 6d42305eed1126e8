//! Bad events of every kind: the right status, the right dead letter, and the neighbours unharmed.

use std::{collections::BTreeMap, io::Write, time::Duration};

use anyhow::{Result, ensure};
use flate2::{Compression, write::GzEncoder};
use penstock_e2e::{
    cluster::wait_until,
    pipeline::{TOKEN, TestPipeline},
};
use serde_json::json;

#[tokio::test]
#[ignore = "needs the platform; make test starts it"]
async fn bad_requests_are_refused_bad_events_are_kept_and_their_neighbours_arrive() -> Result<()> {
    TestPipeline::with("bad", bad_events).await
}

async fn bad_events(pipeline: &TestPipeline) -> Result<()> {
    let mut spec = pipeline.spec();
    spec["transformation"] = json!({"steps": [
        {"name": "price", "vrl": "if exists(.properties.price) { .properties.price = to_float!(.properties.price) }"},
        {"name": "soft", "onError": "Pass", "vrl": "if exists(.properties.soft) { .properties.soft = to_int!(.properties.soft) }"},
        {"name": "bots", "vrl": "if .event == \"bot\" { abort }"},
    ]});
    pipeline.apply(&spec).await?;
    pipeline.wait_ready(Duration::from_secs(120)).await?;
    let forward = pipeline.capture().await?;
    let http = reqwest::Client::new();
    let post = async |path: &str, body: Vec<u8>| -> Result<(u16, String)> {
        let answer = http
            .post(format!("{}{path}", forward.url()))
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    };

    let good = |id: &str| json!({"event": "good", "distinct_id": id, "properties": {"run_id": "bad"}});
    let gzip = |bytes: &[u8]| -> Result<Vec<u8>> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes)?;
        Ok(encoder.finish()?)
    };
    let with_token = |mut event: serde_json::Value| {
        event["api_key"] = json!(TOKEN);
        event
    };
    let long_token = "x".repeat(65);

    // Requests that are wrong as a whole: nothing of them may be taken.
    let refused: Vec<(&str, &str, Vec<u8>, u16)> = vec![
        ("an empty body", "/batch/", vec![], 400),
        ("not JSON", "/batch/", b"{\"api_key\": ".to_vec(), 400),
        ("not UTF-8", "/e/", vec![0xff, 0xfe, 0x00, 0x80], 400),
        (
            "cut gzip",
            "/batch/",
            gzip(&json!({"api_key": TOKEN, "batch": [good("a")]}).to_string().into_bytes())?[..20].to_vec(),
            400,
        ),
        ("a number", "/batch/", b"42".to_vec(), 400),
        ("an empty batch", "/batch/", json!({"api_key": TOKEN, "batch": []}).to_string().into_bytes(), 400),
        ("no token", "/batch/", json!({"batch": [good("a")]}).to_string().into_bytes(), 401),
        (
            "an unknown token",
            "/batch/",
            json!({"api_key": "phc_nobody", "batch": [good("a")]}).to_string().into_bytes(),
            401,
        ),
        (
            "a personal key",
            "/batch/",
            json!({"api_key": "phx_secret", "batch": [good("a")]}).to_string().into_bytes(),
            401,
        ),
        (
            "a long token",
            "/batch/",
            json!({"api_key": long_token, "batch": [good("a")]}).to_string().into_bytes(),
            401,
        ),
        (
            "a single event without name",
            "/capture/",
            with_token(json!({"distinct_id": "a"})).to_string().into_bytes(),
            400,
        ),
        (
            "a single event without distinct_id",
            "/i/v0/e/",
            with_token(json!({"event": "x"})).to_string().into_bytes(),
            400,
        ),
        (
            "a single event with blank distinct_id",
            "/e",
            with_token(json!({"event": "x", "distinct_id": "  "})).to_string().into_bytes(),
            400,
        ),
    ];
    for (what, path, body, status) in refused {
        let answer = post(path, body).await?;
        ensure!(answer.0 == status, "{what}: {} instead of {status}: {}", answer.0, answer.1);
        ensure!(!answer.1.is_empty(), "{what}: no message");
        println!("{:>3}  {what}: {}", answer.0, answer.1.trim());
    }
    let huge = json!({"api_key": TOKEN, "batch": [{"event": "huge", "distinct_id": "a", "properties": {"x": "y".repeat(21 << 20)}}]});
    let answer = post("/batch/", gzip(huge.to_string().as_bytes())?).await?;
    ensure!(answer.0 == 413, "a body of 21 MiB: {} {}", answer.0, answer.1);

    // Batches in which some events are bad, each beside a good one.
    let bad = [
        ("no name", json!({"distinct_id": "n", "properties": {}})),
        ("an empty name", json!({"event": "", "distinct_id": "n"})),
        ("no distinct_id", json!({"event": "x", "properties": {}})),
        ("a null distinct_id", json!({"event": "x", "distinct_id": null})),
        ("not an object", json!("text")),
        ("a wrong uuid", json!({"event": "x", "distinct_id": "n", "uuid": "not-a-uuid"})),
    ];
    for (what, event) in &bad {
        let id = format!("neighbour of {what}");
        let body = json!({"api_key": TOKEN, "batch": [good(&id), event, good(&id)]});
        let answer = post("/batch/", body.to_string().into_bytes()).await?;
        ensure!(answer.0 == 200, "a batch with {what}: {} {}", answer.0, answer.1);
    }

    // Events that are well formed and go wrong, or get well, further on.
    let further = json!({"api_key": TOKEN, "batch": [
        good("further"),
        {"event": "hard", "distinct_id": "h", "properties": {"price": "not a number"}},
        {"event": "soft", "distinct_id": "s", "properties": {"soft": "not a number"}},
        {"event": "bot", "distinct_id": "b", "properties": {}},
        {"event": "numeric id", "distinct_id": 23, "properties": {}},
        {"event": "object id", "distinct_id": {"a": 1}, "properties": {}},
        {"event": "long id", "distinct_id": "ü".repeat(300), "properties": {}},
        {"event": "nul \u{0} inside", "distinct_id": "nul\u{0}id", "properties": {"k": "v\u{0}"}},
        {"event": "bad time", "distinct_id": "t", "timestamp": "yesterday", "properties": {}},
        {"event": "far future", "distinct_id": "t", "timestamp": "2999-01-01T00:00:00Z", "properties": {}},
        {"event": "year 1", "distinct_id": "t", "timestamp": "0001-01-01T00:00:00Z", "properties": {}},
        {"event": "good uuid", "distinct_id": "u", "uuid": "0198b6a2-5c2a-7e3b-8a52-0f1e2d3c4b5a"},
    ]});
    let answer = post("/batch/", gzip(further.to_string().as_bytes())?).await?;
    ensure!(answer.0 == 200, "the last batch: {} {}", answer.0, answer.1);
    // Lone surrogates are legal JSON text and no legal text.
    let surrogate = format!(
        r#"{{"api_key":"{TOKEN}","event":"surrogate","distinct_id":"s","properties":{{"k":"a\ud800b"}}}}"#
    );
    let answer = post("/capture/", surrogate.into_bytes()).await?;
    ensure!(answer.0 == 200, "a lone surrogate: {} {}", answer.0, answer.1);

    let good_rows = 2 * bad.len() as u64 + 1;
    let wanted: BTreeMap<&str, u64> = [
        ("good", good_rows),
        ("soft", 1),
        ("numeric id", 1),
        ("object id", 1),
        ("long id", 1),
        ("nul \u{fffd} inside", 1),
        ("bad time", 1),
        ("far future", 1),
        ("year 1", 1),
        ("good uuid", 1),
        ("surrogate", 1),
    ]
    .into();
    #[derive(serde::Deserialize)]
    struct Row {
        event: String,
        distinct_id: String,
        uuid: String,
        year: u32,
    }
    let all = wanted.values().sum::<u64>();
    pipeline.wait_rows(all, Duration::from_secs(60)).await?;
    wait_until("the dead letters are there", Duration::from_secs(30), async || {
        Ok(pipeline.read("dead-letter").await?.len() > bad.len())
    })
    .await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let rows: Vec<Row> = pipeline
        .cluster
        .warehouse
        .rows(&format!(
            "SELECT event, distinct_id, uuid, toYear(timestamp) AS year FROM {}",
            pipeline.table()
        ))
        .await?;
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for row in &rows {
        *counts.entry(&row.event).or_default() += 1;
    }
    ensure!(counts == wanted, "rows {counts:?}, wanted {wanted:?}");
    let of = |event: &str| rows.iter().find(|row| row.event == event).expect("counted above");
    ensure!(of("numeric id").distinct_id == "23", "{}", of("numeric id").distinct_id);
    ensure!(of("object id").distinct_id == r#"{"a":1}"#, "{}", of("object id").distinct_id);
    ensure!(of("long id").distinct_id == "ü".repeat(200), "{}", of("long id").distinct_id);
    ensure!(of("good uuid").uuid == "0198b6a2-5c2a-7e3b-8a52-0f1e2d3c4b5a", "{}", of("good uuid").uuid);
    ensure!(of("far future").year < 2999, "a time in the far future was believed");
    ensure!(of("bad time").year >= 2026, "a time that is none became {}", of("bad time").year);

    let letters = pipeline.read("dead-letter").await?;
    let mut reasons: BTreeMap<String, u64> = BTreeMap::new();
    for letter in &letters {
        for header in ["dlq_reason", "dlq_step", "dlq_timestamp"] {
            ensure!(
                letter.headers.get(header).is_some_and(|value| !value.is_empty()),
                "{header} is missing: {letter:?}"
            );
        }
        ensure!(!letter.value.is_empty(), "a dead letter without its bytes");
        *reasons.entry(letter.headers["dlq_reason"].clone()).or_default() += 1;
    }
    println!("dead letters: {reasons:?}");
    ensure!(
        letters.len() == bad.len() + 1,
        "{} dead letters for {} bad events",
        letters.len(),
        bad.len() + 1
    );
    let failed: Vec<_> =
        letters.iter().filter(|l| l.headers["dlq_reason"] == "transformation_failed").collect();
    ensure!(failed.len() == 1 && failed[0].headers["dlq_step"].contains("transformation"), "{failed:?}");
    ensure!(failed[0].json()?["event"] == "hard", "the original is not in the dead letter");
    for (what, event) in &bad {
        ensure!(
            letters.iter().any(|letter| letter.json().is_ok_and(|kept| kept == *event)),
            "the event with {what} was not kept as it came"
        );
    }
    Ok(())
}
