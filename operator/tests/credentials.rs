//! Credentials on a real API server: told by name when they are wrong, rolled or not when they change, shown nowhere; and
//! pods that a namespace of the restricted Pod Security standard takes.
#![allow(clippy::unwrap_used)]

use std::{
    fmt::Debug,
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use clap::Parser;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount},
    events::v1::Event,
};
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use penstock_crds::IngestionPipeline;
use penstock_operator::{build::CREDENTIALS_ANNOTATION, controller, metrics::Metrics, options::Options};
use penstock_pipeline::{
    config::Identity,
    health::{Health, Kind},
    lifecycle::Shutdown,
    telemetry,
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

const NAME: &str = "web";
/// In every password, which must not be seen anywhere.
const SECRET: &str = "hunter2";
/// The name of a user, which is told to nobody but who reads the log of a library at the level `debug`.
const USER: &str = "penny-of-the-tests";

fn kafka() -> String {
    std::env::var("PENSTOCK_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:19092".to_owned())
}

fn clickhouse() -> String {
    std::env::var("PENSTOCK_TEST_CLICKHOUSE").unwrap_or_else(|_| "http://127.0.0.1:18123".to_owned())
}

/// Everything that the process logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct World {
    client: Client,
    namespace: String,
}

impl World {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        self.api::<K>().list(&ListParams::default()).await.unwrap().items
    }

    async fn text_of<K>(&self) -> String
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Serialize
            + Clone
            + Debug,
    {
        serde_json::to_string(&self.list::<K>().await).unwrap()
    }

    async fn put<K>(&self, object: Value)
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Serialize
            + Clone
            + Debug,
    {
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let parameters = PatchParams::apply("test").force();
        self.api::<K>().patch(&name, &parameters, &Patch::Apply(&object)).await.unwrap();
    }

    async fn secret(&self, name: &str, data: Value) {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data,
        });
        self.put::<Secret>(secret).await;
    }

    async fn patch(&self, spec: Value) {
        let patch = json!({"spec": spec});
        let api = self.api::<IngestionPipeline>();
        api.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }

    /// Reason and message of a condition of the newest generation.
    async fn condition(&self, type_: &str) -> (String, String) {
        let pipeline = self.api::<IngestionPipeline>().get(NAME).await.unwrap();
        let generation = pipeline.metadata.generation;
        let status = pipeline.status.unwrap_or_default();
        status
            .conditions
            .into_iter()
            .find(|condition| condition.type_ == type_ && condition.observed_generation == generation)
            .map_or_else(Default::default, |found| (found.reason, found.message))
    }

    /// The hash of certificates on the pods of each component.
    async fn hashes(&self) -> Vec<Option<String>> {
        let deployments = self.list::<Deployment>().await;
        let annotation = |deployment: &Deployment| {
            let metadata = deployment.spec.template.metadata.as_ref()?;
            metadata.annotations.as_ref()?.get(CREDENTIALS_ANNOTATION).cloned()
        };
        deployments.iter().map(annotation).collect()
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !holds().await {
            if begun.elapsed() > Duration::from_secs(90) {
                let pipeline = self.api::<IngestionPipeline>().get(NAME).await.unwrap();
                panic!("90 s and not yet: {what}; {:#?}", pipeline.status.map(|status| status.conditions));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("{what}: after {:.1} s", begun.elapsed().as_secs_f64());
    }

    async fn until_reason(&self, type_: &str, reason: &str, says: &[&str]) {
        self.until(&format!("{type_} says {reason}"), async || {
            let (is, message) = self.condition(type_).await;
            is == reason && says.iter().all(|part| message.contains(part))
        })
        .await;
    }
}

fn authority() -> String {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem()
}

#[tokio::test]
#[ignore = "needs an API server, Kafka and ClickHouse; make test provides them"]
async fn credentials_are_told_by_name_renewed_as_they_should_be_and_shown_nowhere() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let client = Client::try_default().await.unwrap();
    let mut id = uuid::Uuid::new_v4().simple().to_string();
    id.truncate(8);
    let world = World { client: client.clone(), namespace: format!("test-credentials-{id}") };
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let restricted = json!({"metadata": {
        "name": world.namespace,
        "labels": {"pod-security.kubernetes.io/enforce": "restricted"},
    }});
    namespaces.create(&PostParams::default(), &serde_json::from_value(restricted).unwrap()).await.unwrap();

    let options = Options::parse_from([
        "penstock-operator",
        "--operator-class",
        "test",
        "--watch-namespace",
        &world.namespace,
        "--pipeline-image",
        "localhost/nowhere/pipeline",
        "--pipeline-image-pull-policy",
        "Never",
        "--resync-seconds",
        "2",
    ]);
    let shutdown = Shutdown::new();
    let identity = Identity {
        namespace: world.namespace.clone(),
        pipeline: String::new(),
        component: "operator".into(),
    };
    let metrics = Metrics::new(&telemetry::Metrics::new(&identity));
    let health = Health::new(shutdown.clone());
    let ready = health.check(Kind::Readiness, "watches", "not yet");
    let alive = health.heartbeat(Kind::Liveness, "queue", Duration::from_secs(90));
    let stop = shutdown.clone();
    let operator = tokio::spawn(async move {
        let stop = async move { stop.requested().await };
        controller::run(client, &options, "test".into(), metrics, ready, alive, stop).await.unwrap();
    });

    let database = world.namespace.replace('-', "_");
    let plain = json!({"url": clickhouse(), "database": database});
    let pipeline = json!({
        "apiVersion": "penstock.dev/v1alpha1", "kind": "IngestionPipeline",
        "metadata": {"name": NAME, "labels": {"penstock.dev/operator-class": "test"}},
        "spec": {
            "version": "0.1.0",
            "projects": [{"id": 1, "name": "web", "token": "phc_web"}],
            "kafka": {"bootstrapServers": kafka(), "topics": {"defaults": {"partitions": 1}, "dead-letter": {"partitions": 1}}},
            "exports": [{"name": "warehouse", "clickhouse": plain}],
            "deletionPolicy": {"topics": "Delete", "tables": "Delete"},
        },
    });
    world
        .api::<IngestionPipeline>()
        .create(&PostParams::default(), &serde_json::from_value(pipeline).unwrap())
        .await
        .unwrap();

    // A namespace of the restricted standard takes the pods; it would not take others.
    world.until("every component has its pod", async || world.list::<Pod>().await.len() >= 3).await;
    let privileged = json!({"metadata": {"name": "privileged"}, "spec": {"containers": [
        {"name": "c", "image": "i", "securityContext": {"privileged": true}},
    ]}});
    let refused = world
        .api::<Pod>()
        .create(
            &PostParams { dry_run: true, ..Default::default() },
            &serde_json::from_value(privileged).unwrap(),
        )
        .await;
    assert!(refused.unwrap_err().to_string().contains("restricted"), "the namespace is not restricted");

    // Secrets that are not there.
    let auth = json!({
        "data": {"scramSha512": {"secret": "web-kafka"}},
        "admin": {"scramSha512": {"secret": "web-admin"}},
    });
    let secured = json!({
        "kafka": {"tls": {"caFrom": {"secret": "kafka-ca"}}, "auth": auth},
        "exports": [{"name": "warehouse", "clickhouse": {
            "url": clickhouse(), "database": database,
            "auth": {"data": {"secret": "ch-insert"}, "ddl": {"secret": "ch-ddl"}, "plainHttp": "Allow"},
        }}],
    });
    world.patch(secured).await;
    world
        .until_reason(
            "Stalled",
            "ReferenceMissing",
            &[
                "spec.kafka.tls.caFrom names Secret \"kafka-ca\"",
                "\"ch-ddl\"",
                "spec.kafka.auth.admin.scramSha512",
            ],
        )
        .await;
    world.secret("kafka-ca", json!({"ca.crt": authority()})).await;
    for name in ["web-kafka", "web-admin", "ch-insert"] {
        world.secret(name, json!({"username": USER, "password": format!("{SECRET}-{name}")})).await;
    }
    world.secret("ch-ddl", json!({"username": USER})).await;
    world
        .until_reason(
            "Stalled",
            "ReferenceKeyMissing",
            &["the key \"password\" of Secret \"ch-ddl\"", "only username"],
        )
        .await;
    world.secret("ch-ddl", json!({"username": USER, "password": format!("{SECRET}-ddl")})).await;

    // Credentials that are wrong: the listener does not speak TLS, and ClickHouse does not know the user.
    world.until_reason("KafkaReady", "TlsNotExpected", &["remove spec.kafka.tls"]).await;
    world
        .until_reason(
            "ClickHouseReady",
            "AuthenticationFailed",
            &[
                "keys \"username\" and \"password\" of Secret \"ch-ddl\"",
                "spec.exports[warehouse].clickhouse.auth.ddl",
            ],
        )
        .await;
    world.until_reason("Stalled", "KafkaTlsNotExpected", &[]).await;

    // The pods have them all the same, and roll with a new certificate, not with a new password.
    world
        .until("the pods have certificates", async || world.hashes().await.iter().all(Option::is_some))
        .await;
    let before = world.hashes().await;
    world.secret("web-kafka", json!({"username": USER, "password": format!("{SECRET}-new")})).await;
    world.secret("kafka-ca", json!({"ca.crt": authority()})).await;
    world
        .until("the pods roll", async || {
            let after = world.hashes().await;
            after.iter().zip(&before).all(|(after, before)| after.is_some() && after != before)
        })
        .await;
    let generations = async || {
        let deployments = world.list::<Deployment>().await;
        deployments.iter().map(|deployment| deployment.metadata.generation).collect::<Vec<_>>()
    };
    let settled = generations().await;
    world.secret("web-kafka", json!({"username": USER, "password": format!("{SECRET}-newest")})).await;
    // That the operator has looked at the new password is seen by what it does after it, in order.
    world.patch(json!({"capture": {"service": {"port": 8080}}})).await;
    world
        .until("the operator has gone on", async || {
            let service = world.api::<Service>().get("web-capture").await.unwrap();
            service.spec.unwrap().ports.unwrap()[0].port == 8080
        })
        .await;
    assert_eq!(generations().await, settled, "a password rolled pods");

    // Shown nowhere.
    let texts = [
        ("IngestionPipeline", world.text_of::<IngestionPipeline>().await),
        ("Deployment", world.text_of::<Deployment>().await),
        ("ReplicaSet", world.text_of::<ReplicaSet>().await),
        ("Pod", world.text_of::<Pod>().await),
        ("ConfigMap", world.text_of::<ConfigMap>().await),
        ("Service", world.text_of::<Service>().await),
        ("ServiceAccount", world.text_of::<ServiceAccount>().await),
        ("Event", world.text_of::<Event>().await),
        ("log", String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned()),
    ];
    for (what, text) in &texts {
        assert!(text.len() > 100, "{what} is empty: nothing was looked at");
        assert_eq!(
            text.find(SECRET).map(|at| &text[at.saturating_sub(200)..at]),
            None,
            "{what} shows a password"
        );
        if *what != "log" {
            assert_eq!(
                text.find(USER).map(|at| &text[at.saturating_sub(200)..at]),
                None,
                "{what} shows a user"
            );
        }
    }
    println!("{:?}", texts.map(|(what, text)| (what, text.len())));

    // Gone with topics and tables, by the credentials that work.
    world.patch(json!({"kafka": {"tls": null, "auth": null}, "exports": [{"name": "warehouse", "clickhouse": plain}]})).await;
    world.until_reason("KafkaReady", "AsSpecified", &[]).await;
    world.api::<IngestionPipeline>().delete(NAME, &DeleteParams::default()).await.unwrap();
    world
        .until("the pipeline is gone", async || {
            world.api::<IngestionPipeline>().get_opt(NAME).await.unwrap().is_none()
        })
        .await;
    let drop_database = format!("DROP DATABASE IF EXISTS {database} SYNC");
    clickhouse::Client::default().with_url(clickhouse()).query(&drop_database).execute().await.unwrap();
    shutdown.request("the test is over");
    tokio::time::timeout(Duration::from_secs(20), operator)
        .await
        .expect("the operator stops when asked")
        .unwrap();
    namespaces.delete(&world.namespace, &DeleteParams::default()).await.unwrap();
}
