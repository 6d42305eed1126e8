//! Kafka and ClickHouse of one test alone, which it may stop, kill and freeze while other tests use the platform's.

mod clickhouse;
mod kafka;

use std::{net::SocketAddr, os::unix::fs::chown, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{ConfigMap, Service},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use penstock_platform::{forward::Forward, layout::Layout};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, wait_until},
    faults::Server,
    warehouse::Warehouse,
};

/// What several servers need that start at once on two cores.
const START: Duration = Duration::from_secs(240);

/// How many servers of each there are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Kafka's brokers, pods `kafka-0` and so on. The first is the controller too. With three or more, topics have three
    /// replicas and `min.insync.replicas=2`.
    pub brokers: u16,
    /// ClickHouse's servers, each a shard of the cluster `penstock`: pods `clickhouse-0`, `clickhouse-2-0` and so on.
    pub shards: u16,
}

impl Default for Wanted {
    fn default() -> Self {
        Self { brokers: 1, shards: 1 }
    }
}

/// Servers of one's own, taken away when the test ends.
pub struct OwnServers {
    /// The platform with these servers in the place of its own.
    pub cluster: Cluster,
    /// The ways in from this machine.
    _forwards: Vec<Forward>,
}

/// What is made for one StatefulSet.
struct Part {
    name: String,
    user: u32,
    replicas: u16,
    container: Value,
    volumes: Vec<Value>,
    /// Folders of the data, below that of the test.
    folders: Vec<String>,
}

impl OwnServers {
    /// Runs a test with servers of its own, and takes them away, whatever became of it.
    ///
    /// # Errors
    /// That of the test, or the servers do not start or cannot be removed.
    pub async fn with(
        purpose: &str,
        wanted: Wanted,
        test: impl AsyncFnOnce(&Cluster) -> Result<()>,
    ) -> Result<()> {
        let platform = Cluster::connect().await?;
        let namespace = platform.fresh_namespace(&format!("{purpose}-servers")).await?;
        let data = Layout::from_env()?.data().join("tests").join(&namespace);
        let outcome = async {
            let servers = Self::start(&platform, &namespace, wanted, &data).await?;
            test(&servers.cluster).await
        }
        .await;
        if outcome.is_err() && std::env::var_os("PENSTOCK_TEST_KEEP").is_some() {
            eprintln!("namespace {namespace} is kept, with its data in {}", data.display());
            return outcome;
        }
        let removed = platform.delete_namespace(&namespace).await;
        let gone = match std::fs::remove_dir_all(&data) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        };
        outcome.and(removed).and(gone)
    }

    async fn start(
        platform: &Cluster,
        namespace: &str,
        wanted: Wanted,
        data: &std::path::Path,
    ) -> Result<Self> {
        let create = PostParams::default();
        let services: Api<Service> = Api::namespaced(platform.client.clone(), namespace);
        let mut forwards = Vec::new();
        for (service, port) in
            kafka::services(wanted.brokers).into_iter().chain(clickhouse::services(wanted.shards))
        {
            let service = services.create(&create, &serde_json::from_value(service)?).await?;
            let Some(port) = port else { continue };
            let address =
                service.spec.and_then(|spec| spec.cluster_ip).context("a Service without address")?;
            forwards.push(Forward::to(SocketAddr::new(address.parse()?, port))?);
        }
        let ports: Vec<u16> = forwards.iter().map(|forward| forward.address().port()).collect();
        let (brokers, shards) = ports.split_at(wanted.brokers.into());

        let mut cluster = platform.clone();
        cluster.info.ports.kafka = *brokers.first().context("one broker at least")?;
        cluster.info.ports.clickhouse = *shards.first().context("one shard at least")?;
        cluster.info.kafka_bootstrap = format!("kafka.{namespace}:9092");
        cluster.info.clickhouse_url = format!("http://{}.{namespace}:8123", clickhouse::name(0));
        cluster.warehouse = Warehouse::at(cluster.info.clickhouse_on_host());

        let configs: Api<ConfigMap> = Api::namespaced(platform.client.clone(), namespace);
        for config in [kafka::config(namespace, brokers), clickhouse::config(namespace, wanted.shards)] {
            configs.create(&create, &serde_json::from_value(config)?).await?;
        }
        let sets: Api<StatefulSet> = Api::namespaced(platform.client.clone(), namespace);
        let images = [image(platform, Server::Kafka).await?, image(platform, Server::ClickHouse).await?];
        let mut parts = vec![kafka::part(wanted.brokers, &images[0])];
        parts.extend((0..wanted.shards).map(|shard| clickhouse::part(shard, wanted.shards, &images[1])));
        for part in &parts {
            for folder in &part.folders {
                let folder = data.join(folder);
                std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
                chown(&folder, Some(part.user), Some(part.user))
                    .with_context(|| format!("giving {} to its server", folder.display()))?;
            }
            let set = stateful_set(part, &data.join(&part.name).display().to_string());
            sets.create(&create, &serde_json::from_value(set)?).await?;
        }
        let servers = Self { cluster, _forwards: forwards };
        for part in &parts {
            servers
                .cluster
                .wait_pods(namespace, &part.name, part.replicas)
                .await
                .with_context(|| format!("the test's own {}, data in {}", part.name, data.display()))?;
        }
        for server in [Server::Kafka, Server::ClickHouse] {
            servers.cluster.wait_for(server).await?;
        }
        println!("{namespace} has {} brokers and {} shards of its own", wanted.brokers, wanted.shards);
        Ok(servers)
    }
}

