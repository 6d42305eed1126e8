//! Certificates and credentials as the pods of a component see them: which file holds what, which volume brings it, and
//! what of it makes the pods roll.
//!
//! Users, passwords and tokens are read again by the binaries when their files change. Certificates are read at the start,
//! so a hash of them is an annotation of the pods. They are public; nothing that is secret is in it.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{
    ConfigMapVolumeSource, KeyToPath, ProjectedVolumeSource, SecretVolumeSource,
    ServiceAccountTokenProjection, Volume, VolumeProjection,
};
use penstock_pipeline::config::{
    CertificateFiles, KafkaAuth, KafkaConnection, PasswordFiles, TlsConfig, TokenFile,
};
use sha2::{Digest, Sha256};

use crate::{
    credentials::{ClickHouseUser, KafkaIdentity, KeyRef, ObjectKind, Trust},
    validate::{Component, Destination, ValidatedPipeline},
};

/// Annotation of pods with a hash of the certificates that they were started with.
pub const ANNOTATION: &str = "penstock.dev/credentials";

const KAFKA_CA: Place = Place { volume: "kafka-ca", directory: "/etc/penstock-kafka/ca" };
const KAFKA_AUTH: Place = Place { volume: "kafka-auth", directory: "/etc/penstock-kafka/auth" };
const CLICKHOUSE_CA: Place = Place { volume: "clickhouse-ca", directory: "/etc/penstock-clickhouse/ca" };
const CLICKHOUSE_AUTH: Place =
    Place { volume: "clickhouse-auth", directory: "/etc/penstock-clickhouse/auth" };

const CA: &str = "ca.crt";
const USERNAME: &str = "username";
const PASSWORD: &str = "password";
const CERTIFICATE: &str = "tls.crt";
const PRIVATE_KEY: &str = "tls.key";
const TOKEN: &str = "token";

/// A volume, and where it is mounted.
#[derive(Clone, Copy)]
struct Place {
    volume: &'static str,
    directory: &'static str,
}

impl Place {
    fn file(self, name: &str) -> PathBuf {
        PathBuf::from(self.directory).join(name)
    }
}

/// What a component's Kafka client is told.
pub(super) fn kafka_connection(pipeline: &ValidatedPipeline) -> KafkaConnection {
    let kafka = &pipeline.kafka;
    KafkaConnection {
        bootstrap_servers: kafka.bootstrap_servers.clone(),
        tls: kafka.trust.as_ref().map(|trust| TlsConfig { ca_file: ca_file(KAFKA_CA, trust) }),
        auth: kafka.identity.as_ref().map(|identity| match identity {
            KafkaIdentity::ScramSha512 { .. } => KafkaAuth::ScramSha512(password_files(KAFKA_AUTH)),
            KafkaIdentity::Mtls { .. } => KafkaAuth::Mtls(CertificateFiles {
                certificate_file: KAFKA_AUTH.file(CERTIFICATE),
                private_key_file: KAFKA_AUTH.file(PRIVATE_KEY),
            }),
            KafkaIdentity::Token(_) | KafkaIdentity::ServiceAccountToken { .. } => {
                KafkaAuth::OauthBearer(TokenFile { token_file: KAFKA_AUTH.file(TOKEN) })
            }
        }),
    }
}

/// What an export's ClickHouse client is told of TLS. Behind an https URL, nothing means the public authorities.
pub(super) fn clickhouse_tls(trust: &Trust) -> Option<TlsConfig> {
    ca_file(CLICKHOUSE_CA, trust).map(|file| TlsConfig { ca_file: Some(file) })
}

/// What an export's ClickHouse client is told of its user.
pub(super) fn clickhouse_auth(user: Option<&ClickHouseUser>) -> Option<PasswordFiles> {
    user.map(|_| password_files(CLICKHOUSE_AUTH))
}

fn ca_file(place: Place, trust: &Trust) -> Option<PathBuf> {
    match trust {
        Trust::Public => None,
        Trust::Authorities { .. } => Some(place.file(CA)),
    }
}

fn password_files(place: Place) -> PasswordFiles {
    PasswordFiles { username_file: place.file(USERNAME), password_file: place.file(PASSWORD) }
}

/// What a pod says of its files, with the keys of Secrets and ConfigMaps that they come from in their place.
pub fn in_terms_of_the_spec(pipeline: &ValidatedPipeline, component: &str, said: &str) -> String {
    let Some(component) = pipeline.components().into_iter().find(|one| one.to_string() == component) else {
        return said.to_owned();
    };
    let mut text = said.to_owned();
    for (file, from) in files(pipeline, &component) {
        text = text.replace(&file.display().to_string(), &from.to_string());
    }
    text
}

