//! Spec and references → credentials, or what is wrong with them. No value of a Secret is in a problem.

use penstock_crds::v1alpha1::{
    CaSource, ClickHouseSpec, ClickHouseUser as ClickHouseUserSpec, ClientCertificate, DEFAULT_CA_KEY,
    DEFAULT_CERTIFICATE_KEY, DEFAULT_PASSWORD_KEY, DEFAULT_PRIVATE_KEY_KEY, DEFAULT_TOKEN_KEY,
    DEFAULT_USERNAME_KEY, KafkaIdentity as KafkaIdentitySpec, KafkaSpec, OauthBearer, TlsSpec,
};
use penstock_pipeline::kafka::security::Auth;
use rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use super::{ClickHouseUser, Hidden, KafkaIdentity, KeyRef, ObjectKind, Trust, Value};
use crate::{
    observe::references::References,
    validate::{Problem, reference_text},
};

/// Where this is from, and what is known of it.
struct Source<'a> {
    namespace: &'a str,
    references: &'a References,
}

/// What a pipeline proves and trusts towards Kafka.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KafkaCredentials {
    /// Whom to trust; `None` without TLS.
    pub trust: Option<Trust>,
    /// Who the components are.
    pub data: Option<KafkaIdentity>,
    /// Who the operator is, and the field that says so.
    pub admin: Option<(KafkaIdentity, String)>,
}

/// The credentials of `spec.kafka`. What is wrong is added to `problems`, and is missing in the result.
pub fn kafka(
    spec: &KafkaSpec,
    namespace: &str,
    references: &References,
    problems: &mut Vec<Problem>,
) -> KafkaCredentials {
    let source = Source { namespace, references };
    let trust = spec.tls.as_ref().map(|tls| source.trust("spec.kafka.tls", tls, problems));
    let Some(auth) = &spec.auth else { return KafkaCredentials { trust, ..KafkaCredentials::default() } };
    let field = "spec.kafka.auth.data";
    let data = source.identity(field, &auth.data, problems);
    let admin = match &auth.admin {
        Some(admin) => {
            let field = "spec.kafka.auth.admin";
            source
                .identity(field, admin, problems)
                .map(|(identity, kind)| (identity, format!("{field}.{kind}")))
        }
        None => data.clone().map(|(identity, kind)| (identity, format!("{field}.{kind}"))),
    };
    for (identity, field) in data
        .iter()
        .map(|(identity, _)| (identity, field))
        .chain(admin.iter().map(|(identity, field)| (identity, field.as_str())))
    {
        if trust.is_none() && !matches!(identity, KafkaIdentity::ScramSha512 { .. }) {
            problems.push(Problem::Field {
                field: field.to_owned(),
                message: "needs an encrypted connection; write spec.kafka.tls as well".into(),
            });
        }
    }
    if let Some((KafkaIdentity::ServiceAccountToken { .. }, field)) = &admin {
        problems.push(Problem::Field {
            field: field.clone(),
            message:
                "the operator has no token of the components' ServiceAccounts; write admin with scramSha512, \
                      mtls, or oauthBearer with a secret"
                    .into(),
        });
    }
    KafkaCredentials { trust, data: data.map(|(identity, _)| identity), admin }
}

/// What an export to ClickHouse proves and trusts: whom it trusts, who the export is, and who the operator is.
pub fn clickhouse(
    field: &str,
    spec: &ClickHouseSpec,
    namespace: &str,
    references: &References,
    problems: &mut Vec<Problem>,
) -> (Trust, Option<ClickHouseUser>, Option<ClickHouseUser>) {
    let source = Source { namespace, references };
    let trust = match &spec.tls {
        Some(tls) => source.trust(&format!("{field}.tls"), tls, problems),
        None => Trust::Public,
    };
    let Some(auth) = &spec.auth else { return (trust, None, None) };
    let data = source.user(format!("{field}.auth.data"), &auth.data, problems);
    let ddl = match &auth.ddl {
        Some(ddl) => source.user(format!("{field}.auth.ddl"), ddl, problems),
        None => data.clone(),
    };
    (trust, data, ddl)
}

