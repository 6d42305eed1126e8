//! What of a stored pipeline may change, and what may not.

use serde_json::{Value, json};

use crate::server::{Server, good, good_but};

/// The messages of all changes that the API server took although it should not, or refused for another reason.
async fn all_refused(server: &Server, changes: &[(&[(&str, Value)], &str)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (change, says) in changes {
        match server.judge(&good_but(change)).await {
            Ok(_) => wrong.push(format!("taken: {change:?}")),
            Err(message) if !message.contains(says) => {
                wrong.push(format!("{change:?} lacks {says:?}: {message}"))
            }
            Err(_) => {}
        }
    }
    wrong
}

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn what_names_topics_and_tables_cannot_change() {
    let server = Server::connect().await;
    server.apply(&good()).await.unwrap();
    let clickhouse = |database: &str| json!({"url": "http://clickhouse.invalid:8123", "database": database});
    let other_kind = "cannot become another kind";
    let table = "database and table of an export cannot be changed";
    let wrong = all_refused(
        &server,
        &[
            (
                &[("/spec/kafka/topicPrefix", json!("other."))],
                "topicPrefix cannot be set, changed or removed",
            ),
            (&[("/spec/kafka/topicPrefix", Value::Null)], "topicPrefix cannot be set, changed or removed"),
            (&[("/spec/exports/0/clickhouse", clickhouse("other"))], table),
            (&[("/spec/exports/0/clickhouse/table", json!("other"))], table),
            (
                &[
                    ("/spec/exports/1/webhook", Value::Null),
                    ("/spec/exports/1/clickhouse", clickhouse("crm")),
                ],
                other_kind,
            ),
            // The name, not the place in the list, tells which export is meant.
            (
                &[(
                    "/spec/exports",
                    json!([
                        {"name": "crm", "webhook": {"url": "https://hooks.invalid"}},
                        {"name": "warehouse", "clickhouse": clickhouse("other")},
                    ]),
                )],
                table,
            ),
        ],
    )
    .await;
    server.remove().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn a_prefix_cannot_be_set_later() {
    let server = Server::connect().await;
    server.apply(&good_but(&[("/spec/kafka/topicPrefix", Value::Null)])).await.unwrap();
    let refused = server.judge(&good()).await;
    let unchanged = server
        .judge(&good_but(&[("/spec/kafka/topicPrefix", Value::Null), ("/spec/version", json!("0.2.0"))]))
        .await;
    server.remove().await;
    assert!(refused.unwrap_err().contains("topicPrefix cannot be set"));
    unchanged.unwrap();
}

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn everything_else_may_change() {
    let server = Server::connect().await;
    server.apply(&good()).await.unwrap();
    let clickhouse = json!({"url": "https://other.invalid:8443", "database": "analytics", "table": "events"});
    let changes: &[&[(&str, Value)]] = &[
        &[("/spec/version", Value::Null)],
        &[("/spec/kafka/bootstrapServers", json!("other.invalid:9092"))],
        &[("/spec/kafka/topics/defaults/partitions", json!(24))],
        // To write the default out is no change.
        &[("/spec/exports/0/clickhouse", clickhouse)],
        &[("/spec/exports/1/webhook/url", json!("https://other.invalid"))],
        &[("/spec/exports/0/name", json!("another"))],
        &[("/spec/exports", json!([good()["spec"]["exports"][1], good()["spec"]["exports"][0]]))],
        &[("/spec/projects", json!([{"id": 9, "name": "web", "token": "phc_new"}]))],
        &[("/spec/transformation", Value::Null)],
        &[("/spec/defaults", Value::Null)],
        &[("/spec/deletionPolicy", json!({"topics": "Delete"}))],
    ];
    let mut wrong = Vec::new();
    for change in changes {
        if let Err(message) = server.judge(&good_but(change)).await {
            wrong.push(format!("{change:?}: {message}"));
        }
    }
    server.remove().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
