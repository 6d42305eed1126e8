//! A new version of the operator, under which a pinned data plane stays as it is.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use penstock_e2e::{
    cluster::{Cluster, wait_until},
    pipeline::TestPipeline,
};
use serde_json::json;

/// Makes the installed operator one whose own version is this, or its real one, and waits until only it runs.
async fn operator_of_version(cluster: &Cluster, version: Option<&str>) -> Result<()> {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), "penstock-system");
    let container = api.get("penstock").await?.spec.template.spec.map(|pod| pod.containers[0].name.clone());
    let variable = match version {
        Some(version) => json!({"name": "PENSTOCK_DEFAULT_VERSION", "value": version}),
        None => json!({"name": "PENSTOCK_DEFAULT_VERSION", "$patch": "delete"}),
    };
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": container, "env": [variable]}]}}}});
    api.patch("penstock", &PatchParams::default(), &Patch::Strategic(&patch)).await?;
    wait_until("the changed operator runs", Duration::from_secs(90), async || {
        let deployment = api.get("penstock").await?;
        let status = deployment.status.unwrap_or_default();
        Ok(status.observed_generation == deployment.metadata.generation
            && status.updated_replicas == Some(1)
            && status.available_replicas == Some(1)
            && status.replicas == Some(1))
    })
    .await
}

async fn pods(pipeline: &TestPipeline) -> Result<Vec<(String, Option<String>)>> {
    let api: Api<Pod> = Api::namespaced(pipeline.cluster.client.clone(), &pipeline.namespace);
    let pods = api.list(&ListParams::default()).await?;
    Ok(pods.iter().map(|pod| (pod.name_any(), pod.uid())).collect())
}

#[tokio::test]
#[ignore = "needs the platform; make test starts it"]
async fn an_upgraded_operator_rolls_nothing_while_the_version_is_pinned() -> Result<()> {
    TestPipeline::with("upgrade", async |pinned| {
        let mut spec = pinned.spec();
        spec["version"] = json!(env!("CARGO_PKG_VERSION"));
        pinned.apply(&spec).await?;
        pinned.wait_ready(Duration::from_secs(120)).await?;
        let before = pods(pinned).await?;

        operator_of_version(&pinned.cluster, Some("9.9.9")).await?;
        // A pipeline without a version shows that the new operator is at work.
        let upgraded = TestPipeline::with("unpinned", async |follower| {
            follower.apply(&follower.spec()).await?;
            wait_until("an unpinned pipeline gets the new version", Duration::from_secs(60), async || {
                Ok(follower.get().await?.status.and_then(|status| status.version).as_deref() == Some("9.9.9"))
            })
            .await?;
            // More than one resync of the pinned one.
            tokio::time::sleep(Duration::from_secs(15)).await;
            Ok(())
        })
        .await;
        let after = pods(pinned).await;
        operator_of_version(&pinned.cluster, None).await?;
        upgraded?;
        let after = after?;
        ensure!(before == after, "pods changed under the new operator: {before:?} {after:?}");
        let version = pinned.get().await?.status.and_then(|status| status.version);
        ensure!(version.as_deref() == Some(env!("CARGO_PKG_VERSION")), "the status says {version:?}");
        Ok(())
    })
    .await
}
