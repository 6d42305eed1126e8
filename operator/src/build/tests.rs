use std::collections::{BTreeMap, BTreeSet};

use penstock_crds::IngestionPipeline;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::{
    credentials::certificates::CERTIFICATES,
    observe::references::{Reference, References},
    validate::validate,
};

/// A pipeline that uses everything that changes an object.
pub(crate) const FULL: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: IngestionPipeline
metadata: {name: web, namespace: shop, uid: 0a1b, generation: 1}
spec:
  version: 0.1.0
  projects:
  - {id: 2, name: app, tokenFrom: {secret: app, key: token}}
  - {id: 1, name: web, token: phc_web}
  defaults:
    podLabels: {team: growth}
    nodeSelector: {pool: ingestion}
    imagePullSecrets: [{name: registry}]
  kafka:
    bootstrapServers: kafka.streaming:9092
    topics: {defaults: {partitions: 6}}
  capture:
    replicas: 3
    resources: {requests: {cpu: "1", memory: 1Gi}, limits: {memory: 1Gi}}
    service: {type: LoadBalancer, port: 8080, annotations: {example.com/internal: "true"}}
  transformation:
    steps:
    - {name: mask, vrl: '.properties.ip = "masked"'}
    - {name: drop, onError: Pass, vrlFrom: {configMap: programs, key: drop.vrl}}
  exports:
  - name: warehouse
    clickhouse: {url: "http://clickhouse.warehouse:8123", database: analytics}
    block: {maxRows: 50k, maxAge: 2s}
  - name: crm
    startFrom: Latest
    where: '.event == "order completed"'
    env: [{name: TZ, value: UTC}]
    serviceAccountAnnotations: {example.com/role: crm}
    webhook:
      url: https://hooks.example.com/in
      signing: {secret: crm, key: whsec}
      headers: {x-source: penstock}
      allowedNetworks: [10.0.0.0/8]
"#;

/// What [`FULL`] refers to.
pub(crate) fn references() -> References {
    let secret = |key: &str, value: &str| {
        Reference::Found(BTreeMap::from([(key.to_owned(), value.as_bytes().to_vec())]))
    };
    References {
        secrets: BTreeMap::from([
            ("app".to_owned(), secret("token", "phc_app\n")),
            ("crm".to_owned(), secret("whsec", "whsec_MTIz")),
        ]),
        config_maps: BTreeMap::from([(
            "programs".to_owned(),
            Reference::Found(BTreeMap::from([(
                "drop.vrl".to_owned(),
                "if .event == \"ping\" { abort }".to_owned(),
            )])),
        )]),
    }
}

/// [`FULL`] over TLS everywhere, with this identity of the components in Kafka.
pub(crate) fn secured_yaml(identity: &str) -> String {
    FULL.replace(
        "    bootstrapServers: kafka.streaming:9092\n",
        &format!(
            "    bootstrapServers: kafka.streaming:9095\n    tls: {{caFrom: {{secret: kafka-ca}}}}\n    \
             auth: {{data: {{{identity}}}, admin: {{scramSha512: {{secret: web-kafka-admin}}}}}}\n"
        ),
    )
    .replace(
        "{url: \"http://clickhouse.warehouse:8123\", database: analytics}",
        "{url: 'https://clickhouse.warehouse:8443', database: analytics, tls: {caFrom: {configMap: company-ca, key: bundle.pem}}, \
         auth: {data: {secret: ch-insert, usernameKey: user}, ddl: {secret: ch-ddl}}}",
    )
}

/// A token as Kafka's client takes it: `{"sub":"web","exp":4102444800}`, with a signature that nobody checks here.
const JWT: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ3ZWIiLCJleHAiOjQxMDI0NDQ4MDB9.hunter2";
const RENEWED_JWT: &str = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ3ZWIiLCJleHAiOjQxMDI0NDQ4MDB9.renewed";

/// What [`secured_yaml`] refers to.
pub(crate) fn secured_references() -> References {
    let mut references = references();
    for (name, keys) in [
        ("kafka-ca", [("ca.crt", CERTIFICATES.ca.as_str()), ("unused", "-")]),
        ("web-kafka", [("username", "web\n"), ("password", "hunter2-data\n")]),
        (
            "web-kafka-mtls",
            [("tls.crt", CERTIFICATES.client.0.as_str()), ("tls.key", CERTIFICATES.client.1.as_str())],
        ),
        ("web-kafka-token", [("token", JWT), ("unused", "-")]),
        ("web-kafka-admin", [("username", "admin"), ("password", "hunter2-admin")]),
        ("ch-insert", [("user", "penny"), ("password", "hunter2-insert")]),
        ("ch-ddl", [("username", "boss"), ("password", "hunter2-ddl")]),
    ] {
        let data = keys.map(|(key, value)| (key.to_owned(), value.as_bytes().to_vec()));
        references.secrets.insert(name.to_owned(), Reference::Found(BTreeMap::from(data)));
    }
    let bundle = BTreeMap::from([("bundle.pem".to_owned(), CERTIFICATES.other_ca.clone())]);
    references.config_maps.insert("company-ca".to_owned(), Reference::Found(bundle));
    references
}

