//! Pauses between attempts.

use std::time::Duration;

use penstock_pipeline::config::RetryConfig;

/// The pause after `failures` failures in a row (from 1): doubles from the least to the most, and is drawn from its upper
/// half, so that many who failed together do not come back together.
pub fn pause(retry: &RetryConfig, failures: u32, random: f64) -> Duration {
    let least = retry.min_backoff_ms.max(1);
    let most = retry.max_backoff_ms.max(least);
    let full = least.saturating_mul(1u64 << failures.saturating_sub(1).min(40)).min(most);
    Duration::from_secs_f64(full as f64 / 1000.0 * (0.5 + 0.5 * random.clamp(0.0, 1.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_most_with_jitter_in_the_upper_half() {
        let retry = RetryConfig { max_attempts: None, min_backoff_ms: 100, max_backoff_ms: 1000 };
        for (failures, full) in [(0, 100), (1, 100), (2, 200), (4, 800), (5, 1000), (u32::MAX, 1000)] {
            assert_eq!(pause(&retry, failures, 1.0), Duration::from_millis(full), "{failures}");
            assert_eq!(pause(&retry, failures, 0.0), Duration::from_millis(full) / 2, "{failures}");
        }
    }

    #[test]
    fn nonsensical_limits_do_not_panic() {
        let retry = RetryConfig { max_attempts: None, min_backoff_ms: u64::MAX, max_backoff_ms: 0 };
        assert!(pause(&retry, 3, 0.5) > Duration::ZERO);
    }
}
