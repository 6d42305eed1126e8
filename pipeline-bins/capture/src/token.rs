//! Tokens ("API keys"): where a request says its own, and which ones can be. PostHog's rules (facts 1.3).

use std::borrow::Cow;

use penstock_pipeline::projects::MAX_TOKEN_LENGTH;

use crate::refusal::Refusal;

/// The token of a request: that of the batch if it has one, else the one that all its events agree on.
///
/// Events that name none go with the others.
pub fn of_request<'a>(
    batch: Option<Cow<'a, str>>,
    events: impl Iterator<Item = Option<Cow<'a, str>>>,
) -> Result<String, Refusal> {
    if let Some(token) = batch {
        return checked(&token);
    }
    let mut agreed: Option<Cow<'a, str>> = None;
    for token in events.flatten() {
        match &agreed {
            None => agreed = Some(token),
            Some(agreed) if agreed.trim() == token.trim() => {}
            Some(_) => {
                let message = "batch submitted with inconsistent api_key values";
                return Err(Refusal::unauthorized("inconsistent_token", message));
            }
        }
    }
    match agreed {
        Some(token) => checked(&token),
        None => Err(Refusal::unauthorized("missing_token", "event submitted without an api_key")),
    }
}

/// A token without the spaces around it, or why it cannot be one.
fn checked(token: &str) -> Result<String, Refusal> {
    let token = token.trim();
    let fault = if token.is_empty() {
        "it is empty"
    } else if token.len() > MAX_TOKEN_LENGTH {
        "it is longer than 64 characters"
    } else if !token.is_ascii() {
        "it has characters that are not ASCII"
    } else if token.contains('\0') {
        "it contains a NUL character"
    } else if token.starts_with("phx_") {
        "it is a personal key (phx_); use the project's key"
    } else {
        return Ok(token.to_owned());
    };
    Err(Refusal::unauthorized("invalid_token", format!("API key is not valid: {fault}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(batch: Option<&'static str>, events: &[Option<&'static str>]) -> Result<String, String> {
        of_request(batch.map(Cow::Borrowed), events.iter().map(|token| token.map(Cow::Borrowed)))
            .map_err(|refusal| refusal.message)
    }

    #[test]
    fn the_batch_comes_first_and_events_must_agree() {
        assert_eq!(of(Some("a"), &[Some("b")]).unwrap(), "a");
        assert_eq!(of(None, &[Some("a"), Some(" a ")]).unwrap(), "a");
        assert_eq!(of(None, &[None, Some("a")]).unwrap(), "a");
        assert!(of(None, &[Some("a"), Some("b")]).unwrap_err().contains("inconsistent"));
        assert!(of(None, &[None]).unwrap_err().contains("without an api_key"));
        assert!(of(None, &[]).unwrap_err().contains("without an api_key"));
    }

    #[test]
    fn impossible_tokens_are_refused_with_the_reason() {
        let long: &'static str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
        let cases = [
            ("", "empty"),
            ("  ", "empty"),
            (long, "64"),
            ("é", "ASCII"),
            ("a\0b", "NUL"),
            ("phx_a", "personal"),
        ];
        for (token, expected) in cases {
            let message = of(Some(token), &[]).unwrap_err();
            assert!(
                message.starts_with("API key is not valid:") && message.contains(expected),
                "{token}: {message}"
            );
        }
        assert_eq!(of(Some(&long[..64]), &[]).unwrap(), &long[..64]);
        assert_eq!(of(Some(" phc_a\n"), &[]).unwrap(), "phc_a");
    }
}
