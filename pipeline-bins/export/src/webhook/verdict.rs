//! What an answer means, and what happens next.

use std::time::{Duration, SystemTime};

use penstock_pipeline::{config::RetryConfig, events::dead_letter::Reason};

use crate::backoff;

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// With an answer.
    Answered {
        /// HTTP status.
        status: u16,
        /// `retry-after`, as it was sent.
        retry_after: Option<String>,
        /// The beginning of the body.
        excerpt: String,
    },
    /// Without one: no connection, time-out, broken answer.
    Failed(String),
    /// The destination may not be reached.
    Forbidden(String),
}

/// What happens next.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Nothing: it is delivered.
    Delivered,
    /// Another attempt after a pause. `everybody`: the destination is overloaded, so all deliveries pause.
    Retry {
        /// How long.
        pause: Duration,
        /// Whether all deliveries pause.
        everybody: bool,
    },
    /// A dead letter.
    GiveUp {
        /// Why.
        reason: Reason,
        /// For people.
        detail: String,
    },
}

/// Decides after attempt number `attempts` (from 1). `random` is in 0..1, for jitter.
pub fn next(attempt: &Attempt, attempts: u32, retry: &RetryConfig, now: SystemTime, random: f64) -> Next {
    let exhausted = retry.max_attempts.is_some_and(|most| attempts >= most);
    let pause = backoff::pause(retry, attempts, random);
    match attempt {
        Attempt::Answered { status: 200..=299, .. } => Next::Delivered,
        Attempt::Answered { status, retry_after, excerpt } => {
            if is_permanent(*status) {
                let detail = format!("HTTP {status}: {excerpt}");
                return Next::GiveUp { reason: Reason::DestinationRefused, detail };
            }
            if exhausted {
                let detail = format!("{attempts} attempts, the last: HTTP {status}: {excerpt}");
                return Next::GiveUp { reason: Reason::AttemptsExhausted, detail };
            }
            let most = Duration::from_millis(retry.max_backoff_ms);
            let asked = retry_after.as_deref().and_then(|text| parse_retry_after(text, now));
            let pause = asked.map_or(pause, |asked| asked.min(most).max(pause));
            Next::Retry { pause, everybody: matches!(status, 429 | 502..=504) }
        }
        Attempt::Failed(detail) if exhausted => Next::GiveUp {
            reason: Reason::AttemptsExhausted,
            detail: format!("{attempts} attempts, the last: {detail}"),
        },
        // A name may resolve wrongly for a while: it is tried as often as anything else.
        Attempt::Forbidden(detail) if exhausted => Next::GiveUp {
            reason: Reason::DestinationForbidden,
            detail: format!("{attempts} attempts, the last: {detail}"),
        },
        Attempt::Failed(_) | Attempt::Forbidden(_) => Next::Retry { pause, everybody: false },
    }
}

/// Client errors say that this request will never be taken, but for those that speak of time. A redirection is not
/// followed, and is tried again: whoever made it can take it back.
fn is_permanent(status: u16) -> bool {
    matches!(status, 400..=499) && !matches!(status, 408 | 425 | 429)
}

/// Seconds or an HTTP date.
fn parse_retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text).ok().map(|at| at.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry() -> RetryConfig {
        RetryConfig { max_attempts: Some(3), min_backoff_ms: 1000, max_backoff_ms: 60_000 }
    }

    fn answered(status: u16, retry_after: Option<&str>) -> Attempt {
        Attempt::Answered { status, retry_after: retry_after.map(Into::into), excerpt: "said".into() }
    }

    fn after(status: u16, retry_after: Option<&str>, attempts: u32) -> Next {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 20);
        next(&answered(status, retry_after), attempts, &retry(), now, 1.0)
    }

    #[test]
    fn successes_are_delivered() {
        for status in [200, 201, 202, 204, 299] {
            assert_eq!(after(status, None, 1), Next::Delivered, "{status}");
        }
    }

    #[test]
    fn client_errors_are_dead_letters_at_once_with_status_and_excerpt() {
        for status in [400, 401, 403, 404, 405, 409, 410, 413, 422, 451, 499] {
            let detail = format!("HTTP {status}: said");
            assert_eq!(
                after(status, None, 1),
                Next::GiveUp { reason: Reason::DestinationRefused, detail },
                "{status}"
            );
        }
    }

    #[test]
    fn passing_answers_and_redirections_are_tried_again_and_given_up_at_the_end() {
        for status in [301, 302, 307, 308, 304, 408, 425, 429, 500, 501, 502, 503, 504, 599, 100] {
            let everybody = [429, 502, 503, 504].contains(&status);
            assert_eq!(
                after(status, None, 1),
                Next::Retry { pause: Duration::from_secs(1), everybody },
                "{status}"
            );
            let detail = format!("3 attempts, the last: HTTP {status}: said");
            assert_eq!(
                after(status, None, 3),
                Next::GiveUp { reason: Reason::AttemptsExhausted, detail },
                "{status}"
            );
        }
    }

    #[test]
    fn retry_after_is_honoured_in_seconds_and_as_a_date_up_to_the_longest_pause() {
        let pause = |retry_after| match after(503, Some(retry_after), 1) {
            Next::Retry { pause, .. } => pause.as_secs(),
            other => panic!("{other:?}"),
        };
        assert_eq!(pause("30"), 30);
        assert_eq!(pause(" 7 "), 7);
        assert_eq!(pause("3600"), 60, "no longer than the longest pause");
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:37 GMT"), 20);
        assert_eq!(pause("Sun, 06 Nov 1994 08:00:00 GMT"), 1, "in the past: the usual pause");
        assert_eq!(pause("0"), 1, "never sooner than the usual pause");
        assert_eq!(pause("soon"), 1);
        assert_eq!(pause("18446744073709551615"), 60);
    }

    #[test]
    fn failures_and_forbidden_destinations_are_tried_again_and_keep_their_reason() {
        for (attempt, reason) in [
            (Attempt::Failed("reset".into()), Reason::AttemptsExhausted),
            (Attempt::Forbidden("private".into()), Reason::DestinationForbidden),
        ] {
            let next = |attempts| next(&attempt, attempts, &retry(), SystemTime::UNIX_EPOCH, 0.0);
            assert_eq!(next(2), Next::Retry { pause: Duration::from_secs(1), everybody: false });
            assert!(matches!(next(3), Next::GiveUp { reason: given, .. } if given == reason));
        }
        let for_ever = RetryConfig { max_attempts: None, ..retry() };
        let next = next(&answered(500, None), u32::MAX, &for_ever, SystemTime::UNIX_EPOCH, 1.0);
        assert_eq!(next, Next::Retry { pause: Duration::from_secs(60), everybody: false });
    }
}
