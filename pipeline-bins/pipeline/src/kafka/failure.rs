//! What stands between us and Kafka, named from librdkafka's codes and texts.
//!
//! librdkafka tells most of it in texts alone. They are read here and nowhere else; each row of the table below was seen
//! with librdkafka 2.12.1 against Kafka 4.3.

use std::fmt;

use rdkafka::error::RDKafkaErrorCode;

/// What stands in the way. A person has to do something about all of them but the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// The name of a broker is not known.
    NotResolved,
    /// Nobody listens at the address.
    Refused,
    /// It was not believed who we are.
    AuthenticationFailed,
    /// The broker does not offer the way in which we authenticate.
    MechanismNotOffered,
    /// The broker's certificate is not from an authority that is trusted, has expired, or is for another name. librdkafka
    /// does not tell which.
    CertificateNotTrusted,
    /// The broker wants a certificate of us, or another one.
    ClientCertificateRefused,
    /// We speak TLS, the broker does not.
    TlsNotExpected,
    /// The broker hung up on our first request in the clear: it probably speaks TLS.
    TlsExpected,
    /// The broker hung up on our first request: it probably wants us to authenticate.
    AuthenticationExpected,
    /// We are known, and may not do this.
    NotAuthorized(Resource),
}

/// What an ACL is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
    /// A transactional id.
    TransactionalId,
    /// The cluster as a whole.
    Cluster,
}

impl Resource {
    /// As Kafka's tools write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Topic => "Topic",
            Self::Group => "Group",
            Self::TransactionalId => "TransactionalId",
            Self::Cluster => "Cluster",
        }
    }
}

impl Failure {
    /// One word in PascalCase, stable: for conditions and labels of metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotResolved => "NotResolved",
            Self::Refused => "Refused",
            Self::AuthenticationFailed => "AuthenticationFailed",
            Self::MechanismNotOffered => "MechanismNotOffered",
            Self::CertificateNotTrusted => "CertificateNotTrusted",
            Self::ClientCertificateRefused => "ClientCertificateRefused",
            Self::TlsNotExpected => "TlsNotExpected",
            Self::TlsExpected => "TlsExpected",
            Self::AuthenticationExpected => "AuthenticationExpected",
            Self::NotAuthorized(_) => "NotAuthorized",
        }
    }

    /// Whether only a person can take it away. Who is not there may come back by itself.
    pub fn needs_a_person(self) -> bool {
        !matches!(self, Self::NotResolved | Self::Refused)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotResolved => "the name of a broker cannot be resolved",
            Self::Refused => "nobody listens at the address of a broker",
            Self::AuthenticationFailed => "Kafka does not believe who we are",
            Self::MechanismNotOffered => "the listener does not offer this way to authenticate",
            Self::CertificateNotTrusted => {
                "the broker's certificate is not from a trusted authority, has expired, or is for another name"
            }
            Self::ClientCertificateRefused => "the broker wants a client certificate, or another one",
            Self::TlsNotExpected => "the connection is to be encrypted, and the listener does not speak TLS",
            Self::TlsExpected => {
                "the listener hangs up on a connection that is not encrypted; it probably speaks TLS"
            }
            Self::AuthenticationExpected => {
                "the listener hangs up on the first request; it probably wants authentication"
            }
            Self::NotAuthorized(Resource::Topic) => "an ACL on the topic is missing",
            Self::NotAuthorized(Resource::Group) => "an ACL on the consumer group is missing",
            Self::NotAuthorized(Resource::TransactionalId) => "an ACL on the transactional id is missing",
            Self::NotAuthorized(Resource::Cluster) => "an ACL on the cluster is missing",
        })
    }
}

/// What a code with its text (of an error, or of a log line of facility `FAIL`) says; `None`: nothing of these.
pub fn of(code: RDKafkaErrorCode, text: &str) -> Option<Failure> {
    use RDKafkaErrorCode as E;
    match code {
        E::TopicAuthorizationFailed => return Some(Failure::NotAuthorized(Resource::Topic)),
        E::GroupAuthorizationFailed => return Some(Failure::NotAuthorized(Resource::Group)),
        E::ClusterAuthorizationFailed => return Some(Failure::NotAuthorized(Resource::Cluster)),
        E::TransactionalIdAuthorizationFailed => {
            return Some(Failure::NotAuthorized(Resource::TransactionalId));
        }
        E::SaslAuthenticationFailed => return Some(Failure::AuthenticationFailed),
        E::Resolve => return Some(Failure::NotResolved),
        _ => {}
    }
    let has = |part: &str| text.contains(part);
    if has("certificate verify failed") || has("Failed to verify broker certificate") {
        return Some(Failure::CertificateNotTrusted);
    }
    // The alerts by which a server refuses the certificate that it was shown, or that none was.
    let alerts = [
        "alert bad certificate",
        "alert certificate required",
        "alert certificate expired",
        "alert certificate unknown",
        "alert certificate revoked",
        "alert unsupported certificate",
        "alert unknown ca",
        "alert access denied",
    ];
    if alerts.iter().any(|alert| has(alert)) {
        return Some(Failure::ClientCertificateRefused);
    }
    if has("connecting to a PLAINTEXT broker listener?") || has("wrong version number") {
        return Some(Failure::TlsNotExpected);
    }
    if has("mechanism handshake failed") {
        return Some(Failure::MechanismNotOffered);
    }
    if code == E::Authentication || has("SASL authentication error") {
        return Some(Failure::AuthenticationFailed);
    }
    if has("Failed to resolve") {
        return Some(Failure::NotResolved);
    }
    if has("Connection refused") {
        return Some(Failure::Refused);
    }
    if has("Disconnected") {
        let (tls, sasl) = (has("ssl://"), has("sasl_"));
        if has("in state APIVERSION_QUERY") && !tls {
            return Some(Failure::TlsExpected);
        }
        // A listener with SASL hangs up on the first request after the versions.
        if has("in state UP") && !sasl && milliseconds(text).is_some_and(|time| time < 500) {
            return Some(Failure::AuthenticationExpected);
        }
    }
    None
}

