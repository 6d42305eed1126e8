//! Who the operator is to ClickHouse and whom it trusts, and what a server's refusal means in those terms.

use std::error::Error as StdError;

use rustls::{CertificateError, Error as TlsError};

use crate::{
    credentials::{ClickHouseUser, Trust},
    failure::{Cause, Failure},
};

/// How a server is reached. The default is the public authorities and nobody in particular.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access {
    /// Whom to trust behind an https URL.
    pub trust: Trust,
    /// Who to be.
    pub user: Option<ClickHouseUser>,
}

/// ClickHouse's codes for users and passwords that it does not know: `UNKNOWN_USER`, `WRONG_PASSWORD`,
/// `REQUIRED_PASSWORD`, `AUTHENTICATION_FAILED`.
const NOT_BELIEVED: [u32; 4] = [192, 193, 194, 516];
/// ClickHouse's code for a missing grant, `ACCESS_DENIED`.
const ACCESS_DENIED: u32 = 497;

impl Access {
    /// What an error of the client means. `what` completes "cannot …"; `server` is `host:port`.
    pub(super) fn failure(
        &self,
        what: &str,
        server: &str,
        error: &(dyn StdError + Send + Sync + 'static),
    ) -> Failure {
        let text = chain(error);
        if let Some(cause) = tls_cause(error) {
            return self.handshake(cause, what, server, &text);
        }
        if text.contains("dns error") || text.contains("failed to lookup address information") {
            let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
            return Failure::new(
                Cause::HostNotResolved,
                format!(
                    "cannot {what} on ClickHouse at {server}: the host name {host:?} cannot be resolved; correct it in url, \
                     or see to the DNS"
                ),
            );
        }
        if text.contains("HTTP request to an HTTPS server") || text.contains("invalid HTTP version parsed") {
            return Failure::new(
                Cause::TlsExpected,
                format!(
                    "cannot {what} on ClickHouse at {server}: it speaks TLS; write url: https://{server}"
                ),
            );
        }
        match code(&text) {
            Some(code) if NOT_BELIEVED.contains(&code) => Failure::new(
                Cause::AuthenticationFailed,
                match &self.user {
                    Some(user) => format!(
                        "cannot {what} on ClickHouse at {server}: authentication failed (code {code}) with the user and \
                         password of {} ({}); correct them there, or give the user this password in ClickHouse",
                        user.origin(),
                        user.field
                    ),
                    None => format!(
                        "cannot {what} on ClickHouse at {server}: authentication failed (code {code}) without a user; \
                         write auth, with a Secret that holds username and password"
                    ),
                },
            ),
            Some(ACCESS_DENIED) => Failure::new(
                Cause::NotAuthorized,
                format!(
                    "cannot {what} on ClickHouse at {server}: {} {}",
                    match &self.user {
                        Some(user) => format!(
                            "the user of {:?} of {} ({})",
                            user.username.from.key,
                            object(user),
                            user.field
                        ),
                        None => "the user default".to_owned(),
                    },
                    match grant(&text) {
                        Some(grant) =>
                            format!("lacks a grant; run in ClickHouse: GRANT {grant} TO that user"),
                        None => "is not allowed to (code 497)".to_owned(),
                    }
                ),
            ),
            _ => Failure::new(
                Cause::Unreachable,
                format!("cannot {what} on ClickHouse at {server}: {}", without_user(&text)),
            ),
        }
    }

    fn handshake(&self, cause: Cause, what: &str, server: &str, text: &str) -> Failure {
        let beginning = format!("cannot {what} on ClickHouse at {server}:");
        let why = match (cause, &self.trust) {
            (Cause::CertificateNotTrusted, Trust::Authorities { from, field, .. }) => format!(
                "{beginning} its certificate is not signed by an authority of {from} ({field}); put the certificate of its \
                 authority there"
            ),
            (Cause::CertificateNotTrusted, Trust::Public) => format!(
                "{beginning} its certificate is not signed by a public authority; name its authority in tls.caFrom"
            ),
            (Cause::CertificateExpired, _) => {
                format!("{beginning} its certificate has expired or does not hold yet; renew it there")
            }
            (Cause::CertificateNameMismatch, _) => format!(
                "{beginning} its certificate is for another host name; write one that it is for in url, or have it issued \
                 for this one"
            ),
            (Cause::TlsNotExpected, _) => {
                format!(
                    "{beginning} it does not speak TLS there; write the port of its https interface, or url: http://{server}"
                )
            }
            _ => format!("{beginning} {text}"),
        };
        Failure::new(cause, why)
    }
}

fn object(user: &ClickHouseUser) -> String {
    format!("{} {:?}", user.username.from.kind.name(), user.username.from.name)
}

/// The whole chain of causes: hyper's own message says only that there was an error.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// What of the TLS handshake went wrong, if it was that.
fn tls_cause(error: &(dyn StdError + 'static)) -> Option<Cause> {
    if let Some(tls) = error.downcast_ref::<TlsError>() {
        return cause_of(tls);
    }
    // An I/O error shows the causes of what it holds, and not what it holds, which may be an I/O error again.
    if let Some(held) = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref)
        && let Some(cause) = tls_cause(held)
    {
        return Some(cause);
    }
    error.source().and_then(tls_cause)
}

fn cause_of(error: &TlsError) -> Option<Cause> {
    Some(match error {
        TlsError::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => Cause::CertificateExpired,
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Cause::CertificateNameMismatch,
        TlsError::InvalidCertificate(_) => Cause::CertificateNotTrusted,
        TlsError::InvalidMessage(_) => Cause::TlsNotExpected,
        TlsError::AlertReceived(_) => Cause::ClientCertificateRefused,
        _ => return None,
    })
}

/// The code in `Code: 516. DB::Exception: …`.
fn code(text: &str) -> Option<u32> {
    let (_, rest) = text.split_once("Code: ")?;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

/// The grant that ClickHouse says is necessary: `CREATE TABLE ON analytics.events`.
fn grant(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("necessary to have the grant ")?;
    let end = rest.find(". (").or_else(|| rest.find(" (ACCESS_DENIED)")).or_else(|| rest.find(": "));
    Some(rest[..end.unwrap_or(rest.len())].trim_end_matches('.'))
}

/// ClickHouse begins some messages with the user's name, which came from a Secret.
fn without_user(text: &str) -> String {
    match text.split_once("DB::Exception: ") {
        Some((before, rest)) => match rest.split_once(": ") {
            Some((name, after)) if !name.contains(' ') => format!("{before}DB::Exception: {after}"),
            _ => text.to_owned(),
        },
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{Hidden, KeyRef, ObjectKind, Value};

    fn value(secret: &str, key: &str, content: &str) -> Value {
        Value {
            from: KeyRef { kind: ObjectKind::Secret, name: secret.into(), key: key.into() },
            content: Hidden::new(content.into()),
        }
    }

    fn access() -> Access {
        Access {
            trust: Trust::Authorities {
                from: KeyRef { kind: ObjectKind::ConfigMap, name: "company-ca".into(), key: "ca.crt".into() },
                field: "spec.exports[w].clickhouse.tls.caFrom".into(),
                pem: String::new(),
            },
            user: Some(ClickHouseUser {
                username: value("ch-ddl", "username", "penny"),
                password: value("ch-ddl", "password", "hunter2"),
                field: "spec.exports[w].clickhouse.auth.ddl".into(),
            }),
        }
    }

    fn said(text: &str) -> Failure {
        let error = clickhouse::error::Error::BadResponse(text.to_owned());
        access().failure("create table d.t", "ch:8443", &error)
    }

    fn handshake(error: TlsError) -> Failure {
        // As hyper-rustls wraps what tokio-rustls has wrapped.
        let error = std::io::Error::other(std::io::Error::other(error));
        let error = clickhouse::error::Error::Network(Box::new(error));
        access().failure("create table d.t", "ch:8443", &error)
    }

    #[test]
    fn what_the_server_says_is_told_by_secret_and_key_and_never_by_value() {
        for (text, cause, says) in [
            (
                "Code: 516. DB::Exception: penny: Authentication failed: password is incorrect, or there is no user with \
                 such name. (AUTHENTICATION_FAILED) (version 26.7.3.1)",
                Cause::AuthenticationFailed,
                "authentication failed (code 516) with the user and password of keys \"username\" and \"password\" of Secret \
                 \"ch-ddl\" (spec.exports[w].clickhouse.auth.ddl)",
            ),
            (
                "Code: 497. DB::Exception: penny: Not enough privileges. To execute this query, it's necessary to have the \
                 grant CREATE TABLE ON d.t. (ACCESS_DENIED) (version 26.7.3.1)",
                Cause::NotAuthorized,
                "the user of \"username\" of Secret \"ch-ddl\" (spec.exports[w].clickhouse.auth.ddl) lacks a grant; run in \
                 ClickHouse: GRANT CREATE TABLE ON d.t TO that user",
            ),
            (
                "Code: 60. DB::Exception: Table d.t does not exist. (UNKNOWN_TABLE)",
                Cause::Unreachable,
                "Table d.t does not exist",
            ),
            (
                "Client sent an HTTP request to an HTTPS server.",
                Cause::TlsExpected,
                "it speaks TLS; write url: https://ch:8443",
            ),
        ] {
            let failure = said(text);
            assert_eq!(failure.cause, cause, "{text}");
            assert!(failure.why.contains(says), "{} lacks {says}", failure.why);
            assert!(
                failure.why.starts_with("cannot create table d.t on ClickHouse at ch:8443: "),
                "{failure}"
            );
            assert!(!failure.why.contains("hunter2") && !failure.why.contains("penny"), "{failure}");
        }
    }

    #[test]
    fn a_handshake_that_fails_names_the_authority_and_what_to_do() {
        let other =
            CertificateError::Other(rustls::OtherError(std::sync::Arc::new(std::io::Error::other("x"))));
        for (error, cause, says) in [
            (
                TlsError::InvalidCertificate(CertificateError::UnknownIssuer),
                Cause::CertificateNotTrusted,
                "an authority of key \"ca.crt\" of ConfigMap \"company-ca\" (spec.exports[w].clickhouse.tls.caFrom)",
            ),
            (
                TlsError::InvalidCertificate(other),
                Cause::CertificateNotTrusted,
                "put the certificate of its authority",
            ),
            (TlsError::InvalidCertificate(CertificateError::Expired), Cause::CertificateExpired, "renew it"),
            (
                TlsError::InvalidCertificate(CertificateError::NotValidForName),
                Cause::CertificateNameMismatch,
                "for another host name",
            ),
            (
                TlsError::InvalidMessage(rustls::InvalidMessage::InvalidContentType),
                Cause::TlsNotExpected,
                "does not speak TLS there; write the port of its https interface, or url: http://ch:8443",
            ),
        ] {
            let failure = handshake(error);
            assert_eq!(failure.cause, cause, "{failure}");
            assert!(failure.why.contains(says), "{failure} lacks {says}");
        }
    }

    #[test]
    fn the_name_of_a_host_that_nobody_knows_is_told() {
        let error = std::io::Error::other("failed to lookup address information: Name or service not known");
        let error = clickhouse::error::Error::Network(Box::new(error));
        let failure = Access::default().failure("create database d", "ch.wrong:8123", &error);
        assert_eq!(failure.cause, Cause::HostNotResolved);
        assert!(failure.why.contains("the host name \"ch.wrong\" cannot be resolved"), "{failure}");
    }

    #[test]
    fn without_a_user_the_advice_is_to_write_one() {
        let error = clickhouse::error::Error::BadResponse(
            "Code: 194. DB::Exception: default: Authentication failed".into(),
        );
        let failure = Access::default().failure("create database d", "ch:8123", &error);
        assert_eq!(failure.cause, Cause::AuthenticationFailed);
        assert!(failure.why.contains("write auth, with a Secret"), "{failure}");
    }
}
