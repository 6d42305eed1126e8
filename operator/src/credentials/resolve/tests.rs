use std::collections::BTreeMap;

use super::*;
use crate::{credentials::certificates::CERTIFICATES, observe::references::Reference};

fn references(secrets: &[(&str, &[(&str, &str)])]) -> References {
    let secrets = secrets
        .iter()
        .map(|(name, keys)| {
            let data = keys.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
            ((*name).to_owned(), Reference::Found(data.collect::<BTreeMap<_, _>>()))
        })
        .collect();
    References { secrets, ..References::default() }
}

fn resolved(yaml: &str, references: &References) -> (KafkaCredentials, Vec<String>) {
    let spec: KafkaSpec = serde_yaml_ng::from_str(&format!("bootstrapServers: 'k:9095'\n{yaml}")).unwrap();
    let mut problems = Vec::new();
    let credentials = kafka(&spec, "shop", references, &mut problems);
    (credentials, problems.iter().map(|problem| format!("{}: {problem}", problem.reason())).collect())
}

fn only_problem(yaml: &str, references: &References) -> String {
    let (_, problems) = resolved(yaml, references);
    assert_eq!(problems.len(), 1, "{problems:#?}");
    problems.into_iter().next().unwrap()
}

const SCRAM: &str = "auth: {data: {scramSha512: {secret: web-kafka}}}";
const MTLS: &str = "tls: {}\nauth: {data: {mtls: {secret: web-mtls}}}";

#[test]
fn without_tls_and_auth_there_is_nothing() {
    assert_eq!(
        resolved("{}".trim_matches(['{', '}']), &References::default()).0,
        KafkaCredentials::default()
    );
}

#[test]
fn the_operator_is_who_the_components_are_unless_the_spec_says_otherwise() {
    let known = references(&[
        ("web-kafka", &[("username", "web\n"), ("password", "one two \r\n")]),
        ("admin", &[("user", "root"), ("pass", "x")]),
    ]);
    let (same, problems) = resolved(SCRAM, &known);
    assert!(problems.is_empty(), "{problems:?}");
    let (admin, field) = same.admin.unwrap();
    assert_eq!(field, "spec.kafka.auth.data.scramSha512");
    assert_eq!(Some(&admin), same.data.as_ref());
    let KafkaIdentity::ScramSha512 { username, password } = admin else { panic!("not SCRAM") };
    assert_eq!(username.content.expose(), "web", "an editor's line break is no part of a user's name");
    assert_eq!(password.content.expose(), "one two ", "a space may be a part of a password");

    let (own, problems) = resolved(
        "auth: {data: {scramSha512: {secret: web-kafka}}, admin: {scramSha512: {secret: admin, usernameKey: user, passwordKey: pass}}}",
        &known,
    );
    assert!(problems.is_empty(), "{problems:?}");
    let (admin, field) = own.admin.unwrap();
    assert_eq!(field, "spec.kafka.auth.admin.scramSha512");
    assert_eq!(admin.origin(), "keys \"user\" and \"pass\" of Secret \"admin\"");
}

#[test]
fn what_is_missing_is_told_once_with_secret_key_and_field() {
    assert_eq!(
        only_problem(SCRAM, &References::default()),
        "ReferenceMissing: spec.kafka.auth.data.scramSha512 names Secret \"web-kafka\", which does not exist in namespace \
         \"shop\"; create it with the key \"username\""
    );
    let half = references(&[("web-kafka", &[("username", "web"), ("pass", "hunter2")])]);
    let problem = only_problem(SCRAM, &half);
    assert!(
        problem
            .starts_with("ReferenceKeyMissing: spec.kafka.auth.data.scramSha512 names the key \"password\""),
        "{problem}"
    );
    assert!(problem.contains("has only pass, username") && !problem.contains("hunter2"), "{problem}");
    let empty = references(&[("web-kafka", &[("username", "web"), ("password", "\n")])]);
    assert_eq!(
        only_problem(SCRAM, &empty),
        "ReferenceInvalid: spec.kafka.auth.data.scramSha512: the value of key \"password\" of Secret \"web-kafka\" is empty"
    );
    let problem = only_problem("tls: {caFrom: {configMap: company-ca}}", &References::default());
    assert!(
        problem.starts_with("ReferenceMissing: spec.kafka.tls.caFrom names ConfigMap \"company-ca\"")
            && problem.ends_with("the key \"ca.crt\""),
        "{problem}"
    );
}

