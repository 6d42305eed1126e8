//! What `kubectl apply` refuses, and what it then says.

use serde_json::{Value, json};

use crate::server::{Server, good_but};

/// A change that spoils a good pipeline, and what the message must say: where, and what to write.
struct Refusal {
    changes: Vec<(&'static str, Value)>,
    says: &'static [&'static str],
}

fn refused(pointer: &'static str, value: Value, says: &'static [&'static str]) -> Refusal {
    Refusal { changes: vec![(pointer, value)], says }
}

impl Refusal {
    fn says(mut self, says: &'static [&'static str]) -> Self {
        self.says = says;
        self
    }
}

fn names_and_projects() -> Vec<Refusal> {
    vec![
        refused(
            "/metadata/name",
            json!("shop.web"),
            &["metadata.name must be at most 45", "Services are named by it"],
        ),
        refused("/metadata/name", json!("0shop"), &["metadata.name must be", "beginning with a letter"]),
        refused("/metadata/name", json!("a".repeat(46)), &["metadata.name must be at most 45"]),
        Refusal {
            changes: vec![
                ("/metadata/name", json!("a".repeat(40))),
                ("/spec/exports/0/name", json!("b".repeat(16))),
            ],
            says: &["at most 55 characters together", "shorten one"],
        },
        refused("/spec/projects", json!([]), &["spec.projects", "at least 1 item"]),
        refused("/spec/projects/1/id", json!(1), &["spec.projects[1]", "Duplicate value", "\"id\":1"]),
        refused("/spec/projects/1/name", json!("web"), &["spec.projects", "two projects have the same name"]),
        Refusal {
            changes: vec![
                ("/spec/projects/1/tokenFrom", Value::Null),
                ("/spec/projects/1/token", json!("phc_web")),
            ],
            says: &["spec.projects", "two projects have the same token"],
        },
        refused("/spec/projects/0/id", json!(0), &["spec.projects[0].id", "greater than or equal to 1"]),
        refused(
            "/spec/projects/0/name",
            json!("Web Shop"),
            &["spec.projects[0].name", "for example web-shop"],
        ),
        refused(
            "/spec/projects/0/token",
            Value::Null,
            &["spec.projects[0]", "exactly one of token and tokenFrom"],
        ),
        refused(
            "/spec/projects/0/tokenFrom",
            json!({"secret": "web", "key": "token"}),
            &["spec.projects[0]", "exactly one of token and tokenFrom"],
        ),
        refused("/spec/projects/0/token", json!("phc web"), &["spec.projects[0].token", "without spaces"]),
        refused(
            "/spec/projects/0/token",
            json!("phx_personal"),
            &["a personal API key (phx_…) is not a project token"],
        ),
        refused("/spec/projects/0/token", json!("x".repeat(65)), &["spec.projects[0].token", "64"]),
        refused("/spec/projects/1/tokenFrom/secret", json!("App"), &["secret must be the name of an object"]),
    ]
}

fn kafka_and_topics() -> Vec<Refusal> {
    vec![
        refused(
            "/spec/kafka/bootstrapServers",
            json!("kafka"),
            &["host:port", "for example kafka.streaming:9092"],
        ),
        refused("/spec/kafka/bootstrapServers", json!("http://kafka:9092"), &["host:port"]),
        refused(
            "/spec/kafka/topicPrefix",
            json!("shop/web"),
            &["as Kafka allows in topic names", "shop.web."],
        ),
        refused("/spec/kafka/topicPrefix", json!("a".repeat(201)), &["spec.kafka.topicPrefix", "200"]),
        refused(
            "/spec/kafka/management",
            json!("Somebody"),
            &["spec.kafka.management", "\"Managed\", \"External\""],
        ),
        refused(
            "/spec/kafka/topics/defaults/partitions",
            json!(0),
            &["partitions", "greater than or equal to 1"],
        ),
        refused("/spec/kafka/topics/defaults/partitions", json!(10_001), &["less than or equal to 10000"]),
        refused("/spec/kafka/topics/defaults/retention", json!("3 days"), &["500ms, 30s, 12h or 7d"]),
        refused("/spec/kafka/topics/defaults/retention", json!("0s"), &["a duration of 1m to 3650d"]),
        refused("/spec/kafka/topics/defaults/retention", json!("9999999999d"), &["500ms, 30s, 12h or 7d"]),
        refused(
            "/spec/kafka/topics/defaults/config/retention.ms",
            json!("1000"),
            &["spec.kafka.topics.defaults", "remove retention.ms"],
        ),
        refused(
            "/spec/kafka/topics/defaults/config/cleanup.policy",
            json!("compact"),
            &["cleanup.policy must stay delete", "remove it from config"],
        ),
        refused(
            "/spec/kafka/topics/defaults/config/min.insync.replicas",
            json!("4"),
            &["lower it, or raise replicationFactor"],
        ),
        refused(
            "/spec/kafka/topics/defaults/config/Segment Bytes",
            json!("1"),
            &["for example max.message.bytes"],
        ),
        refused("/spec/kafka/topics/defaults/config/segment.bytes", json!(1), &["must be of type string"]),
    ]
}

