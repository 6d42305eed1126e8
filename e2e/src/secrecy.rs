//! Everything that a pipeline shows to people who may not read its Secrets: objects, logs, what its processes were started
//! with, what its pods tell over HTTP. And how its pods were started.

use std::fmt::Debug;

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, ReplicaSet},
        core::v1::{ConfigMap, Pod, Service, ServiceAccount},
        events::v1::Event,
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, LogParams},
};
use penstock_crds::IngestionPipeline;
use serde::{Serialize, de::DeserializeOwned};

use crate::pipeline::TestPipeline;

/// Port of /metrics and /readyz in a pod.
const ADMIN_PORT: u16 = 9090;
/// Namespace of the installed operator.
const OPERATOR: &str = "penstock-system";

/// Something that can be read, and what is in it.
type Shown = (String, String);

/// Fails when one of these is in anything that the pipeline shows since `began`. Names the place, never the secret.
///
/// # Errors
/// One of them is somewhere, something that should be looked at is empty, or it cannot be read.
pub async fn nothing_is_shown(pipeline: &TestPipeline, secrets: &[String], began: Timestamp) -> Result<()> {
    ensure!(secrets.len() > 2 && secrets.iter().all(|secret| secret.len() > 8), "no secrets to look for");
    let shown = everything(pipeline, began).await?;
    for (place, text) in &shown {
        ensure!(!text.trim().is_empty(), "{place} is empty: nothing was looked at");
        for (index, secret) in secrets.iter().enumerate() {
            if let Some(at) = text.find(secret.as_str()) {
                let before: String =
                    text[..at].chars().rev().take(120).collect::<Vec<_>>().into_iter().rev().collect();
                anyhow::bail!("{place} shows secret number {index}, after {before:?}");
            }
        }
    }
    let bytes: usize = shown.iter().map(|(_, text)| text.len()).sum();
    println!("{} secrets are in none of {} places, {bytes} bytes", secrets.len(), shown.len());
    Ok(())
}

async fn everything(pipeline: &TestPipeline, began: Timestamp) -> Result<Vec<Shown>> {
    let mut shown = vec![
        listed::<IngestionPipeline>(pipeline).await?,
        listed::<Deployment>(pipeline).await?,
        listed::<ReplicaSet>(pipeline).await?,
        listed::<Pod>(pipeline).await?,
        listed::<ConfigMap>(pipeline).await?,
        listed::<Service>(pipeline).await?,
        listed::<ServiceAccount>(pipeline).await?,
        listed::<PodDisruptionBudget>(pipeline).await?,
        listed::<NetworkPolicy>(pipeline).await?,
        listed::<Event>(pipeline).await?,
    ];
    for pod in pods(pipeline, &pipeline.namespace).await? {
        shown.push(log(pipeline, &pipeline.namespace, &pod, None).await?);
        shown.push(started_with(pipeline, &pipeline.namespace, &pod).await?);
        let forward = pipeline.cluster.forward_to_pod(&pipeline.namespace, &pod, ADMIN_PORT).await?;
        for path in ["metrics", "readyz"] {
            let text = reqwest::get(format!("{}/{path}", forward.url())).await?.text().await?;
            shown.push((format!("/{path} of the pod {pod}"), text));
        }
    }
    for pod in pods(pipeline, OPERATOR).await? {
        shown.push(log(pipeline, OPERATOR, &pod, Some(began)).await?);
        shown.push(started_with(pipeline, OPERATOR, &pod).await?);
    }
    let letters = pipeline.read("dead-letter").await?;
    let letters: Vec<String> = letters
        .iter()
        .map(|letter| format!("{:?} {}", letter.headers, String::from_utf8_lossy(&letter.value)))
        .collect();
    shown.push(("the dead letters".to_owned(), letters.join("\n")));
    Ok(shown)
}

async fn listed<K>(pipeline: &TestPipeline) -> Result<Shown>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Serialize
        + DeserializeOwned
        + Clone
        + Debug,
{
    let api: Api<K> = Api::namespaced(pipeline.cluster.client.clone(), &pipeline.namespace);
    let items = api.list(&ListParams::default()).await?.items;
    let kind = K::kind(&()).into_owned();
    ensure!(!items.is_empty(), "there is no {kind} in {}", pipeline.namespace);
    Ok((kind, serde_json::to_string(&items)?))
}

/// Pods that run.
async fn pods(pipeline: &TestPipeline, namespace: &str) -> Result<Vec<String>> {
    let api: Api<Pod> = Api::namespaced(pipeline.cluster.client.clone(), namespace);
    let pods = api.list(&ListParams::default()).await?;
    let running: Vec<String> = pods
        .iter()
        .filter(|pod| {
            pod.metadata.deletion_timestamp.is_none()
                && pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"))
        })
        .map(ResourceExt::name_any)
        .collect();
    ensure!(!running.is_empty(), "no pod runs in {namespace}");
    Ok(running)
}

async fn log(pipeline: &TestPipeline, namespace: &str, pod: &str, since: Option<Timestamp>) -> Result<Shown> {
    let api: Api<Pod> = Api::namespaced(pipeline.cluster.client.clone(), namespace);
    let parameters = LogParams { since_time: since, ..LogParams::default() };
    Ok((format!("the log of the pod {pod}"), api.logs(pod, &parameters).await?))
}

/// Command line and environment of a pod's process: what a list of processes shows.
async fn started_with(pipeline: &TestPipeline, namespace: &str, pod: &str) -> Result<Shown> {
    let process = pipeline.cluster.container(namespace, pod).await?.main_process()?;
    let mut text = String::new();
    for file in ["cmdline", "environ"] {
        let path = format!("/proc/{process}/{file}");
        let content = std::fs::read(&path).with_context(|| format!("reading {path}"))?;
        text.push_str(&String::from_utf8_lossy(&content).replace('\0', " "));
        text.push('\n');
    }
    Ok((format!("command line and environment of the pod {pod}"), text))
}

/// Fails unless every pod of the pipeline runs with a root file system that it cannot write to, as the kernel has it.
///
/// # Errors
/// One can, or it cannot be found out.
pub async fn root_is_read_only(pipeline: &TestPipeline) -> Result<()> {
    for pod in pods(pipeline, &pipeline.namespace).await? {
        let process = pipeline.cluster.container(&pipeline.namespace, &pod).await?.main_process()?;
        let mounts = std::fs::read_to_string(format!("/proc/{process}/mountinfo"))?;
        let options = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields.get(4) == Some(&"/"))
            .and_then(|fields| fields.get(5).map(|options| (*options).to_owned()))
            .with_context(|| format!("the pod {pod} has no root"))?;
        ensure!(
            options.split(',').any(|option| option == "ro"),
            "the root of the pod {pod} is mounted with {options}"
        );
    }
    Ok(())
}

/// The tokens with which the components go to Kafka, as they are in the pods now.
///
/// # Errors
/// A pod has none.
pub async fn account_tokens(pipeline: &TestPipeline) -> Result<Vec<String>> {
    let mut tokens = Vec::new();
    for pod in pods(pipeline, &pipeline.namespace).await? {
        let process = pipeline.cluster.container(&pipeline.namespace, &pod).await?.main_process()?;
        let path = format!("/proc/{process}/root/etc/penstock-kafka/auth/token");
        let token = std::fs::read_to_string(&path).with_context(|| format!("the token of the pod {pod}"))?;
        // Header and claims are told to whoever asks; without the signature nobody is believed.
        tokens.extend(token.trim().rsplit('.').next().map(str::to_owned));
    }
    Ok(tokens)
}