#[test]
fn an_authority_is_one_or_more_certificates() {
    let tls = "tls: {caFrom: {secret: kafka-ca}}";
    let both = format!("{}\n{}", CERTIFICATES.ca, CERTIFICATES.other_ca);
    for good in [CERTIFICATES.ca.as_str(), &both] {
        let (credentials, problems) = resolved(tls, &references(&[("kafka-ca", &[("ca.crt", good)])]));
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(credentials.trust.unwrap().pem(), Some(good.trim_end()));
    }
    for (bad, says) in [
        ("hunter2", "holds no certificate; write PEM"),
        (CERTIFICATES.client.1.as_str(), "holds no certificate"),
        ("-----BEGIN CERTIFICATE-----\n%%%\n-----END CERTIFICATE-----\n", "is not PEM that can be read"),
        ("-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n", "is not a certificate"),
    ] {
        let problem = only_problem(tls, &references(&[("kafka-ca", &[("ca.crt", bad)])]));
        assert!(
            problem.contains("the value of key \"ca.crt\" of Secret \"kafka-ca\"") && problem.contains(says),
            "{problem}"
        );
        assert!(!problem.contains("hunter2"), "{problem}");
    }
}

#[test]
fn a_client_certificate_needs_its_own_key() {
    let (certificate, key) = &CERTIFICATES.client;
    let of = |certificate: &str, key: &str| {
        references(&[("web-mtls", &[("tls.crt", certificate), ("tls.key", key)])])
    };
    let (credentials, problems) = resolved(MTLS, &of(certificate, key));
    assert!(problems.is_empty(), "{problems:?}");
    assert!(matches!(credentials.data, Some(KafkaIdentity::Mtls { .. })));

    let encrypted = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    for (certificate, key, says) in [
        (
            certificate.as_str(),
            CERTIFICATES.renewed.1.as_str(),
            "\"tls.key\" of Secret \"web-mtls\" does not belong to the certificate of key \"tls.crt\"",
        ),
        (certificate.as_str(), encrypted.as_str(), "is encrypted with a passphrase"),
        (
            certificate.as_str(),
            certificate.as_str(),
            "\"tls.key\" of Secret \"web-mtls\" holds no private key",
        ),
        (key.as_str(), key.as_str(), "\"tls.crt\" of Secret \"web-mtls\" holds no certificate"),
    ] {
        let problem = only_problem(MTLS, &of(certificate, key));
        assert!(
            problem.starts_with("ReferenceInvalid: spec.kafka.auth.data.mtls") && problem.contains(says),
            "{problem}"
        );
        let secret = CERTIFICATES.client.1.lines().nth(1).unwrap();
        assert!(!problem.contains(secret), "{problem}");
    }
}

#[test]
fn what_the_rules_of_the_api_refuse_is_refused_here_as_well() {
    let known = references(&[(
        "a",
        &[("username", "u"), ("password", "p"), ("token", "e30.eyJzdWIiOiJ3ZWIiLCJleHAiOjQxMDI0NDQ4MDB9.s")],
    )]);
    for (yaml, says) in [
        (
            "tls: {}\nauth: {data: {oauthBearer: {serviceAccountToken: {audience: k}}}}",
            "write admin with scramSha512",
        ),
        (
            "auth: {data: {oauthBearer: {secret: a}}, admin: {scramSha512: {secret: a}}}",
            "write spec.kafka.tls as well",
        ),
        ("tls: {}\nauth: {data: {}}", "exactly one of scramSha512, mtls and oauthBearer"),
        ("tls: {}\nauth: {data: {oauthBearer: {}}}", "exactly one of serviceAccountToken and secret"),
        ("tls: {caFrom: {}}", "exactly one of secret and configMap"),
    ] {
        let problem = only_problem(yaml, &known);
        assert!(problem.starts_with("InvalidSpec: spec.kafka.") && problem.contains(says), "{problem}");
    }
}

#[test]
fn a_user_of_clickhouse_is_told_by_export_and_role() {
    let spec: ClickHouseSpec = serde_yaml_ng::from_str(
        "{url: 'https://ch:8443', database: d, auth: {data: {secret: insert}, ddl: {secret: ddl}}}",
    )
    .unwrap();
    let mut problems = Vec::new();
    let known = references(&[("insert", &[("username", "u"), ("password", "p")])]);
    let (trust, data, ddl) = clickhouse("spec.exports[w].clickhouse", &spec, "shop", &known, &mut problems);
    assert_eq!(trust, Trust::Public);
    assert_eq!(data.unwrap().field, "spec.exports[w].clickhouse.auth.data");
    assert_eq!(ddl, None);
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].to_string().starts_with("spec.exports[w].clickhouse.auth.ddl names Secret \"ddl\""),
        "{}",
        problems[0]
    );
}
