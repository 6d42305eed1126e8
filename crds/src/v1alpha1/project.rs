//! Projects (tenants), and references into Secrets and ConfigMaps.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{dns_label, exactly_one_of, object_key, object_name};

/// A tenant: the id that its rows carry and the token that its clients send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = exactly_one_of("token", "tokenFrom"))]
pub struct Project {
    /// Written to `team_id` and `project_id` of every row. Positive; never reuse one.
    #[schemars(range(min = 1, max = 9_007_199_254_740_991_i64))]
    pub id: i64,
    /// Name for people; in metrics and logs.
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = dns_label("name of a project"))]
    pub name: String,
    /// The token ("API key") that clients send, at most 64 printable ASCII characters. Exactly one of `token` and
    /// `tokenFrom`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[!-~]+$') && !self.startsWith('phx_')").message(
        "token must be printable ASCII without spaces, for example phc_1f3c…; a personal API key (phx_…) is not a project token"
    ))]
    pub token: Option<String>,
    /// Take the token from a Secret in the pipeline's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_from: Option<KeySelector>,
}

/// A key of a Secret in the namespace of the pipeline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeySelector {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("secret"))]
    pub secret: String,
    /// Key inside the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_key("key", "token"))]
    pub key: String,
}
