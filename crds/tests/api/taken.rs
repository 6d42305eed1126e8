//! What the API server takes, stores and shows.

use std::{fs, path::Path, time::Duration};

use http::Request;
use kube::api::{Patch, PatchParams};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::server::{NAME, Server, good, good_but};

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn the_examples_are_taken() {
    let server = Server::connect().await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let mut pipelines = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for document in serde_yaml_ng::Deserializer::from_str(&fs::read_to_string(&path).unwrap()) {
            let mut object = Value::deserialize(document).unwrap();
            if object["kind"] != "IngestionPipeline" {
                continue;
            }
            object["metadata"].as_object_mut().unwrap().remove("namespace");
            let judged = server.judge(&object).await;
            assert!(judged.is_ok(), "{}: {}", path.display(), judged.unwrap_err());
            pipelines += 1;
        }
    }
    server.remove().await;
    assert!(pipelines >= 4, "{pipelines} pipelines in {}", folder.display());
}

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn what_is_taken_is_stored_as_it_was_written() {
    let server = Server::connect().await;
    let stored = server.apply(&good()).await.unwrap();
    let stored = serde_json::to_value(server_object(&server, &stored).await).unwrap();
    server.remove().await;
    // No default was added, nothing was dropped, and no number was made text.
    assert_eq!(stored["spec"], good()["spec"]);
}

/// The stored object, as JSON and not by way of the types.
async fn server_object(server: &Server, stored: &penstock_crds::IngestionPipeline) -> Value {
    let path = format!(
        "/apis/penstock.dev/v1alpha1/namespaces/{}/ingestionpipelines/{}",
        server.namespace,
        stored.metadata.name.as_deref().unwrap()
    );
    server.client.request(Request::get(path).body(Vec::new()).unwrap()).await.unwrap()
}

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn quantities_are_taken_as_numbers_and_as_text_up_to_their_bounds() {
    let server = Server::connect().await;
    for (pointer, value) in [
        ("/spec/exports/0/block/maxRows", json!(1)),
        ("/spec/exports/0/block/maxRows", json!(1_000_000)),
        ("/spec/exports/0/block/maxRows", json!("1M")),
        ("/spec/exports/0/block/maxRows", json!("999999")),
        ("/spec/exports/0/block/maxSize", json!("256Mi")),
        ("/spec/exports/0/block/maxSize", json!(268_435_456)),
        ("/spec/exports/0/block/maxAge", json!("5m")),
        ("/spec/exports/0/block/maxAge", json!("4m59s1000ms")),
        ("/spec/capture/maxBodySize", json!("1G")),
        ("/spec/defaults/resources/requests/cpu", json!(1)),
        ("/spec/defaults/resources/requests/memory", json!("1e8")),
        ("/spec/kafka/topics/defaults/retention", json!("3650d")),
        ("/spec/kafka/bootstrapServers", json!("[fd00::1]:9092,10.0.0.1:9092")),
        ("/spec/kafka/topicPrefix", json!("a".repeat(200))),
        ("/spec/exports/1/webhook/url", json!("http://10.0.0.1:8080/in?a=b@c")),
        ("/metadata/name", json!("a".repeat(45))),
        ("/spec/exports/0/name", json!("a".repeat(30))),
    ] {
        let judged = server.judge(&good_but(&[(pointer, value.clone())])).await;
        assert!(judged.is_ok(), "{pointer} {value}: {}", judged.unwrap_err());
    }
    server.remove().await;
}

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn every_kind_of_identity_is_taken() {
    let server = Server::connect().await;
    let scram = json!({"scramSha512": {"secret": "kafka", "usernameKey": "user", "passwordKey": "pass"}});
    let mtls = json!({"mtls": {"secret": "kafka-admin", "certificateKey": "crt", "privateKeyKey": "key"}});
    let token = json!({"oauthBearer": {"secret": "kafka-token", "key": "jwt"}});
    let pod_token =
        json!({"oauthBearer": {"serviceAccountToken": {"audience": "kafka", "expirationSeconds": 600}}});
    let ca = json!({"caFrom": {"configMap": "company-ca", "key": "bundle.pem"}});
    let warehouse = json!({
        "url": "https://clickhouse.invalid:8443", "database": "analytics", "tls": {"caFrom": {"secret": "ca"}},
        "auth": {"data": {"secret": "insert", "usernameKey": "u"}, "ddl": {"secret": "ddl", "passwordKey": "p"}},
    });
    let plain = json!({
        "url": "http://clickhouse.invalid:8123", "database": "analytics",
        "auth": {"data": {"secret": "insert"}, "plainHttp": "Allow"},
    });
    let mut wrong = Vec::new();
    for change in [
        vec![("/spec/kafka/tls", json!({}))],
        vec![("/spec/kafka/tls", ca.clone())],
        // SCRAM does not send the password.
        vec![("/spec/kafka/auth", json!({"data": scram}))],
        vec![("/spec/kafka/tls", ca.clone()), ("/spec/kafka/auth", json!({"data": mtls}))],
        vec![("/spec/kafka/tls", ca.clone()), ("/spec/kafka/auth", json!({"data": scram, "admin": mtls}))],
        vec![("/spec/kafka/tls", ca.clone()), ("/spec/kafka/auth", json!({"data": token}))],
        vec![
            ("/spec/kafka/tls", ca.clone()),
            ("/spec/kafka/auth", json!({"data": pod_token, "admin": token})),
        ],
        vec![("/spec/exports/0/clickhouse", warehouse)],
        vec![("/spec/exports/0/clickhouse", plain)],
    ] {
        match server.judge(&good_but(&change)).await {
            // What was written comes back from the types as it was written.
            Ok(taken) => {
                let spec = serde_json::to_value(&taken.spec).unwrap();
                for (pointer, value) in &change {
                    let read = spec.pointer(pointer.trim_start_matches("/spec")).unwrap();
                    let lost = without_defaults(read) != without_defaults(value);
                    if lost {
                        wrong.push(format!("{pointer}: {value} was read as {read}"));
                    }
                }
            }
            Err(message) => wrong.push(format!("{change:?}: {message}")),
        }
    }
    server.remove().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// `management` has a default in the types, which writing shows.
fn without_defaults(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("management");
    }
    value
}