fn built_with(yaml: &str, references: &References) -> Objects {
    let object: IngestionPipeline = serde_yaml_ng::from_str(yaml).unwrap();
    objects(&validate(&object, references, "0.1.0").unwrap(), &images()).unwrap()
}

/// The objects of one component of [`secured_yaml`].
pub(crate) fn secured(identity: &str, name: &str) -> ComponentObjects {
    let objects = built_with(&secured_yaml(identity), &secured_references());
    let mut of = objects.components.into_iter().find(|of| of.component.to_string() == name).unwrap();
    // The certificates are others in every run.
    let annotations = of.deployment.spec.template.metadata.as_mut().unwrap().annotations.as_mut().unwrap();
    let hash = annotations.get_mut(CREDENTIALS_ANNOTATION).unwrap();
    assert!(hash.len() == 10 && hash.chars().all(|c| c.is_ascii_hexdigit()), "{hash}");
    "(hash)".clone_into(hash);
    of
}

pub(crate) fn images() -> ImageSource {
    ImageSource { repository: "registry.example.com/pipeline".into(), pull_policy: "IfNotPresent".into() }
}

pub(crate) fn pipeline(yaml: &str) -> ValidatedPipeline {
    let object: IngestionPipeline = serde_yaml_ng::from_str(yaml).unwrap();
    validate(&object, &references(), "0.1.0").unwrap()
}

fn built(yaml: &str) -> Objects {
    objects(&pipeline(yaml), &images()).unwrap()
}

/// The objects of one component of [`FULL`].
pub(crate) fn component(name: &str) -> ComponentObjects {
    built(FULL).components.into_iter().find(|of| of.component.to_string() == name).unwrap()
}

pub(crate) fn full() -> Objects {
    built(FULL)
}

