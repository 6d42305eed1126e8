//! Whether the process is alive and ready, told truthfully, and the server that tells it.
//!
//! *Liveness* fails when only a restart can help: a loop that hangs. *Readiness* fails when work sent here now would not
//! be done: a dependency is away, something is not loaded yet, the process is stopping.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde::Serialize;
use tokio::net::TcpListener;
use tracing::error;

use crate::{lifecycle::Shutdown, telemetry::Metrics};

/// What a check says: fine, or why not.
pub type Verdict = Result<(), String>;

/// Which question a check answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/healthz`: a failure is answered with a restart.
    Liveness,
    /// `/readyz`: a failure keeps traffic away.
    Readiness,
}

type Probe = Box<dyn Fn() -> Verdict + Send + Sync>;

/// The checks of a process. Clones share them.
#[derive(Clone)]
pub struct Health {
    checks: Arc<RwLock<Vec<(Kind, String, Probe)>>>,
    shutdown: Shutdown,
}

impl Health {
    /// No checks yet. Readiness is false once `shutdown` is requested.
    pub fn new(shutdown: Shutdown) -> Self {
        Self { checks: Arc::default(), shutdown }
    }

    /// Adds a check that is computed when it is asked for. It must be quick and must not block.
    pub fn probe(&self, kind: Kind, name: &str, probe: impl Fn() -> Verdict + Send + Sync + 'static) {
        let mut checks = self.checks.write().unwrap_or_else(PoisonError::into_inner);
        checks.push((kind, name.to_owned(), Box::new(probe)));
    }

    /// Adds a check whose verdict is set by whoever holds the returned handle. It fails with `initially` until then.
    pub fn check(&self, kind: Kind, name: &str, initially: &str) -> Check {
        let check = Check { verdict: Arc::new(Mutex::new(Err(initially.to_owned()))) };
        let shared = check.clone();
        self.probe(kind, name, move || shared.verdict());
        check
    }

    /// Adds a check that fails when the returned heart has not beaten for `longest_silence`.
    pub fn heartbeat(&self, kind: Kind, name: &str, longest_silence: Duration) -> Heartbeat {
        let heart = Heartbeat::new(longest_silence);
        let shared = heart.clone();
        self.probe(kind, name, move || shared.verdict());
        heart
    }

    /// All checks of a kind, and whether all of them are fine. For readiness that includes not being about to stop.
    pub fn report(&self, kind: Kind) -> Report {
        let checks = self.checks.read().unwrap_or_else(PoisonError::into_inner);
        let mut results: Vec<CheckResult> = checks
            .iter()
            .filter(|(of, ..)| *of == kind)
            .map(|(_, name, probe)| CheckResult::new(name, probe()))
            .collect();
        if kind == Kind::Readiness && self.shutdown.is_requested() {
            let reason = self.shutdown.reason().unwrap_or("asked to stop");
            results.push(CheckResult::new("stopping", Err(format!("the process is stopping: {reason}"))));
        }
        let status = if results.iter().all(|result| result.ok) { Status::Ok } else { Status::Failing };
        Report { status, checks: results }
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let checks = self.checks.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_list().entries(checks.iter().map(|(kind, name, _)| (kind, name))).finish()
    }
}

/// Sets the verdict of one check. Clones share it.
#[derive(Clone, Debug)]
pub struct Check {
    verdict: Arc<Mutex<Verdict>>,
}

impl Check {
    /// All is well.
    pub fn pass(&self) {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Ok(());
    }

    /// Something is wrong; the reason is shown to people.
    pub fn fail(&self, reason: impl Into<String>) {
        *self.verdict.lock().unwrap_or_else(PoisonError::into_inner) = Err(reason.into());
    }

    /// Passes or fails.
    pub fn set(&self, verdict: Verdict) {
        match verdict {
            Ok(()) => self.pass(),
            Err(reason) => self.fail(reason),
        }
    }

    fn verdict(&self) -> Verdict {
        self.verdict.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The pulse of a loop: it beats when the loop has made progress or has found that there is nothing to do. A loop that
/// hangs, or that has work and gets nowhere, stops beating. Clones share it; a beat costs one atomic store.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    origin: Instant,
    last_ms: Arc<AtomicU64>,
    longest_silence: Duration,
}

impl Heartbeat {
    /// A heart that has beaten just now.
    pub fn new(longest_silence: Duration) -> Self {
        Self { origin: Instant::now(), last_ms: Arc::default(), longest_silence }
    }

