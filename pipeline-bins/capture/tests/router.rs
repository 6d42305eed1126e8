//! The HTTP API above the seam: statuses, headers and what is handed to the sink, without Kafka. What Kafka does with it is
//! in `kafka.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::{
    io::Write,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{self, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response, StatusCode},
};
use flate2::{Compression, write::GzEncoder};
use http_body_util::BodyExt;
use hyper::body::Frame;
use penstock_capture::{
    budget::{Budget, Claim},
    metrics::CaptureMetrics,
    record::{Record, Stage},
    routes::{App, router},
    sink::{Sink, WriteError},
};
use penstock_pipeline::{
    config::{CaptureConfig, CaptureLimits, Identity, ProjectEntry},
    live_file::LiveFile,
    projects::Projects,
    telemetry::Metrics,
};
use tokio::sync::Notify;
use tower::ServiceExt;

const EVENT: &str = r#"{"event":"a","distinct_id":"u","token":"phc_a"}"#;

/// Keeps what it is given, or refuses it; can be told to wait.
struct MemorySink {
    queue: Budget,
    records: Mutex<Vec<Record>>,
    refuses: Option<WriteError>,
    gate: Option<Notify>,
}

impl Sink for MemorySink {
    fn queue(&self) -> &Budget {
        &self.queue
    }

    async fn write(&self, records: Vec<Record>, _claim: Claim) -> Result<(), WriteError> {
        if let Some(gate) = &self.gate {
            gate.notified().await;
        }
        if let Some(error) = &self.refuses {
            return Err(error.clone());
        }
        self.records.lock().unwrap().extend(records);
        Ok(())
    }
}

struct Api {
    sink: Arc<MemorySink>,
    router: Router,
    metrics: Metrics,
}

impl Api {
    fn with(change: impl FnOnce(&mut CaptureLimits, &mut MemorySink)) -> Self {
        let config: CaptureConfig = serde_yaml_ng::from_str(include_str!("config.yaml")).unwrap();
        let mut limits = config.limits;
        let mut sink = MemorySink {
            queue: Budget::new(limits.producer_queue_bytes),
            records: Mutex::default(),
            refuses: None,
            gate: None,
        };
        change(&mut limits, &mut sink);
        let sink = Arc::new(sink);
        let entry = ProjectEntry { id: 1, name: "web".into(), token: "phc_a".into() };
        let projects = LiveFile::fixed(Projects::new(vec![entry]).unwrap());
        let identity = Identity { namespace: "n".into(), pipeline: "p".into(), component: "capture".into() };
        let metrics = Metrics::new(&identity);
        let app = App::new(Arc::clone(&sink), projects, limits, CaptureMetrics::new(&metrics));
        Self { sink, router: router(app), metrics }
    }

    fn new() -> Self {
        Self::with(|_, _| {})
    }

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn post(&self, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
        let request = Request::post(path).body(body.into()).unwrap();
        answer(self.send(request).await).await
    }

    fn events(&self, stage: Stage) -> usize {
        self.sink.records.lock().unwrap().iter().filter(|record| record.stage == stage).count()
    }
}

