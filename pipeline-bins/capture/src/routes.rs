//! The HTTP API: which paths there are, and what happens to a request, from its first byte to its answer.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Extension, Router,
    body::{Body, HttpBody},
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{MethodFilter, get, on},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use penstock_pipeline::{config::CaptureLimits, projects::LiveProjects};
use tokio::{sync::Semaphore, time::timeout};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tracing::{debug, error};

use crate::{
    budget::{Budget, Claim},
    client_address,
    decode::Query,
    metrics::CaptureMetrics,
    prepare::{self, Prepared, prepare},
    refusal::Refusal,
    sink::{Sink, WriteError},
    timestamp::UnixMicros,
};

/// Bodies from here on are unpacked on a thread of their own: they would hold up the others.
const HEAVY_BODY_BYTES: usize = 32 * 1024;
/// How much of the body of a refused request is still read, in caps.
const DRAINED_CAPS: usize = 4;

const OK: &str = r#"{"status":"Ok"}"#;

/// The other end of the connection that a request came on.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

/// What requests need.
pub struct App<S> {
    sink: Arc<S>,
    projects: LiveProjects,
    limits: CaptureLimits,
    places: Arc<Semaphore>,
    in_flight: Budget,
    metrics: CaptureMetrics,
}

impl<S: Sink> App<S> {
    /// What requests need.
    pub fn new(
        sink: Arc<S>,
        projects: LiveProjects,
        limits: CaptureLimits,
        metrics: CaptureMetrics,
    ) -> Arc<Self> {
        Arc::new(Self {
            sink,
            projects,
            places: Arc::new(Semaphore::new(limits.max_concurrent_requests as usize)),
            in_flight: Budget::new(limits.max_in_flight_bytes),
            limits,
            metrics,
        })
    }

    /// Bytes of bodies that are held.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight.used()
    }

    /// Requests under way.
    pub fn requests(&self) -> usize {
        (self.limits.max_concurrent_requests as usize).saturating_sub(self.places.available_permits())
    }
}

/// The routes, each with and without a slash at the end.
pub fn router<S: Sink>(app: Arc<App<S>>) -> Router {
    let cors = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST, Method::OPTIONS])
        .allow_origin(AllowOrigin::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .allow_credentials(true);
    let mut events = Router::new();
    for path in ["/i/v0/e", "/e", "/capture", "/track", "/batch"] {
        let cap =
            if path == "/batch" { app.limits.max_batch_body_bytes } else { app.limits.max_event_body_bytes };
        let cap = usize::try_from(cap).unwrap_or(usize::MAX);
        let handler = move |app: State<Arc<App<S>>>, peer: Option<Extension<Peer>>, request: Request| {
            answer(app.0, path, cap, peer.map(|peer| peer.0), request)
        };
        let methods = on(MethodFilter::GET.or(MethodFilter::POST), handler);
        events = events.route(path, methods.clone()).route(&format!("{path}/"), methods);
    }
    Router::new()
        .merge(events.layer(cors))
        .route("/", get("capture"))
        .route("/_readiness", get("capture"))
        .with_state(app)
}

async fn answer<S: Sink>(
    app: Arc<App<S>>,
    route: &'static str,
    cap: usize,
    peer: Option<Peer>,
    request: Request,
) -> Response {
    let started = Instant::now();
    let query = Query::parse(request.uri().query());
    let beacon = query.beacon;
    let response = match take(&app, cap, peer, query, request).await {
        Ok(()) if beacon => StatusCode::NO_CONTENT.into_response(),
        Ok(()) => ([(header::CONTENT_TYPE, "application/json")], OK).into_response(),
        Err(refusal) => {
            debug!(route, status = refusal.status.as_u16(), reason = refusal.reason, "{}", refusal.message);
            app.metrics.refused(refusal.reason);
            refusal.into_response()
        }
    };
    app.metrics.answered(route, response.status().as_u16());
    app.metrics.request_seconds.observe(started.elapsed().as_secs_f64());
    response
}