impl Source<'_> {
    fn trust(&self, field: &str, tls: &TlsSpec, problems: &mut Vec<Problem>) -> Trust {
        let Some(ca) = &tls.ca_from else { return Trust::Public };
        let field = format!("{field}.caFrom");
        let Some(from) = authority(ca) else {
            problems
                .push(Problem::Field { field, message: "write exactly one of secret and configMap".into() });
            return Trust::Public;
        };
        match self.value(&field, from) {
            Ok(Value { from, content }) => {
                let pem = content.expose();
                match certificates(pem) {
                    Ok(_) => Trust::Authorities { pem: pem.to_owned(), from, field },
                    Err(message) => {
                        problems.push(unusable(&field, &from, message));
                        Trust::Public
                    }
                }
            }
            Err(problem) => {
                problems.push(problem);
                Trust::Public
            }
        }
    }

    /// The identity, and the name of the field that says which kind it is.
    fn identity(
        &self,
        field: &str,
        spec: &KafkaIdentitySpec,
        problems: &mut Vec<Problem>,
    ) -> Option<(KafkaIdentity, &'static str)> {
        match spec {
            KafkaIdentitySpec { scram_sha512: Some(scram), mtls: None, oauth_bearer: None } => {
                let field = format!("{field}.scramSha512");
                let username = secret_key(&scram.secret, scram.username_key.as_deref(), DEFAULT_USERNAME_KEY);
                let password = secret_key(&scram.secret, scram.password_key.as_deref(), DEFAULT_PASSWORD_KEY);
                let (username, password) = self.lines(&field, username, password, problems)?;
                Some((KafkaIdentity::ScramSha512 { username, password }, "scramSha512"))
            }
            KafkaIdentitySpec { scram_sha512: None, mtls: Some(mtls), oauth_bearer: None } => {
                let field = format!("{field}.mtls");
                Some((self.certificate(&field, mtls, problems)?, "mtls"))
            }
            KafkaIdentitySpec { scram_sha512: None, mtls: None, oauth_bearer: Some(bearer) } => {
                let field = format!("{field}.oauthBearer");
                Some((self.bearer(&field, bearer, problems)?, "oauthBearer"))
            }
            _ => {
                problems.push(Problem::Field {
                    field: field.to_owned(),
                    message: "write exactly one of scramSha512, mtls and oauthBearer".into(),
                });
                None
            }
        }
    }

    fn certificate(
        &self,
        field: &str,
        spec: &ClientCertificate,
        problems: &mut Vec<Problem>,
    ) -> Option<KafkaIdentity> {
        let certificate = secret_key(&spec.secret, spec.certificate_key.as_deref(), DEFAULT_CERTIFICATE_KEY);
        let key = secret_key(&spec.secret, spec.private_key_key.as_deref(), DEFAULT_PRIVATE_KEY_KEY);
        let (certificate, private_key) =
            both(self.value(field, certificate), self.value(field, key), problems)?;
        if let Err((from, message)) = check_pair(&certificate, &private_key) {
            problems.push(unusable(field, from, message));
            return None;
        }
        Some(KafkaIdentity::Mtls { certificate, private_key })
    }

    fn bearer(&self, field: &str, spec: &OauthBearer, problems: &mut Vec<Problem>) -> Option<KafkaIdentity> {
        match (&spec.service_account_token, &spec.secret) {
            (Some(token), None) => Some(KafkaIdentity::ServiceAccountToken {
                audience: token.audience.clone(),
                expiration_seconds: token.expiration_seconds.unwrap_or(3_600),
            }),
            (None, Some(secret)) => {
                let from = secret_key(secret, spec.key.as_deref(), DEFAULT_TOKEN_KEY);
                let token = self.line(field, from).and_then(|token| {
                    match Auth::oauth_bearer(token.content.expose().as_bytes()) {
                        Ok(_) => Ok(token),
                        Err(message) => Err(unusable(field, &token.from, message)),
                    }
                });
                match token {
                    Ok(token) => Some(KafkaIdentity::Token(token)),
                    Err(problem) => {
                        problems.push(problem);
                        None
                    }
                }
            }
            _ => {
                problems.push(Problem::Field {
                    field: field.to_owned(),
                    message: "write exactly one of serviceAccountToken and secret".into(),
                });
                None
            }
        }
    }

    fn user(
        &self,
        field: String,
        spec: &ClickHouseUserSpec,
        problems: &mut Vec<Problem>,
    ) -> Option<ClickHouseUser> {
        let username = secret_key(&spec.secret, spec.username_key.as_deref(), DEFAULT_USERNAME_KEY);
        let password = secret_key(&spec.secret, spec.password_key.as_deref(), DEFAULT_PASSWORD_KEY);
        let (username, password) = self.lines(&field, username, password, problems)?;
        Some(ClickHouseUser { username, password, field })
    }

    /// User name and password.
    fn lines(
        &self,
        field: &str,
        first: KeyRef,
        second: KeyRef,
        problems: &mut Vec<Problem>,
    ) -> Option<(Value, Value)> {
        both(self.line(field, first), self.line(field, second), problems)
    }

    fn value(&self, field: &str, from: KeyRef) -> Result<Value, Problem> {
        let text = reference_text(field, &from, self.namespace, self.references)?;
        let text = text.trim_end_matches(['\n', '\r']).to_owned();
        Ok(Value { from, content: Hidden::new(text) })
    }

    /// A value of one line, as the binaries take it.
    fn line(&self, field: &str, from: KeyRef) -> Result<Value, Problem> {
        let value = self.value(field, from)?;
        if value.content.expose().contains(['\n', '\r', '\0']) {
            return Err(unusable(field, &value.from, "has more than one line".into()));
        }
        Ok(value)
    }
}

