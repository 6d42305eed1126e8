//! Harm done on purpose: processes killed or frozen, Kafka and ClickHouse stopped, the network between two pods cut.
//!
//! Each fault that lasts is a value; dropping it ends the fault, so that a failing test leaves a whole platform.

use std::{net::Ipv4Addr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, api::ListParams};
use penstock_platform::{
    container::{Container, Cut, Frozen},
    services::{clickhouse_answers, kafka_answers},
};

use crate::cluster::{Cluster, wait_until};

/// What a stopped server needs to come back, Kafka's recovery of its logs included.
const RETURN: Duration = Duration::from_secs(120);

/// A server of the platform that can be stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The broker.
    Kafka,
    /// The database.
    ClickHouse,
}

impl Server {
    /// The namespace in which the platform's own runs.
    pub fn namespace(self) -> &'static str {
        match self {
            Self::Kafka => "streaming",
            Self::ClickHouse => "warehouse",
        }
    }

    /// The name of its StatefulSet and its Service.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kafka => "kafka",
            Self::ClickHouse => "clickhouse",
        }
    }

    /// Its only pod.
    pub fn pod(self) -> String {
        format!("{}-0", self.name())
    }

    /// The namespace it runs in, of this cluster: a test may have servers of its own.
    pub fn namespace_in(self, cluster: &Cluster) -> &str {
        let address = match self {
            Self::Kafka => cluster.info.kafka_bootstrap.as_str(),
            Self::ClickHouse => cluster.info.clickhouse_url.as_str(),
        };
        // `<service>.<namespace>:<port>`, with a scheme or without.
        let host = address.rsplit('/').next().unwrap_or_default().split(':').next().unwrap_or_default();
        host.split('.').nth(1).unwrap_or_else(|| self.namespace())
    }

    fn answers(self, cluster: &Cluster) -> bool {
        match self {
            Self::Kafka => kafka_answers(cluster.info.ports.kafka).is_ok(),
            Self::ClickHouse => clickhouse_answers(cluster.info.ports.clickhouse).is_ok(),
        }
    }
}

/// A server that is stopped. [`Outage::end`] starts it and waits; dropping starts it and does not wait.
#[must_use = "dropping this starts the server again at once"]
pub struct Outage {
    cluster: Cluster,
    server: Server,
    over: bool,
}

impl Outage {
    /// Starts the server and waits until it answers.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn end(mut self) -> Result<()> {
        self.over = true;
        self.cluster.scale(self.server, 1)?;
        self.cluster.wait_for(self.server).await
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.cluster.scale(self.server, 1);
        }
    }
}

impl Cluster {
    /// The first container of a pod, as it runs now.
    ///
    /// # Errors
    /// There is no such pod, or its container does not run.
    pub async fn container(&self, namespace: &str, pod: &str) -> Result<Container> {
        let found = Api::<Pod>::namespaced(self.client.clone(), namespace).get(pod).await?;
        let id = found
            .status
            .and_then(|status| status.container_statuses)
            .and_then(|statuses| statuses.into_iter().next())
            .and_then(|status| status.container_id)
            .with_context(|| format!("the pod {namespace}/{pod} has no container yet"))?;
        Container::of(&id).with_context(|| format!("the container of the pod {namespace}/{pod}"))
    }

    /// Kills the process of a pod with SIGKILL. The kubelet starts it anew; the pod stays the same.
    ///
    /// # Errors
    /// There is no such pod, or its container does not run.
    pub async fn kill_process(&self, namespace: &str, pod: &str) -> Result<()> {
        self.container(namespace, pod).await?.kill()
    }

    /// Uses up the memory that a pod may use, so that the kernel kills its process, as it does when a process grows too
    /// large: a file in memory is written on its account.
    ///
    /// # Errors
    /// There is no such pod, it has no limit, or its process outlives it.
    pub async fn use_up_memory(&self, namespace: &str, pod: &str) -> Result<()> {
        let container = self.container(namespace, pod).await?;
        tokio::task::spawn_blocking(move || out_of_memory(&container)).await?
    }

    /// Freezes all processes of a pod with SIGSTOP until the result is dropped.
    ///
    /// # Errors
    /// There is no such pod, or its container does not run.
    pub async fn freeze(&self, namespace: &str, pod: &str) -> Result<Frozen> {
        self.container(namespace, pod).await?.freeze()
    }