fn workloads() -> Vec<Refusal> {
    vec![
        refused(
            "/spec/version",
            json!("v1 beta"),
            &["spec.version", "the tag of an image, for example 0.1.0"],
        ),
        refused(
            "/spec/defaults/replicas",
            json!(-1),
            &["spec.defaults.replicas", "greater than or equal to 0"],
        ),
        refused(
            "/spec/capture/replicas",
            json!(1001),
            &["spec.capture.replicas", "less than or equal to 1000"],
        ),
        refused("/spec/defaults/env/0/name", json!("RUST_LOG"), &["use logLevel"]),
        refused(
            "/spec/defaults/env/-",
            json!({"name": "HTTPS_PROXY", "value": "x"}),
            &["Duplicate value", "HTTPS_PROXY"],
        ),
        refused(
            "/spec/defaults/podLabels/app.kubernetes.io~1name",
            json!("x"),
            &["are set by the operator; remove them"],
        ),
        refused("/spec/defaults/logLevel", json!("very loud"), &["info,penstock_pipeline=debug"]),
        refused(
            "/spec/defaults/resources/requests/cpu",
            json!("a lot"),
            &["spec.defaults.resources.requests[cpu]", "for example 100m, 0.5"],
        ),
        refused(
            "/spec/defaults/tolerations",
            json!([{"tolerationSeconds": "1"}]),
            &["must be of type integer"],
        ),
        refused("/spec/capture/maxBodySize", json!("10MB"), &["for example 65536, 64Mi or 1Gi"]),
        refused("/spec/capture/maxBodySize", json!("2Gi"), &["1Ki to 1Gi"]),
        refused("/spec/capture/maxBodySize", json!(-1), &["1Ki to 1Gi"]),
        refused("/spec/capture/maxConcurrentRequests", json!(0), &["greater than or equal to 1"]),
        refused("/spec/capture/service/port", json!(65_536), &["less than or equal to 65535"]),
        refused(
            "/spec/capture/service/type",
            json!("Ingress"),
            &["\"ClusterIP\", \"NodePort\", \"LoadBalancer\""],
        ),
        refused("/spec/kafka/topics", json!("many"), &["spec.kafka.topics", "must be of type object"]),
        refused("/spec/transform", json!({"steps": []}), &["unknown field", "spec.transform"]),
    ]
}

fn steps() -> Vec<Refusal> {
    vec![
        refused("/spec/transformation/steps/1/name", json!("drop-bots"), &["Duplicate value", "drop-bots"]),
        refused(
            "/spec/transformation/steps/0/name",
            json!("drop bots"),
            &["name of a step", "for example web-shop"],
        ),
        refused(
            "/spec/transformation/steps/0/vrlFrom",
            json!({"configMap": "vrl", "key": "x"}),
            &["spec.transformation.steps[0]", "exactly one of vrl and vrlFrom"],
        ),
        refused("/spec/transformation/steps/0/vrl", Value::Null, &["exactly one of vrl and vrlFrom"]),
        refused("/spec/transformation/steps/0/vrl", json!(" \n\t"), &["vrl must not be empty"]),
        refused("/spec/transformation/steps/0/onError", json!("Retry"), &["\"DeadLetter\", \"Pass\""]),
        refused("/spec/transformation/eventTimeBudget", json!("1m"), &["a duration of 1ms to 10s"]),
    ]
}