fn changed(from: &str, to: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    assert!(FULL.contains(from), "{from} is not in the fixture");
    let (before, after) = (built(FULL), built(&FULL.replace(from, to)));
    let mut templates = BTreeSet::new();
    let mut others = BTreeSet::new();
    for new in &after.components {
        let Some(old) = before.components.iter().find(|old| old.component == new.component) else {
            templates.insert(format!("+{}", new.component));
            continue;
        };
        if old.deployment.spec.template != new.deployment.spec.template {
            templates.insert(new.component.to_string());
        } else if old.deployment != new.deployment {
            others.insert(new.component.to_string());
        }
    }
    (templates, others)
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_change_rolls_the_component_that_it_concerns_and_no_other() {
    let everything = ["capture", "consumer-main", "transformation", "export-warehouse", "export-crm"];
    for (from, to, rolled) in [
        ("replicas: 3", "replicas: 5", &[][..]),
        ("token: phc_web", "token: phc_other", &[]),
        ("{id: 1, name: web, token: phc_web}", "{id: 9, name: new, token: phc_web}", &[]),
        ("type: LoadBalancer, port: 8080", "type: ClusterIP, port: 80", &[]),
        ("partitions: 6", "partitions: 12", &[]),
        ("cpu: \"1\"", "cpu: \"2\"", &["capture"]),
        ("\"masked\"", "\"hidden\"", &["transformation"]),
        ("maxRows: 50k", "maxRows: 60k", &["export-warehouse"]),
        ("order completed", "order shipped", &["export-crm"]),
        ("example.com/role: crm", "example.com/role: other", &[]),
        ("team: growth", "team: data", &everything),
        ("version: 0.1.0", "version: 0.1.1", &everything),
    ] {
        let (templates, _) = changed(from, to);
        assert_eq!(templates, set(rolled), "{from} -> {to}");
    }
}

/// Another value of a Secret.
fn secret(name: &'static str, key: &'static str, value: &'static str) -> impl Fn(&mut References) {
    move |references| {
        let Some(Reference::Found(data)) = references.secrets.get_mut(name) else { panic!("no {name}") };
        data.insert(key.to_owned(), value.as_bytes().to_vec());
    }
}

#[test]
fn a_new_certificate_rolls_who_uses_it_and_a_new_password_rolls_nobody() {
    let everything = ["capture", "consumer-main", "transformation", "export-warehouse", "export-crm"];
    let scram = "scramSha512: {secret: web-kafka}";
    let mtls = "mtls: {secret: web-kafka-mtls}";
    let token = "oauthBearer: {secret: web-kafka-token}";
    type Change = Box<dyn Fn(&mut References)>;
    let cases: Vec<(&str, &str, Change, &[&str])> = vec![
        (
            "Kafka's authority",
            scram,
            Box::new(secret("kafka-ca", "ca.crt", &CERTIFICATES.other_ca)),
            &everything,
        ),
        ("another key", scram, Box::new(secret("kafka-ca", "unused", "x")), &[]),
        ("a password", scram, Box::new(secret("web-kafka", "password", "new")), &[]),
        ("a user", scram, Box::new(secret("web-kafka", "username", "new")), &[]),
        ("a token", token, Box::new(secret("web-kafka-token", "token", RENEWED_JWT)), &[]),
        ("the operator's password", scram, Box::new(secret("web-kafka-admin", "password", "new")), &[]),
        ("ClickHouse's password", scram, Box::new(secret("ch-insert", "password", "new")), &[]),
        (
            "a client certificate",
            mtls,
            Box::new(|references| {
                secret("web-kafka-mtls", "tls.crt", &CERTIFICATES.renewed.0)(references);
                secret("web-kafka-mtls", "tls.key", &CERTIFICATES.renewed.1)(references);
            }),
            &everything,
        ),
        (
            "ClickHouse's authority",
            scram,
            Box::new(|references| {
                let bundle = BTreeMap::from([("bundle.pem".to_owned(), CERTIFICATES.ca.clone())]);
                references.config_maps.insert("company-ca".to_owned(), Reference::Found(bundle));
            }),
            &["export-warehouse"],
        ),
    ];
    for (what, identity, change, rolled) in cases {
        let yaml = secured_yaml(identity);
        let before = built_with(&yaml, &secured_references());
        let mut references = secured_references();
        change(&mut references);
        let after = built_with(&yaml, &references);
        let rolls: BTreeSet<String> = before
            .components
            .iter()
            .zip(&after.components)
            .filter(|(old, new)| old.deployment.spec.template != new.deployment.spec.template)
            .map(|(old, _)| old.component.to_string())
            .collect();
        assert_eq!(rolls, set(rolled), "{what}");
    }
}

#[test]
fn only_an_export_to_clickhouse_sees_its_credentials_and_nobody_sees_the_operators() {
    for of in &built_with(&secured_yaml("scramSha512: {secret: web-kafka}"), &secured_references()).components
    {
        let pod = serde_json::to_string(&of.deployment).unwrap();
        let is_warehouse = of.component.to_string() == "export-warehouse";
        assert_eq!(pod.contains("ch-insert"), is_warehouse, "{}", of.component);
        assert_eq!(pod.contains("company-ca"), is_warehouse, "{}", of.component);
        assert!(pod.contains("web-kafka"), "{}", of.component);
        for admin in ["web-kafka-admin", "ch-ddl"] {
            assert!(!pod.contains(admin), "{} has {admin}", of.component);
        }
    }
}

#[test]
fn a_pod_has_no_token_but_the_one_for_kafka() {
    let objects = built_with(
        &secured_yaml("oauthBearer: {serviceAccountToken: {audience: kafka}}"),
        &secured_references(),
    );
    for of in &objects.components {
        let pod = of.deployment.spec.template.spec.as_ref().unwrap();
        assert_eq!(pod.automount_service_account_token, Some(false));
        let tokens: Vec<_> = pod
            .volumes
            .iter()
            .flatten()
            .filter_map(|volume| volume.projected.as_ref())
            .flat_map(|projected| projected.sources.iter().flatten())
            .filter_map(|source| source.service_account_token.as_ref())
            .map(|token| (token.audience.as_deref(), token.expiration_seconds))
            .collect();
        assert_eq!(tokens, [(Some("kafka"), Some(3_600))], "{}", of.component);
    }
}

#[test]
fn a_change_in_replicas_is_applied_without_touching_the_pods() {
    let (templates, others) = changed("replicas: 3", "replicas: 5");
    assert!(templates.is_empty());
    assert_eq!(others, set(&["capture"]));
}

#[test]
fn a_new_export_rolls_nothing_that_runs() {
    let (templates, _) = changed(
        "  - name: crm\n",
        "  - name: more\n    clickhouse: {url: 'http://c:1', database: d}\n  - name: crm\n",
    );
    assert_eq!(templates, set(&["+export-more"]));
}

/// What a released version's components get must not change while `version` is pinned, or an upgrade of the operator
/// would roll pipelines. If this fails, give the change a new [`Rendering`] that begins with the next version.
#[test]
fn a_released_version_is_rendered_as_ever() {
    let mut text = String::new();
    for of in &built(FULL).components {
        text.push_str(&serde_yaml_ng::to_string(&of.deployment.spec.template).unwrap());
        text.push_str(&serde_yaml_ng::to_string(&of.config_map.data).unwrap());
    }
    insta::assert_snapshot!("rendering_of_0.1.0", hex::encode(Sha256::digest(text.as_bytes())));
}

#[test]
fn pods_satisfy_the_restricted_standard() {
    for of in &built(FULL).components {
        let pod = of.deployment.spec.template.spec.as_ref().unwrap();
        let security = pod.security_context.as_ref().unwrap();
        assert_eq!(security.run_as_non_root, Some(true));
        assert_eq!(security.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
        assert_eq!(pod.automount_service_account_token, Some(false));
        for container in &pod.containers {
            let security = container.security_context.as_ref().unwrap();
            assert_eq!(security.allow_privilege_escalation, Some(false));
            assert_eq!(security.read_only_root_filesystem, Some(true));
            let dropped = security.capabilities.as_ref().unwrap().drop.as_ref().unwrap();
            assert_eq!(dropped, &["ALL"]);
        }
    }
}

#[test]
fn labels_of_the_user_never_take_a_pod_out_of_its_selector() {
    let objects = built(&FULL.replace("team: growth", "app.kubernetes.io/instance: evil"));
    for of in &objects.components {
        let labels = of.deployment.spec.template.metadata.as_ref().unwrap().labels.as_ref().unwrap();
        let selector = of.deployment.spec.selector.match_labels.as_ref().unwrap();
        assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)));
    }
}