/// Both values of a Secret. A Secret that is not there is told once.
fn both(
    first: Result<Value, Problem>,
    second: Result<Value, Problem>,
    problems: &mut Vec<Problem>,
) -> Option<(Value, Value)> {
    match (first, second) {
        (Ok(first), Ok(second)) => Some((first, second)),
        (first, second) => {
            let both = [first.err(), second.err()].into_iter().flatten();
            for problem in both {
                let told = matches!(problem, Problem::ReferenceMissing { .. })
                    && problems.iter().any(|known| same_object(known, &problem));
                if !told {
                    problems.push(problem);
                }
            }
            None
        }
    }
}

fn same_object(a: &Problem, b: &Problem) -> bool {
    match (a, b) {
        (
            Problem::ReferenceMissing { field: a, name: x, .. },
            Problem::ReferenceMissing { field: b, name: y, .. },
        ) => a == b && x == y,
        _ => false,
    }
}

fn secret_key(secret: &str, key: Option<&str>, default: &str) -> KeyRef {
    KeyRef { kind: ObjectKind::Secret, name: secret.to_owned(), key: key.unwrap_or(default).to_owned() }
}

fn authority(ca: &CaSource) -> Option<KeyRef> {
    let (kind, name) = match (&ca.secret, &ca.config_map) {
        (Some(secret), None) => (ObjectKind::Secret, secret),
        (None, Some(config_map)) => (ObjectKind::ConfigMap, config_map),
        _ => return None,
    };
    let key = ca.key.as_deref().unwrap_or(DEFAULT_CA_KEY);
    Some(KeyRef { kind, name: name.clone(), key: key.to_owned() })
}

fn unusable(field: &str, from: &KeyRef, message: String) -> Problem {
    Problem::ReferenceValue {
        field: field.to_owned(),
        kind: from.kind.name(),
        name: from.name.clone(),
        key: from.key.clone(),
        message,
    }
}

/// The certificates of a PEM file: at least one.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match found {
        Ok(found) if !found.is_empty() => {
            let mut roots = RootCertStore::empty();
            match found.iter().try_for_each(|certificate| roots.add(certificate.clone())) {
                Ok(()) => Ok(found),
                Err(_) => {
                    Err("is not a certificate that can be read; write it again as it was issued".into())
                }
            }
        }
        Ok(_) => Err("holds no certificate; write PEM, which begins with -----BEGIN CERTIFICATE-----".into()),
        Err(_) => Err("is not PEM that can be read; write it again as it was issued".into()),
    }
}

/// Whether the key belongs to the certificate; what is wrong, with the value that it is about.
fn check_pair<'a>(certificate: &'a Value, key: &'a Value) -> Result<(), (&'a KeyRef, String)> {
    let chain = certificates(certificate.content.expose()).map_err(|message| (&certificate.from, message))?;
    let pem = key.content.expose();
    if pem.contains("BEGIN ENCRYPTED PRIVATE KEY") || pem.contains("Proc-Type: 4,ENCRYPTED") {
        return Err((&key.from, "is encrypted with a passphrase; store it without one".into()));
    }
    let private_key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
        (
            &key.from,
            "holds no private key; write PEM, which begins with -----BEGIN PRIVATE KEY-----".to_owned(),
        )
    })?;
    match CertifiedKey::from_der(chain, private_key, &ring::default_provider()) {
        Ok(_) => Ok(()),
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err((&key.from, format!("does not belong to the certificate of {}", certificate.from)))
        }
        // A kind of key that this process cannot use, and the Kafka client may: it has the last word.
        Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests;
