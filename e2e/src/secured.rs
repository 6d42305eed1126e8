//! Who a pipeline of a test is in Kafka and ClickHouse: identities with exactly the ACLs of the list, the Secrets that prove
//! them, and the spec that names those.

use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::{ConfigMap, Secret, ServiceAccount},
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
};
use penstock_platform::{layout::Layout, pki};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    acls::{ACLS, Acl, Identity},
    authorities::Authorities,
    chaos::ordeal,
    pipeline::TestPipeline,
};

/// How the components prove to Kafka who they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By user and password, SCRAM-SHA-512.
    Password,
    /// By a client certificate.
    Certificate,
    /// By the tokens of their ServiceAccounts; the operator by one that is in a Secret.
    AccountToken,
}

/// A user of the platform's ClickHouse: name and password.
pub type ClickHouseUser = (&'static str, &'static str);

/// Writes and reads rows.
pub const DATA: ClickHouseUser = ("penstock-data", "data-of-the-local-platform");
/// May do the same as [`DATA`].
pub const OTHER_DATA: ClickHouseUser = ("penstock-data-2", "second-data-of-the-local-platform");
/// May read rows, and not write them.
pub const READER: ClickHouseUser = ("penstock-reader", "reader-of-the-local-platform");
/// Makes databases and tables.
pub const DDL: ClickHouseUser = ("penstock-ddl", "ddl-of-the-local-platform");

/// The Secret of the components' identity in Kafka.
pub const KAFKA_DATA: &str = "shop-kafka";
/// The Secret of the operator's identity in Kafka.
pub const KAFKA_ADMIN: &str = "shop-kafka-admin";
/// The Secret of the export's user in ClickHouse.
pub const CLICKHOUSE_DATA: &str = "shop-clickhouse-insert";
/// The Secret of the operator's user in ClickHouse.
pub const CLICKHOUSE_DDL: &str = "shop-clickhouse-ddl";

/// The ServiceAccount that the operator's token is of, where it has one.
const ADMINISTRATOR: &str = "shop-administrator";

/// The authority of the platform's Kafka and ClickHouse.
///
/// # Errors
/// The platform has not made it.
pub fn services_authority() -> Result<String> {
    let file = Layout::from_env()?.services_pki().join("services-ca.crt");
    std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))
}

/// The identities of one pipeline.
pub struct Identities<'a> {
    pipeline: &'a TestPipeline,
    proof: Proof,
    authorities: Authorities,
    /// What was written into Secrets and is secret.
    written: Mutex<Vec<String>>,
}

impl<'a> Identities<'a> {
    /// Makes users, ACLs and Secrets, runs a test with them, and takes them away from Kafka, whatever became of it.
    ///
    /// # Errors
    /// That of the test, or Kafka or the API server refuses.
    pub async fn with(
        pipeline: &'a TestPipeline,
        proof: Proof,
        test: impl AsyncFnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let identities = Self {
            pipeline,
            proof,
            authorities: Authorities::at(&pipeline.cluster.kafka())?,
            written: Mutex::default(),
        };
        let outcome = async {
            identities.make().await?;
            test(&identities).await
        }
        .await;
        outcome.and(identities.remove())
    }

    async fn make(&self) -> Result<()> {
        self.trust(&[&services_authority()?]).await?;
        match self.proof {
            Proof::Password => {
                self.give_password(Identity::Data).await?;
                self.give_password(Identity::Admin).await?;
            }
            Proof::Certificate => {
                self.give_certificate(Identity::Data).await?;
                self.give_certificate(Identity::Admin).await?;
            }
            Proof::AccountToken => {
                let account = serde_json::from_value(json!({"metadata": {"name": ADMINISTRATOR}}))?;
                self.accounts().create(&PostParams::default(), &account).await?;
                self.give_admin_token("kafka").await?;
            }
        }
        self.put_user(CLICKHOUSE_DATA, DATA).await?;
        self.put_user(CLICKHOUSE_DDL, DDL).await?;
        ACLS.iter().try_for_each(|acl| self.allow(acl))
    }

