//! The connection of a process to Kafka: servers, credentials that are kept up to date, and what is in the way.
//!
//! Passwords and tokens are read again when their files change, and given to all clients of the process: each is asked
//! for regularly by whoever owns it ([`refresh`], one atomic load when there is nothing new). Certificates are read at the
//! start; with others a new process is made.

mod keeper;
mod native;

use std::{
    fmt,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use rdkafka::{
    ClientConfig, ClientContext,
    client::{Client, OAuthToken},
    config::RDKafkaLogLevel,
    consumer::ConsumerContext,
    error::{KafkaError, RDKafkaErrorCode},
    producer::{BaseProducer, DeliveryResult, ProducerContext},
};
use tracing::{debug, error, info, warn};

use super::security::{self, Security};
use crate::{command, config::KafkaConnection, health::Kind};
use keeper::Keeper;

/// How often files that cannot be used at the start are looked at.
const RETRY: Duration = Duration::from_secs(2);

/// How a process reaches Kafka. Clones share credentials.
#[derive(Clone)]
pub struct Connection {
    keeper: Arc<Keeper>,
}

impl Connection {
    /// Without encryption, as nobody in particular.
    pub fn plaintext(bootstrap_servers: impl Into<String>) -> Self {
        Self::fixed(bootstrap_servers, Security::default())
    }

    /// With credentials that do not change.
    pub fn fixed(bootstrap_servers: impl Into<String>, security: Security) -> Self {
        let config = KafkaConnection::plaintext(bootstrap_servers);
        Self { keeper: Arc::new(Keeper::new(config, security)) }
    }

    /// Reads the credentials, and goes on looking at those that may change. Waits for files that cannot be used until
    /// they can; meanwhile the process is alive, is not ready, and says which file it is. `None`: asked to stop meanwhile.
    pub async fn open(config: &KafkaConnection, context: &command::Context) -> Option<Self> {
        let secured = config.tls.is_some() || config.auth.is_some();
        let check = secured
            .then(|| context.health.check(Kind::Readiness, "kafka credentials", "they were not read yet"));
        let mut said = None;
        let security = loop {
            let reason = match read(config).await {
                Ok(security) => break security,
                Err(reason) => reason,
            };
            if let Some(check) = &check {
                check.fail(reason.clone());
            }
            if said.as_ref() != Some(&reason) {
                error!(reason, "the credentials for Kafka cannot be used; looking again until they can");
                said = Some(reason);
            }
            tokio::select! {
                () = context.shutdown.requested() => return None,
                () = tokio::time::sleep(RETRY) => {}
            }
        };
        if let Some(check) = &check {
            check.pass();
            info!(protocol = security.protocol(), "the credentials for Kafka were read");
        }
        let keeper = Arc::new(Keeper::new(config.clone(), security));
        context.metrics.register(|registry| keeper.register(registry));
        keeper::watch(&keeper);
        Some(Self { keeper })
    }

    /// `host:port`, separated by commas.
    pub fn bootstrap_servers(&self) -> &str {
        &self.keeper.config().bootstrap_servers
    }

    /// Writes servers and credentials into the configuration of a client, which then needs [`Connection::context`].
    pub fn apply(&self, config: &mut ClientConfig) {
        config.set("bootstrap.servers", self.bootstrap_servers());
        self.keeper.security().apply(config);
    }

    /// The context of one client.
    pub fn context(&self) -> Context {
        Context { keeper: Arc::clone(&self.keeper), applied: Arc::new(AtomicU64::new(0)) }
    }

    /// A reason for people, with what is known to be in the way of the connection put before it: which file is not
    /// believed, or which listener is another one than configured.
    pub fn explain(&self, reason: impl Into<String>) -> String {
        let reason = reason.into();
        match self.keeper.in_the_way() {
            Some(told) if !reason.contains(&told) => format!("{told} ({reason})"),
            _ => reason,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("config", self.keeper.config()).finish_non_exhaustive()
    }
}

/// Reads the files, and lets librdkafka say whether it can use what they have.
async fn read(config: &KafkaConnection) -> Result<Security, String> {
    let config = config.clone();
    let read = tokio::task::spawn_blocking(move || {
        let security = security::load(&config).map_err(|error| error.to_string())?;
        let mut client = ClientConfig::new();
        security.apply(&mut client);
        // Without servers it connects to nobody.
        match client.set("bootstrap.servers", "").create::<BaseProducer>() {
            Ok(_) => Ok(security),
            Err(error) => Err(format!("{}: {error}", keeper::files_of(&config))),
        }
    });
    read.await.unwrap_or_else(|_| Err("reading the credentials panicked".to_owned()))
}

/// The context of a client that is made with a [`Connection`]: keeps what librdkafka complains about, and puts its words
/// into the log as `tracing` events of target `librdkafka`, repeated ones once in a while.
#[derive(Clone)]
pub struct Context {
    keeper: Arc<Keeper>,
    /// Which state of the credentials this client was given; 0 before the first [`refresh`].
    applied: Arc<AtomicU64>,
}

/// A client's context that may have credentials to be kept up to date.
pub trait Secured: ClientContext {
    /// The context that has them; `None`: there are none.
    fn secured(&self) -> Option<&Context>;
}

/// Gives a client the newest credentials, when it has older ones. Every client wants that right after it was made, and
/// then every few seconds.
pub fn refresh<C: Secured>(client: &Client<C>) {
    if let Some(context) = client.context().secured() {
        context.keeper.give(&context.applied, client.native_ptr());
    }
}

/// The same for a client that asks for a token by itself: the file is read first.
pub(super) fn renew<C: Secured>(client: &Client<C>) {
    if let Some(context) = client.context().secured() {
        context.keeper.reload();
        context.applied.store(0, std::sync::atomic::Ordering::Relaxed);
        context.keeper.give(&context.applied, client.native_ptr());
    }
}

impl Context {
    /// [`refresh`], for a client whose own context hides this one.
    pub fn refresh<C: ClientContext>(&self, client: &Client<C>) {
        self.keeper.give(&self.applied, client.native_ptr());
    }
}

impl Secured for Context {
    fn secured(&self) -> Option<&Context> {
        Some(self)
    }
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if facility == "FAIL" {
            self.keeper.note(RDKafkaErrorCode::BrokerTransportFailure, message);
        }
        if let Some(left_out) = self.keeper.say(facility, message) {
            log(level, facility, message, left_out);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let code = error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
        self.keeper.note(code, reason);
        if let Some(left_out) = self.keeper.say("ERROR", reason) {
            warn!(target: "librdkafka", %error, left_out, "{reason}");
        }
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.keeper.token().map_err(Into::into)
    }
}

impl ConsumerContext for Context {}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            debug!(target: "librdkafka", %error, "a message was not delivered");
        }
    }
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// One log line of librdkafka. What it repeats at every reconnection is not worth more than `info`.
fn log(level: RDKafkaLogLevel, facility: &str, message: &str, left_out: u64) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            error!(target: "librdkafka", facility, left_out, "{message}");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => {
            if matches!(facility, "FAIL" | "ERROR" | "REQTMOUT") {
                info!(target: "librdkafka", facility, left_out, "{message}");
            } else {
                warn!(target: "librdkafka", facility, left_out, "{message}");
            }
        }
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            info!(target: "librdkafka", facility, left_out, "{message}");
        }
        RDKafkaLogLevel::Debug => debug!(target: "librdkafka", facility, "{message}"),
    }
}
