use std::collections::BTreeMap;

use super::*;
use crate::build::tests::{FULL, references};

fn check(yaml: &str, references: &References) -> Result<ValidatedPipeline, Problems> {
    validate(&serde_yaml_ng::from_str(yaml).unwrap(), references, "9.9.9")
}

/// Reason and message after a change of the good pipeline.
fn refused(from: &str, to: &str) -> (&'static str, String) {
    assert!(FULL.contains(from), "{from} is not in the fixture");
    let problems = check(&FULL.replace(from, to), &references()).expect_err(to);
    (problems.reason(), problems.to_string())
}

#[test]
fn defaults_are_those_of_the_api() {
    let yaml = "
apiVersion: penstock.dev/v1alpha1
kind: IngestionPipeline
metadata: {name: web, namespace: shop, uid: u}
spec:
  projects: [{id: 1, name: web, token: phc}]
  kafka: {bootstrapServers: 'kafka:9092'}
  exports: [{name: w, clickhouse: {url: 'http://c:8123', database: d}}]
";
    let pipeline = check(yaml, &References::default()).unwrap();
    assert_eq!(pipeline.version, "9.9.9");
    assert_eq!(pipeline.kafka.prefix, "shop.web.");
    assert_eq!(pipeline.capture.service_port, 80);
    assert_eq!(pipeline.capture.workload.replicas, 1);
    assert_eq!(pipeline.transformation, None);
    assert_eq!(pipeline.export_source(), "shop.web.ingested");
    let Destination::ClickHouse { table, block, .. } = &pipeline.exports[0].destination else {
        panic!("not a table")
    };
    assert_eq!(table.table, "events");
    assert_eq!(*block, BlockLimits { max_rows: 100_000, max_bytes: 64 << 20, max_age_ms: 1_000 });
    assert_eq!(pipeline.kafka.topics.len(), 3, "no transformed topic without steps");
}

#[test]
fn tokens_come_from_secrets_without_the_newline_of_an_editor() {
    let pipeline = check(FULL, &references()).unwrap();
    let tokens: Vec<(i64, &str)> =
        pipeline.projects.iter().map(|project| (project.id, project.token.as_str())).collect();
    assert_eq!(tokens, [(1, "phc_web"), (2, "phc_app")]);
}

#[test]
fn a_program_that_does_not_compile_shows_the_compilers_words() {
    let (reason, message) = refused(r#"'.properties.ip = "masked"'"#, r#"'.properties.ip = nope('"#);
    assert_eq!(reason, "InvalidTransformation");
    assert!(message.starts_with("spec.transformation.steps[mask] does not compile: "), "{message}");
    assert!(message.contains(".properties.ip = nope("), "{message}");
}

#[test]
fn a_condition_of_an_export_is_compiled_too() {
    let (reason, message) = refused(r#"'.event == "order completed"'"#, "'.event =='");
    assert_eq!(reason, "InvalidTransformation");
    assert!(message.starts_with("spec.exports[crm].where"), "{message}");
}

#[test]
fn a_missing_secret_is_named_with_its_key_and_what_to_do() {
    let mut references = references();
    references.secrets.insert("crm".into(), Reference::Missing);
    let problems = check(FULL, &references).unwrap_err();
    assert_eq!(problems.reason(), "ReferenceMissing");
    assert_eq!(
        problems.to_string(),
        "spec.exports[crm].webhook.signing names Secret \"crm\", which does not exist in namespace \"shop\"; \
         create it with the key \"whsec\""
    );
}

#[test]
fn a_missing_key_is_told_with_the_keys_that_are_there() {
    let mut references = references();
    references.config_maps.insert(
        "programs".into(),
        Reference::Found(BTreeMap::from([("other.vrl".to_owned(), String::new())])),
    );
    let problems = check(FULL, &references).unwrap_err();
    assert_eq!(problems.reason(), "ReferenceKeyMissing");
    assert!(problems.to_string().contains("which has only other.vrl"), "{problems}");
}

#[test]
fn a_bad_token_in_a_secret_is_refused_without_being_shown() {
    let mut references = references();
    references.secrets.insert(
        "app".into(),
        Reference::Found(BTreeMap::from([("token".to_owned(), b"two words".to_vec())])),
    );
    let problems = check(FULL, &references).unwrap_err();
    assert_eq!(problems.reason(), "ReferenceInvalid");
    assert!(!problems.to_string().contains("two words"), "{problems}");
}

#[test]
fn all_problems_are_told_at_once() {
    let yaml = FULL
        .replace("name: web, namespace", "name: Web, namespace")
        .replace("maxRows: 50k", "maxRows: 5M")
        .replace("10.0.0.0/8", "10.0.0.0");
    let problems = check(&yaml, &references()).unwrap_err();
    assert_eq!(problems.iter().count(), 3, "{problems}");
}

#[test]
fn what_cannot_be_built_is_refused() {
    for (from, to) in [
        ("kafka.streaming:9092", "kafka.streaming"),
        ("version: 0.1.0", "version: 'a b'"),
        ("replicas: 3", "replicas: -1"),
        ("name: crm", "name: warehouse"),
        ("name: crm", "name: Crm"),
        ("name: drop", "name: mask"),
        ("token: phc_web", "token: phc_app"),
        ("id: 1", "id: 2"),
        ("id: 1", "id: 0"),
        ("database: analytics", "database: 'a`b'"),
        ("http://clickhouse.warehouse:8123", "http://user:password@clickhouse:8123"),
        ("https://hooks.example.com/in", "ftp://hooks.example.com"),
        ("name: TZ", "name: POD_NAME"),
        ("partitions: 6", "partitions: 0"),
    ] {
        let (reason, message) = refused(from, to);
        assert_eq!(reason, "InvalidSpec", "{from} -> {to}: {message}");
    }
}

#[test]
fn a_spec_that_was_fixed_is_as_if_nothing_had_been() {
    let before = check(FULL, &references()).unwrap();
    refused("maxRows: 50k", "maxRows: 5M");
    assert_eq!(check(FULL, &references()).unwrap(), before);
}
