//! Certificates, users, passwords and tokens that a spec names: where they are, and what is in them.
//!
//! What is secret is held in memory only, and no type here shows it: messages name the Secret and the key.

#[cfg(test)]
pub(crate) mod certificates;
mod resolve;

use std::fmt;

pub use resolve::{KafkaCredentials, clickhouse, kafka};

/// Kinds of objects that a spec takes values from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A Secret.
    Secret,
    /// A ConfigMap.
    ConfigMap,
}

impl ObjectKind {
    /// As Kubernetes writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }
}

/// A key of an object in the pipeline's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyRef {
    /// Kind of the object.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// The key.
    pub key: String,
}

impl fmt::Display for KeyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {:?} of {} {:?}", self.key, self.kind.name(), self.name)
    }
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hidden(String);

impl Hidden {
    /// Hides a text.
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the one who sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// A value, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    /// Where it is.
    pub from: KeyRef,
    /// What is there, without the line break that an editor leaves at the end.
    pub content: Hidden,
}

/// Whom to trust in a TLS connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trust {
    /// The public authorities.
    #[default]
    Public,
    /// Those of the spec.
    Authorities {
        /// Where their certificates are.
        from: KeyRef,
        /// The field that says so.
        field: String,
        /// Their certificates, in PEM. Nothing of them is secret.
        pem: String,
    },
}

impl Trust {
    /// Certificates in PEM; `None` for the public authorities.
    pub fn pem(&self) -> Option<&str> {
        match self {
            Self::Public => None,
            Self::Authorities { pem, .. } => Some(pem),
        }
    }
}

/// Who somebody is in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KafkaIdentity {
    /// By user and password, SASL SCRAM-SHA-512.
    ScramSha512 {
        /// The user.
        username: Value,
        /// The password.
        password: Value,
    },
    /// By a client certificate.
    Mtls {
        /// The certificate and its intermediates, in PEM. Not secret.
        certificate: Value,
        /// Its private key, in PEM.
        private_key: Value,
    },
    /// By a token, SASL OAUTHBEARER.
    Token(Value),
    /// By the token of the pod's own ServiceAccount, SASL OAUTHBEARER.
    ServiceAccountToken {
        /// For whom the token is.
        audience: String,
        /// How long it lasts.
        expiration_seconds: i64,
    },
}

impl KafkaIdentity {
    /// Where the credential is, for people.
    pub fn origin(&self) -> String {
        match self {
            Self::ScramSha512 { username, password } => two_keys(&username.from, &password.from),
            Self::Mtls { certificate, private_key } => two_keys(&certificate.from, &private_key.from),
            Self::Token(token) => token.from.to_string(),
            Self::ServiceAccountToken { audience, .. } => {
                format!("the token of the pod's ServiceAccount for the audience {audience:?}")
            }
        }
    }

    /// What is offered as a proof, for people.
    pub fn proof(&self) -> &'static str {
        match self {
            Self::ScramSha512 { .. } => "user and password",
            Self::Mtls { .. } => "client certificate",
            Self::Token(_) | Self::ServiceAccountToken { .. } => "bearer token",
        }
    }
}

/// A user of ClickHouse.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClickHouseUser {
    /// The name.
    pub username: Value,
    /// The password.
    pub password: Value,
    /// The field that names both.
    pub field: String,
}

impl ClickHouseUser {
    /// Where the credential is, for people.
    pub fn origin(&self) -> String {
        two_keys(&self.username.from, &self.password.from)
    }
}

/// Two keys of one Secret.
fn two_keys(first: &KeyRef, second: &KeyRef) -> String {
    format!("keys {:?} and {:?} of {} {:?}", first.key, second.key, first.kind.name(), first.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shows_what_is_hidden() {
        let value = |key: &str| Value {
            from: KeyRef { kind: ObjectKind::Secret, name: "web-kafka".into(), key: key.into() },
            content: Hidden::new("hunter2".into()),
        };
        let identity =
            KafkaIdentity::ScramSha512 { username: value("username"), password: value("password") };
        let user = ClickHouseUser {
            username: value("username"),
            password: value("password"),
            field: "spec.exports[w].clickhouse.auth.data".into(),
        };
        for text in [
            format!("{identity:?} {identity:#?}"),
            format!("{user:?}"),
            identity.origin(),
            format!("{:?}", KafkaIdentity::Token(value("token"))),
        ] {
            assert!(!text.contains("hunter2"), "{text}");
        }
        assert_eq!(identity.origin(), "keys \"username\" and \"password\" of Secret \"web-kafka\"");
    }
}
