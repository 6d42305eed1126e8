//! A JSON Web Token, as far as a client looks into it: until when it holds, and for whom.

use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rdkafka::client::OAuthToken;
use serde::Deserialize;

/// A token, not shown.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token {
    text: String,
    subject: String,
    expires_at_ms: i64,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    exp: Option<f64>,
}

impl Token {
    /// Reads `exp` and `sub`. The signature is Kafka's to check. The reason why it cannot be used repeats nothing of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let not_a_token = || "is not a JSON Web Token of three parts".to_owned();
        let [_, claims, _] = text.split('.').collect::<Vec<_>>()[..] else { return Err(not_a_token()) };
        let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).map_err(|_| not_a_token())?;
        let claims: Claims = serde_json::from_slice(&claims).map_err(|_| not_a_token())?;
        let subject = claims.sub.filter(|sub| !sub.is_empty() && !sub.contains('\0'));
        let subject = subject.ok_or("is a token that does not say for whom it is (`sub`)")?;
        let expires = claims.exp.filter(|exp| *exp > 0.0 && *exp < 1e12);
        let expires = expires.ok_or("is a token that does not say until when it holds (`exp`)")?;
        Ok(Self { text: text.to_owned(), subject, expires_at_ms: (expires * 1000.0) as i64 })
    }

    /// When it expires, milliseconds since 1970.
    pub fn expires_at_ms(&self) -> i64 {
        self.expires_at_ms
    }

    /// For whom it is.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// As the `rdkafka` crate takes it.
    pub fn to_native(&self) -> OAuthToken {
        OAuthToken {
            token: self.text.clone(),
            principal_name: self.subject.clone(),
            lifetime_ms: self.expires_at_ms,
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("subject", &self.subject)
            .field("expires_at_ms", &self.expires_at_ms)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("eyJhbGciOiJSUzI1NiJ9.{}.c2ln", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn expiry_and_subject_are_read() {
        let text = token(r#"{"sub":"system:serviceaccount:shop:web","exp":1795582797,"aud":["kafka"]}"#);
        let parsed = Token::parse(&text).unwrap();
        assert_eq!(parsed.subject(), "system:serviceaccount:shop:web");
        assert_eq!(parsed.expires_at_ms(), 1_795_582_797_000);
        assert_eq!(parsed.to_native().token, text);
        assert!(!format!("{parsed:?}").contains("c2ln"));
    }

    #[test]
    fn what_is_no_token_is_refused_without_repeating_it() {
        for (text, part) in [
            ("secret".to_owned(), "three parts"),
            ("se.cret".to_owned(), "three parts"),
            ("se.cr et.x".to_owned(), "three parts"),
            (token("secret"), "three parts"),
            (token(r#"{"exp":1795582797,"x":"secret"}"#), "`sub`"),
            (token(r#"{"sub":"secret"}"#), "`exp`"),
            (token(r#"{"sub":"secret","exp":-1}"#), "`exp`"),
        ] {
            let reason = Token::parse(&text).unwrap_err();
            assert!(reason.contains(part) && !reason.contains("secret"), "{reason}");
        }
    }
}