    /// Trusts these authorities, towards Kafka (a Secret) and ClickHouse (a ConfigMap).
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn trust(&self, authorities: &[&str]) -> Result<()> {
        let authorities = authorities.join("\n");
        self.put("kafka-ca", &[("ca.crt", &authorities)]).await?;
        let bundle: ConfigMap = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "company-ca"},
            "data": {"bundle.pem": authorities},
        }))?;
        let maps: Api<ConfigMap> =
            Api::namespaced(self.pipeline.cluster.client.clone(), &self.pipeline.namespace);
        maps.patch("company-ca", &PatchParams::apply("penstock-tests").force(), &Patch::Apply(&bundle))
            .await?;
        Ok(())
    }

    fn accounts(&self) -> Api<ServiceAccount> {
        Api::namespaced(self.pipeline.cluster.client.clone(), &self.pipeline.namespace)
    }

    /// Writes a new token of a ServiceAccount for an audience into the Secret of the operator's identity.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn give_admin_token(&self, audience: &str) -> Result<()> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.to_owned()]),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer =
            self.accounts().create_token_request(ADMINISTRATOR, &PostParams::default(), &request).await?;
        let token = answer.status.and_then(|status| status.token).context("the API gave no token")?;
        self.put(KAFKA_ADMIN, &[("token", &token)]).await
    }

    /// The name of an identity in Kafka, where it has one.
    fn name(&self, identity: Identity) -> String {
        match identity {
            Identity::Data => format!("{}-components", self.pipeline.namespace),
            Identity::Admin => format!("{}-operator", self.pipeline.namespace),
        }
    }

    fn secret_of(identity: Identity) -> &'static str {
        match identity {
            Identity::Data => KAFKA_DATA,
            Identity::Admin => KAFKA_ADMIN,
        }
    }

    /// A new password in Kafka. It is not in the Secret yet.
    ///
    /// # Errors
    /// Kafka refuses.
    pub fn set_password(&self, identity: Identity) -> Result<String> {
        let password = format!("seen-nowhere-{}", Uuid::new_v4().simple());
        self.authorities.set_password(&self.name(identity), &password)?;
        Ok(password)
    }

    /// Writes a password into the Secret of an identity.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn put_password(&self, identity: Identity, password: &str) -> Result<()> {
        let name = self.name(identity);
        self.put(Self::secret_of(identity), &[("username", &name), ("password", password)]).await
    }

    async fn give_password(&self, identity: Identity) -> Result<()> {
        let password = self.set_password(identity)?;
        self.put_password(identity, &password).await
    }

    /// Writes a new certificate into the Secret of an identity.
    ///
    /// # Errors
    /// The platform has no authority, or the API server refuses.
    pub async fn give_certificate(&self, identity: Identity) -> Result<()> {
        let certificate = pki::client_certificate(&Layout::from_env()?, &self.name(identity))?;
        self.put_certificate(identity, &certificate).await
    }

    /// Writes a certificate that Kafka does not trust into the Secret of an identity.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn give_strange_certificate(&self, identity: Identity) -> Result<()> {
        let (_, certificate) = pki::stranger(&self.name(identity))?;
        self.put_certificate(identity, &certificate).await
    }

    async fn put_certificate(&self, identity: Identity, certificate: &pki::Certificate) -> Result<()> {
        let keys =
            [("tls.crt", certificate.certificate.as_str()), ("tls.key", certificate.private_key.as_str())];
        self.put(Self::secret_of(identity), &keys).await
    }

    /// Writes a user of ClickHouse into a Secret.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn put_user(&self, secret: &str, (name, password): ClickHouseUser) -> Result<()> {
        self.put(secret, &[("username", name), ("password", password)]).await
    }

    async fn put(&self, name: &str, keys: &[(&str, &str)]) -> Result<()> {
        {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, value) in keys {
                match *key {
                    "ca.crt" | "tls.crt" => {}
                    // Its second line of base64: what is the same in all keys is before it.
                    "tls.key" => written.extend(value.lines().nth(2).map(str::to_owned)),
                    // Header and claims are told to whoever asks; without the signature nobody is believed.
                    "token" => written.extend(value.rsplit('.').next().map(str::to_owned)),
                    _ => written.push((*value).to_owned()),
                }
            }
        }
        let data: serde_json::Map<String, Value> =
            keys.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let secret: Secret = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data,
        }))?;
        let secrets: Api<Secret> =
            Api::namespaced(self.pipeline.cluster.client.clone(), &self.pipeline.namespace);
        let parameters = PatchParams::apply("penstock-tests").force();
        secrets
            .patch(name, &parameters, &Patch::Apply(&secret))
            .await
            .with_context(|| format!("writing the Secret {name}"))?;
        Ok(())
    }

    /// Everything secret that was in a Secret: passwords, names of users, a line of each private key.
    pub fn written(&self) -> Vec<String> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn principal(&self, acl: &Acl) -> String {
        match (self.proof, acl.identity) {
            (Proof::AccountToken, Identity::Data) => format!(
                "User:system:serviceaccount:{}:{}-{}",
                self.pipeline.namespace, self.pipeline.name, acl.component
            ),
            (Proof::AccountToken, Identity::Admin) => {
                format!("User:system:serviceaccount:{}:{ADMINISTRATOR}", self.pipeline.namespace)
            }
            (_, identity) => format!("User:{}", self.name(identity)),
        }
    }

    fn prefix(&self) -> String {
        self.pipeline.topic("")
    }

    /// Allows what an ACL says to whoever needs it.
    ///
    /// # Errors
    /// Kafka refuses.
    pub fn allow(&self, acl: &Acl) -> Result<()> {
        self.authorities.allow(&self.principal(acl), &self.prefix(), acl)
    }

    /// Takes an ACL back.
    ///
    /// # Errors
    /// Kafka refuses, or has no such ACL.
    pub fn take_back(&self, acl: &Acl) -> Result<()> {
        self.authorities.take_back(&self.principal(acl), &self.prefix(), acl)
    }

    /// Takes users and ACLs away.
    fn remove(&self) -> Result<()> {
        let mut principals: Vec<String> = ACLS.iter().map(|acl| self.principal(acl)).collect();
        principals.sort();
        principals.dedup();
        for principal in principals {
            self.authorities.take_all(&principal)?;
        }
        if self.proof == Proof::Password {
            self.authorities.remove_user(&self.name(Identity::Data))?;
            self.authorities.remove_user(&self.name(Identity::Admin))?;
        }
        Ok(())
    }

    /// A spec with everything encrypted and these identities, a transformation, and topics and tables that are deleted with
    /// the pipeline.
    pub fn spec(&self) -> Value {
        let info = &self.pipeline.cluster.info;
        let by_password = |secret: &str| json!({"scramSha512": {"secret": secret}});
        let (servers, data, admin) = match self.proof {
            Proof::Password => {
                (&info.kafka_sasl_bootstrap, by_password(KAFKA_DATA), by_password(KAFKA_ADMIN))
            }
            Proof::Certificate => (
                &info.kafka_tls_bootstrap,
                json!({"mtls": {"secret": KAFKA_DATA}}),
                json!({"mtls": {"secret": KAFKA_ADMIN}}),
            ),
            Proof::AccountToken => (
                &info.kafka_sasl_bootstrap,
                json!({"oauthBearer": {"serviceAccountToken": {"audience": "kafka"}}}),
                json!({"oauthBearer": {"secret": KAFKA_ADMIN}}),
            ),
        };
        let mut spec = self.pipeline.spec();
        spec["kafka"]["bootstrapServers"] = json!(servers);
        spec["kafka"]["tls"] = json!({"caFrom": {"secret": "kafka-ca"}});
        spec["kafka"]["auth"] = json!({"data": data, "admin": admin});
        spec["transformation"] = json!({"steps": ordeal::steps()});
        spec["exports"][0]["clickhouse"]["url"] = json!(info.clickhouse_tls_url);
        spec["exports"][0]["clickhouse"]["tls"] =
            json!({"caFrom": {"configMap": "company-ca", "key": "bundle.pem"}});
        spec["exports"][0]["clickhouse"]["auth"] =
            json!({"data": {"secret": CLICKHOUSE_DATA}, "ddl": {"secret": CLICKHOUSE_DDL}});
        spec["exports"][0]["block"] = json!({"maxRows": "20k", "maxAge": "1s"});
        spec["deletionPolicy"] = json!({"topics": "Delete", "tables": "Delete"});
        spec
    }
}