fn exports() -> Vec<Refusal> {
    vec![
        refused("/spec/exports", json!([]), &["spec.exports", "at least 1 item"]),
        refused(
            "/spec/exports/1/name",
            json!("warehouse"),
            &["spec.exports[1]", "Duplicate value", "warehouse"],
        ),
        refused("/spec/exports/0/name", json!("Warehouse"), &["spec.exports[0].name", "lower-case"]),
        refused(
            "/spec/exports/0/clickhouse",
            Value::Null,
            &["spec.exports[0]", "exactly one of clickhouse and webhook"],
        ),
        refused(
            "/spec/exports/0/webhook",
            json!({"url": "https://hooks.invalid"}),
            &["spec.exports[0]", "exactly one of clickhouse and webhook"],
        ),
        refused(
            "/spec/exports/1/block",
            json!({"maxRows": 1}),
            &["spec.exports[1]", "block belongs to a clickhouse export"],
        ),
        refused("/spec/exports/0/block/maxRows", json!("2M"), &["spec.exports[0].block.maxRows", "1 to 1M"]),
        refused("/spec/exports/0/block/maxRows", json!(0), &["1 to 1M"]),
        refused("/spec/exports/0/block/maxRows", json!("lots"), &["for example 1000, 100k or 1M"]),
        refused("/spec/exports/0/block/maxSize", json!("1Gi"), &["1Ki to 256Mi"]),
        refused("/spec/exports/0/block/maxAge", json!("1h"), &["a duration of 10ms to 5m"]),
        refused("/spec/exports/0/startFrom", json!("Yesterday"), &["\"Earliest\", \"Latest\""]),
        refused("/spec/exports/1/where", json!("  "), &["where must not be empty; leave the field out"]),
        refused(
            "/spec/exports/0/clickhouse/url",
            json!("clickhouse:8123"),
            &["for example https://clickhouse.warehouse:8443"],
        ),
        refused("/spec/exports/0/clickhouse/url", json!("tcp://clickhouse:9000"), &["an http or https URL"]),
        refused("/spec/exports/0/clickhouse/url", json!("http://u:p@ch:8123"), &["without user, password"]),
        refused(
            "/spec/exports/0/clickhouse/database",
            json!("my db"),
            &["database must be letters, digits and '_'"],
        ),
        refused("/spec/exports/0/clickhouse/database", json!("System"), &["one of ClickHouse's own"]),
        refused(
            "/spec/exports/0/clickhouse/table",
            json!("1events"),
            &["table must be", "not beginning with a digit"],
        ),
        Refusal {
            changes: vec![
                ("/spec/exports/1/webhook/url", json!("http://hooks.invalid")),
                ("/spec/exports/1/webhook/allowedNetworks", Value::Null),
            ],
            says: &["url must begin with https://", "named in allowedNetworks"],
        },
        refused(
            "/spec/exports/1/webhook/url",
            json!("https://u:p@hooks.invalid"),
            &["without user and password"],
        ),
        refused("/spec/exports/1/webhook/allowedNetworks", json!(["10.0.0.1"]), &["CIDR", "10.0.0.0/8"]),
        refused(
            "/spec/exports/1/webhook/headers/Webhook-Id",
            json!("1"),
            &["that delivery itself sets", "remove them"],
        ),
        refused("/spec/exports/1/webhook/headers/x y", json!("1"), &["the keys of headers must be letters"]),
        refused(
            "/spec/exports/1/webhook/headers/x-source",
            json!("a\r\nb: c"),
            &["spec.exports[1].webhook.headers"],
        ),
        refused(
            "/spec/exports/1/webhook/retry/maxBackoff",
            json!("100ms"),
            &["minBackoff must not be longer than maxBackoff"],
        ),
        refused("/spec/exports/1/webhook/retry/maxAttempts", json!(0), &["greater than or equal to 1"]),
        refused("/spec/exports/1/webhook/timeout", json!("5"), &["500ms, 30s, 12h or 7d"]),
        refused("/spec/deletionPolicy/topics", json!("Keep"), &["\"Retain\", \"Delete\""]),
        refused("/spec/exports", Value::Null, &["spec.exports", "Required value"]),
        refused("/spec/kafka", Value::Null, &["spec.kafka", "Required value"]),
    ]
}

