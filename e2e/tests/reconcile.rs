//! What the operator keeps as it should be: drift, rolling changes, refusals, policies, deletion, and its own quiet.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Container, Pod, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use penstock_e2e::{
    cluster::wait_until,
    pipeline::{TOKEN, TestPipeline},
    truth,
};
use serde_json::{Value, json};

const READY: Duration = Duration::from_secs(120);
const SECONDS: Duration = Duration::from_secs(20);

fn namespaced<K>(pipeline: &TestPipeline) -> Api<K>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    <K as kube::Resource>::DynamicType: Default,
{
    Api::namespaced(pipeline.cluster.client.clone(), &pipeline.namespace)
}

/// Generation of every Deployment: it moves when, and only when, somebody changes a spec.
async fn generations(pipeline: &TestPipeline) -> Result<BTreeMap<String, i64>> {
    let deployments = namespaced::<Deployment>(pipeline).list(&ListParams::default()).await?;
    Ok(deployments.iter().map(|d| (d.name_any(), d.metadata.generation.unwrap_or_default())).collect())
}

/// UID of every pod that is not about to end.
async fn pods(pipeline: &TestPipeline) -> Result<BTreeMap<String, String>> {
    let pods = namespaced::<Pod>(pipeline).list(&ListParams::default()).await?;
    let staying = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    Ok(staying.map(|pod| (pod.name_any(), pod.uid().unwrap_or_default())).collect())
}

#[tokio::test]
#[ignore = "needs the platform; make test starts it"]
async fn deleted_and_edited_children_topics_and_tables_come_back_within_seconds() -> Result<()> {
    TestPipeline::with("drift", async |pipeline| {
        pipeline.apply(&pipeline.spec()).await?;
        pipeline.wait_ready(READY).await?;
        let capture = format!("{}-capture", pipeline.name);

        let config = config_map_of(pipeline, "capture").await?;
        namespaced::<Service>(pipeline).delete(&capture, &DeleteParams::default()).await?;
        namespaced::<ServiceAccount>(pipeline).delete(&capture, &DeleteParams::default()).await?;
        namespaced::<PodDisruptionBudget>(pipeline).delete(&capture, &DeleteParams::default()).await?;
        namespaced::<NetworkPolicy>(pipeline).delete(&capture, &DeleteParams::default()).await?;
        namespaced::<Deployment>(pipeline).delete(&capture, &DeleteParams::default()).await?;
        namespaced::<Secret>(pipeline).delete(&format!("{}-projects", pipeline.name), &DeleteParams::default()).await?;
        namespaced::<ConfigMap>(pipeline).delete(&config, &DeleteParams::default()).await?;
        wait_until("every deleted child is back", SECONDS, async || {
            Ok(namespaced::<Service>(pipeline).get_opt(&capture).await?.is_some()
                && namespaced::<ServiceAccount>(pipeline).get_opt(&capture).await?.is_some()
                && namespaced::<PodDisruptionBudget>(pipeline).get_opt(&capture).await?.is_some()
                && namespaced::<NetworkPolicy>(pipeline).get_opt(&capture).await?.is_some()
                && namespaced::<Deployment>(pipeline).get_opt(&capture).await?.is_some()
                && namespaced::<ConfigMap>(pipeline).get_opt(&config).await?.is_some()
                && namespaced::<Secret>(pipeline).get_opt(&format!("{}-projects", pipeline.name)).await?.is_some())
        })
        .await?;

        let consumer = format!("{}-consumer-main", pipeline.name);
        let deployments = namespaced::<Deployment>(pipeline);
        let container = container(&deployments.get(&consumer).await?)?;
        let edit = json!({"name": container.name, "image": "example.com/wrong:1"});
        let edit = json!({"spec": {"template": {"spec": {"containers": [edit]}}}});
        deployments.patch(&consumer, &PatchParams::default(), &Patch::Strategic(&edit)).await?;
        wait_until("the edited image is put back", SECONDS, async || {
            Ok(self::container(&deployments.get(&consumer).await?)?.image == container.image)
        })
        .await?;

        let (servers, topic) = (pipeline.cluster.kafka(), pipeline.topic("dead-letter"));
        tokio::task::spawn_blocking(move || truth::delete_topics(&servers, &topic)).await??;
        wait_until("the deleted topic is back", SECONDS, async || Ok(pipeline.read("dead-letter").await.is_ok())).await?;

        pipeline.cluster.warehouse.text(&format!("DROP TABLE {} SYNC", pipeline.table())).await?;
        wait_until("the dropped table is back", SECONDS, async || Ok(pipeline.rows().await.is_ok())).await?;
        pipeline.cluster.warehouse.text(&format!("ALTER TABLE {} DROP COLUMN group4_properties", pipeline.table())).await?;
        wait_until("the dropped column is back", SECONDS, async || {
            let sql = format!(
                "SELECT count() FROM system.columns WHERE database = '{}' AND table = 'events' AND name = 'group4_properties'",
                pipeline.database
            );
            Ok(pipeline.cluster.warehouse.number(&sql).await? == 1)
        })
        .await?;
        pipeline.wait_ready(READY).await?;
        Ok(())
    })
    .await
}

