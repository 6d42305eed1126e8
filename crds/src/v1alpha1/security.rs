//! TLS and identities: how the components and the operator prove who they are, and whom they trust.
//!
//! Every reference is to an object in the namespace of the pipeline.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rules::{exactly_one_of, object_key, object_name};

/// Key of a Secret or ConfigMap that holds certificates of authorities, where none is named.
pub const DEFAULT_CA_KEY: &str = "ca.crt";
/// Key of a Secret that holds a user name, where none is named.
pub const DEFAULT_USERNAME_KEY: &str = "username";
/// Key of a Secret that holds a password, where none is named.
pub const DEFAULT_PASSWORD_KEY: &str = "password";
/// Key of a Secret that holds a client certificate, where none is named: as in Secrets of type `kubernetes.io/tls`.
pub const DEFAULT_CERTIFICATE_KEY: &str = "tls.crt";
/// Key of a Secret that holds the private key, where none is named: as in Secrets of type `kubernetes.io/tls`.
pub const DEFAULT_PRIVATE_KEY_KEY: &str = "tls.key";
/// Key of a Secret that holds a bearer token, where none is named.
pub const DEFAULT_TOKEN_KEY: &str = "token";

/// Whom to trust in a TLS connection. The name in the server's certificate is always checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// Certificates of the authorities that are trusted. Default: the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_from: Option<CaSource>,
}

/// Where certificates of authorities are. Exactly one of `secret` and `configMap`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = exactly_one_of("secret", "configMap"))]
pub struct CaSource {
    /// Name of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("secret"))]
    pub secret: Option<String>,
    /// Name of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("configMap"))]
    pub config_map: Option<String>,
    /// Key that holds the certificates, in PEM; several one after another are fine. Default `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_key("key", "ca.crt"))]
    pub key: Option<String>,
}

/// The identities of a pipeline in Kafka.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.admin) ? !(has(self.admin.oauthBearer) && has(self.admin.oauthBearer.serviceAccountToken)) : \
     !(has(self.data.oauthBearer) && has(self.data.oauthBearer.serviceAccountToken))"
).message("the operator has no token of the components' ServiceAccounts, because it may not make tokens; write admin with scramSha512, mtls, or oauthBearer with a secret"))]
pub struct KafkaAuthSpec {
    /// The identity of the components: it reads and writes the topics of this pipeline.
    pub data: KafkaIdentity,
    /// The identity of the operator: it creates topics, reads their configuration, and looks at offsets. It never
    /// reaches a pod. Default: the same as `data`, which then needs the rights of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<KafkaIdentity>,
}

/// One identity in Kafka. Exactly one of the kinds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "(has(self.scramSha512) ? 1 : 0) + (has(self.mtls) ? 1 : 0) + (has(self.oauthBearer) ? 1 : 0) == 1"
).message("write exactly one of scramSha512, mtls and oauthBearer"))]
pub struct KafkaIdentity {
    /// User name and password, proven by SASL SCRAM-SHA-512. A new password is taken up without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scram_sha512: Option<ScramSha512>,
    /// A client certificate (mutual TLS). Needs `kafka.tls`. A new certificate rolls the components.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<ClientCertificate>,
    /// A bearer token, sent by SASL OAUTHBEARER. Needs `kafka.tls`. A new token is taken up without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth_bearer: Option<OauthBearer>,
}

/// User name and password in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScramSha512 {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("secret"))]
    pub secret: String,
    /// Key of the user name. Default `username`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_key("usernameKey", "username"))]
    pub username_key: Option<String>,
    /// Key of the password. Default `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_key("passwordKey", "password"))]
    pub password_key: Option<String>,
}

/// A client certificate and its private key in a Secret; one of type `kubernetes.io/tls` fits as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificate {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("secret"))]
    pub secret: String,
    /// Key of the certificate, in PEM, followed by its intermediates. Default `tls.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_key("certificateKey", "tls.crt"))]
    pub certificate_key: Option<String>,
    /// Key of the private key, in PEM, without a passphrase. Default `tls.key`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_key("privateKeyKey", "tls.key"))]
    pub private_key_key: Option<String>,
}

/// Where a bearer token comes from. Exactly one of `serviceAccountToken` and `secret`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = exactly_one_of("serviceAccountToken", "secret"))]
#[x_kube(validation = Rule::new("!has(self.key) || has(self.secret)").message("key belongs to secret; remove it, or write secret"))]
pub struct OauthBearer {
    /// The token of the component's own ServiceAccount, made by Kubernetes for Kafka alone and renewed by it before it
    /// ends. Only for `data`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_token: Option<ServiceAccountToken>,
    /// Name of a Secret that holds the token, a JWT that something else renews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("secret"))]
    pub secret: Option<String>,
    /// Key of the token. Default `token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_key("key", "token"))]
    pub key: Option<String>,
}

/// A token of the component's own ServiceAccount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountToken {
    /// For whom the token is: the audience that the brokers expect, for example `kafka`.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[!-~]+$')").message(
        "audience must be printable ASCII without spaces, for example kafka"
    ))]
    pub audience: String,
    /// Seconds that a token lasts; Kubernetes renews it after four fifths of them. Default 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 600, max = 86_400))]
    pub expiration_seconds: Option<i64>,
}

/// The identities of an export in ClickHouse.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClickHouseAuthSpec {
    /// The user of the export: it inserts into the table and reads back what is there.
    pub data: ClickHouseUser,
    /// The user of the operator: it creates database and table and adds columns. It never reaches a pod. Default: the
    /// same as `data`, which then needs the rights of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ddl: Option<ClickHouseUser>,
    /// Whether the password may go over plain http, where everybody on the way can read it. `Refuse` (default), or
    /// `Allow` where the network itself is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plain_http: Option<PlainHttp>,
}

/// Whether a password may go over plain http.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PlainHttp {
    /// The URL must begin with `https://`.
    Refuse,
    /// The network itself is encrypted, or trusted.
    Allow,
}

/// User name and password in a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClickHouseUser {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_name("secret"))]
    pub secret: String,
    /// Key of the user name. Default `username`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_key("usernameKey", "username"))]
    pub username_key: Option<String>,
    /// Key of the password. Default `password`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = object_key("passwordKey", "password"))]
    pub password_key: Option<String>,
}