/// The rules have a budget at run time as well as the one that is estimated when the definition is installed.
#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn the_largest_pipeline_stays_within_the_budget_of_the_rules() {
    let server = Server::connect().await;
    let projects: Vec<Value> = (0..256)
        .map(|i| json!({"id": i + 1, "name": format!("{:0>63}", format!("p{i}")).replacen('0', "p", 1), "token": format!("{i:0>64}")}))
        .collect();
    let steps: Vec<Value> = (0..64)
        .map(|i| json!({"name": format!("s{i}"), "vrl": format!("{}.event", " ".repeat(8_000))}))
        .collect();
    let networks: Vec<String> =
        (0..32).map(|i| format!("fd00:aaaa:bbbb:cccc:dddd:eeee:{i:04x}:0000/112")).collect();
    let headers: serde_json::Map<String, Value> =
        (0..32).map(|i| (format!("x-header-{i}"), json!("v".repeat(100)))).collect();
    let exports: Vec<Value> = (0..32)
        .map(|i| {
            json!({
                "name": format!("e{i}"),
                "where": ".event == \"x\"",
                "webhook": {"url": format!("https://h{i}.invalid/{}", "x".repeat(1_000)), "headers": headers,
                    "allowedNetworks": networks, "retry": {"minBackoff": "1h", "maxBackoff": "23h59m59s999ms"}},
            })
        })
        .collect();
    let object = good_but(&[
        ("/spec/projects", json!(projects)),
        ("/spec/transformation/steps", json!(steps)),
        ("/spec/exports", json!(exports)),
    ]);
    let judged = server.judge(&object).await;
    // The rules about changes run as well.
    let stored = server.apply(&object).await;
    let again = server
        .judge(&good_but(&[
            ("/spec/projects", json!(projects)),
            ("/spec/transformation/steps", json!(steps)),
            ("/spec/exports", json!(exports)),
            ("/spec/version", json!("0.2.0")),
        ]))
        .await;
    server.remove().await;
    assert!(judged.is_ok() && stored.is_ok() && again.is_ok(), "{judged:?} {stored:?} {again:?}");
}

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn server_side_apply_lets_two_teams_own_their_parts() {
    let server = Server::connect().await;
    let mut platform = good();
    platform["spec"].as_object_mut().unwrap().remove("transformation");
    server.apply_as("platform-team", &platform).await.unwrap();
    let data = json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "IngestionPipeline", "metadata": {"name": NAME},
        "spec": {
            "projects": [{"id": 3, "name": "partner", "token": "phc_partner"}],
            "transformation": {"steps": [{"name": "mask", "vrl": "del(.properties.email)"}]},
            "exports": [{"name": "warehouse", "where": ".team_id != 3"}],
        },
    });
    let both = server.apply_as("data-team", &data).await.unwrap();
    let names: Vec<_> = both.spec.projects.iter().map(|project| project.name.as_str()).collect();
    assert_eq!(names, ["web", "app", "partner"]);
    assert_eq!(both.spec.exports.len(), 2);
    assert_eq!(both.spec.exports[0].where_.as_deref(), Some(".team_id != 3"));

    // What one team does not write is no conflict; what the other wrote is.
    let mut clash = data.clone();
    clash["spec"]["exports"][0]["clickhouse"] =
        json!({"url": "http://other.invalid:8123", "database": "analytics"});
    let conflict = server.apply_as("data-team", &clash).await.unwrap_err();
    assert!(conflict.contains("conflict") && conflict.contains("platform-team"), "{conflict}");

    // A team that writes its part no more takes it along.
    let nothing = json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "IngestionPipeline", "metadata": {"name": NAME},
    });
    let without = server.apply_as("data-team", &nothing).await.unwrap();
    server.remove().await;
    assert!(without.spec.transformation.is_none());
    assert_eq!(without.spec.projects.len(), 2);
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    column_definitions: Vec<Column>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Column {
    name: String,
    priority: i32,
}

