//! Kafka and ClickHouse of the platform with TLS, identities and rights: who is let in, who is not, and what each may do.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{Api, api::PostParams};
use penstock_e2e::{
    acls::{Acl, Identity, Name, Operation, Resource},
    authorities::Authorities,
    cluster::Cluster,
    truth,
};
use penstock_pipeline::kafka::security::{Auth, Security, Tls};
use penstock_platform::{layout::Layout, pki};
use rdkafka::{
    ClientConfig, ClientContext,
    client::OAuthToken,
    error::KafkaError,
    producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext},
    types::RDKafkaErrorCode,
};
use uuid::Uuid;

/// What a broker that runs needs for a handshake, a login and a message, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A name that nobody else has.
fn fresh(purpose: &str) -> String {
    format!("test-{purpose}-{}", &Uuid::new_v4().simple().to_string()[..8])
}

fn write_to(topic: &'static str) -> Acl {
    Acl {
        identity: Identity::Data,
        component: "capture",
        resource: Resource::Topic,
        name: Name::Literal(topic),
        operation: Operation::Write,
        purpose: "a test",
    }
}

fn trusted() -> Result<Tls> {
    let pem = std::fs::read(Layout::from_env()?.services_pki().join("services-ca.crt"))?;
    Tls::from_pem(&pem).map_err(anyhow::Error::msg)
}

fn mtls(certificate: &pki::Certificate) -> Result<Auth> {
    Auth::mtls(certificate.certificate.as_bytes(), certificate.private_key.as_bytes())
        .map_err(anyhow::Error::msg)
}

fn password(user: &str, password: &str) -> Result<Auth> {
    Auth::scram_sha_512(user.as_bytes(), password.as_bytes()).map_err(anyhow::Error::msg)
}

/// A token of a service account for an audience, as the kubelet would put it into a pod.
async fn token(cluster: &Cluster, namespace: &str, account: &str, audience: &str) -> Result<Auth> {
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec![audience.to_owned()]),
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let answer = Api::<ServiceAccount>::namespaced(cluster.client.clone(), namespace)
        .create_token_request(account, &PostParams::default(), &request)
        .await?;
    let token = answer.status.and_then(|status| status.token).context("the API gave no token")?;
    Auth::oauth_bearer(token.as_bytes()).map_err(anyhow::Error::msg)
}

/// What became of a message.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Written,
    /// Kafka knows us and says no.
    NotAllowed,
    /// The handshake of TLS failed, on either side.
    Untrusted,
    /// The handshake went well, and Kafka does not believe who we are.
    NotBelieved,
}

/// Remembers the errors of a client and gives it its token.
struct Ear {
    auth: Option<Auth>,
    heard: std::sync::Mutex<Option<Outcome>>,
}

impl ClientContext for Ear {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(
        &self,
        _: Option<&str>,
    ) -> std::result::Result<OAuthToken, Box<dyn std::error::Error>> {
        self.auth.as_ref().and_then(Auth::oauth_token).ok_or_else(|| "no token".into())
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let outcome = match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::Authentication) => Outcome::NotBelieved,
            Some(RDKafkaErrorCode::SSL) => Outcome::Untrusted,
            // With TLS 1.3 a server refuses a client's certificate when the client takes the handshake for done.
            Some(RDKafkaErrorCode::BrokerTransportFailure) if reason.contains("SSL") => Outcome::Untrusted,
            _ => {
                eprintln!("{error}: {reason}");
                return;
            }
        };
        if let Ok(mut heard) = self.heard.lock() {
            *heard = Some(outcome);
        }
    }
}

impl ProducerContext for Ear {
    type DeliveryOpaque = Box<std::sync::mpsc::Sender<std::result::Result<(), RDKafkaErrorCode>>>;

    fn delivery(&self, result: &DeliveryResult<'_>, told: Self::DeliveryOpaque) {
        let outcome = result
            .as_ref()
            .map(|_| ())
            .map_err(|(error, _)| error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown));
        // Nobody listens when the test has given up.
        let _ = told.send(outcome);
    }
}

/// Writes one message and says what became of it. Blocks.
fn write(bootstrap_servers: &str, security: &Security, topic: &str) -> Result<Outcome> {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", bootstrap_servers)
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("message.timeout.ms", PATIENCE.as_millis().to_string());
    security.apply(&mut config);
    let ear = Ear { auth: security.auth.clone(), heard: std::sync::Mutex::default() };
    let producer: BaseProducer<Ear> = config.create_with_context(ear)?;
    let (told, outcome) = std::sync::mpsc::channel();
    let record = BaseRecord::<(), str, _>::with_opaque_to(topic, Box::new(told)).payload("a message");
    if let Err((error, _)) = producer.send(record) {
        bail!("not even queued: {error}");
    }
    let start = std::time::Instant::now();
    loop {
        producer.poll(Duration::from_millis(50));
        if let Ok(outcome) = outcome.try_recv() {
            return match outcome {
                Ok(()) => Ok(Outcome::Written),
                Err(
                    RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed,
                ) => Ok(Outcome::NotAllowed),
                Err(code) => bail!("the message failed with {code:?}"),
            };
        }
        // A connection that is refused is tried again for ever; the first reason is enough.
        let heard = producer.context().heard.lock().expect("no holder panics").take();
        if let Some(outcome) = heard {
            producer.purge(rdkafka::producer::PurgeConfig::default().queue().inflight());
            return Ok(outcome);
        }
        ensure!(start.elapsed() < PATIENCE * 2, "nothing was heard of the message");
    }
}