/// The time of `… (after 17ms in state UP)`.
fn milliseconds(text: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once("(after ")?;
    rest.split_once("ms in state")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use RDKafkaErrorCode as E;

    #[test]
    fn what_librdkafka_says_is_named() {
        let seen = [
            (
                E::Authentication,
                "sasl_ssl://k:1/bootstrap: SASL authentication error: Authentication failed during authentication due to \
                 invalid credentials with SASL mechanism SCRAM-SHA-512 (after 342ms in state AUTH_REQ)",
                Failure::AuthenticationFailed,
            ),
            (
                E::Authentication,
                "Failed to acquire SASL OAUTHBEARER token: cannot use /t",
                Failure::AuthenticationFailed,
            ),
            (
                E::SSL,
                "sasl_ssl://k:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: \
                 broker certificate could not be verified, verify that ssl.ca.location is correctly configured or root CA \
                 certificates are installed (install ca-certificates package) (after 41ms in state SSL_HANDSHAKE)",
                Failure::CertificateNotTrusted,
            ),
            (
                E::BrokerTransportFailure,
                "localhost:1/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 17ms in \
                 state APIVERSION_QUERY)",
                Failure::TlsExpected,
            ),
            (
                E::BrokerTransportFailure,
                "sasl_plaintext://k:1/bootstrap: Disconnected: connection closed by peer: receive 0 after POLLIN (after 0ms \
                 in state APIVERSION_QUERY)",
                Failure::TlsExpected,
            ),
            (
                E::BrokerTransportFailure,
                "ssl://k:1/bootstrap: SSL handshake failed: Disconnected: SSL connection closed by peer: connecting to a \
                 PLAINTEXT broker listener? (after 14ms in state SSL_HANDSHAKE)",
                Failure::TlsNotExpected,
            ),
            (
                E::BrokerTransportFailure,
                "ssl://k:1/bootstrap: Disconnected: SSL connection closed by peer (after 0ms in state UP)",
                Failure::AuthenticationExpected,
            ),
            (
                E::BrokerTransportFailure,
                "ssl://k:1/bootstrap: Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate: SSL alert \
                 number 42 (after 1ms in state APIVERSION_QUERY)",
                Failure::ClientCertificateRefused,
            ),
            (
                E::Authentication,
                "sasl_plaintext://k:1/bootstrap: SASL SCRAM-SHA-512 mechanism handshake failed: Broker: Request not valid in \
                 current SASL state: broker's supported mechanisms:  (after 2ms in state AUTH_HANDSHAKE)",
                Failure::MechanismNotOffered,
            ),
            (
                E::BrokerTransportFailure,
                "k:1/bootstrap: Connect to ipv4#127.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)",
                Failure::Refused,
            ),
            (
                E::Resolve,
                "k:1/bootstrap: Failed to resolve 'k:1': Name or service not known",
                Failure::NotResolved,
            ),
            (E::TopicAuthorizationFailed, "", Failure::NotAuthorized(Resource::Topic)),
            (E::GroupAuthorizationFailed, "", Failure::NotAuthorized(Resource::Group)),
            (E::TransactionalIdAuthorizationFailed, "", Failure::NotAuthorized(Resource::TransactionalId)),
            (E::ClusterAuthorizationFailed, "", Failure::NotAuthorized(Resource::Cluster)),
        ];
        for (code, text, failure) in seen {
            assert_eq!(of(code, text), Some(failure), "{text}");
        }
    }

    #[test]
    fn what_passes_by_itself_is_not_named() {
        for (code, text) in [
            (E::AllBrokersDown, "1/1 brokers are down"),
            (E::OperationTimedOut, "Local: Timed out"),
            // A broker that closes an idle connection, or stops.
            (
                E::BrokerTransportFailure,
                "k:1/1: Disconnected: connection closed by peer (after 600012ms in state UP)",
            ),
            (
                E::BrokerTransportFailure,
                "sasl_ssl://k:1/1: Disconnected: SSL connection closed by peer (after 3ms in state UP)",
            ),
            (
                E::BrokerTransportFailure,
                "ssl://k:1/1: Disconnected: SSL connection closed by peer (after 3ms in state APIVERSION_QUERY)",
            ),
        ] {
            assert_eq!(of(code, text), None, "{text}");
        }
    }
}
