//! Who the operator is to Kafka and whom it trusts, and what a failure means in those terms.

use penstock_pipeline::kafka::{
    admin::AdminError,
    failure::{self as client, Resource},
    security::{Auth, Security, Tls},
};

use crate::{
    credentials::{KafkaIdentity, Trust},
    failure::{Cause, Failure},
};

/// How a cluster is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Access {
    /// `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// Whom to trust; `None` without TLS.
    pub trust: Option<Trust>,
    /// Who to be, and the field of the spec that says so; `None` for nobody in particular.
    pub identity: Option<(KafkaIdentity, String)>,
}

impl Access {
    /// Without encryption, as nobody in particular.
    pub fn plaintext(bootstrap_servers: impl Into<String>) -> Self {
        Self { bootstrap_servers: bootstrap_servers.into(), trust: None, identity: None }
    }

    /// What the Kafka client is told.
    ///
    /// # Errors
    /// The credentials are none that it takes; validation has told of it before.
    pub(super) fn security(&self) -> Result<Security, String> {
        let tls = self.trust.as_ref().map(|trust| match trust {
            Trust::Public => Tls::PublicAuthorities,
            Trust::Authorities { pem, .. } => Tls::Authorities { pem: pem.clone() },
        });
        let bytes = |value: &crate::credentials::Value| value.content.expose().as_bytes().to_vec();
        let auth = match self.identity.as_ref().map(|(identity, _)| identity) {
            None => None,
            Some(KafkaIdentity::ScramSha512 { username, password }) => {
                Some(Auth::scram_sha_512(&bytes(username), &bytes(password))?)
            }
            Some(KafkaIdentity::Mtls { certificate, private_key }) => {
                Some(Auth::mtls(&bytes(certificate), &bytes(private_key))?)
            }
            Some(KafkaIdentity::Token(token)) => Some(Auth::oauth_bearer(&bytes(token))?),
            Some(KafkaIdentity::ServiceAccountToken { .. }) => {
                return Err("the operator has no token of the components' ServiceAccounts".to_owned());
            }
        };
        Ok(Security { tls, auth })
    }

    /// What an error of a request means. `operation` is the one that an ACL has to allow for it, `seen` what the client
    /// last complained about.
    pub(super) fn failure(
        &self,
        error: &AdminError,
        operation: &str,
        seen: Option<client::Failure>,
    ) -> Failure {
        if let Some(client::Failure::NotAuthorized(resource)) = client::of(error.code(), "") {
            return Failure::new(
                Cause::NotAuthorized,
                format!(
                    "{error}: {} lacks the ACL {operation} on that {}",
                    self.who(),
                    match resource {
                        Resource::Topic => "topic",
                        Resource::Group => "group",
                        Resource::TransactionalId => "transactional id",
                        Resource::Cluster => "cluster",
                    }
                ),
            );
        }
        match seen.filter(|_| error.is_unreachable()) {
            Some(seen) => self.in_the_way(seen),
            None => self.at(Cause::Unreachable, &error.to_string()),
        }
    }

    /// The messages of a topic may not be looked at.
    pub(super) fn may_not_read(&self, topic: &str) -> Failure {
        Failure::new(
            Cause::NotAuthorized,
            format!(
                "cannot tell how old the messages that wait in topic {topic:?} are: {} lacks the ACL Read on that topic",
                self.who()
            ),
        )
    }

    fn at(&self, cause: Cause, why: &str) -> Failure {
        Failure::new(cause, format!("Kafka at {}: {why}", self.bootstrap_servers))
    }

    /// Who we are, for people.
    fn who(&self) -> String {
        match &self.identity {
            None => "the principal ANONYMOUS, since spec.kafka.auth is absent,".to_owned(),
            Some((identity, field)) => {
                format!("who comes with the {} of {} ({field})", identity.proof(), identity.origin())
            }
        }
    }

