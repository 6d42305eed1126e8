use std::collections::{BTreeMap, BTreeSet};

use penstock_crds::IngestionPipeline;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use super::*;
use crate::{
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