fn kafka_security() -> Vec<Refusal> {
    const BOTH: &str = "write exactly one of scramSha512, mtls and oauthBearer";
    const NEEDS_ADMIN: &str = "the operator has no token of the components' ServiceAccounts";
    let scram = || json!({"scramSha512": {"secret": "web-kafka"}});
    let mtls = || json!({"mtls": {"secret": "web-kafka"}});
    let pod_token = || json!({"oauthBearer": {"serviceAccountToken": {"audience": "kafka"}}});
    let auth = |auth: Value| Refusal {
        changes: vec![("/spec/kafka/tls", json!({})), ("/spec/kafka/auth", auth)],
        says: &[],
    };
    vec![
        refused("/spec/kafka/tls", json!({"caFrom": {}}), &["spec.kafka.tls.caFrom", "secret and configMap"]),
        refused(
            "/spec/kafka/tls",
            json!({"caFrom": {"secret": "a", "configMap": "b"}}),
            &["spec.kafka.tls.caFrom", "write exactly one of secret and configMap"],
        ),
        refused(
            "/spec/kafka/tls",
            json!({"caFrom": {"secret": "a", "key": "ca crt"}}),
            &["spec.kafka.tls.caFrom.key", "for example ca.crt"],
        ),
        refused("/spec/kafka/tls", json!({"insecure": true}), &["unknown field", "spec.kafka.tls.insecure"]),
        refused("/spec/kafka/auth", json!({}), &["spec.kafka.auth.data", "Required value"]),
        auth(json!({"data": {}})).says(&["spec.kafka.auth.data", BOTH]),
        auth(json!({"data": {"scramSha512": {"secret": "a"}, "mtls": {"secret": "b"}}})).says(&[BOTH]),
        auth(json!({"data": scram(), "admin": {}})).says(&["spec.kafka.auth.admin", BOTH]),
        auth(json!({"data": {"scramSha512": {}}})).says(&["scramSha512.secret", "Required value"]),
        auth(json!({"data": {"scramSha512": {"secret": "Web"}}})).says(&["secret must be the name"]),
        auth(json!({"data": {"scramSha512": {"secret": "a", "passwordKey": "pass word"}}}))
            .says(&["passwordKey must be", "for example password"]),
        auth(json!({"data": {"mtls": {"secret": "a", "privateKeyKey": "/"}}}))
            .says(&["privateKeyKey must be", "for example tls.key"]),
        auth(json!({"data": {"oauthBearer": {}}})).says(&["exactly one of serviceAccountToken and secret"]),
        auth(json!({"data": {"oauthBearer": {"serviceAccountToken": {"audience": "kafka"}, "key": "x"}},
            "admin": scram()}))
        .says(&["key belongs to secret"]),
        auth(json!({"data": {"oauthBearer": {"serviceAccountToken": {"audience": "a b"}}}, "admin": scram()}))
            .says(&["audience must be", "for example kafka"]),
        auth(json!({"data": {"oauthBearer": {"serviceAccountToken": {"audience": "a", "expirationSeconds": 1}}},
            "admin": scram()}))
        .says(&["expirationSeconds", "greater than or equal to 600"]),
        auth(json!({"data": pod_token()})).says(&[NEEDS_ADMIN, "write admin with scramSha512, mtls"]),
        auth(json!({"data": scram(), "admin": pod_token()})).says(&[NEEDS_ADMIN]),
        // Without TLS.
        refused("/spec/kafka/auth", json!({"data": mtls()}), &["mtls is a part of TLS", "tls: {caFrom:"]),
        refused("/spec/kafka/auth", json!({"data": scram(), "admin": mtls()}), &["mtls is a part of TLS"]),
        refused(
            "/spec/kafka/auth",
            json!({"data": pod_token(), "admin": scram()}),
            &["oauthBearer sends its token as it is", "write tls as well"],
        ),
    ]
}

fn clickhouse_security() -> Vec<Refusal> {
    let auth = "/spec/exports/0/clickhouse/auth";
    vec![
        refused(
            "/spec/exports/0/clickhouse/tls",
            json!({"caFrom": {"secret": "ca"}}),
            &["spec.exports[0].clickhouse", "tls needs an https URL", "write url: https://"],
        ),
        refused(
            auth,
            json!({"data": {"secret": "ch"}}),
            &["spec.exports[0].clickhouse", "readable to everybody on the way", "auth.plainHttp: Allow"],
        ),
        refused(auth, json!({"data": {"secret": "ch"}, "plainHttp": "Refuse"}), &["write url: https://"]),
        refused(auth, json!({"data": {"secret": "ch"}, "plainHttp": "Yes"}), &["\"Refuse\", \"Allow\""]),
        refused(auth, json!({"plainHttp": "Allow"}), &["clickhouse.auth.data", "Required value"]),
        refused(auth, json!({"data": {"secret": "C"}, "plainHttp": "Allow"}), &["secret must be the name"]),
        refused(
            auth,
            json!({"data": {"secret": "c"}, "ddl": {"secret": "d", "usernameKey": "a b"}, "plainHttp": "Allow"}),
            &["clickhouse.auth.ddl.usernameKey", "for example username"],
        ),
    ]
}

#[tokio::test]
#[ignore = "needs an API server; make test provides one"]
async fn bad_input_is_refused_with_a_message_that_says_what_to_write() {
    let server = Server::connect().await;
    let mut wrong = Vec::new();
    let all = [
        names_and_projects(),
        kafka_and_topics(),
        workloads(),
        steps(),
        exports(),
        kafka_security(),
        clickhouse_security(),
    ];
    for refusal in all.into_iter().flatten() {
        match server.judge_new(&good_but(&refusal.changes)).await {
            Ok(_) => wrong.push(format!("taken: {:?}", refusal.changes)),
            Err(message) => {
                for expected in refusal.says.iter().filter(|expected| !message.contains(**expected)) {
                    wrong.push(format!("{:?}\n  lacks {expected:?}\n  in {message}", refusal.changes));
                }
            }
        }
    }
    server.remove().await;
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