async fn attempt(bootstrap_servers: &str, tls: Tls, auth: Option<Auth>, topic: &str) -> Result<Outcome> {
    let (servers, topic) = (bootstrap_servers.to_owned(), topic.to_owned());
    let security = Security { tls: Some(tls), auth };
    tokio::task::spawn_blocking(move || write(&servers, &security, &topic)).await?
}

/// A topic and a principal of a test, gone with it.
struct Stage {
    cluster: Cluster,
    prefix: String,
    authorities: Authorities,
}

impl Stage {
    /// A topic `<prefix>captured` that nobody may use.
    async fn set(purpose: &str) -> Result<Self> {
        let cluster = Cluster::connect().await?;
        let prefix = format!("{}.", fresh(purpose));
        let authorities = Authorities::at(&cluster.kafka())?;
        let (servers, topic) = (cluster.kafka(), format!("{prefix}captured"));
        tokio::task::spawn_blocking(move || truth::create_topic(&servers, &topic, 1)).await??;
        Ok(Self { cluster, prefix, authorities })
    }

    fn topic(&self) -> String {
        format!("{}captured", self.prefix)
    }

    /// First without, then with, then again without the right to write.
    async fn only_with_the_acl(&self, bootstrap_servers: &str, auth: &Auth, principal: &str) -> Result<()> {
        let acl = write_to("captured");
        let look = async || attempt(bootstrap_servers, trusted()?, Some(auth.clone()), &self.topic()).await;
        ensure!(look().await? == Outcome::NotAllowed, "{principal} was allowed what no ACL allows");
        self.authorities.allow(principal, &self.prefix, &acl)?;
        ensure!(look().await? == Outcome::Written, "{principal} was not allowed what the ACL allows");
        self.authorities.take_back(principal, &self.prefix, &acl)?;
        ensure!(look().await? == Outcome::NotAllowed, "{principal} keeps a right that was taken back");
        Ok(())
    }