#[derive(Deserialize)]
struct Row {
    cells: Vec<Value>,
}

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn kubectl_get_shows_what_a_person_wants_to_know() {
    let server = Server::connect().await;
    server.apply(&good()).await.unwrap();
    let path = format!("/apis/penstock.dev/v1alpha1/namespaces/{}/ingestionpipelines", server.namespace);
    let status = json!({"status": {
        "version": "0.1.0", "lag": 42,
        "conditions": [{"type": "Ready", "status": "False", "reason": "KafkaUnreachable", "message": "cannot reach Kafka",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}],
    }});
    // An operator in the cluster may write its own status between the two.
    let mut shown = Vec::new();
    for _ in 0..20 {
        let parameters = PatchParams::default();
        server.pipelines().patch_status(NAME, &parameters, &Patch::Merge(&status)).await.unwrap();
        let request = Request::get(&path)
            .header("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .body(Vec::new())
            .unwrap();
        let table: Table = server.client.request(request).await.unwrap();
        let names: Vec<_> = table.column_definitions.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["Name", "Ready", "Lag", "Reason", "Version", "Age", "Message"]);
        assert_eq!(table.column_definitions.iter().filter(|column| column.priority > 0).count(), 1);
        shown = table.rows[0].cells.clone();
        if shown[2] == 42 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    server.remove().await;
    assert_eq!(
        shown[..5],
        [json!(NAME), json!("False"), json!(42), json!("KafkaUnreachable"), json!("0.1.0")]
    );
    assert!(shown[5].is_string());
    assert_eq!(shown[6], "cannot reach Kafka");
}

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn the_resource_is_found_by_short_name_and_category() {
    let server = Server::connect().await;
    let group = server.client.list_api_group_resources("penstock.dev/v1alpha1").await.unwrap();
    server.remove().await;
    let resource = group.resources.iter().find(|resource| resource.name == "ingestionpipelines").unwrap();
    assert_eq!(resource.short_names, Some(vec!["ipl".to_owned()]));
    assert_eq!(resource.categories, Some(vec!["penstock".to_owned()]));
    assert!(resource.namespaced);
}