    /// There was progress, or there is nothing to do.
    pub fn beat(&self) {
        self.last_ms.store(self.origin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    /// Time since the last beat.
    pub fn silence(&self) -> Duration {
        self.origin.elapsed().saturating_sub(Duration::from_millis(self.last_ms.load(Ordering::Relaxed)))
    }

    /// Fails when the silence is too long.
    pub fn verdict(&self) -> Verdict {
        let silence = self.silence();
        if silence <= self.longest_silence {
            return Ok(());
        }
        Err(format!(
            "no progress for {:.1} s (at most {:.1} s)",
            silence.as_secs_f64(),
            self.longest_silence.as_secs_f64()
        ))
    }
}

/// Whether all checks of a kind are fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// All.
    Ok,
    /// Not all.
    Failing,
}

/// The answer to one question, as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether all checks are fine.
    pub status: Status,
    /// Each check.
    pub checks: Vec<CheckResult>,
}

/// What one check said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CheckResult {
    /// Name of the check.
    pub name: String,
    /// Whether it is fine.
    pub ok: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl CheckResult {
    fn new(name: &str, verdict: Verdict) -> Self {
        Self { name: name.to_owned(), ok: verdict.is_ok(), reason: verdict.err() }
    }
}

impl IntoResponse for Report {
    fn into_response(self) -> Response {
        let status = match self.status {
            Status::Ok => StatusCode::OK,
            Status::Failing => StatusCode::SERVICE_UNAVAILABLE,
        };
        let body = serde_json::to_string(&self).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
    }
}

/// `/metrics`, `/healthz` and `/readyz`.
pub fn admin_router(health: Health, metrics: Metrics) -> Router {
    let liveness =
        |State((health, _)): State<(Health, Metrics)>| async move { health.report(Kind::Liveness) };
    let readiness =
        |State((health, _)): State<(Health, Metrics)>| async move { health.report(Kind::Readiness) };
    let exposition = |State((_, metrics)): State<(Health, Metrics)>| async move {
        match metrics.encode() {
            Ok(text) => ([(header::CONTENT_TYPE, Metrics::CONTENT_TYPE)], text).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        }
    };
    Router::new()
        .route("/healthz", get(liveness))
        .route("/readyz", get(readiness))
        .route("/metrics", get(exposition))
        .with_state((health, metrics))
}

/// Binds `address` and serves [`admin_router`] there until the process ends, also while it is stopping.
pub async fn serve_admin(address: SocketAddr, health: Health, metrics: Metrics) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, admin_router(health, metrics)).await {
            error!(%error, "the server of metrics and health has ended");
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> (Health, Shutdown) {
        let shutdown = Shutdown::new();
        (Health::new(shutdown.clone()), shutdown)
    }

    #[test]
    fn a_check_fails_until_it_is_set_and_names_itself() {
        let (health, _) = health();
        let check = health.check(Kind::Readiness, "kafka", "not connected yet");
        let report = health.report(Kind::Readiness);
        assert_eq!(report.status, Status::Failing);
        assert_eq!(report.checks[0].name, "kafka");
        assert_eq!(report.checks[0].reason.as_deref(), Some("not connected yet"));
        check.pass();
        assert_eq!(health.report(Kind::Readiness).status, Status::Ok);
        check.fail("no broker answers");
        assert_eq!(health.report(Kind::Readiness).into_response().status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn liveness_and_readiness_are_separate() {
        let (health, _) = health();
        health.check(Kind::Readiness, "kafka", "not connected yet");
        assert_eq!(health.report(Kind::Liveness).status, Status::Ok);
    }

    #[test]
    fn a_stopping_process_is_alive_but_not_ready() {
        let (health, shutdown) = health();
        assert_eq!(health.report(Kind::Readiness).status, Status::Ok);
        shutdown.request("SIGTERM");
        let report = health.report(Kind::Readiness);
        assert_eq!(report.status, Status::Failing);
        assert!(report.checks[0].reason.as_deref().unwrap().contains("SIGTERM"));
        assert_eq!(health.report(Kind::Liveness).status, Status::Ok);
    }

    #[test]
    fn a_silent_heart_fails_and_a_beat_revives_it() {
        let (health, _) = health();
        let heart = health.heartbeat(Kind::Liveness, "loop", Duration::from_millis(20));
        assert_eq!(health.report(Kind::Liveness).status, Status::Ok);
        std::thread::sleep(Duration::from_millis(40));
        let report = health.report(Kind::Liveness);
        assert_eq!(report.status, Status::Failing);
        assert!(report.checks[0].reason.as_deref().unwrap().starts_with("no progress"));
        heart.beat();
        assert_eq!(health.report(Kind::Liveness).status, Status::Ok);
    }
}