fn container(deployment: &Deployment) -> Result<Container> {
    let pod = deployment.spec.template.spec.as_ref().context("a Deployment without pod")?;
    Ok(pod.containers[0].clone())
}

/// Name of the ConfigMap that a component's pods mount.
async fn config_map_of(pipeline: &TestPipeline, component: &str) -> Result<String> {
    let deployment =
        namespaced::<Deployment>(pipeline).get(&format!("{}-{component}", pipeline.name)).await?;
    deployment
        .spec
        .template
        .spec
        .and_then(|pod| pod.volumes)
        .unwrap_or_default()
        .into_iter()
        .find_map(|volume| volume.config_map)
        .map(|source| source.name)
        .context("no ConfigMap is mounted")
}

#[tokio::test]
#[ignore = "needs the platform; make test starts it"]
async fn a_change_rolls_the_component_that_it_concerns_and_no_other() -> Result<()> {
    TestPipeline::with("rolling", async |pipeline| {
        let mut spec = pipeline.spec();
        spec["version"] = json!(env!("CARGO_PKG_VERSION"));
        spec["transformation"] = json!({"steps": [{"name": "mark", "vrl": ".properties.a = 1"}]});
        pipeline.apply(&spec).await?;
        pipeline.wait_ready(READY).await?;
        let first_map = config_map_of(pipeline, "transformation").await?;

        let before = generations(pipeline).await?;
        spec["transformation"]["steps"][0]["vrl"] = json!(".properties.a = 2");
        pipeline.apply(&spec).await?;
        pipeline.wait_ready(READY).await?;
        let after = generations(pipeline).await?;
        for (name, generation) in &after {
            let rolled = before.get(name) != Some(generation);
            ensure!(rolled == name.ends_with("-transformation"), "{name} rolled: {rolled}");
        }
        ensure!(
            config_map_of(pipeline, "transformation").await? != first_map,
            "the configuration kept its name"
        );

        // A change of replicas adds pods and replaces none.
        let before = pods(pipeline).await?;
        spec["consumer"] = json!({"lanes": {"main": {"replicas": 2}}});
        pipeline.apply(&spec).await?;
        pipeline.wait_ready(READY).await?;
        let after = pods(pipeline).await?;
        ensure!(
            before.iter().all(|(name, uid)| after.get(name) == Some(uid)),
            "pods were replaced: {before:?} {after:?}"
        );
        ensure!(after.len() == before.len() + 1, "one pod was to come: {before:?} {after:?}");

        // Projects are read live: the new token works, and nothing rolls.
        let before = (generations(pipeline).await?, pods(pipeline).await?);
        spec["projects"] = json!([
            {"id": 1, "name": "web", "token": TOKEN},
            {"id": 2, "name": "app", "token": "phc_second_project"},
        ]);
        pipeline.apply(&spec).await?;
        let forward = pipeline.capture().await?;
        let body = json!({"api_key": "phc_second_project", "event": "hello", "distinct_id": "d"});
        let http = reqwest::Client::new();
        wait_until("the new project's events are taken", Duration::from_secs(120), async || {
            let answer = http.post(format!("{}/capture/", forward.url())).json(&body).send().await?;
            Ok(answer.status() == 200)
        })
        .await?;
        wait_until("the new project's event has its row", Duration::from_secs(120), async || {
            let sql = format!("SELECT count() FROM {} WHERE team_id = 2", pipeline.table());
            Ok(pipeline.cluster.warehouse.number(&sql).await? >= 1)
        })
        .await?;
        let after = (generations(pipeline).await?, pods(pipeline).await?);
        ensure!(before == after, "a new project rolled something: {before:?} {after:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the platform; make test starts it"]
async fn topics_grow_and_never_shrink_and_keep_what_others_set() -> Result<()> {
    TestPipeline::with("topics", async |pipeline| {
        let mut spec = pipeline.spec();
        pipeline.apply(&spec).await?;
        pipeline.wait_ready(READY).await?;

        spec["kafka"]["topics"]["captured"] = json!({"partitions": 5, "retention": "2d"});
        pipeline.apply(&spec).await?;
        pipeline.wait_ready(READY).await?;
        let servers = pipeline.cluster.kafka();
        ensure!(truth::partitions(&servers, &pipeline.topic("captured"))? == 5, "captured did not grow");
        let event = wait_for_event(pipeline, "order").await?;
        println!("event: {event}");

        // Somebody else's setting stays; ours is put back.
        truth::set_topic_config(
            &servers,
            &pipeline.topic("captured"),
            &[("retention.ms", "1000000"), ("segment.ms", "777777")],
        )?;
        wait_until("our retention is put back", SECONDS, async || {
            Ok(truth::topic_config(&servers, &pipeline.topic("captured"), "retention.ms").await?.as_deref()
                == Some("172800000"))
        })
        .await?;
        ensure!(
            truth::topic_config(&servers, &pipeline.topic("captured"), "segment.ms").await?.as_deref()
                == Some("777777"),
            "a setting that is not ours was touched"
        );

        spec["kafka"]["topics"]["captured"] = json!({"partitions": 2, "retention": "2d"});
        pipeline.apply(&spec).await?;
        let condition = pipeline.wait_condition("KafkaReady", "False", SECONDS).await?;
        println!("refusal: {}: {}", condition.reason, condition.message);
        ensure!(
            condition.message.contains("captured"),
            "the refusal does not name the topic: {}",
            condition.message
        );
        ensure!(truth::partitions(&servers, &pipeline.topic("captured"))? == 5, "captured shrank");

        spec["kafka"]["topics"]["captured"] = json!({"partitions": 5, "retention": "2d"});
        pipeline.apply(&spec).await?;
        pipeline.wait_ready(READY).await?;
        Ok(())
    })
    .await
}

/// The note of the first Event on the pipeline that contains a word.
async fn wait_for_event(pipeline: &TestPipeline, word: &str) -> Result<String> {
    use k8s_openapi::api::events::v1::Event;
    let found = std::sync::Mutex::new(String::new());
    wait_until(&format!("an Event says {word:?}"), SECONDS, async || {
        let events = namespaced::<Event>(pipeline).list(&ListParams::default()).await?;
        let note = events.into_iter().filter_map(|event| event.note).find(|note| note.contains(word));
        Ok(note.is_some_and(|note| {
            *found.lock().expect("nobody panics") = note;
            true
        }))
    })
    .await?;
    Ok(found.into_inner().expect("nobody panics"))
}

#[tokio::test]
#[ignore = "needs the platform; make test starts it"]
async fn an_external_pipeline_is_checked_and_nothing_is_changed() -> Result<()> {
    TestPipeline::with("external", async |pipeline| {
        let mut spec = pipeline.spec();
        spec["kafka"]["management"] = json!("External");
        spec["exports"][0]["clickhouse"]["management"] = json!("External");
        pipeline.apply(&spec).await?;
        let kafka = pipeline.wait_condition("KafkaReady", "False", READY).await?;
        let clickhouse = pipeline.wait_condition("ClickHouseReady", "False", READY).await?;
        println!("{}: {}\n{}: {}", kafka.reason, kafka.message, clickhouse.reason, clickhouse.message);
        ensure!(
            kafka.message.contains(&pipeline.topic("captured")),
            "which topic is missing? {}",
            kafka.message
        );
        ensure!(
            clickhouse.message.contains(&pipeline.database),
            "which table is missing? {}",
            clickhouse.message
        );
        tokio::time::sleep(Duration::from_secs(12)).await;
        ensure!(pipeline.read("captured").await.is_err(), "an external topic was created");
        ensure!(pipeline.rows().await.is_err(), "an external table was created");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the platform; make test starts it"]
async fn deletion_follows_the_policies() -> Result<()> {
    TestPipeline::with("deletion", async |pipeline| {
        // Retain, which is the default: no finalizer, children go, topics and tables stay.
        pipeline.apply(&pipeline.spec()).await?;
        let object = pipeline.wait_ready(READY).await?;
        ensure!(object.finalizers().is_empty(), "a finalizer without need: {:?}", object.finalizers());
        pipeline.api.delete(&pipeline.name, &DeleteParams::default()).await?;
        wait_until("the children are gone", Duration::from_secs(90), async || {
            Ok(generations(pipeline).await?.is_empty() && pods(pipeline).await?.is_empty())
        })
        .await?;
        pipeline.read("captured").await.context("a retained topic is gone")?;
        pipeline.rows().await.context("a retained table is gone")?;

        // Delete: topics and table go with the pipeline; the database stays.
        let mut spec = pipeline.spec();
        spec["deletionPolicy"] = json!({"topics": "Delete", "tables": "Delete"});
        pipeline.apply(&spec).await?;
        let object = pipeline.wait_ready(READY).await?;
        ensure!(
            !object.finalizers().is_empty(),
            "nothing holds the object until topics and tables are deleted"
        );
        pipeline.api.delete(&pipeline.name, &DeleteParams::default()).await?;
        wait_until("the object is gone", Duration::from_secs(90), async || {
            Ok(pipeline.api.get_opt(&pipeline.name).await?.is_none())
        })
        .await?;
        ensure!(pipeline.read("captured").await.is_err(), "a topic is left");
        ensure!(pipeline.rows().await.is_err(), "the table is left");
        let databases = format!("SELECT count() FROM system.databases WHERE name = '{}'", pipeline.database);
        ensure!(pipeline.cluster.warehouse.number(&databases).await? == 1, "the database was dropped");
        Ok(())
    })
    .await
}

#[tokio::test]
#[ignore = "needs the platform; make test starts it"]
async fn an_invalid_program_is_shown_in_the_status_and_harms_nothing() -> Result<()> {
    TestPipeline::with("diagnostics", async |pipeline| {
        let mut spec = pipeline.spec();
        pipeline.apply(&spec).await?;
        pipeline.wait_ready(READY).await?;
        let before = (generations(pipeline).await?, pods(pipeline).await?);

        spec["transformation"] =
            json!({"steps": [{"name": "broken", "vrl": ".properties.a = upcase(.event"}]});
        pipeline.apply(&spec).await?;
        let condition = pipeline.wait_condition("Ready", "False", SECONDS).await?;
        println!("{}: {}", condition.reason, condition.message);
        ensure!(condition.message.contains("broken"), "which step? {}", condition.message);
        ensure!(
            (generations(pipeline).await?, pods(pipeline).await?) == before,
            "an invalid spec changed what runs"
        );

        // An invalid object can be deleted like any other.
        pipeline.api.delete(&pipeline.name, &DeleteParams::default()).await?;
        wait_until("the object is gone", SECONDS, async || {
            Ok(pipeline.api.get_opt(&pipeline.name).await?.is_none())
        })
        .await
    })
    .await
}

#[tokio::test]
#[ignore = "needs the platform; make test starts it"]
async fn at_rest_nothing_is_written() -> Result<()> {
    TestPipeline::with("rest", async |pipeline| {
        pipeline.apply(&pipeline.spec()).await?;
        pipeline.wait_ready(READY).await?;
        tokio::time::sleep(Duration::from_secs(20)).await;
        let before = resource_versions(pipeline).await?;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let after = resource_versions(pipeline).await?;
        ensure!(before == after, "written at rest: {before:?} then {after:?}");
        Ok(())
    })
    .await
}

async fn resource_versions(pipeline: &TestPipeline) -> Result<BTreeMap<String, Option<String>>> {
    let mut versions = BTreeMap::new();
    versions.insert("pipeline".to_owned(), pipeline.get().await?.resource_version());
    for object in namespaced::<Deployment>(pipeline).list(&ListParams::default()).await? {
        versions.insert(format!("Deployment/{}", object.name_any()), object.resource_version());
    }
    for object in namespaced::<ConfigMap>(pipeline).list(&ListParams::default()).await? {
        versions.insert(format!("ConfigMap/{}", object.name_any()), object.resource_version());
    }
    for object in namespaced::<Secret>(pipeline).list(&ListParams::default()).await? {
        versions.insert(format!("Secret/{}", object.name_any()), object.resource_version());
    }
    for object in namespaced::<Service>(pipeline).list(&ListParams::default()).await? {
        versions.insert(format!("Service/{}", object.name_any()), object.resource_version());
    }
    for object in namespaced::<PodDisruptionBudget>(pipeline).list(&ListParams::default()).await? {
        // Its status belongs to Kubernetes; the operator's hand shows in the generation.
        versions.insert(
            format!("PodDisruptionBudget/{}", object.name_any()),
            object.metadata.generation.map(|g| g.to_string()),
        );
    }
    Ok(versions)
}

#[tokio::test]
#[ignore = "needs the platform; make test starts it"]
async fn an_unreachable_kafka_or_clickhouse_is_said_and_harms_nothing() -> Result<()> {
    TestPipeline::with("unreachable", async |pipeline| {
        let mut spec = pipeline.spec();
        pipeline.apply(&spec).await?;
        pipeline.wait_ready(READY).await?;
        let before = pods(pipeline).await?;
        // A second warehouse that does not answer: the first goes on.
        spec["exports"] = Value::Array(vec![
            spec["exports"][0].clone(),
            json!({"name": "nowhere", "clickhouse": {"url": "http://nowhere.warehouse:8123", "database": pipeline.database}}),
        ]);
        pipeline.apply(&spec).await?;
        let condition = pipeline.wait_condition("ClickHouseReady", "False", Duration::from_secs(60)).await?;
        println!("{}: {}", condition.reason, condition.message);
        ensure!(condition.message.contains("nowhere"), "which server? {}", condition.message);
        let after = pods(pipeline).await?;
        ensure!(before.iter().all(|(name, uid)| after.get(name) == Some(uid)), "what ran was touched: {before:?} {after:?}");
        Ok(())
    })
    .await
}
