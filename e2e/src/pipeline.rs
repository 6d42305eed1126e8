//! An `IngestionPipeline` of a test: applied as a user applies it, awaited, and taken away again.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::Condition};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams},
};
use penstock_crds::IngestionPipeline;
use penstock_platform::forward::Forward;
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, wait_until},
    truth::{self, Record},
    warehouse::quoted,
};

/// Token of the first project of every test's pipeline.
pub const TOKEN: &str = "phc_test_token_of_the_first_project";

/// A pipeline in a namespace of its own.
pub struct TestPipeline {
    /// The platform.
    pub cluster: Cluster,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its database in ClickHouse.
    pub database: String,
    /// The Kubernetes API for it.
    pub api: Api<IngestionPipeline>,
}

impl TestPipeline {
    /// Runs a test on a pipeline of its own, and takes everything away afterwards. When the test fails, how things stand
    /// is printed first; with `PENSTOCK_TEST_KEEP` set, everything then stays for a look.
    ///
    /// # Errors
    /// That of the test, or the platform is not there.
    pub async fn with(purpose: &str, test: impl AsyncFnOnce(&Self) -> Result<()>) -> Result<()> {
        Self::on(&Cluster::connect().await?, purpose, test).await
    }

    /// The same, with the Kafka and the ClickHouse of this cluster.
    ///
    /// # Errors
    /// That of the test, or the platform is not there.
    pub async fn on(
        cluster: &Cluster,
        purpose: &str,
        test: impl AsyncFnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let pipeline = Self::prepare(cluster, purpose).await?;
        let outcome = test(&pipeline).await;
        if outcome.is_err() {
            pipeline.print_state().await;
            if std::env::var_os("PENSTOCK_TEST_KEEP").is_some() {
                eprintln!("namespace {} is kept", pipeline.namespace);
                return outcome;
            }
        }
        let removed = pipeline.remove().await;
        outcome.and(removed)
    }

