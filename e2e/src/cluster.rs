//! The running platform, as tests use it: a client, names that nobody else has, and ways in.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, ObjectMeta, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use penstock_platform::{forward::Forward, info::PlatformInfo, layout::Layout};
use uuid::Uuid;

use crate::warehouse::Warehouse;

/// The platform that is up.
#[derive(Clone)]
pub struct Cluster {
    /// Client with administrator's rights.
    pub client: Client,
    /// Ports and paths of the platform.
    pub info: PlatformInfo,
    /// Its ClickHouse.
    pub warehouse: Warehouse,
}

impl Cluster {
    /// Connects to the platform that is up.
    ///
    /// # Errors
    /// No platform is up; `make platform` starts one.
    pub async fn connect() -> Result<Self> {
        let info = PlatformInfo::read(&Layout::from_env()?)?;
        let kubeconfig = Kubeconfig::read_from(&info.kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        client
            .apiserver_version()
            .await
            .context("the platform's Kubernetes API does not answer: run `make platform`")?;
        let warehouse = Warehouse::at(info.clickhouse_on_host());
        Ok(Self { client, info, warehouse })
    }

    /// Kafka's address for clients on this machine.
    pub fn kafka(&self) -> String {
        self.info.kafka_on_host()
    }

    /// A fresh namespace; [`Cluster::delete_namespace`] removes it.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn fresh_namespace(&self, purpose: &str) -> Result<String> {
        self.namespace(purpose, &[]).await
    }

    /// A fresh namespace that takes no pods but those of the restricted Pod Security standard.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn restricted_namespace(&self, purpose: &str) -> Result<String> {
        self.namespace(purpose, &[("pod-security.kubernetes.io/enforce", "restricted")]).await
    }

    async fn namespace(&self, purpose: &str, labels: &[(&str, &str)]) -> Result<String> {
        let name = format!("test-{purpose}-{}", &Uuid::new_v4().simple().to_string()[..6]);
        let own = [("penstock.dev/test", purpose)];
        let labels = labels.iter().chain(&own);
        let namespace = Namespace {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
                ..ObjectMeta::default()
            },
            ..Namespace::default()
        };
        Api::all(self.client.clone()).create(&PostParams::default(), &namespace).await?;
        Ok(name)
    }

    /// Deletes a namespace and waits until it is gone.
    ///
    /// # Errors
    /// It is not gone after two minutes.
    pub async fn delete_namespace(&self, name: &str) -> Result<()> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        if api.get_opt(name).await?.is_none() {
            return Ok(());
        }
        api.delete(name, &DeleteParams::default()).await?;
        wait_until(&format!("namespace {name} is gone"), Duration::from_secs(120), async || {
            Ok(api.get_opt(name).await?.is_none())
        })
        .await
    }

    /// A port of this machine that leads to a Service, through kube-proxy like every client of the cluster.
    ///
    /// # Errors
    /// There is no such Service, or no port could be had.
    pub async fn forward_to_service(&self, namespace: &str, name: &str, port: u16) -> Result<Forward> {
        let service = Api::<Service>::namespaced(self.client.clone(), namespace).get(name).await?;
        let address = service.spec.and_then(|spec| spec.cluster_ip).context("the Service has no address")?;
        Forward::to(SocketAddr::new(address.parse()?, port))
    }

    /// A port of this machine that leads to a pod.
    ///
    /// # Errors
    /// There is no such pod, it has no address yet, or no port could be had.
    pub async fn forward_to_pod(&self, namespace: &str, name: &str, port: u16) -> Result<Forward> {
        let pod = Api::<Pod>::namespaced(self.client.clone(), namespace).get(name).await?;
        let address = pod.status.and_then(|status| status.pod_ip).context("the pod has no address yet")?;
        Forward::to(SocketAddr::new(address.parse()?, port))
    }

    /// The pods of one component of a pipeline.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn pods(&self, namespace: &str, component: &str) -> Result<Vec<Pod>> {
        let list = ListParams::default().labels(&format!("app.kubernetes.io/component={component}"));
        Ok(Api::<Pod>::namespaced(self.client.clone(), namespace).list(&list).await?.items)
    }
}

/// Asks again and again until the answer is yes.
///
/// # Errors
/// The question fails, or the answer is still no at the end of the time.
pub async fn wait_until(
    what: &str,
    patience: Duration,
    question: impl AsyncFn() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        if question().await.with_context(|| format!("while waiting until {what}"))? {
            return Ok(());
        }
        if start.elapsed() > patience {
            bail!("after {} s it is still not so that {what}", patience.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}
