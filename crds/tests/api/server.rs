//! The API server under test.

use std::time::Duration;

use http::Request;
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use penstock_crds::IngestionPipeline;
use serde_json::{Value, json};

/// Name of the pipeline in every test.
pub const NAME: &str = "shop";

/// A namespace of its own on the API server.
pub struct Server {
    pub client: Client,
    pub namespace: String,
}

impl Server {
    /// Connects, sees to it that the definition of this crate is installed, and makes a namespace.
    pub async fn connect() -> Self {
        let client = Client::try_default().await.expect("KUBECONFIG names a cluster");
        install(&client).await;
        let namespace: Namespace =
            serde_json::from_value(json!({"metadata": {"generateName": "penstock-api-test-"}})).unwrap();
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let namespace = namespaces.create(&PostParams::default(), &namespace).await.unwrap().name_any();
        Self { client, namespace }
    }

    pub fn pipelines(&self) -> Api<IngestionPipeline> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Would the API server take this object as a new one, as `kubectl apply` creates it? Nothing is stored.
    pub async fn judge_new(&self, object: &Value) -> Result<Value, String> {
        let request = Request::post(format!(
            "/apis/penstock.dev/v1alpha1/namespaces/{}/ingestionpipelines?dryRun=All&fieldValidation=Strict",
            self.namespace
        ))
        .header("Content-Type", "application/json")
        .body(serde_json::to_vec(object).unwrap())
        .unwrap();
        self.client.request(request).await.map_err(message)
    }

    /// Would the API server take this object in the place of the stored one? Nothing is stored.
    pub async fn judge(&self, object: &Value) -> Result<IngestionPipeline, String> {
        self.patch(object, PatchParams::apply("test").dry_run()).await
    }

    /// Stores the object as `kubectl apply --server-side` does.
    pub async fn apply(&self, object: &Value) -> Result<IngestionPipeline, String> {
        self.patch(object, PatchParams::apply("test")).await
    }

    /// The same for another field manager.
    pub async fn apply_as(&self, manager: &str, object: &Value) -> Result<IngestionPipeline, String> {
        self.patch(object, PatchParams::apply(manager)).await
    }

    async fn patch(&self, object: &Value, parameters: PatchParams) -> Result<IngestionPipeline, String> {
        let name = object["metadata"]["name"].as_str().unwrap();
        self.pipelines()
            .patch(name, &parameters.validation_strict(), &Patch::Apply(object))
            .await
            .map_err(message)
    }

    /// Takes the namespace away.
    pub async fn remove(self) {
        let pipelines = self.pipelines();
        for pipeline in pipelines.list(&Default::default()).await.unwrap() {
            pipelines.delete(&pipeline.name_any(), &DeleteParams::default()).await.unwrap();
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await.unwrap();
    }
}

/// What a person reads.
fn message(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message,
        other => other.to_string(),
    }
}

/// Installs the definition where there is none. Where there is one it must be this one: Helm owns it there, and a test
/// that replaced it would stand in the way of the next upgrade.
async fn install(client: &Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let wanted = penstock_crds::crd();
    let name = wanted.name_any();
    let installed = definitions.get_opt(&name).await.unwrap();
    if let Some(installed) = installed {
        let (is, should) = (&installed.spec.versions[0], &wanted.spec.versions[0]);
        assert!(
            is.schema == should.schema,
            "the cluster has another definition than this crate; install the chart penstock-crds of this clone first"
        );
    } else if let Err(kube::Error::Api(error)) = definitions.create(&PostParams::default(), &wanted).await {
        assert_eq!(error.code, 409, "{error}");
    }
    for _ in 0..100 {
        let definition = definitions.get(&name).await.unwrap();
        let conditions = definition.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|condition| condition.type_ == "Established" && condition.status == "True") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{name} is not established after 10 s");
}

/// A good pipeline that uses most of the API. Its Kafka does not exist, so that an operator in the cluster leaves it be.
pub fn good() -> Value {
    json!({
        "apiVersion": "penstock.dev/v1alpha1",
        "kind": "IngestionPipeline",
        "metadata": {"name": NAME},
        "spec": {
            "version": "0.1.0",
            "projects": [
                {"id": 1, "name": "web", "token": "phc_web"},
                {"id": 2, "name": "app", "tokenFrom": {"secret": "app", "key": "token"}},
            ],
            "defaults": {
                "replicas": 0,
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
                "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
                "podLabels": {"team": "data"},
            },
            "kafka": {
                "bootstrapServers": "kafka-0.invalid:9092,kafka-1.invalid:9092",
                "topicPrefix": "shop.web.",
                "management": "External",
                "topics": {
                    "defaults": {"partitions": 12, "replicationFactor": 3, "retention": "3d",
                        "config": {"min.insync.replicas": "2", "compression.type": "zstd"}},
                    "dead-letter": {"partitions": 1, "retention": "30d"},
                },
            },
            "capture": {"maxBodySize": "10Mi", "maxConcurrentRequests": 64, "service": {"port": 8080}},
            "consumer": {"lanes": {"main": {"logLevel": "info,penstock_pipeline=debug"}}},
            "transformation": {
                "eventTimeBudget": "50ms",
                "steps": [
                    {"name": "drop-bots", "onError": "Pass", "vrl": "if .event == \"bot\" { abort }"},
                    {"name": "mask", "vrlFrom": {"configMap": "vrl", "key": "mask.vrl"}},
                ],
            },
            "exports": [
                {
                    "name": "warehouse",
                    "clickhouse": {"url": "http://clickhouse.invalid:8123", "database": "analytics"},
                    "block": {"maxRows": "100k", "maxSize": "64Mi", "maxAge": "1s"},
                },
                {
                    "name": "crm",
                    "startFrom": "Latest",
                    "where": ".event == \"order completed\"",
                    "webhook": {
                        "url": "https://hooks.invalid/in?source=shop",
                        "signing": {"secret": "crm", "key": "whsec"},
                        "headers": {"x-source": "penstock"},
                        "timeout": "5s",
                        "concurrency": 8,
                        "retry": {"maxAttempts": 10, "minBackoff": "500ms", "maxBackoff": "1h30m"},
                        "allowedNetworks": ["10.0.0.0/8", "fd00::/8"],
                    },
                },
            ],
            "deletionPolicy": {"topics": "Retain", "tables": "Retain"},
        },
    })
}

/// Sets the field at a JSON pointer, or removes it when the value is null.
pub fn set(object: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let last = last.replace("~1", "/");
    let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("nothing at {parent}"));
    match parent {
        Value::Array(items) if last == "-" => items.push(value),
        Value::Array(items) => items[last.parse::<usize>().unwrap()] = value,
        Value::Object(fields) if value.is_null() => {
            fields.remove(&last);
        }
        Value::Object(fields) => {
            fields.insert(last, value);
        }
        other => panic!("{other} has no fields"),
    }
}

/// [`good`] with these fields changed.
pub fn good_but(changes: &[(&str, Value)]) -> Value {
    let mut object = good();
    for (pointer, value) in changes {
        set(&mut object, pointer, value.clone());
    }
    object
}
