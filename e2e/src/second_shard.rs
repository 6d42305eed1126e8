//! The platform's second ClickHouse, which stands still unless a test needs two shards.

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::{apps::v1::StatefulSet, core::v1::Pod};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use penstock_platform::forward::Forward;
use serde_json::json;

use crate::{
    cluster::{Cluster, wait_until},
    warehouse::Warehouse,
};

/// Namespace and name of the StatefulSet and the Service.
const PLACE: (&str, &str) = ("warehouse", "clickhouse-2");
/// It answers within two seconds where nothing else runs.
const START: Duration = Duration::from_secs(120);

/// The second server, while it runs. Tests that use it share it: it is stopped by the last that says so, and its data stays.
pub struct SecondShard {
    cluster: Cluster,
    warehouse: Warehouse,
    _forward: Forward,
}

impl Cluster {
    /// Starts the second ClickHouse and waits until it answers. Both servers know the cluster `penstock` of the two as two
    /// shards of one replica each.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn second_shard(&self) -> Result<SecondShard> {
        self.scale_second_shard(1).await?;
        let (namespace, name) = PLACE;
        let forward = self.forward_to_service(namespace, name, 8123).await?;
        let warehouse = Warehouse::at(forward.url());
        wait_until("the second ClickHouse answers", START, async || {
            Ok(warehouse.text("SELECT 1").await.is_ok())
        })
        .await?;
        Ok(SecondShard { cluster: self.clone(), warehouse, _forward: forward })
    }

    async fn scale_second_shard(&self, replicas: u8) -> Result<()> {
        let (namespace, name) = PLACE;
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), namespace);
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        api.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }
}

impl SecondShard {
    /// Its tables.
    pub fn warehouse(&self) -> &Warehouse {
        &self.warehouse
    }

    /// Its URL for clients in the cluster.
    pub fn url() -> String {
        let (namespace, name) = PLACE;
        format!("http://{name}.{namespace}:8123")
    }

    /// Stops it and waits until its pod is gone.
    ///
    /// # Errors
    /// The pod is not gone in time.
    pub async fn stop(self) -> Result<()> {
        self.cluster.scale_second_shard(0).await?;
        let (namespace, name) = PLACE;
        let pods: Api<Pod> = Api::namespaced(self.cluster.client.clone(), namespace);
        wait_until("the second ClickHouse is gone", START, async || {
            Ok(pods.get_opt(&format!("{name}-0")).await?.is_none())
        })
        .await
    }
}