    async fn strike(self) -> Result<()> {
        let (servers, prefix) = (self.cluster.kafka(), self.prefix);
        tokio::task::spawn_blocking(move || truth::delete_topics(&servers, &prefix)).await?
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn kafka_knows_a_user_by_the_password_until_it_changes() -> Result<()> {
    let stage = Stage::set("scram").await?;
    let servers = stage.cluster.info.kafka_sasl_on_host();
    let user = fresh("user");
    stage.authorities.set_password(&user, "the first")?;
    stage.only_with_the_acl(&servers, &password(&user, "the first")?, &format!("User:{user}")).await?;

    let wrong = attempt(&servers, trusted()?, Some(password(&user, "another")?), &stage.topic()).await?;
    ensure!(wrong == Outcome::NotBelieved, "with a wrong password: {wrong:?}");
    stage.authorities.set_password(&user, "the second")?;
    let old = attempt(&servers, trusted()?, Some(password(&user, "the first")?), &stage.topic()).await?;
    ensure!(old == Outcome::NotBelieved, "with the old password: {old:?}");
    let new = attempt(&servers, trusted()?, Some(password(&user, "the second")?), &stage.topic()).await?;
    ensure!(new == Outcome::NotAllowed, "with the new password: {new:?}");
    stage.authorities.remove_user(&user)?;
    stage.strike().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn kafka_knows_the_holder_of_a_certificate_and_nobody_without_one() -> Result<()> {
    let stage = Stage::set("mtls").await?;
    let servers = stage.cluster.info.kafka_tls_on_host();
    let name = fresh("holder");
    let ours = pki::client_certificate(&Layout::from_env()?, &name)?;
    stage.only_with_the_acl(&servers, &mtls(&ours)?, &format!("User:{name}")).await?;

    let (stranger_ca, stranger) = pki::stranger(&name)?;
    let forged = attempt(&servers, trusted()?, Some(mtls(&stranger)?), &stage.topic()).await?;
    ensure!(forged == Outcome::Untrusted, "with a stranger's certificate: {forged:?}");
    let bare = attempt(&servers, trusted()?, None, &stage.topic()).await?;
    ensure!(bare == Outcome::Untrusted, "without a certificate: {bare:?}");
    let other = Tls::from_pem(stranger_ca.as_bytes()).map_err(anyhow::Error::msg)?;
    let distrusting = attempt(&servers, other, Some(mtls(&ours)?), &stage.topic()).await?;
    ensure!(distrusting == Outcome::Untrusted, "an unknown authority: {distrusting:?}");
    stage.strike().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn kafka_knows_a_service_account_by_a_token_for_its_audience() -> Result<()> {
    let stage = Stage::set("oauth").await?;
    let servers = stage.cluster.info.kafka_sasl_on_host();
    let namespace = stage.cluster.fresh_namespace("oauth").await?;
    let accounts: Api<ServiceAccount> = Api::namespaced(stage.cluster.client.clone(), &namespace);
    let account = serde_json::from_value(serde_json::json!({"metadata": {"name": "shop-capture"}}))?;
    accounts.create(&PostParams::default(), &account).await?;

    let ours = token(&stage.cluster, &namespace, "shop-capture", "kafka").await?;
    let principal = format!("User:system:serviceaccount:{namespace}:shop-capture");
    stage.only_with_the_acl(&servers, &ours, &principal).await?;
    let elsewhere = token(&stage.cluster, &namespace, "shop-capture", "somebody-else").await?;
    let outcome = attempt(&servers, trusted()?, Some(elsewhere), &stage.topic()).await?;
    ensure!(outcome == Outcome::NotBelieved, "with a token for another audience: {outcome:?}");
    stage.cluster.delete_namespace(&namespace).await?;
    stage.strike().await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn clickhouse_gives_each_user_its_own_rights_and_only_over_a_trusted_connection() -> Result<()> {
    let cluster = Cluster::connect().await?;
    // Whoever else comes first may have chosen it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = cluster.info.clickhouse_tls_on_host();
    let authority = std::fs::read(Layout::from_env()?.services_pki().join("services-ca.crt"))?;
    let trusting = reqwest::Client::builder()
        .tls_built_in_root_certs(false)
        .add_root_certificate(reqwest::Certificate::from_pem(&authority)?)
        .build()?;
    // The answer's code of error in ClickHouse's numbers, none when it has done it.
    let ask = async |user: &str, password: &str, sql: String| -> Result<Option<String>> {
        let answer = trusting
            .post(&url)
            .header("X-ClickHouse-User", user)
            .header("X-ClickHouse-Key", password)
            .body(sql)
            .timeout(PATIENCE)
            .send()
            .await?;
        let code =
            answer.headers().get("X-ClickHouse-Exception-Code").map(|code| code.to_str().map(str::to_owned));
        Ok(code.transpose()?)
    };
    let (data, ddl) =
        (("penstock-data", "data-of-the-local-platform"), ("penstock-ddl", "ddl-of-the-local-platform"));
    let database = fresh("rights").replace('-', "_");
    let table = format!("{database}.events");
    let create = [
        format!("CREATE DATABASE {database}"),
        format!("CREATE TABLE {table} (n UInt8) ENGINE = MergeTree ORDER BY n"),
    ];
    let denied = Some("497".to_owned());
    for sql in &create {
        ensure!(ask(data.0, data.1, sql.clone()).await? == denied, "data may: {sql}");
        ensure!(ask(ddl.0, ddl.1, sql.clone()).await?.is_none(), "ddl may not: {sql}");
    }
    let insert = format!("INSERT INTO {table} VALUES (1)");
    ensure!(ask(ddl.0, ddl.1, insert.clone()).await? == denied, "ddl may write rows");
    ensure!(ask(data.0, data.1, insert).await?.is_none(), "data may not write rows");
    ensure!(ask(data.0, data.1, format!("SELECT n FROM {table}")).await?.is_none(), "data may not read back");
    ensure!(ask(data.0, data.1, format!("DROP TABLE {table}")).await? == denied, "data may drop tables");
    ensure!(ask(data.0, "wrong", "SELECT 1".to_owned()).await? == Some("516".to_owned()), "a wrong password");
    cluster.warehouse.text(&format!("DROP DATABASE {database}")).await?;

    let (stranger, _) = pki::stranger("nobody")?;
    let distrusting = reqwest::Client::builder()
        .tls_built_in_root_certs(false)
        .add_root_certificate(reqwest::Certificate::from_pem(stranger.as_bytes())?)
        .build()?;
    ensure!(distrusting.get(&url).send().await.is_err(), "an unknown authority was trusted");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn a_second_clickhouse_makes_two_shards_of_one_table() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let second = cluster.second_shard().await?;
    let database = fresh("shards").replace('-', "_");
    for server in [&cluster.warehouse, second.warehouse()] {
        server.text(&format!("CREATE DATABASE {database}")).await?;
        server
            .text(&format!("CREATE TABLE {database}.events_local (n UInt64) ENGINE = MergeTree ORDER BY n"))
            .await?;
        server
            .text(&format!(
                "CREATE TABLE {database}.events AS {database}.events_local \
                 ENGINE = Distributed(penstock, {database}, events_local, n)"
            ))
            .await?;
    }
    cluster
        .warehouse
        .text(&format!(
            "INSERT INTO {database}.events SELECT number FROM numbers(10) SETTINGS distributed_foreground_insert = 1"
        ))
        .await?;
    for server in [&cluster.warehouse, second.warehouse()] {
        let all = server.number(&format!("SELECT count() FROM {database}.events")).await?;
        let here = server.number(&format!("SELECT count() FROM {database}.events_local")).await?;
        ensure!((all, here) == (10, 5), "{all} rows in both shards, {here} in this one");
    }
    for server in [&cluster.warehouse, second.warehouse()] {
        server.text(&format!("DROP DATABASE {database}")).await?;
    }
    second.stop().await
}