/// The image that the platform's own server runs.
async fn image(platform: &Cluster, server: Server) -> Result<String> {
    let set: StatefulSet =
        Api::namespaced(platform.client.clone(), server.namespace()).get(server.name()).await?;
    let pod = set.spec.template.spec;
    pod.and_then(|pod| pod.containers.into_iter().find(|container| container.name == server.name()))
        .and_then(|container| container.image)
        .with_context(|| format!("the platform's {} has no image", server.name()))
}

fn stateful_set(part: &Part, folder: &str) -> Value {
    let name = &part.name;
    let mut volumes = part.volumes.clone();
    volumes.push(json!({"name": "data", "hostPath": {"path": folder, "type": "Directory"}}));
    let mut container = part.container.clone();
    container["imagePullPolicy"] = json!("IfNotPresent");
    container["securityContext"] =
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    json!({
        "metadata": {"name": name},
        "spec": {
            "serviceName": name,
            "replicas": part.replicas,
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": 15,
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": part.user, "runAsGroup": part.user,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                    "volumes": volumes,
                },
            },
        },
    })
}

impl Cluster {
    /// Sets how many pods of a StatefulSet there are to be.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn set_replicas(&self, namespace: &str, name: &str, replicas: u32) -> Result<()> {
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), namespace);
        let patch = json!({"spec": {"replicas": replicas}});
        api.patch_scale(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// Waits until so many pods of a StatefulSet are ready.
    ///
    /// # Errors
    /// They are not in time.
    pub async fn wait_pods(&self, namespace: &str, name: &str, replicas: u16) -> Result<()> {
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), namespace);
        wait_until(&format!("{replicas} pods of {name} are ready"), START, async || {
            let status = api.get(name).await?.status;
            Ok(status.and_then(|status| status.ready_replicas) == Some(replicas.into()))
        })
        .await
    }

    /// A shard of a test's own servers, from 0.
    pub fn shard(&self, shard: u16) -> ShardPlace {
        ShardPlace {
            namespace: Server::ClickHouse.namespace_in(self).to_owned(),
            name: clickhouse::name(shard),
        }
    }
}

/// Where a shard runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardPlace {
    /// Its namespace.
    pub namespace: String,
    /// Name of its StatefulSet and its Service.
    pub name: String,
}

impl ShardPlace {
    /// Its URL for clients in the cluster.
    pub fn url(&self) -> String {
        format!("http://{}.{}:8123", self.name, self.namespace)
    }

    /// Its only pod.
    pub fn pod(&self) -> String {
        format!("{}-0", self.name)
    }
}

/// Removes namespaces of earlier runs of this purpose that were cut off, with their data.
///
/// # Errors
/// The API server does not answer, or one does not go away.
pub async fn remove_leftovers(purpose: &str) -> Result<()> {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::{ResourceExt, api::ListParams};
    let cluster = Cluster::connect().await?;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    for label in [purpose.to_owned(), format!("{purpose}-servers")] {
        let list = ListParams::default().labels(&format!("penstock.dev/test={label}"));
        for namespace in namespaces.list(&list).await? {
            let name = namespace.name_any();
            println!("removing {name}, which an earlier run has left");
            // Its operator cannot reach servers that are gone: what belongs to Penstock is deleted with the namespace.
            tokio::time::timeout(Duration::from_secs(180), cluster.delete_namespace(&name)).await??;
            let _ = std::fs::remove_dir_all(Layout::from_env()?.data().join("tests").join(&name));
        }
    }
    Ok(())
}