    /// What stands between us and the brokers.
    pub(super) fn in_the_way(&self, seen: client::Failure) -> Failure {
        let proof = self.identity.as_ref().map_or("without a credential", |(identity, _)| identity.proof());
        let origin = self
            .identity
            .as_ref()
            .map_or_else(String::new, |(identity, field)| format!(" of {} ({field})", identity.origin()));
        match seen {
            client::Failure::NotResolved => self.at(
                Cause::HostNotResolved,
                "the host name of a broker cannot be resolved; correct spec.kafka.bootstrapServers or the brokers' \
                 advertised.listeners, or see to the DNS",
            ),
            client::Failure::Refused => self.at(
                Cause::Unreachable,
                "nobody listens at the address of a broker; start it, or correct spec.kafka.bootstrapServers",
            ),
            client::Failure::AuthenticationFailed => self.at(
                Cause::AuthenticationFailed,
                &format!(
                    "authentication failed with the {proof}{origin}; correct them there, or make them known to Kafka"
                ),
            ),
            client::Failure::MechanismNotOffered => self.at(
                Cause::AuthenticationFailed,
                &format!(
                    "the listener does not offer to authenticate by {proof}{origin}; write the port of one that does, or \
                     another kind of auth"
                ),
            ),
            client::Failure::CertificateNotTrusted => self.at(
                Cause::CertificateNotTrusted,
                &match &self.trust {
                    Some(Trust::Authorities { from, field, .. }) => format!(
                        "its certificate is not trusted: not signed by an authority of {from} ({field}), or expired, or for \
                         another host name than in bootstrapServers; put the certificate of its authority there, or renew it"
                    ),
                    _ => "its certificate is not trusted: not signed by a public authority, or expired, or for another host \
                          name than in bootstrapServers; name its authority in spec.kafka.tls.caFrom, or renew it"
                        .to_owned(),
                },
            ),
            client::Failure::ClientCertificateRefused => self.at(
                Cause::ClientCertificateRefused,
                &match &self.identity {
                    Some((identity @ KafkaIdentity::Mtls { .. }, field)) => format!(
                        "it refuses the client certificate of {} ({field}); have one issued by an authority that Kafka \
                         trusts, or renew it",
                        identity.origin()
                    ),
                    _ => "it wants a client certificate; write spec.kafka.auth with mtls, or the port of another listener"
                        .to_owned(),
                },
            ),
            client::Failure::TlsNotExpected => self.at(
                Cause::TlsNotExpected,
                "the listener does not speak TLS; write the port of one that does, or remove spec.kafka.tls",
            ),
            client::Failure::TlsExpected => self.at(
                Cause::TlsExpected,
                "the listener hangs up on a connection without TLS; write spec.kafka.tls, or the port of a listener without \
                 TLS",
            ),
            client::Failure::AuthenticationExpected => self.at(
                Cause::AuthenticationExpected,
                "the listener hangs up on who does not authenticate by SASL; write spec.kafka.auth with scramSha512 or \
                 oauthBearer, or the port of another listener",
            ),
            client::Failure::NotAuthorized(resource) => self.at(
                Cause::NotAuthorized,
                &format!("{} lacks an ACL on a resource of the kind {}", self.who(), resource.name()),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::kafka::failure::Failure as Seen;

    use super::*;
    use crate::credentials::{Hidden, KeyRef, ObjectKind, Value};

    fn access() -> Access {
        let value = |key: &str, content: &str| Value {
            from: KeyRef { kind: ObjectKind::Secret, name: "web-admin".into(), key: key.into() },
            content: Hidden::new(content.into()),
        };
        let identity = KafkaIdentity::ScramSha512 {
            username: value("username", "penny"),
            password: value("password", "hunter2"),
        };
        Access {
            bootstrap_servers: "kafka:9095".into(),
            trust: Some(Trust::Authorities {
                from: KeyRef { kind: ObjectKind::Secret, name: "kafka-ca".into(), key: "ca.crt".into() },
                field: "spec.kafka.tls.caFrom".into(),
                pem: String::new(),
            }),
            identity: Some((identity, "spec.kafka.auth.admin.scramSha512".into())),
        }
    }

    #[test]
    fn what_is_in_the_way_is_told_by_object_key_and_field() {
        for (seen, cause, says) in [
            (
                Seen::NotResolved,
                Cause::HostNotResolved,
                "cannot be resolved; correct spec.kafka.bootstrapServers",
            ),
            (Seen::Refused, Cause::Unreachable, "nobody listens"),
            (
                Seen::AuthenticationFailed,
                Cause::AuthenticationFailed,
                "with the user and password of keys \"username\" and \"password\" of Secret \"web-admin\" \
                 (spec.kafka.auth.admin.scramSha512)",
            ),
            (
                Seen::MechanismNotOffered,
                Cause::AuthenticationFailed,
                "does not offer to authenticate by user and password",
            ),
            (
                Seen::CertificateNotTrusted,
                Cause::CertificateNotTrusted,
                "an authority of key \"ca.crt\" of Secret \"kafka-ca\" (spec.kafka.tls.caFrom)",
            ),
            (
                Seen::ClientCertificateRefused,
                Cause::ClientCertificateRefused,
                "write spec.kafka.auth with mtls",
            ),
            (Seen::TlsNotExpected, Cause::TlsNotExpected, "or remove spec.kafka.tls"),
            (Seen::TlsExpected, Cause::TlsExpected, "write spec.kafka.tls"),
            (Seen::AuthenticationExpected, Cause::AuthenticationExpected, "write spec.kafka.auth"),
        ] {
            let failure = access().in_the_way(seen);
            assert_eq!(failure.cause, cause, "{failure}");
            assert!(
                failure.why.starts_with("Kafka at kafka:9095: ") && failure.why.contains(says),
                "{failure}"
            );
            assert!(!failure.why.contains("hunter2") && !failure.why.contains("penny"), "{failure}");
        }
    }

    #[test]
    fn nobody_in_particular_is_told_what_to_write() {
        let nobody = Access::plaintext("kafka:9092");
        assert_eq!(
            nobody.in_the_way(Seen::NotAuthorized(Resource::Topic)).why,
            "Kafka at kafka:9092: the principal ANONYMOUS, since spec.kafka.auth is absent, lacks an ACL on a resource of the \
             kind Topic"
        );
        assert_eq!(nobody.security(), Ok(Security::default()));
    }

    #[test]
    fn the_client_is_told_what_the_secrets_hold() {
        let security = access().security().unwrap();
        assert_eq!(security.protocol(), "SASL_SSL");
        assert!(!format!("{security:?}").contains("hunter2"));
    }
}