async fn answer(response: Response<Body>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn every_route_takes_events_with_and_without_slash() {
    let api = Api::new();
    let paths = ["/i/v0/e", "/e", "/capture", "/track", "/batch"];
    for path in paths {
        for path in [path.to_owned(), format!("{path}/")] {
            assert_eq!(
                api.post(&path, EVENT).await,
                (StatusCode::OK, r#"{"status":"Ok"}"#.to_owned()),
                "{path}"
            );
        }
    }
    assert_eq!(api.events(Stage::Captured), 2 * paths.len());
    assert_eq!(api.post("/elsewhere", EVENT).await.0, StatusCode::NOT_FOUND);
    let request = Request::put("/e").body(Body::from(EVENT)).unwrap();
    assert_eq!(api.send(request).await.status(), StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn every_body_shape_is_taken() {
    let api = Api::new();
    let batch =
        r#"{"api_key":"phc_a","batch":[{"event":"a","distinct_id":"u"},{"event":"b","distinct_id":"u"}]}"#;
    let array = format!("[{EVENT},{EVENT}]");
    let bodies: [(&str, Vec<u8>, usize); 5] = [
        ("single", EVENT.into(), 1),
        ("array", array.into(), 2),
        ("batch", batch.into(), 2),
        ("gzip", gzip(batch.as_bytes()), 2),
        ("large gzip", gzip(format!("[{}]", vec![EVENT; 5000].join(",")).as_bytes()), 5000),
    ];
    for (name, body, count) in bodies {
        let before = api.events(Stage::Captured);
        assert_eq!(api.post("/batch/", body).await.0, StatusCode::OK, "{name}");
        assert_eq!(api.events(Stage::Captured) - before, count, "{name}");
    }
    let query =
        "/e/?data=%7B%22event%22%3A%22a%22%2C%22distinct_id%22%3A%22u%22%2C%22token%22%3A%22phc_a%22%7D";
    let request = Request::get(query).body(Body::empty()).unwrap();
    assert_eq!(api.send(request).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_beacon_is_answered_without_content() {
    let (status, body) = Api::new().post("/e/?beacon=1", EVENT).await;
    assert_eq!((status, body.as_str()), (StatusCode::NO_CONTENT, ""));
}

#[tokio::test]
async fn refusals_have_the_right_status_and_say_why() {
    let api = Api::new();
    let cases = [
        ("", StatusCode::BAD_REQUEST, "empty"),
        ("{", StatusCode::BAD_REQUEST, "not valid JSON"),
        (r#"{"api_key":"phc_a","batch":[]}"#, StatusCode::BAD_REQUEST, "no events"),
        (r#"{"event":"","distinct_id":"u","token":"phc_a"}"#, StatusCode::BAD_REQUEST, "name is empty"),
        (r#"{"event":"a","token":"phc_a"}"#, StatusCode::BAD_REQUEST, "no `distinct_id`"),
        (r#"{"event":"a","distinct_id":"u"}"#, StatusCode::UNAUTHORIZED, "without an api_key"),
        (
            r#"{"event":"a","distinct_id":"u","token":"phc_b"}"#,
            StatusCode::UNAUTHORIZED,
            "no project has this key",
        ),
    ];
    for (body, status, message) in cases {
        let answer = api.post("/e", body).await;
        assert!(answer.0 == status && answer.1.contains(message), "{body}: {answer:?}");
    }
    assert!(api.sink.records.lock().unwrap().is_empty());
    let metrics = api.metrics.encode().unwrap();
    assert!(metrics.contains("penstock_capture_refusals_total{reason=\"unknown_token\"} 1"), "{metrics}");
    assert!(metrics.contains("penstock_capture_requests_total{route=\"/e\",status=\"401\"} 2"), "{metrics}");
}

#[tokio::test]
async fn a_bad_event_among_good_ones_is_put_aside_and_the_batch_is_taken() {
    let api = Api::new();
    let body = r#"{"api_key":"phc_a","batch":[{"event":"a","distinct_id":"u"},{"distinct_id":"u"}]}"#;
    assert_eq!(api.post("/batch", body).await.0, StatusCode::OK);
    assert_eq!((api.events(Stage::Captured), api.events(Stage::DeadLetter)), (1, 1));
}

#[tokio::test]
async fn what_is_too_large_is_413_on_each_route_by_its_own_limit() {
    let api = Api::with(|limits, _| limits.max_event_body_bytes = 1000);
    let large = format!(
        r#"{{"event":"a","distinct_id":"u","token":"phc_a","properties":{{"p":"{}"}}}}"#,
        "x".repeat(2000)
    );
    assert_eq!(api.post("/e", large.clone()).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(api.post("/e", gzip(large.as_bytes())).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(api.post("/batch", large).await.0, StatusCode::OK);
}

#[tokio::test]
async fn what_the_sink_does_not_take_is_503_with_retry_after() {
    let api = Api::with(|_, sink| sink.refuses = Some(WriteError::Undelivered("timed out".into())));
    let response = api.send(Request::post("/batch").body(Body::from(EVENT)).unwrap()).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().contains_key("retry-after"));
    assert!(!api.metrics.encode().unwrap().contains("penstock_capture_events_total 1"));
}

#[tokio::test]
async fn requests_beyond_the_limit_are_503_at_once_and_the_others_go_on() {
    let api = Arc::new(Api::with(|limits, sink| {
        limits.max_concurrent_requests = 1;
        sink.gate = Some(Notify::new());
    }));
    let first = tokio::spawn({
        let api = Arc::clone(&api);
        async move { api.post("/e", EVENT).await.0 }
    });
    let mut second = StatusCode::OK;
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if first.is_finished() {
            break;
        }
        let request = Request::post("/e").body(Body::from(EVENT)).unwrap();
        let Ok(response) = tokio::time::timeout(Duration::from_millis(200), api.send(request)).await else {
            continue;
        };
        second = response.status();
        break;
    }
    assert_eq!(second, StatusCode::SERVICE_UNAVAILABLE);
    api.sink.gate.as_ref().unwrap().notify_one();
    assert_eq!(first.await.unwrap(), StatusCode::OK);
    assert_eq!(api.events(Stage::Captured), 1);
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_408() {
    let api = Api::with(|limits, _| limits.request_timeout_ms = 30);
    assert_eq!(api.post("/e", Body::new(Never)).await.0, StatusCode::REQUEST_TIMEOUT);
}

/// A body whose sender has gone silent.
struct Never;

impl axum::body::HttpBody for Never {
    type Data = bytes::Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Poll::Pending
    }
}

#[tokio::test]
async fn browsers_may_send_from_anywhere() {
    let api = Api::new();
    let preflight = Request::options("/e/")
        .header("origin", "https://shop.example.com")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "content-type, x-custom")
        .body(Body::empty())
        .unwrap();
    let response = api.send(preflight).await;
    assert_eq!(response.status(), StatusCode::OK);
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("access-control-allow-origin"), "https://shop.example.com");
    assert_eq!(header("access-control-allow-credentials"), "true");
    assert_eq!(header("access-control-allow-headers"), "content-type, x-custom");
    assert!(header("access-control-allow-methods").contains("POST"));

    let post =
        Request::post("/e/").header("origin", "https://shop.example.com").body(Body::from("{")).unwrap();
    let response = api.send(post).await;
    assert_eq!(response.headers()["access-control-allow-origin"], "https://shop.example.com");
}

#[tokio::test]
async fn the_root_answers_probes_of_load_balancers() {
    let api = Api::new();
    for path in ["/", "/_readiness"] {
        let response = api.send(Request::get(path).body(Body::empty()).unwrap()).await;
        assert_eq!(answer(response).await, (StatusCode::OK, "capture".to_owned()), "{path}");
    }
}

#[tokio::test]
async fn memory_is_given_back_after_every_kind_of_answer() {
    let api = Api::new();
    for body in [EVENT.as_bytes().to_vec(), gzip(EVENT.as_bytes()), b"{".to_vec(), b"[1]".to_vec()] {
        api.post("/e", body).await;
    }
    assert_eq!(api.sink.queue.used(), 0);
}