#[test]
fn what_a_binary_parses_is_what_is_rendered() {
    use penstock_pipeline::config;
    for of in &built(FULL).components {
        let yaml = &of.config_map.data.as_ref().unwrap()[config_map::KEY];
        match of.component {
            Component::Capture => drop(serde_yaml_ng::from_str::<config::CaptureConfig>(yaml).unwrap()),
            Component::ConsumerMain => drop(serde_yaml_ng::from_str::<config::ConsumerConfig>(yaml).unwrap()),
            Component::Transformation => {
                drop(serde_yaml_ng::from_str::<config::TransformationConfig>(yaml).unwrap());
            }
            Component::Export(_) => drop(serde_yaml_ng::from_str::<config::ExportConfig>(yaml).unwrap()),
        }
    }
}

#[test]
fn no_secret_is_in_a_config_map() {
    for of in &built(FULL).components {
        let yaml = &of.config_map.data.as_ref().unwrap()[config_map::KEY];
        for secret in ["phc_web", "phc_app", "whsec_"] {
            assert!(!yaml.contains(secret), "{} shows {secret}", of.component);
        }
    }
    for identity in [
        "scramSha512: {secret: web-kafka}",
        "mtls: {secret: web-kafka-mtls}",
        "oauthBearer: {secret: web-kafka-token}",
    ] {
        let objects = built_with(&secured_yaml(identity), &secured_references());
        let text: String = objects
            .components
            .iter()
            .map(|of| format!("{of:?}{}", serde_json::to_string(&of.deployment).unwrap()))
            .chain([format!("{:?}", objects.capture_service)])
            .collect();
        for secret in ["hunter2", "penny", "boss", "PRIVATE KEY", "BEGIN CERTIFICATE"] {
            assert!(!text.contains(secret), "{identity} shows {secret}");
        }
    }
}

proptest! {
    /// S0 → S1 → S0 ends with the objects of S0, and the same input never gives two results.
    #[test]
    fn building_has_no_memory(
        replicas in 0i32..50,
        rows in 1u64..1_000_000,
        step in "[a-z]{1,12}",
        labels in proptest::collection::btree_map("[a-z]{1,8}", "[a-z0-9]{1,8}", 0..5),
    ) {
        let original = pipeline(FULL);
        let before = objects(&original, &images()).unwrap();
        let mut other = original.clone();
        other.capture.workload.replicas = replicas;
        other.consumer_main.pod_labels = labels;
        if let Some(transformation) = &mut other.transformation {
            transformation.steps[0].name = step;
        }
        if let crate::validate::Destination::ClickHouse { block, .. } = &mut other.exports[0].destination {
            block.max_rows = u32::try_from(rows).unwrap();
        }
        let there = objects(&other, &images()).unwrap();
        prop_assert_eq!(&there, &objects(&other, &images()).unwrap());
        prop_assert_eq!(before, objects(&original, &images()).unwrap());
    }
}
