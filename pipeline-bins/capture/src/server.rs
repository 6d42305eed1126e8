//! Connections: accepted up to a bound, served with time limits, and ended without dropping a request.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Response, header},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use penstock_pipeline::lifecycle::Shutdown;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tower::ServiceExt;
use tracing::{debug, info, warn};

use crate::routes::Peer;

/// How long a connection may be silent, and how long the head of a request may take. Longer than the idle time of common
/// load balancers (60 s), so that it is they who close a connection and no request meets a closed one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(75);
/// Connections for each request that is handled at once: most connections are idle.
const CONNECTIONS_PER_REQUEST: usize = 8;
const MIN_CONNECTIONS: usize = 1024;
/// After the listener is closed, requests that were on their way may still arrive on open connections.
const LAST_REQUESTS: Duration = Duration::from_millis(500);
/// Pause after an error of `accept` that concerns the process (no file descriptors left), not one connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the server ends.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// Serving goes on for so long after readiness has turned false.
    pub readiness_delay: Duration,
    /// Then requests under way have so long.
    pub deadline: Duration,
}

/// Serves until `shutdown` is requested and the connections are drained. `Ok(false)` when some had to be cut.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: Shutdown,
    drain: Drain,
    max_requests: usize,
    open: Gauge,
) -> io::Result<bool> {
    let places = Arc::new(Semaphore::new((max_requests * CONNECTIONS_PER_REQUEST).max(MIN_CONNECTIONS)));
    let graceful = GracefulShutdown::new();
    let connection = |stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit| {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "cannot set TCP_NODELAY");
        }
        let router = router.clone();
        let stopping = shutdown.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            respond(router.clone(), stopping.clone(), peer, request)
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .keep_alive(true)
            .half_close(false)
            .max_headers(64)
            .serve_connection(TokioIo::new(stream), service);
        let watched = graceful.watch(served);
        let open = open.clone();
        open.inc();
        tokio::spawn(async move {
            if let Err(error) = watched.await {
                debug!(%error, "a connection ended early");
            }
            open.dec();
            drop(place);
        });
    };

    let closing = async {
        shutdown.requested().await;
        sleep(drain.readiness_delay).await;
    };
    tokio::pin!(closing);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut closing => break,
            accepted = accept(&listener, &places) => accepted,
        };
        if let Some((stream, peer, place)) = accepted {
            connection(stream, peer, place);
        }
    }

    // Connections that the kernel has already completed would be reset with the listener: take them in first.
    while let Ok(Some((stream, peer, place))) = timeout(Duration::ZERO, accept(&listener, &places)).await {
        connection(stream, peer, place);
    }
    drop(listener);
    info!(connections = open.get(), "no longer accepting connections");
    sleep(LAST_REQUESTS.min(drain.deadline)).await;
    let done = timeout(drain.deadline, graceful.shutdown()).await.is_ok();
    if !done {
        warn!(connections = open.get(), "connections are cut at the deadline");
    }
    Ok(done)
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, place)),
        Err(error) => {
            let of_one_connection = matches!(
                error.kind(),
                io::ErrorKind::ConnectionAborted
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::ConnectionRefused
            );
            if !of_one_connection {
                warn!(%error, "cannot accept connections");
                sleep(ACCEPT_PAUSE).await;
            }
            None
        }
    }
}

async fn respond(
    router: Router,
    stopping: Shutdown,
    peer: SocketAddr,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, std::convert::Infallible> {
    request.extensions_mut().insert(Peer(peer.ip()));
    let mut response = router.oneshot(request.map(Body::new)).await?;
    if stopping.is_requested() {
        // The client's next request goes elsewhere.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}
