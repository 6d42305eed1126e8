//! Projects (tenants), and references into Secrets and ConfigMaps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A tenant: the id that its rows carry and the token that its clients send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Project {
    /// Written to `team_id` and `project_id` of every row. Positive; never reuse one.
    pub id: i64,
    /// Name for people; in metrics and logs.
    pub name: String,
    /// The token ("API key") that clients send, at most 64 printable ASCII characters. Exactly one of `token` and
    /// `tokenFrom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Take the token from a Secret in the pipeline's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_from: Option<KeySelector>,
}

/// A key of a Secret in the namespace of the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeySelector {
    /// Name of the Secret.
    pub secret: String,
    /// Key inside the Secret.
    pub key: String,
}
