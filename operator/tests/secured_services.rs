//! The operator's own connections to Kafka and ClickHouse with TLS, identities and ACLs: what works, and what each thing in
//! the way is called. Runs on the local platform's listeners.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, api::AttachParams};
use penstock_crds::v1alpha1::Management;
use penstock_operator::{
    credentials::{ClickHouseUser, Hidden, KafkaIdentity, KeyRef, ObjectKind, Trust, Value},
    failure::{Cause, Failure},
    tables::{self, Servers, WantedTable},
    topics::{self, Access, Clusters, GroupReading, Transformed, WantedTopic},
};
use penstock_pipeline::config::StartFrom;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::io::AsyncReadExt;

const FIELD: &str = "spec.kafka.auth.admin.scramSha512";
const SECRET: &str = "hunter2-of-the-tests";

fn address(variable: &str, default: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| default.to_owned())
}

fn plaintext() -> String {
    address("PENSTOCK_TEST_KAFKA", "127.0.0.1:19092")
}

fn sasl() -> String {
    address("PENSTOCK_TEST_KAFKA_SCRAM", "127.0.0.1:19095")
}

fn mtls() -> String {
    address("PENSTOCK_TEST_KAFKA_MTLS", "127.0.0.1:19093")
}

fn https() -> String {
    address("PENSTOCK_TEST_CLICKHOUSE_HTTPS", "https://127.0.0.1:18443")
}

fn key(name: &str, key: &str) -> KeyRef {
    KeyRef { kind: ObjectKind::Secret, name: name.into(), key: key.into() }
}

fn value(name: &str, key_: &str, content: &str) -> Value {
    Value { from: key(name, key_), content: Hidden::new(content.into()) }
}

fn trust(pem: &str) -> Trust {
    Trust::Authorities {
        from: key("services-ca", "ca.crt"),
        field: "spec.kafka.tls.caFrom".into(),
        pem: pem.into(),
    }
}

/// The authority of the platform's services.
fn services() -> Trust {
    let file =
        address("PENSTOCK_TEST_SERVICES_CA", "/var/lib/penstock-platform/pki-services/services-ca.crt");
    trust(&std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}")))
}

/// An authority that nobody knows, and a client certificate of it.
fn stranger() -> (Trust, KafkaIdentity) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "stranger");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let client = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(Vec::new()).unwrap().signed_by(&client, &issuer).unwrap();
    let identity = KafkaIdentity::Mtls {
        certificate: value("stranger", "tls.crt", &certificate.pem()),
        private_key: value("stranger", "tls.key", &client.serialize_pem()),
    };
    (trust(&pem), identity)
}

fn scram(user: &str, password: &str) -> Option<(KafkaIdentity, String)> {
    let identity = KafkaIdentity::ScramSha512 {
        username: value("web-admin", "username", user),
        password: value("web-admin", "password", password),
    };
    Some((identity, FIELD.into()))
}

