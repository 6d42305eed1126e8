//! Why a request is not taken, as the client is told. PostHog's statuses: client libraries retry 408, 429 and 5xx, and
//! nothing else.

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use crate::budget::Exhausted;

/// A request that is not taken. Nothing of it has been acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: StatusCode,
    /// A stable code, for metrics.
    pub reason: &'static str,
    /// For the reader of the response: what is wrong and what to do.
    pub message: String,
    /// Seconds after which to try again.
    pub retry_after: Option<u32>,
}

impl Refusal {
    fn new(status: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { status, reason, message: message.into(), retry_after: None }
    }

    /// 400: the same request will never succeed.
    pub fn bad_request(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, reason, message)
    }

    /// 401: the token.
    pub fn unauthorized(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, reason, message)
    }

    /// 413: send less at once.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
    }

    /// 408: the body did not arrive in time.
    pub fn too_slow(timeout_ms: u32) -> Self {
        let message = format!("the request was not received within {timeout_ms} ms");
        Self::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message)
    }

    /// 503: full for the moment.
    pub fn busy(reason: &'static str) -> Self {
        let message = "the server is busy, please retry";
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, reason, message) }
    }

    /// 503: Kafka did not take it.
    pub fn unavailable() -> Self {
        let message = "the events could not be stored, please retry";
        Self { retry_after: Some(2), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "undelivered", message) }
    }

    /// A claim that could not grow: 503 when others are in the way, 413 when the request alone is too much.
    pub fn exhausted(exhausted: Exhausted, reason: &'static str) -> Self {
        match exhausted {
            Exhausted::Now => Self::busy(reason),
            Exhausted::Ever => {
                Self::too_large("the request needs more memory than the server has; send smaller batches")
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = (self.status, self.message).into_response();
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
