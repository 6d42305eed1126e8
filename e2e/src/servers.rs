//! A Kafka and a ClickHouse of one test alone, which it may stop, kill and freeze while other tests use the platform's.

use std::{net::SocketAddr, os::unix::fs::chown, path::PathBuf, time::Duration};

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

use crate::{cluster::Cluster, faults::Server, warehouse::Warehouse};

/// Servers of one's own. [`OwnServers::remove`] takes them away.
pub struct OwnServers {
    /// The platform with these servers in the place of its own.
    pub cluster: Cluster,
    namespace: String,
    data: PathBuf,
    /// The ways in from this machine.
    _forwards: [Forward; 2],
}

impl OwnServers {
    /// Runs a test with servers of its own, and takes them away, whatever became of it.
    ///
    /// # Errors
    /// That of the test, or the servers do not start or cannot be removed.
    pub async fn with(purpose: &str, test: impl AsyncFnOnce(&Cluster) -> Result<()>) -> Result<()> {
        let platform = Cluster::connect().await?;
        let namespace = platform.fresh_namespace(&format!("{purpose}-servers")).await?;
        let data = Layout::from_env()?.data().join("tests").join(&namespace);
        let outcome = async {
            let servers = Self::start(&platform, &namespace, &data).await?;
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

    async fn start(platform: &Cluster, namespace: &str, data: &std::path::Path) -> Result<Self> {
        let services: Api<Service> = Api::namespaced(platform.client.clone(), namespace);
        let mut forwards = Vec::new();
        for (server, port) in [(Server::Kafka, 9094), (Server::ClickHouse, 8123)] {
            let service = services.create(&PostParams::default(), &service(server)?).await?;
            let address =
                service.spec.and_then(|spec| spec.cluster_ip).context("a Service without address")?;
            forwards.push(Forward::to(SocketAddr::new(address.parse()?, port))?);
        }
        let forwards: [Forward; 2] =
            forwards.try_into().map_err(|_| anyhow::anyhow!("two servers have two ways in"))?;

        let mut cluster = platform.clone();
        cluster.info.ports.kafka = forwards[0].address().port();
        cluster.info.ports.clickhouse = forwards[1].address().port();
        cluster.info.kafka_bootstrap = format!("kafka.{namespace}:9092");
        cluster.info.clickhouse_url = format!("http://clickhouse.{namespace}:8123");
        cluster.warehouse = Warehouse::at(cluster.info.clickhouse_on_host());

        let config: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "kafka"},
            "data": {"server.properties": properties(namespace, cluster.info.ports.kafka)},
        }))?;
        Api::namespaced(platform.client.clone(), namespace).create(&PostParams::default(), &config).await?;
        let sets: Api<StatefulSet> = Api::namespaced(platform.client.clone(), namespace);
        for (server, user) in [(Server::Kafka, 1000), (Server::ClickHouse, 101)] {
            let folder = data.join(server.name());
            std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
            chown(&folder, Some(user), Some(user))
                .with_context(|| format!("giving {} to its server", folder.display()))?;
            let image = image(platform, server).await?;
            let set: StatefulSet =
                serde_json::from_value(stateful_set(server, user, &image, &folder.display().to_string()))?;
            sets.create(&PostParams::default(), &set).await?;
        }
        let servers =
            Self { cluster, namespace: namespace.to_owned(), data: data.to_owned(), _forwards: forwards };
        for server in [Server::Kafka, Server::ClickHouse] {
            servers.cluster.wait_for(server).await.with_context(|| {
                format!("the test's own {}, data in {}", server.name(), servers.data.display())
            })?;
        }
        println!("{} has a Kafka and a ClickHouse of its own", servers.namespace);
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

fn service(server: Server) -> Result<Service> {
    let ports: Value = match server {
        Server::Kafka => json!([{"name": "pods", "port": 9092}, {"name": "host", "port": 9094}]),
        Server::ClickHouse => json!([{"name": "http", "port": 8123}]),
    };
    Ok(serde_json::from_value(json!({
        "metadata": {"name": server.name()},
        // The broker finds itself by this name before it is ready.
        "spec": {"selector": {"app": server.name()}, "publishNotReadyAddresses": server == Server::Kafka, "ports": ports},
    }))?)
}

fn stateful_set(server: Server, user: u32, image: &str, folder: &str) -> Value {
    let name = server.name();
    let (container, mut volumes) = match server {
        Server::Kafka => (
            json!({
                "command": ["/bin/sh", "-ec"],
                "args": [
                    "[ -f /var/lib/kafka/data/meta.properties ] || /opt/kafka/bin/kafka-storage.sh format --standalone \
                     -t cGVuc3RvY2stcGxhdGZvcg -c /etc/penstock/server.properties; \
                     exec /opt/kafka/bin/kafka-server-start.sh /etc/penstock/server.properties"
                ],
                "env": [{"name": "KAFKA_HEAP_OPTS", "value": "-Xms256m -Xmx512m"}],
                "readinessProbe": {"tcpSocket": {"port": 9092}, "periodSeconds": 2},
                "resources": {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "1280Mi"}},
                "volumeMounts": [
                    {"name": "data", "mountPath": "/var/lib/kafka/data"},
                    {"name": "config", "mountPath": "/etc/penstock", "readOnly": true},
                ],
            }),
            vec![json!({"name": "config", "configMap": {"name": name}})],
        ),
        Server::ClickHouse => (
            json!({
                "env": [{"name": "CLICKHOUSE_SKIP_USER_SETUP", "value": "1"}],
                "readinessProbe": {
                    "httpGet": {"path": "/ping", "port": 8123}, "periodSeconds": 2, "timeoutSeconds": 3,
                },
                "resources": {"requests": {"cpu": "50m", "memory": "384Mi"}, "limits": {"memory": "4Gi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/var/lib/clickhouse"}],
            }),
            Vec::new(),
        ),
    };
    volumes.push(json!({"name": "data", "hostPath": {"path": folder, "type": "Directory"}}));
    let mut container = container;
    container["name"] = json!(name);
    container["image"] = json!(image);
    container["imagePullPolicy"] = json!("IfNotPresent");
    container["securityContext"] =
        json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    json!({
        "metadata": {"name": name},
        "spec": {
            "serviceName": name,
            "replicas": 1,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "automountServiceAccountToken": false,
                    "enableServiceLinks": false,
                    "terminationGracePeriodSeconds": 15,
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": user, "runAsGroup": user,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [container],
                    "volumes": volumes,
                },
            },
        },
    })
}

fn properties(namespace: &str, port: u16) -> String {
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=127.0.0.1:9099
controller.listener.names=CONTROLLER
listeners=PODS://:9092,HOST://:9094,CONTROLLER://127.0.0.1:9099
advertised.listeners=PODS://kafka.{namespace}:9092,HOST://127.0.0.1:{port}
listener.security.protocol.map=PODS:PLAINTEXT,HOST:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PODS
log.dirs=/var/lib/kafka/data
auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=8
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=8
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=200
log.segment.bytes=134217728
"
    )
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