/// Takes the events of a request: `Ok` when all of them are stored.
async fn take<S: Sink>(
    app: &Arc<App<S>>,
    cap: usize,
    peer: Option<Peer>,
    query: Query,
    request: Request,
) -> Result<(), Refusal> {
    let now = UnixMicros::now();
    let (head, body) = request.into_parts();
    let Ok(_place) = app.places.try_acquire() else {
        return Err(after_draining(body, cap, &app.limits, Refusal::busy("too_many_requests")).await);
    };
    let mut in_flight = app.in_flight.claim();
    let body = read(body, cap, &app.limits, &mut in_flight).await?;
    app.metrics.body_bytes.observe(body.len() as f64);
    let text = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let request = prepare::Request {
        now,
        ip: client_ip(peer, &head.headers),
        query,
        content_type: text(header::CONTENT_TYPE),
        content_encoding: text(header::CONTENT_ENCODING),
        body,
        cap,
    };
    let (prepared, queue) = prepare_aside(app, request, in_flight).await?;
    app.metrics.text_bytes.observe(prepared.text_bytes as f64);
    match app.sink.write(prepared.records, queue).await {
        Ok(()) => {
            app.metrics.events.inc_by(prepared.events as u64);
            app.metrics.dead_lettered(&prepared.dead_letters);
            Ok(())
        }
        Err(WriteError::Undelivered(_)) => Err(Refusal::unavailable()),
        Err(WriteError::TooLarge) => Err(Refusal::too_large("an event is larger than the topic allows")),
    }
}

/// Runs [`prepare`], away from the threads that serve connections when it may take long. The text is given back to the
/// budget when it returns: from then on the records' own claim counts.
async fn prepare_aside<S: Sink>(
    app: &Arc<App<S>>,
    request: prepare::Request,
    mut in_flight: Claim,
) -> Result<(Prepared, Claim), Refusal> {
    let heavy = request.body.len() >= HEAVY_BODY_BYTES || request.body.starts_with(&[0x1f, 0x8b]);
    let mut queue = app.sink.queue().claim();
    let projects = app.projects.snapshot();
    let work =
        move || prepare(request, &projects, &mut in_flight, &mut queue).map(|prepared| (prepared, queue));
    if !heavy {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|panic| {
        error!(%panic, "unpacking a request failed");
        Err(Refusal::busy("internal_error"))
    })
}

fn client_ip(peer: Option<Peer>, headers: &HeaderMap) -> String {
    let Some(Peer(peer)) = peer else { return String::new() };
    let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    client_address::of(peer, forwarded).to_string()
}

/// Reads a body, at most `cap` bytes and within the time limit. `claim` grows by what is read.
async fn read(
    mut body: Body,
    cap: usize,
    limits: &CaptureLimits,
    claim: &mut Claim,
) -> Result<Bytes, Refusal> {
    match timeout(time_limit(limits), collect(&mut body, cap, claim)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(refusal)) => Err(after_draining(body, cap, limits, refusal).await),
        Err(_) => Err(Refusal::too_slow(limits.request_timeout_ms)),
    }
}

fn time_limit(limits: &CaptureLimits) -> Duration {
    Duration::from_millis(limits.request_timeout_ms.into())
}

async fn collect(body: &mut Body, cap: usize, claim: &mut Claim) -> Result<Bytes, Refusal> {
    let told = HttpBody::size_hint(body).lower();
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            Refusal::bad_request(
                "broken_body",
                format!("the request ended before its body was complete: {error}"),
            )
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if first.len() + all.len() + data.len() > cap {
            return Err(Refusal::too_large(format!(
                "the body may have at most {cap} bytes, also after decompression; send smaller batches"
            )));
        }
        claim.grow(data.len()).map_err(|exhausted| Refusal::exhausted(exhausted, "in_flight_bytes"))?;
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            // What is reserved and never comes takes address space, no memory.
            all.reserve(usize::try_from(told).unwrap_or(cap).min(cap));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Reads on without keeping anything, so that the sender reads the refusal instead of finding the connection broken. A
/// body that goes on and on is cut off all the same.
async fn after_draining(mut body: Body, cap: usize, limits: &CaptureLimits, refusal: Refusal) -> Refusal {
    let most = cap.saturating_mul(DRAINED_CAPS);
    let drain = async {
        let mut drained = 0_usize;
        while let Some(Ok(frame)) = body.frame().await {
            drained += frame.data_ref().map_or(0, Bytes::len);
            if drained > most {
                return;
            }
        }
    };
    // Whether the sender was quick enough makes no difference to the answer.
    let _ = timeout(time_limit(limits), drain).await;
    refusal
}