/// The files of a component, and where each is from.
fn files(pipeline: &ValidatedPipeline, component: &Component) -> Vec<(PathBuf, KeyRef)> {
    let kafka = &pipeline.kafka;
    let mut files: Vec<(Place, &str, &KeyRef)> = Vec::new();
    let authority = |trust: &'_ Trust| match trust {
        Trust::Public => None,
        Trust::Authorities { from, .. } => Some(from.clone()),
    };
    let kafka_authority = kafka.trust.as_ref().and_then(authority);
    files.extend(kafka_authority.as_ref().map(|from| (KAFKA_CA, CA, from)));
    match &kafka.identity {
        Some(KafkaIdentity::ScramSha512 { username, password }) => {
            files.push((KAFKA_AUTH, USERNAME, &username.from));
            files.push((KAFKA_AUTH, PASSWORD, &password.from));
        }
        Some(KafkaIdentity::Mtls { certificate, private_key }) => {
            files.push((KAFKA_AUTH, CERTIFICATE, &certificate.from));
            files.push((KAFKA_AUTH, PRIVATE_KEY, &private_key.from));
        }
        Some(KafkaIdentity::Token(token)) => files.push((KAFKA_AUTH, TOKEN, &token.from)),
        Some(KafkaIdentity::ServiceAccountToken { .. }) | None => {}
    }
    let clickhouse = clickhouse_of(pipeline, component);
    let clickhouse_authority = clickhouse.and_then(|(trust, _)| authority(trust));
    files.extend(clickhouse_authority.as_ref().map(|from| (CLICKHOUSE_CA, CA, from)));
    if let Some((_, Some(user))) = clickhouse {
        files.push((CLICKHOUSE_AUTH, USERNAME, &user.username.from));
        files.push((CLICKHOUSE_AUTH, PASSWORD, &user.password.from));
    }
    files.into_iter().map(|(place, file, from)| (place.file(file), from.clone())).collect()
}

/// The volumes of a component, each with the folder that it is mounted at.
pub(super) fn volumes(pipeline: &ValidatedPipeline, component: &Component) -> Vec<(Volume, &'static str)> {
    let kafka = &pipeline.kafka;
    let mut volumes = Vec::new();
    volumes.extend(kafka.trust.as_ref().and_then(|trust| ca_volume(KAFKA_CA, trust)));
    volumes.extend(kafka.identity.as_ref().map(|identity| match identity {
        KafkaIdentity::ScramSha512 { username, password } => {
            keys(KAFKA_AUTH, &[(&username.from, USERNAME), (&password.from, PASSWORD)])
        }
        KafkaIdentity::Mtls { certificate, private_key } => {
            keys(KAFKA_AUTH, &[(&certificate.from, CERTIFICATE), (&private_key.from, PRIVATE_KEY)])
        }
        KafkaIdentity::Token(token) => keys(KAFKA_AUTH, &[(&token.from, TOKEN)]),
        KafkaIdentity::ServiceAccountToken { audience, expiration_seconds } => {
            account_token(audience, *expiration_seconds)
        }
    }));
    if let Some((trust, user)) = clickhouse_of(pipeline, component) {
        volumes.extend(ca_volume(CLICKHOUSE_CA, trust));
        volumes.extend(user.map(|user| {
            keys(CLICKHOUSE_AUTH, &[(&user.username.from, USERNAME), (&user.password.from, PASSWORD)])
        }));
    }
    volumes
}

/// Hash of the certificates that a component reads at its start; `None` when it reads none.
pub(super) fn certificates(pipeline: &ValidatedPipeline, component: &Component) -> Option<String> {
    let kafka = &pipeline.kafka;
    let mut read: Vec<(&str, &str)> = Vec::new();
    read.extend(kafka.trust.as_ref().and_then(Trust::pem).map(|pem| (KAFKA_CA.volume, pem)));
    if let Some(KafkaIdentity::Mtls { certificate, .. }) = &kafka.identity {
        read.push((KAFKA_AUTH.volume, certificate.content.expose()));
    }
    if let Some((trust, _)) = clickhouse_of(pipeline, component) {
        read.extend(trust.pem().map(|pem| (CLICKHOUSE_CA.volume, pem)));
    }
    if read.is_empty() {
        return None;
    }
    let mut hash = Sha256::new();
    for (volume, pem) in read {
        hash.update(volume);
        hash.update([0]);
        hash.update(pem);
        hash.update([0]);
    }
    let mut text = hex::encode(hash.finalize());
    text.truncate(10);
    Some(text)
}

fn clickhouse_of<'a>(
    pipeline: &'a ValidatedPipeline,
    component: &Component,
) -> Option<(&'a Trust, Option<&'a ClickHouseUser>)> {
    let Component::Export(name) = component else { return None };
    match &pipeline.export(name)?.destination {
        Destination::ClickHouse { trust, user, .. } => Some((trust, user.as_ref())),
        Destination::Webhook(_) => None,
    }
}