    /// Cuts what one pod sends to another, directly and through the Services that lead to it, until the result is
    /// dropped. No connection between the two works: answers to the other are lost as well.
    ///
    /// # Errors
    /// A pod is not there or has no address.
    pub async fn cut_network(&self, from: (&str, &str), to: (&str, &str)) -> Result<Cut> {
        let target = Api::<Pod>::namespaced(self.client.clone(), to.0).get(to.1).await?;
        let labels = target.metadata.labels.unwrap_or_default();
        let address = target
            .status
            .and_then(|status| status.pod_ip)
            .with_context(|| format!("the pod {}/{} has no address", to.0, to.1))?;
        let mut addresses = vec![address.parse::<Ipv4Addr>()?];
        let services =
            Api::<Service>::namespaced(self.client.clone(), to.0).list(&ListParams::default()).await?;
        for spec in services.items.into_iter().filter_map(|service| service.spec) {
            let selects = spec.selector.is_some_and(|selector| {
                !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            });
            if let (true, Some(address)) = (selects, spec.cluster_ip)
                && let Ok(address) = address.parse()
            {
                addresses.push(address);
            }
        }
        self.container(from.0, from.1).await?.cut_from(&addresses)
    }

    /// Stops Kafka or ClickHouse and waits until its pod is gone.
    ///
    /// # Errors
    /// The pod is not gone after a minute.
    pub async fn stop(&self, server: Server) -> Result<Outage> {
        let outage = Outage { cluster: self.clone(), server, over: false };
        self.scale(server, 0)?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), server.namespace_in(self));
        wait_until(&format!("{} is gone", server.pod()), Duration::from_secs(60), async || {
            Ok(pods.get_opt(&server.pod()).await?.is_none())
        })
        .await?;
        Ok(outage)
    }

    /// Waits until Kafka or ClickHouse answers, on this machine and through its Service.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn wait_for(&self, server: Server) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), server.namespace_in(self));
        wait_until(&format!("{} serves", server.name()), RETURN, async || {
            let ready =
                pods.get_opt(&server.pod()).await?.and_then(|pod| pod.status?.conditions).is_some_and(
                    |conditions| {
                        conditions
                            .iter()
                            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
                    },
                );
            let cluster = self.clone();
            Ok(ready && tokio::task::spawn_blocking(move || server.answers(&cluster)).await?)
        })
        .await
    }

    /// By kubectl, since a value that is dropped cannot wait for a future.
    fn scale(&self, server: Server, replicas: u8) -> Result<()> {
        let output = Command::new(self.info.bin.join("kubectl"))
            .arg("--kubeconfig")
            .arg(&self.info.kubeconfig)
            .args(["--namespace", server.namespace_in(self), "scale", "statefulset", server.name()])
            .arg(format!("--replicas={replicas}"))
            .output()
            .context("running kubectl")?;
        anyhow::ensure!(
            output.status.success(),
            "scaling {}: {}",
            server.name(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}

/// A file in memory belongs to the cgroup of who writes it, and is not part of anybody's process: what the kernel finds to
/// kill is the container's own process. The file is removed at the end, and the memory with it.
fn out_of_memory(container: &Container) -> Result<()> {
    struct File(std::path::PathBuf);
    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
    let pid = container.main_process()?;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let group = groups
        .lines()
        .find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (controllers, path) = (fields.nth(1)?, fields.next()?.trim_start_matches('/'));
            let tree = match controllers {
                "" => Path::new("/sys/fs/cgroup").to_owned(),
                list if list.split(',').any(|name| name == "memory") => {
                    Path::new("/sys/fs/cgroup/memory").to_owned()
                }
                _ => return None,
            };
            let group = tree.join(path);
            ["memory.limit_in_bytes", "memory.max"]
                .iter()
                .find_map(|file| std::fs::read_to_string(group.join(file)).ok()?.trim().parse::<u64>().ok())
                .map(|limit| (group, limit))
        })
        .with_context(|| format!("process {pid} is in no cgroup with a limit of memory"))?;
    let (group, limit) = group;
    // Without a limit, the machine's memory would be used up.
    anyhow::ensure!(limit <= 4 << 30, "the container may use {limit} bytes: too much to use up");
    let file = File(format!("/dev/shm/penstock-memory-{pid}").into());
    // The shell moves itself before it writes; it may be killed as well.
    let script = format!(
        "echo $$ > '{}/cgroup.procs' && exec head -c {} /dev/zero > '{}'",
        group.display(),
        limit + (64 << 20),
        file.0.display()
    );
    let _ = Command::new("sh").args(["-c", &script]).output().context("running sh")?;
    let began = std::time::Instant::now();
    while Path::new(&format!("/proc/{pid}")).exists() {
        anyhow::ensure!(
            began.elapsed() < Duration::from_secs(10),
            "process {pid} runs on although its memory is used up"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
