//! The operator against a real API server, Kafka and ClickHouse: what it makes, puts back, refuses, leaves alone and takes
//! away. Its pods' image does not exist, so nothing here needs a node.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use clap::Parser;
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount},
        events::v1::Event,
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use penstock_crds::{IngestionPipeline, IngestionPipelineStatus};
use penstock_operator::{
    controller,
    metrics::Metrics,
    options::Options,
    sources,
    topics::{Access, Clusters, Observation, Transformed, observe, stage_topics},
};
use penstock_pipeline::{
    config::Identity,
    health::{Health, Kind},
    lifecycle::Shutdown,
    telemetry,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const NAME: &str = "web";
const COMPONENTS: [&str; 4] = ["capture", "consumer-main", "transformation", "export-warehouse"];

fn kafka() -> String {
    std::env::var("PENSTOCK_TEST_KAFKA").unwrap_or_else(|_| "127.0.0.1:19092".to_owned())
}

fn clickhouse() -> String {
    std::env::var("PENSTOCK_TEST_CLICKHOUSE").unwrap_or_else(|_| "http://127.0.0.1:18123".to_owned())
}

/// A namespace with an operator of its own, in this process.
struct World {
    client: Client,
    namespace: String,
    shutdown: Shutdown,
    operator: tokio::task::JoinHandle<()>,
}

impl World {
    async fn new(test: &str) -> Self {
        let client = Client::try_default().await.unwrap();
        let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
        let crd = penstock_crds::crd();
        if crds.get_opt(&crd.name_any()).await.unwrap().is_none() {
            // Another test may be faster.
            let _ = crds.create(&PostParams::default(), &crd).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        let mut id = uuid::Uuid::new_v4().simple().to_string();
        id.truncate(8);
        let namespace = format!("test-{test}-{id}");
        let object: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();

        let options = Options::parse_from([
            "penstock-operator",
            "--operator-class",
            "test",
            "--watch-namespace",
            &namespace,
            "--pipeline-image",
            "localhost/nowhere/pipeline",
            "--pipeline-image-pull-policy",
            "Never",
            "--resync-seconds",
            "2",
        ]);
        let shutdown = Shutdown::new();
        let identity =
            Identity { namespace: namespace.clone(), pipeline: String::new(), component: "operator".into() };
        let metrics = Metrics::new(&telemetry::Metrics::new(&identity));
        let health = Health::new(shutdown.clone());
        let ready = health.check(Kind::Readiness, "watches", "not yet");
        let alive = health.heartbeat(Kind::Liveness, "queue", Duration::from_secs(90));
        let (run_client, stop) = (client.clone(), shutdown.clone());
        let operator = tokio::spawn(async move {
            let stop = async move { stop.requested().await };
            controller::run(run_client, &options, "test".into(), metrics, ready, alive, stop).await.unwrap();
        });
        Self { client, namespace, shutdown, operator }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Partitions, and what becomes of topics and tables, as given.
    async fn create(&self, policy: &str) {
        let object = json!({
            "apiVersion": "penstock.dev/v1alpha1",
            "kind": "IngestionPipeline",
            "metadata": {"name": NAME, "labels": {"penstock.dev/operator-class": "test"}},
            "spec": {
                "version": "0.1.0",
                "projects": [{"id": 1, "name": "web", "token": "phc_web"}],
                "kafka": {
                    "bootstrapServers": kafka(),
                    "topics": {"defaults": {"partitions": 2}, "dead-letter": {"partitions": 2}},
                },
                "transformation": {"steps": [{"name": "mark", "vrl": ".properties.seen = true"}]},
                "exports": [{
                    "name": "warehouse",
                    "clickhouse": {"url": clickhouse(), "database": self.database()},
                }],
                "deletionPolicy": {"topics": policy, "tables": policy},
            },
        });
        let object: IngestionPipeline = serde_json::from_value(object).unwrap();
        self.api().create(&PostParams::default(), &object).await.unwrap();
        self.until("every Deployment is there", async || self.list::<Deployment>().await.len() == 4).await;
        self.until("the status speaks of it", async || {
            self.pipeline().await.status.is_some_and(|status| !status.components.is_empty())
        })
        .await;
    }

    fn database(&self) -> String {
        self.namespace.replace('-', "_")
    }

    async fn patch(&self, spec: Value) {
        let patch = json!({"spec": spec});
        self.api::<IngestionPipeline>()
            .patch(NAME, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .unwrap();
    }

    async fn pipeline(&self) -> IngestionPipeline {
        self.api::<IngestionPipeline>().get(NAME).await.unwrap()
    }

    async fn list<K>(&self) -> Vec<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let ours = ListParams::default().labels("app.kubernetes.io/managed-by=penstock-operator");
        self.api::<K>().list(&ours).await.unwrap().items
    }

    /// Status and reason of a condition.
    async fn condition(&self, type_: &str) -> (String, String, String) {
        let status = self.pipeline().await.status.unwrap_or_default();
        let found = status.conditions.into_iter().find(|condition| condition.type_ == type_);
        found.map_or_else(Default::default, |found| (found.status, found.reason, found.message))
    }

    /// Generations of the Deployments: they move when the API server has taken a change.
    async fn generations(&self) -> BTreeMap<String, i64> {
        let deployments = self.list::<Deployment>().await;
        deployments.iter().map(|d| (d.name_any(), d.metadata.generation.unwrap())).collect()
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !holds().await {
            assert!(begun.elapsed() < Duration::from_secs(60), "60 s and not yet: {what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("{what}: after {:.1} s", begun.elapsed().as_secs_f64());
    }

    async fn topics(&self) -> Vec<String> {
        let prefix = format!("{}.{NAME}.", self.namespace);
        let wanted = stage_topics(&prefix, None, Transformed::Wanted);
        match observe(&Clusters::new(), &Access::plaintext(kafka()), &wanted, &[]).await {
            Observation::Reachable(observed) => observed.topics.into_keys().collect(),
            Observation::Unreachable { why } => panic!("{why}"),
        }
    }

    async fn deletes_and_comes_back<K>(&self, name: &str)
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let api = self.api::<K>();
        let what = format!("{} {name} is there", K::kind(&()));
        self.until(&what, async || api.get_opt(name).await.unwrap().is_some()).await;
        let before = api.get(name).await.unwrap().meta().uid.clone();
        api.delete(name, &DeleteParams::background()).await.unwrap();
        let what = format!("{} {name} is back", K::kind(&()));
        self.until(&what, async || {
            api.get_opt(name).await.unwrap().is_some_and(|object| object.meta().uid != before)
        })
        .await;
    }

    /// Removes the pipeline with all that is outside, and the namespace; the operator stops.
    async fn end(self) {
        self.patch(json!({"deletionPolicy": {"topics": "Delete", "tables": "Delete"}})).await;
        self.until("the finalizer is there", async || !self.pipeline().await.finalizers().is_empty()).await;
        self.api::<IngestionPipeline>().delete(NAME, &DeleteParams::default()).await.unwrap();
        self.until("the pipeline is gone", async || {
            self.api::<IngestionPipeline>().get_opt(NAME).await.unwrap().is_none()
        })
        .await;
        assert_eq!(self.topics().await, Vec::<String>::new());
        self.close().await;
    }

    async fn close(self) {
        let drop_database = format!("DROP DATABASE IF EXISTS {} SYNC", self.database());
        clickhouse::Client::default().with_url(clickhouse()).query(&drop_database).execute().await.unwrap();
        self.shutdown.request("the test is over");
        let ended = tokio::time::timeout(Duration::from_secs(20), self.operator).await;
        Api::<Namespace>::all(self.client.clone())
            .delete(&self.namespace, &DeleteParams::default())
            .await
            .unwrap();
        ended.expect("the operator stops when asked").unwrap();
    }
}

#[tokio::test]
#[ignore = "needs an API server, Kafka and ClickHouse; make test provides them"]
async fn drift_is_put_back_and_rest_is_rest() {
    let world = World::new("drift").await;
    world.create("Retain").await;
    assert!(world.pipeline().await.finalizers().is_empty(), "nothing outside is to be deleted");
    assert_eq!(world.topics().await.len(), 4);

    world.deletes_and_comes_back::<Deployment>("web-transformation").await;
    world.deletes_and_comes_back::<Service>("web-capture").await;
    world.deletes_and_comes_back::<Secret>("web-projects").await;
    world.deletes_and_comes_back::<ServiceAccount>("web-capture").await;
    world.deletes_and_comes_back::<PodDisruptionBudget>("web-capture").await;
    world.deletes_and_comes_back::<NetworkPolicy>("web-capture").await;
    let config = world.list::<ConfigMap>().await[0].name_any();
    world.deletes_and_comes_back::<ConfigMap>(&config).await;

    let scale = json!({"spec": {"replicas": 5}});
    let api = world.api::<Deployment>();
    api.patch("web-capture", &PatchParams::default(), &Patch::Merge(&scale)).await.unwrap();
    world
        .until("an edited Deployment is as specified", async || {
            api.get("web-capture").await.unwrap().spec.replicas == Some(1)
        })
        .await;
    let open = json!({"spec": {"ingress": [{}]}});
    let api = world.api::<NetworkPolicy>();
    api.patch("web-capture", &PatchParams::default(), &Patch::Merge(&open)).await.unwrap();
    world
        .until("an edited NetworkPolicy is as specified", async || {
            let policy = api.get("web-capture").await.unwrap();
            policy.spec.unwrap().ingress.is_some_and(|rules| rules.len() == 2)
        })
        .await;

    // At rest: no version of anything moves over several passes. Deployments are left out, whose status moves while
    // Kubernetes looks for the image; the pipeline's status tells once that it is not to be had.
    world
        .until("every pod was refused its image or a place", async || {
            let pods = world.list::<Pod>().await;
            let waits = |pod: &Pod| {
                let status = pod.status.clone().unwrap_or_default();
                let no_place = status
                    .conditions
                    .iter()
                    .flatten()
                    .any(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
                let no_image = status.container_statuses.iter().flatten().any(|container| {
                    let waiting = container.state.as_ref().and_then(|state| state.waiting.as_ref());
                    let reason = waiting.and_then(|waiting| waiting.reason.as_deref()).unwrap_or_default();
                    reason.starts_with("ErrImage") || reason == "ImagePullBackOff"
                });
                no_place || no_image
            };
            !pods.is_empty() && pods.iter().all(waits)
        })
        .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = world.versions().await;
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(before, world.versions().await);
    world.end().await;
}

impl World {
    async fn versions(&self) -> BTreeMap<String, (Option<String>, Option<i64>)> {
        let mut versions = BTreeMap::new();
        let mut take = |kind: &str, metadata: &kube::core::ObjectMeta, version: bool| {
            let name = format!("{kind}/{}", metadata.name.as_deref().unwrap());
            let resource_version = metadata.resource_version.clone().filter(|_| version);
            versions.insert(name, (resource_version, metadata.generation));
        };
        take("IngestionPipeline", &self.pipeline().await.metadata, true);
        for object in self.list::<Deployment>().await {
            take("Deployment", &object.metadata, false);
        }
        for object in self.list::<ConfigMap>().await {
            take("ConfigMap", &object.metadata, true);
        }
        for object in self.list::<Secret>().await {
            take("Secret", &object.metadata, true);
        }
        for object in self.list::<ServiceAccount>().await {
            take("ServiceAccount", &object.metadata, true);
        }
        for object in self.list::<NetworkPolicy>().await {
            take("NetworkPolicy", &object.metadata, true);
        }
        for object in self.list::<Service>().await {
            take("Service", &object.metadata, true);
        }
        versions
    }
}

#[tokio::test]
#[ignore = "needs an API server, Kafka and ClickHouse; make test provides them"]
async fn a_change_concerns_what_it_concerns() {
    let world = World::new("change").await;
    world.create("Retain").await;
    let first = world.generations().await;

    world.patch(json!({"projects": [{"id": 1, "name": "web", "token": "phc_other"}]})).await;
    world
        .until("the projects file is new", async || {
            let secret = world.api::<Secret>().get("web-projects").await.unwrap();
            String::from_utf8_lossy(&secret.data.unwrap()["projects.yaml"].0).contains("phc_other")
        })
        .await;
    assert_eq!(world.generations().await, first, "a project rolls nothing");

    let steps = |vrl: &str| json!({"transformation": {"steps": [{"name": "mark", "vrl": vrl}]}});
    world.patch(steps(".properties.seen = 2")).await;
    world
        .until("the transformation rolls", async || {
            world.generations().await["web-transformation"] > first["web-transformation"]
        })
        .await;
    let second = world.generations().await;
    let others = |generations: &BTreeMap<String, i64>| {
        let mut others = generations.clone();
        others.remove("web-transformation");
        others
    };
    assert_eq!(others(&second), others(&first), "and nothing else");

    world.patch(steps(".properties.seen = nope(")).await;
    world
        .until("the diagnostics are in the status", async || {
            let (status, reason, message) = world.condition("Stalled").await;
            status == "True" && reason == "InvalidTransformation" && message.contains("nope(")
        })
        .await;
    assert_eq!(world.generations().await, second, "an invalid spec touches nothing");
    world.patch(steps(".properties.seen = true")).await;
    world.until("a fixed spec is forgiven", async || world.condition("Stalled").await.0 == "False").await;

    world.patch(json!({"kafka": {"topics": {"defaults": {"partitions": 1}}}})).await;
    world
        .until("a partition decrease is refused", async || {
            world.condition("KafkaReady").await.1 == "PartitionDecreaseRefused"
        })
        .await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.condition("Stalled").await.1, "PartitionDecreaseRefused", "and stays visible");
    world.patch(json!({"kafka": {"topics": {"defaults": {"partitions": 3}}}})).await;
    world
        .until("partitions grow, and an Event says what that does", async || {
            let events = world.api::<Event>().list(&ListParams::default()).await.unwrap().items;
            events.iter().any(|event| event.reason.as_deref() == Some("TopicGrown"))
        })
        .await;

    let before = world.generations().await;
    world.patch(json!({"transformation": null})).await;
    world
        .until("the loss of the last step is refused", async || {
            let (status, reason, message) = world.condition("Stalled").await;
            status == "True" && reason == "ExportSourceChange" && message.contains("warehouse (")
        })
        .await;
    assert_eq!(world.generations().await, before, "it touches nothing");
    world.api::<Deployment>().delete("web-export-warehouse", &DeleteParams::background()).await.unwrap();
    let refused = world.pipeline().await.status;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.condition("Stalled").await.1, "ExportSourceChange", "and stays visible");
    let conditions = |status: Option<IngestionPipelineStatus>| status.unwrap().conditions;
    assert_eq!(conditions(world.pipeline().await.status), conditions(refused), "unmoved");
    let accept = json!({"metadata": {"annotations": {sources::ACCEPT_ANNOTATION: "true"}}});
    world
        .api::<IngestionPipeline>()
        .patch(NAME, &PatchParams::default(), &Patch::Merge(&accept))
        .await
        .unwrap();
    world
        .until("what is accepted is done", async || {
            let maps = world.list::<ConfigMap>().await;
            let live = world.api::<Deployment>().get_opt("web-export-warehouse").await.unwrap();
            live.is_some_and(|live| {
                let pod = live.spec.template.spec.unwrap();
                let mounted = pod.volumes.into_iter().flatten().find_map(|volume| volume.config_map).unwrap();
                let map = maps.iter().find(|map| map.name_any() == mounted.name).unwrap();
                map.data.as_ref().unwrap()["config.yaml"].contains("web.ingested")
            })
        })
        .await;
    let events = world.api::<Event>().list(&ListParams::default()).await.unwrap().items;
    let told = |reason: &str| events.iter().filter(|e| e.reason.as_deref() == Some(reason)).count();
    assert_eq!((told("ExportSourceChange"), told("ExportSourceChanged")), (1, 1), "each is told once");
    world
        .until("a component that is not wanted any more is gone", async || {
            world.list::<Deployment>().await.len() == 3
                && world.list::<NetworkPolicy>().await.len() == 3
                && world.list::<ServiceAccount>().await.len() == 3
        })
        .await;
    world.end().await;
}

#[tokio::test]
#[ignore = "needs an API server, Kafka and ClickHouse; make test provides them"]
async fn a_reference_is_followed_when_it_changes() {
    let world = World::new("reference").await;
    world.create("Retain").await;
    world
        .patch(json!({"projects": [{"id": 1, "name": "web", "token": null,
            "tokenFrom": {"secret": "web-token", "key": "token"}}]}))
        .await;
    world
        .until("a missing Secret is named", async || {
            let (_, reason, message) = world.condition("Ready").await;
            reason == "ReferenceMissing" && message.contains("web-token")
        })
        .await;
    let secret = |token: &str| -> Secret {
        serde_json::from_value(json!({"metadata": {"name": "web-token"}, "stringData": {"token": token}}))
            .unwrap()
    };
    let api = world.api::<Secret>();
    api.create(&PostParams::default(), &secret("phc_one")).await.unwrap();
    let has = async |token: &str| {
        let secret = api.get("web-projects").await.unwrap();
        String::from_utf8_lossy(&secret.data.unwrap()["projects.yaml"].0).contains(token)
    };
    world.until("the token is taken from it", async || has("phc_one").await).await;
    api.replace("web-token", &PostParams::default(), &secret("phc_two")).await.unwrap();
    world.until("and its change is followed", async || has("phc_two").await).await;
    world.end().await;
}

#[tokio::test]
#[ignore = "needs an API server, Kafka and ClickHouse; make test provides them"]
async fn what_belongs_to_somebody_else_is_left_alone() {
    let world = World::new("foreign").await;
    let theirs: Service = serde_json::from_value(json!({
        "metadata": {"name": "web-capture"},
        "spec": {"ports": [{"port": 1234}], "selector": {"app": "theirs"}},
    }))
    .unwrap();
    world.api().create(&PostParams::default(), &theirs).await.unwrap();
    world.create("Retain").await;
    world
        .until("the conflict is told", async || {
            let (status, reason, message) = world.condition("Stalled").await;
            status == "True" && reason == "ObjectRefused" && message.contains("web-capture")
        })
        .await;
    let service = world.api::<Service>().get("web-capture").await.unwrap();
    assert_eq!(service.spec.unwrap().ports.unwrap()[0].port, 1234);
    world.api::<Service>().delete("web-capture", &DeleteParams::default()).await.unwrap();
    world
        .until("and is over when the name is free", async || {
            let service = world.api::<Service>().get_opt("web-capture").await.unwrap();
            service.is_some_and(|service| service.spec.unwrap().ports.unwrap()[0].port == 80)
        })
        .await;
    world.end().await;
}

#[tokio::test]
#[ignore = "needs an API server, Kafka and ClickHouse; make test provides them"]
async fn retained_topics_outlive_their_pipeline_and_an_invalid_one_can_be_deleted() {
    let world = World::new("retain").await;
    world.create("Retain").await;
    let topics = world.topics().await;
    assert_eq!(topics.len(), COMPONENTS.len());
    world.patch(json!({"transformation": {"steps": [{"name": "mark", "vrl": "nope("}]}})).await;
    world.until("the spec is refused", async || world.condition("Stalled").await.0 == "True").await;
    world.api::<IngestionPipeline>().delete(NAME, &DeleteParams::default()).await.unwrap();
    world
        .until("the pipeline is gone", async || {
            world.api::<IngestionPipeline>().get_opt(NAME).await.unwrap().is_none()
        })
        .await;
    assert_eq!(world.topics().await, topics);
    penstock_operator::topics::delete(&Clusters::new(), &Access::plaintext(kafka()), topics).await.unwrap();
    world.close().await;
}
