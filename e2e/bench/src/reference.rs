//! What capture is held against: the least that a server in Rust does which reads the same bodies. It parses them and
//! forgets them.

use std::{hint::black_box, io::Read, net::SocketAddr};

use anyhow::{Context, Result};
use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode, header},
    routing::post,
    serve::ListenerExt,
};
use flate2::read::GzDecoder;
use serde_json::Value;
use tokio::net::TcpListener;

/// Serves until it is killed.
///
/// # Errors
/// Somebody else listens there.
pub async fn serve(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let listener = listener.tap_io(|stream| {
        // The same as capture does; without it, an answer waits for nothing on a loopback anyway.
        let _ = stream.set_nodelay(true);
    });
    let router = Router::new().route("/i/v0/e/", post(parse)).route("/batch/", post(parse));
    Ok(axum::serve(listener, router).await?)
}

async fn parse(
    headers: HeaderMap,
    body: Bytes,
) -> Result<([(header::HeaderName, &'static str); 1], &'static str), StatusCode> {
    let value: Value = if headers.get(header::CONTENT_ENCODING).is_some_and(|name| name == "gzip") {
        let mut text = Vec::with_capacity(body.len() * 4);
        GzDecoder::new(body.as_ref()).read_to_end(&mut text).map_err(|_| StatusCode::BAD_REQUEST)?;
        serde_json::from_slice(&text)
    } else {
        serde_json::from_slice(&body)
    }
    .map_err(|_| StatusCode::BAD_REQUEST)?;
    black_box(&value);
    Ok(([(header::CONTENT_TYPE, "application/json")], r#"{"status":"Ok"}"#))
}