fn ca_volume(place: Place, trust: &Trust) -> Option<(Volume, &'static str)> {
    match trust {
        Trust::Public => None,
        Trust::Authorities { from, .. } => Some(keys(place, &[(from, CA)])),
    }
}

/// Keys of one object as files.
fn keys(place: Place, keys: &[(&KeyRef, &str)]) -> (Volume, &'static str) {
    let items: Vec<KeyToPath> = keys
        .iter()
        .map(|(from, file)| KeyToPath {
            key: from.key.clone(),
            path: (*file).to_owned(),
            ..KeyToPath::default()
        })
        .collect();
    // All of them are of one object; there is at least one.
    let object = keys.first().map(|(from, _)| (*from).clone());
    let mut volume = Volume { name: place.volume.to_owned(), ..Volume::default() };
    match object {
        Some(KeyRef { kind: ObjectKind::Secret, name, .. }) => {
            volume.secret = Some(SecretVolumeSource {
                secret_name: Some(name),
                items: Some(items),
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            });
        }
        Some(KeyRef { kind: ObjectKind::ConfigMap, name, .. }) => {
            volume.config_map = Some(ConfigMapVolumeSource {
                name,
                items: Some(items),
                default_mode: Some(0o444),
                ..ConfigMapVolumeSource::default()
            });
        }
        None => {}
    }
    (volume, place.directory)
}

/// A token of the pod's ServiceAccount for one audience; the only one that a pod has.
fn account_token(audience: &str, expiration_seconds: i64) -> (Volume, &'static str) {
    let token = ServiceAccountTokenProjection {
        audience: Some(audience.to_owned()),
        expiration_seconds: Some(expiration_seconds),
        path: TOKEN.to_owned(),
        ..ServiceAccountTokenProjection::default()
    };
    let volume = Volume {
        name: KAFKA_AUTH.volume.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o440),
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(token),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    };
    (volume, KAFKA_AUTH.directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        build::tests::{secured, secured_references, secured_yaml},
        validate::validate,
    };

    #[test]
    fn what_a_pod_says_of_its_files_is_told_by_secret_and_key() {
        let said = |identity: &str, component: &str, text: &str| {
            let object = serde_yaml_ng::from_str(&secured_yaml(identity)).unwrap();
            let pipeline = validate(&object, &secured_references(), "0.1.0").unwrap();
            in_terms_of_the_spec(&pipeline, component, text)
        };
        assert_eq!(
            said(
                "scramSha512: {secret: web-kafka}",
                "capture",
                "the user of /etc/penstock-kafka/auth/username with /etc/penstock-kafka/auth/password; trusted is \
                 /etc/penstock-kafka/ca/ca.crt"
            ),
            "the user of key \"username\" of Secret \"web-kafka\" with key \"password\" of Secret \"web-kafka\"; trusted is \
             key \"ca.crt\" of Secret \"kafka-ca\""
        );
        assert_eq!(
            said(
                "mtls: {secret: web-kafka-mtls}",
                "export-warehouse",
                "/etc/penstock-kafka/auth/tls.crt, /etc/penstock-clickhouse/auth/username, /etc/penstock-clickhouse/ca/ca.crt"
            ),
            "key \"tls.crt\" of Secret \"web-kafka-mtls\", key \"user\" of Secret \"ch-insert\", key \"bundle.pem\" of \
             ConfigMap \"company-ca\""
        );
        // A component that has no such file, and one that there is not.
        for component in ["capture", "nobody"] {
            let text = "/etc/penstock-clickhouse/auth/username";
            assert_eq!(said("scramSha512: {secret: web-kafka}", component, text), text);
        }
    }

    #[test]
    fn an_export_with_a_password_towards_both() {
        insta::assert_yaml_snapshot!(
            "deployment-secured-scram",
            secured("scramSha512: {secret: web-kafka}", "export-warehouse").deployment
        );
    }

    #[test]
    fn a_component_with_a_certificate_of_its_own() {
        insta::assert_yaml_snapshot!(
            "deployment-secured-mtls",
            secured("mtls: {secret: web-kafka-mtls}", "consumer-main").deployment
        );
    }

    #[test]
    fn a_component_with_the_token_of_its_service_account() {
        insta::assert_yaml_snapshot!(
            "deployment-secured-oauth",
            secured("oauthBearer: {serviceAccountToken: {audience: kafka}}", "capture").deployment
        );
    }

    #[test]
    fn the_files_that_a_configuration_names() {
        insta::assert_yaml_snapshot!(
            "config-map-secured",
            secured("scramSha512: {secret: web-kafka}", "export-warehouse").config_map.data
        );
    }
}
