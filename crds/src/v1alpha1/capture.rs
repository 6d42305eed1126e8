//! The capture API.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WorkloadSettings;
use crate::{quantity::ByteSize, rules::bytes_between};

/// The HTTP API that client libraries send events to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaptureSpec {
    /// Workload settings of this component.
    #[serde(flatten)]
    pub workload: WorkloadSettings,
    /// The Service in front of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<CaptureService>,
    /// Largest request body, after decompression. Default 20Mi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = bytes_between(1 << 10, 1 << 30, "1Ki to 1Gi"))]
    pub max_body_size: Option<ByteSize>,
    /// Requests handled at once per pod; more are answered 503 with Retry-After. Default 512.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_536))]
    pub max_concurrent_requests: Option<u32>,
}

/// The Service in front of capture.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct CaptureService {
    /// Kind of Service. `ClusterIP` (default): reached inside the cluster, or through an Ingress or Gateway.
    /// `NodePort`: a port on every node. `LoadBalancer`: the cloud's load balancer.
    #[serde(default, rename = "type")]
    pub type_: ServiceType,
    /// Port of the Service. Default 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u16>,
    /// Annotations, for example for a load balancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxProperties" = 64))]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// Kinds of Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Reached inside the cluster, or through an Ingress or Gateway.
    #[default]
    ClusterIP,
    /// A port on every node.
    NodePort,
    /// The cloud's load balancer.
    LoadBalancer,
}