/// What is in the way of this access, when it has been looked at for as long as a first connection takes.
async fn in_the_way(access: &Access, wanted: &[WantedTopic]) -> Option<Failure> {
    let clusters = Clusters::new();
    let begun = Instant::now();
    loop {
        match topics::observe(&clusters, access, wanted, &[]).await {
            topics::Observation::Reachable(_) => return None,
            topics::Observation::Unreachable { why }
                if why.cause != Cause::Unreachable || begun.elapsed() > Duration::from_secs(60) =>
            {
                return Some(why);
            }
            topics::Observation::Unreachable { .. } => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

#[tokio::test]
#[ignore = "needs the secured listeners of the local platform; make test provides them"]
async fn what_is_in_the_way_of_kafka_is_named() {
    let wanted = topics::stage_topics("test-secured.nobody.", None, Transformed::Absent);
    let (unknown, stranger) = stranger();
    let access = |bootstrap_servers: String, trust: Option<Trust>, identity| Access {
        bootstrap_servers,
        trust,
        identity,
    };
    let refused = Some((stranger, "spec.kafka.auth.admin.mtls".to_owned()));
    let cases = [
        (access("kafka.invalid:9092".into(), None, None), Cause::HostNotResolved, "cannot be resolved"),
        (access(sasl(), None, None), Cause::TlsExpected, "write spec.kafka.tls"),
        (access(plaintext(), Some(services()), None), Cause::TlsNotExpected, "remove spec.kafka.tls"),
        (
            access(sasl(), Some(unknown), scram("penny", SECRET)),
            Cause::CertificateNotTrusted,
            "key \"ca.crt\" of Secret \"services-ca\" (spec.kafka.tls.caFrom)",
        ),
        (
            access(sasl(), Some(Trust::Public), scram("penny", SECRET)),
            Cause::CertificateNotTrusted,
            "not signed by a public authority",
        ),
        (access(sasl(), Some(services()), None), Cause::AuthenticationExpected, "write spec.kafka.auth"),
        (
            access(sasl(), Some(services()), scram("penny", SECRET)),
            Cause::AuthenticationFailed,
            "keys \"username\" and \"password\" of Secret \"web-admin\" (spec.kafka.auth.admin.scramSha512)",
        ),
        (
            access(mtls(), Some(services()), None),
            Cause::ClientCertificateRefused,
            "write spec.kafka.auth with mtls",
        ),
        (
            access(mtls(), Some(services()), refused),
            Cause::ClientCertificateRefused,
            "keys \"tls.crt\" and \"tls.key\" of Secret \"stranger\"",
        ),
    ];
    let mut wrong = Vec::new();
    for (access, cause, says) in cases {
        let begun = Instant::now();
        let found = in_the_way(&access, &wanted).await;
        println!("{cause:?} after {:.1} s: {found:?}", begun.elapsed().as_secs_f64());
        match found {
            Some(found) if found.cause == cause && found.why.contains(says) => {
                assert!(!found.why.contains(SECRET) && !found.why.contains("penny"), "{found}");
            }
            found => wrong.push(format!("{cause:?} {says:?}, and not {found:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs one of Kafka's tools beside the broker.
async fn kafka_tool(client: &Client, script: &str, arguments: &[&str]) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "streaming");
    let script = format!("/opt/kafka/bin/{script}");
    let mut command = vec![script.as_str(), "--bootstrap-server", "127.0.0.1:9092"];
    command.extend(arguments);
    let attach = AttachParams::default().stdout(true).stderr(true);
    let mut process = pods.exec("kafka-0", command, &attach).await.unwrap();
    let mut said = String::new();
    process.stdout().unwrap().read_to_string(&mut said).await.unwrap();
    process.stderr().unwrap().read_to_string(&mut said).await.unwrap();
    let status = process.take_status().unwrap().await;
    let succeeded = status.as_ref().is_some_and(|status| status.status.as_deref() == Some("Success"));
    assert!(succeeded, "{arguments:?}: {status:?} {said}");
}

#[tokio::test]
#[ignore = "needs the secured listeners of the local platform; make test provides them"]
async fn a_missing_acl_is_named_and_with_all_of_them_the_topics_are_made() {
    let client = Client::try_default().await.unwrap();
    let mut id = uuid::Uuid::new_v4().simple().to_string();
    id.truncate(8);
    let (user, prefix) = (format!("operator-{id}"), format!("test-secured-{id}.web."));
    let principal = format!("User:{user}");
    let password = format!("SCRAM-SHA-512=[password={SECRET}]");
    let of_user = ["--alter", "--entity-type", "users", "--entity-name", &user];
    kafka_tool(&client, "kafka-configs.sh", &[&of_user[..], &["--add-config", &password]].concat()).await;

    let access =
        Access { bootstrap_servers: sasl(), trust: Some(services()), identity: scram(&user, SECRET) };
    let wanted = topics::stage_topics(&prefix, None, Transformed::Absent);
    let group = format!("{prefix}consumer-main");
    let reading = [GroupReading {
        group: group.clone(),
        topic: format!("{prefix}captured"),
        start_from: StartFrom::Earliest,
    }];
    let allow = async |operations: &[&str], resource: [&str; 2]| {
        let mut arguments = vec!["--add", "--allow-principal", &principal];
        operations.iter().for_each(|operation| arguments.extend(["--operation", operation]));
        arguments.extend(resource);
        arguments.extend(["--resource-pattern-type", "prefixed"]);
        kafka_tool(&client, "kafka-acls.sh", &arguments).await;
    };

    let denied = in_the_way(&access, &wanted).await.unwrap();
    println!("{denied}");
    assert_eq!(denied.cause, Cause::NotAuthorized);
    for says in [
        "describe topic",
        prefix.as_str(),
        "lacks the ACL Describe on that topic",
        "Secret \"web-admin\"",
        FIELD,
    ] {
        assert!(denied.why.contains(says), "{denied}");
    }

    allow(&["Describe", "AlterConfigs"], ["--topic", &prefix]).await;
    let clusters = Clusters::new();
    let observed = async || match topics::observe(&clusters, &access, &wanted, &reading).await {
        topics::Observation::Reachable(observed) => Ok(observed),
        topics::Observation::Unreachable { why } => Err(why),
    };
    let begun = Instant::now();
    let nothing = loop {
        match observed().await {
            Ok(observed) => break observed,
            Err(why) => assert!(begun.elapsed() < Duration::from_secs(60), "{why}"),
        }
    };
    let plan = topics::plan(&wanted, &nothing.topics, Management::Managed, &BTreeMap::new());
    assert_eq!(plan.actions.len(), wanted.len());
    let refused = topics::apply(&clusters, &access, plan.actions.clone()).await;
    for applied in refused {
        let failure = Failure::from(applied.result.unwrap_err());
        println!("{failure}");
        assert_eq!(failure.cause, Cause::NotAuthorized, "{failure}");
        assert!(failure.why.contains("lacks the ACL Create on that topic"), "{failure}");
    }

    allow(&["Create", "Alter", "Delete", "Read"], ["--topic", &prefix]).await;
    let begun = Instant::now();
    loop {
        let applied = topics::apply(&clusters, &access, plan.actions.clone()).await;
        match applied.into_iter().find_map(|applied| applied.result.err()) {
            None => break,
            Some(why) => assert!(begun.elapsed() < Duration::from_secs(60), "{why}"),
        }
    }
    let begun = Instant::now();
    let made = loop {
        match observed().await {
            Ok(made) if made.topics.len() == wanted.len() => break made,
            other => assert!(begun.elapsed() < Duration::from_secs(60), "{other:?}"),
        }
    };
    assert_eq!(made.denied.len(), 1, "{:?}", made.denied);
    assert!(
        made.denied[0].why.contains(&group)
            && made.denied[0].why.contains("lacks the ACL Describe on that group")
    );
    allow(&["Describe"], ["--group", &prefix]).await;
    let begun = Instant::now();
    loop {
        match observed().await {
            Ok(all) if all.denied.is_empty() => break,
            other => assert!(begun.elapsed() < Duration::from_secs(60), "{other:?}"),
        }
    }

    let names = wanted.iter().map(|topic| topic.name.clone()).collect();
    let deleted = topics::delete(&clusters, &access, names).await.unwrap();
    assert_eq!(deleted.len(), wanted.len());
    for resource in [["--topic", &prefix], ["--group", &prefix]] {
        let mut arguments = vec!["--remove", "--force", "--allow-principal", &principal];
        arguments.extend(resource);
        arguments.extend(["--resource-pattern-type", "prefixed"]);
        kafka_tool(&client, "kafka-acls.sh", &arguments).await;
    }
    kafka_tool(&client, "kafka-configs.sh", &[&of_user[..], &["--delete-config", "SCRAM-SHA-512"]].concat())
        .await;
}

fn clickhouse_access(trust: Trust, user: Option<(&str, &str)>) -> tables::Access {
    let user = user.map(|(name, password)| ClickHouseUser {
        username: value("ch-ddl", "username", name),
        password: value("ch-ddl", "password", password),
        field: "spec.exports[w].clickhouse.auth.ddl".into(),
    });
    tables::Access { trust, user }
}

#[tokio::test]
#[ignore = "needs the secured listeners of the local platform; make test provides them"]
async fn clickhouse_behind_https_is_reached_and_what_is_in_the_way_is_named() {
    let servers = Servers::new();
    let ddl = Some(("penstock-ddl", "ddl-of-the-local-platform"));
    let reader = Some(("penstock-reader", "reader-of-the-local-platform"));
    let database = format!("test_secured_{}", uuid::Uuid::new_v4().simple());
    let table = |url: String| WantedTable {
        url,
        database: database.clone(),
        table: "events".to_owned(),
        cluster: None,
    };
    let nothing = BTreeMap::new();
    let with_tls = https();
    let speaks_no_tls =
        address("PENSTOCK_TEST_CLICKHOUSE", "http://127.0.0.1:18123").replace("http://", "https://");
    let (unknown, _) = stranger();
    let ca = "key \"ca.crt\" of Secret \"services-ca\"";
    let secret =
        "keys \"username\" and \"password\" of Secret \"ch-ddl\" (spec.exports[w].clickhouse.auth.ddl)";
    for (url, access, cause, says) in [
        (with_tls.clone(), clickhouse_access(unknown, ddl), Cause::CertificateNotTrusted, ca),
        (
            with_tls.clone(),
            clickhouse_access(Trust::Public, ddl),
            Cause::CertificateNotTrusted,
            "name its authority in tls.caFrom",
        ),
        (
            with_tls.clone(),
            clickhouse_access(services(), Some(("penstock-ddl", SECRET))),
            Cause::AuthenticationFailed,
            secret,
        ),
        (speaks_no_tls, clickhouse_access(services(), ddl), Cause::TlsNotExpected, "does not speak TLS"),
        (
            "https://clickhouse.invalid:8443".to_owned(),
            clickhouse_access(services(), ddl),
            Cause::HostNotResolved,
            "\"clickhouse.invalid\" cannot be resolved",
        ),
    ] {
        let wanted = table(url);
        let observation = tables::observe(&servers, &wanted, &access, &nothing).await;
        match &observation[&wanted.url] {
            tables::Answer::Unreachable { why } => {
                println!("{why}");
                assert_eq!(why.cause, cause, "{why}");
                assert!(why.why.contains(says) && !why.why.contains(SECRET), "{why}");
            }
            tables::Answer::Reachable(_) => panic!("{cause:?} did not happen"),
        }
    }

    // Who may read and not create is told which grant is missing.
    let wanted = table(with_tls);
    let access = clickhouse_access(services(), ddl);
    let observation = tables::observe(&servers, &wanted, &access, &nothing).await;
    let plan = tables::plan(&wanted, &observation, Management::Managed);
    assert_eq!(plan.changes.len(), 2, "{plan:?}");
    let refused = tables::apply(&servers, &clickhouse_access(services(), reader), plan.changes.clone()).await;
    let failure = Failure::from(refused.into_iter().next().unwrap().result.unwrap_err());
    println!("{failure}");
    assert_eq!(failure.cause, Cause::NotAuthorized, "{failure}");
    assert!(failure.why.contains("lacks a grant; run in ClickHouse: GRANT CREATE DATABASE ON"), "{failure}");
    assert!(!failure.why.contains("penstock-reader"), "{failure}");

    for applied in tables::apply(&servers, &access, plan.changes).await {
        applied.result.unwrap();
    }
    assert!(tables::drop_table(&servers, &wanted, &access).await.unwrap());
    let plain = address("PENSTOCK_TEST_CLICKHOUSE", "http://127.0.0.1:18123");
    let drop_database = format!("DROP DATABASE IF EXISTS {database} SYNC");
    clickhouse::Client::default().with_url(plain).query(&drop_database).execute().await.unwrap();
}