    /// Prints what a person would look at first: status, pods and their last log lines.
    async fn print_state(&self) {
        if let Ok(object) = self.get().await {
            eprintln!("status: {}", serde_json::to_string_pretty(&object.status).unwrap_or_default());
        }
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), &self.namespace);
        let Ok(list) = pods.list(&ListParams::default()).await else { return };
        for pod in list {
            let name = pod.name_any();
            let status = serde_json::to_string(&pod.status).unwrap_or_default();
            let parameters = LogParams { tail_lines: Some(15), ..LogParams::default() };
            let log = pods.logs(&name, &parameters).await.unwrap_or_else(|error| error.to_string());
            eprintln!("pod {name}: {status}\n{log}");
        }
    }

    /// A fresh namespace, which takes restricted pods only, and the names that go with it. Nothing is applied yet.
    ///
    /// # Errors
    /// The API server refuses the namespace.
    async fn prepare(cluster: &Cluster, purpose: &str) -> Result<Self> {
        let namespace = cluster.restricted_namespace(purpose).await?;
        Ok(Self {
            cluster: cluster.clone(),
            database: namespace.replace('-', "_"),
            name: "shop".to_owned(),
            api: Api::namespaced(cluster.client.clone(), &namespace),
            namespace,
        })
    }

    /// A spec that fits a small node: one project, three partitions, no transformation, one ClickHouse export.
    pub fn spec(&self) -> Value {
        json!({
            "projects": [{"id": 1, "name": "web", "token": TOKEN}],
            "defaults": {"resources": {"requests": {"cpu": "20m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}}},
            "kafka": {
                "bootstrapServers": self.cluster.info.kafka_bootstrap,
                "topics": {"defaults": {"partitions": 3}, "dead-letter": {"partitions": 1}},
            },
            "exports": [{
                "name": "warehouse",
                "clickhouse": {"url": self.cluster.info.clickhouse_url, "database": self.database},
            }],
        })
    }

    /// Applies a spec, as `kubectl apply --server-side` does.
    ///
    /// # Errors
    /// The API server refuses it, with its message.
    pub async fn apply(&self, spec: &Value) -> Result<IngestionPipeline> {
        let mut object = json!({
            "apiVersion": "penstock.dev/v1alpha1",
            "kind": "IngestionPipeline",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        });
        // So that a test can be tried on another operator than the installed one.
        if let Ok(class) = std::env::var("PENSTOCK_TEST_OPERATOR_CLASS") {
            object["metadata"]["labels"] = json!({"penstock.dev/operator-class": class});
        }
        let parameters = PatchParams::apply("penstock-tests").force();
        Ok(self.api.patch(&self.name, &parameters, &Patch::Apply(&object)).await?)
    }

    /// The object as it is.
    ///
    /// # Errors
    /// It does not exist.
    pub async fn get(&self) -> Result<IngestionPipeline> {
        Ok(self.api.get(&self.name).await?)
    }

    /// A condition of the object, if its status has one of that type.
    ///
    /// # Errors
    /// The object does not exist.
    pub async fn condition(&self, type_: &str) -> Result<Option<Condition>> {
        let status = self.get().await?.status.unwrap_or_default();
        Ok(status.conditions.into_iter().find(|condition| condition.type_ == type_))
    }

    /// Waits until the operator has reported the present generation ready.
    ///
    /// # Errors
    /// It is not ready in time; the message has the conditions.
    pub async fn wait_ready(&self, patience: Duration) -> Result<IngestionPipeline> {
        let waited = wait_until(&format!("pipeline {} is ready", self.name), patience, async || {
            let object = self.get().await?;
            let generation = object.meta().generation;
            let status = object.status.unwrap_or_default();
            Ok(status.observed_generation == generation
                && status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
        })
        .await;
        let object = self.get().await?;
        waited.with_context(|| {
            format!("status: {}", serde_json::to_string_pretty(&object.status).unwrap_or_default())
        })?;
        Ok(object)
    }

    /// Waits until a condition has a status (`True`, `False`, `Unknown`) and gives it.
    ///
    /// # Errors
    /// It has not in time.
    pub async fn wait_condition(&self, type_: &str, status: &str, patience: Duration) -> Result<Condition> {
        wait_until(&format!("condition {type_} is {status}"), patience, async || {
            Ok(self.condition(type_).await?.is_some_and(|condition| condition.status == status))
        })
        .await
        .with_context(|| format!("pipeline {}/{}", self.namespace, self.name))?;
        self.condition(type_).await?.context("the condition went away")
    }

    /// A port of this machine that leads to the capture Service.
    ///
    /// # Errors
    /// The Service is not there.
    pub async fn capture(&self) -> Result<Forward> {
        self.cluster.forward_to_service(&self.namespace, &format!("{}-capture", self.name), 80).await
    }

    /// Name of a stage topic.
    pub fn topic(&self, stage: &str) -> String {
        format!("{}.{}.{stage}", self.namespace, self.name)
    }

    /// Every committed message of a stage topic.
    ///
    /// # Errors
    /// As [`truth::read_topic`].
    pub async fn read(&self, stage: &str) -> Result<Vec<Record>> {
        let (servers, topic) = (self.cluster.kafka(), self.topic(stage));
        tokio::task::spawn_blocking(move || truth::read_topic(&servers, &topic)).await?
    }

    /// The table of the export, in back-quotes.
    pub fn table(&self) -> String {
        format!("{}.{}", quoted(&self.database), quoted("events"))
    }

    /// Rows of the table, repeated ones included.
    ///
    /// # Errors
    /// ClickHouse does not answer, or has no such table.
    pub async fn rows(&self) -> Result<u64> {
        self.cluster.warehouse.number(&format!("SELECT count() FROM {}", self.table())).await
    }

    /// Waits until the table has so many rows.
    ///
    /// # Errors
    /// It has not in time.
    pub async fn wait_rows(&self, rows: u64, patience: Duration) -> Result<()> {
        wait_until(&format!("{} has {rows} rows", self.table()), patience, async || {
            Ok(self.rows().await? >= rows)
        })
        .await
    }

    /// Takes everything away: object, namespace, topics, database.
    ///
    /// # Errors
    /// Something could not be removed.
    async fn remove(self) -> Result<()> {
        if self.api.get_opt(&self.name).await?.is_some() {
            self.api.delete(&self.name, &DeleteParams::default()).await?;
        }
        self.cluster.delete_namespace(&self.namespace).await?;
        let (servers, prefix) = (self.cluster.kafka(), format!("{}.", self.namespace));
        tokio::task::spawn_blocking(move || truth::delete_topics(&servers, &prefix)).await??;
        self.cluster.warehouse.text(&format!("DROP DATABASE IF EXISTS {}", quoted(&self.database))).await?;
        Ok(())
    }
}
