//! The consumer and its lanes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WorkloadSettings;

/// The consumer: validates, resolves the project, normalises time and uuid, and writes `ingested` in transactions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerSpec {
    /// One workload per lane, the same binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lanes: Option<ConsumerLanes>,
}

/// The lanes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ConsumerLanes {
    /// Reads `captured`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub main: Option<LaneSpec>,
}

/// One lane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LaneSpec {
    /// Workload settings of this component.
    #[serde(flatten)]
    pub workload: WorkloadSettings,
}
