//! Keeps the credentials of a connection, and what was last seen to be in its way.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use rdkafka::{client::OAuthToken, error::RDKafkaErrorCode, types::RDKafka};
use tracing::{error, info, warn};

use super::native;
use crate::{
    config::{KafkaAuth, KafkaConnection},
    kafka::{
        failure::{self, Failure},
        repeats::Repeats,
        security::{self, Auth, Security},
    },
    live_file::POLL_INTERVAL,
};

/// How long something that was seen in the way counts as being there. librdkafka repeats what stays the same every 30 s.
const HOLDS: Duration = Duration::from_secs(75);

/// See the module.
pub(super) struct Keeper {
    config: KafkaConnection,
    security: ArcSwap<Security>,
    /// Counts the states of `security`, from 1.
    generation: AtomicU64,
    seen: Mutex<Option<(Instant, Failure)>>,
    /// Why the files cannot be used at present; said once.
    complaint: Mutex<Option<String>>,
    repeats: Mutex<Repeats>,
    failures: Family<ByReason, Counter>,
    reloads: Counter,
    stale: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

impl Keeper {
    pub(super) fn new(config: KafkaConnection, security: Security) -> Self {
        Self {
            config,
            security: ArcSwap::from_pointee(security),
            generation: AtomicU64::new(1),
            seen: Mutex::new(None),
            complaint: Mutex::new(None),
            repeats: Mutex::default(),
            failures: Family::default(),
            reloads: Counter::default(),
            stale: Gauge::default(),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "kafka_connection_failures",
            "What librdkafka said to be in the way of a connection, by reason",
            self.failures.clone(),
        );
        registry.register(
            "kafka_credentials_reloads",
            "Changes of the credentials for Kafka that were taken up",
            self.reloads.clone(),
        );
        let help =
            "1 when a file with credentials for Kafka cannot be used and its last good content is in force";
        registry.register("kafka_credentials_stale", help, self.stale.clone());
    }

    pub(super) fn config(&self) -> &KafkaConnection {
        &self.config
    }

    pub(super) fn security(&self) -> Arc<Security> {
        self.security.load_full()
    }

    /// Gives a client the credentials unless it has been given these already.
    ///
    /// The caller's borrow of the client keeps `client` alive.
    pub(super) fn give(&self, applied: &AtomicU64, client: *mut RDKafka) {
        let newest = self.generation.load(Ordering::Acquire);
        if applied.load(Ordering::Relaxed) == newest {
            return;
        }
        let security = self.security.load();
        // SAFETY (both): as above.
        let given = match &security.auth {
            Some(Auth::ScramSha512 { username, password }) => unsafe {
                native::set_password(client, username, password.expose())
            },
            Some(Auth::OauthBearer { token }) => unsafe { native::set_token(client, token) },
            Some(Auth::Mtls { .. }) | None => Ok(()),
        };
        applied.store(newest, Ordering::Relaxed);
        if let Err(reason) = given {
            warn!(files = files_of(&self.config), reason, "librdkafka does not take the credentials");
        }
    }

    /// Reads what may change again. What cannot be used leaves the last good credentials in force.
    pub(super) fn reload(&self) {
        let Some(files @ (KafkaAuth::ScramSha512(_) | KafkaAuth::OauthBearer(_))) = &self.config.auth else {
            return;
        };
        match security::load_auth(files) {
            Ok(auth) => {
                *lock(&self.complaint) = None;
                self.stale.set(0);
                let current = self.security.load();
                if current.auth.as_ref() == Some(&auth) {
                    return;
                }
                let security = Security { tls: current.tls.clone(), auth: Some(auth) };
                self.security.store(Arc::new(security));
                self.generation.fetch_add(1, Ordering::Release);
                // What was in the way was so with the old ones.
                *lock(&self.seen) = None;
                self.reloads.inc();
                info!(files = files_of(&self.config), "the credentials for Kafka were read again");
            }
            Err(error) => {
                self.stale.set(1);
                let reason = error.to_string();
                let mut complaint = lock(&self.complaint);
                if complaint.as_ref() != Some(&reason) {
                    error!(reason, "keeping the last good credentials for Kafka");
                    *complaint = Some(reason);
                }
            }
        }
    }

    /// The token, from its file as it is now.
    pub(super) fn token(&self) -> Result<OAuthToken, String> {
        self.reload();
        let token = self.security.load().auth.as_ref().and_then(Auth::oauth_token);
        token.ok_or_else(|| "the configuration has no token".to_owned())
    }

    /// Whether to say a line now, and how often it was left out before.
    pub(super) fn say(&self, kind: &str, text: &str) -> Option<u64> {
        lock(&self.repeats).say(kind, text, Instant::now())
    }

    /// Keeps what librdkafka complains about when somebody has to do something about it.
    pub(super) fn note(&self, code: RDKafkaErrorCode, text: &str) {
        let Some(failure) = failure::of(code, text) else { return };
        self.failures.get_or_create(&ByReason { reason: failure.reason() }).inc();
        // Which ACL it is, the one who was refused can say better.
        if !failure.needs_a_person() || matches!(failure, Failure::NotAuthorized(_)) {
            return;
        }
        *lock(&self.seen) = Some((Instant::now(), failure));
    }

    /// What is in the way, as far as it was seen lately: of which file, and what to do.
    pub(super) fn in_the_way(&self) -> Option<String> {
        let (at, failure) = (*lock(&self.seen))?;
        (at.elapsed() < HOLDS).then(|| tell(failure, &self.config))
    }
}

/// Looks at files that may change until the last clone of the connection is gone.
pub(super) fn watch(keeper: &Arc<Keeper>) {
    if !matches!(keeper.config.auth, Some(KafkaAuth::ScramSha512(_) | KafkaAuth::OauthBearer(_))) {
        return;
    }
    let keeper = Arc::downgrade(keeper);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(POLL_INTERVAL).await;
            let Some(keeper) = keeper.upgrade() else { return };
            if tokio::task::spawn_blocking(move || keeper.reload()).await.is_err() {
                error!("reading the credentials for Kafka panicked");
            }
        }
    });
}

/// The files that say who we are and whom we trust.
pub(super) fn files_of(config: &KafkaConnection) -> String {
    let mut files = Vec::new();
    files.extend(config.tls.as_ref().and_then(|tls| tls.ca_file.as_ref()));
    match &config.auth {
        None => {}
        Some(KafkaAuth::ScramSha512(both)) => files.extend([&both.username_file, &both.password_file]),
        Some(KafkaAuth::Mtls(both)) => files.extend([&both.certificate_file, &both.private_key_file]),
        Some(KafkaAuth::OauthBearer(one)) => files.push(&one.token_file),
    }
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A failure in words that name the file.
/// What is in the files is told to nobody, the name of the user included.
fn tell(failure: Failure, config: &KafkaConnection) -> String {
    let what = failure.to_string();
    match (failure, &config.auth) {
        (Failure::AuthenticationFailed, Some(KafkaAuth::ScramSha512(files))) => {
            format!(
                "Kafka does not take the user of {} with the password of {}",
                files.username_file.display(),
                files.password_file.display()
            )
        }
        (Failure::AuthenticationFailed, Some(KafkaAuth::OauthBearer(file))) => {
            format!("Kafka does not take the token of {}", file.token_file.display())
        }
        (Failure::ClientCertificateRefused, Some(KafkaAuth::Mtls(files))) => {
            format!("Kafka does not take the certificate of {}", files.certificate_file.display())
        }
        (Failure::ClientCertificateRefused, _) => {
            format!("{what}, and the configuration has none (kafka.auth.mtls)")
        }
        (Failure::CertificateNotTrusted, _) => match config.tls.as_ref().and_then(|tls| tls.ca_file.as_ref())
        {
            Some(file) => format!("{what}; trusted are the authorities of {}", file.display()),
            None => format!("{what}; trusted are the public authorities"),
        },
        (Failure::TlsNotExpected, _) => format!("{what}: take kafka.tls away, or connect to another port"),
        (Failure::TlsExpected, _) => format!("{what}: write kafka.tls, or connect to another port"),
        (Failure::AuthenticationExpected, _) => {
            format!("{what}: write kafka.auth, or connect to another port")
        }
        _ => what,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::config::{CertificateFiles, PasswordFiles, TlsConfig};

    fn scram(directory: &std::path::Path) -> Keeper {
        fs::write(directory.join("username"), "penny-of-the-tests").unwrap();
        fs::write(directory.join("password"), "s3cret").unwrap();
        let files = PasswordFiles {
            username_file: directory.join("username"),
            password_file: directory.join("password"),
        };
        let config = KafkaConnection {
            tls: Some(TlsConfig { ca_file: None }),
            auth: Some(KafkaAuth::ScramSha512(files)),
            ..KafkaConnection::plaintext("k:1")
        };
        let security = security::load(&config).unwrap();
        Keeper::new(config, security)
    }

    #[test]
    fn another_password_is_taken_up_and_a_file_that_cannot_be_used_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = scram(directory.path());
        let password = || match &keeper.security().auth {
            Some(Auth::ScramSha512 { password, .. }) => password.expose().to_owned(),
            other => panic!("{other:?}"),
        };
        keeper.reload();
        assert_eq!((password().as_str(), keeper.generation.load(Ordering::Relaxed)), ("s3cret", 1));
        fs::write(directory.path().join("password"), "").unwrap();
        keeper.reload();
        assert_eq!((password().as_str(), keeper.stale.get()), ("s3cret", 1));
        fs::write(directory.path().join("password"), "other\n").unwrap();
        keeper.reload();
        assert_eq!((password().as_str(), keeper.stale.get()), ("other", 0));
        assert_eq!(keeper.generation.load(Ordering::Relaxed), 2);
        assert_eq!(keeper.reloads.get(), 1);
    }

    #[test]
    fn what_is_in_the_way_names_the_file_and_is_over_with_other_credentials() {
        let directory = tempfile::tempdir().unwrap();
        let keeper = scram(directory.path());
        assert_eq!(keeper.in_the_way(), None);
        keeper.note(RDKafkaErrorCode::BrokerTransportFailure, "Connection refused");
        assert_eq!(keeper.in_the_way(), None);
        keeper.note(RDKafkaErrorCode::Authentication, "SASL authentication error: …");
        let told = keeper.in_the_way().unwrap();
        let file = directory.path().join("password").display().to_string();
        assert!(told.contains(&file) && !told.contains("penny") && !told.contains("s3cret"), "{told}");
        fs::write(directory.path().join("password"), "other").unwrap();
        keeper.reload();
        assert_eq!(keeper.in_the_way(), None);
    }

    #[test]
    fn each_failure_says_what_it_is_about() {
        let config = KafkaConnection {
            tls: Some(TlsConfig { ca_file: Some("/ca.crt".into()) }),
            auth: Some(KafkaAuth::Mtls(CertificateFiles {
                certificate_file: "/tls.crt".into(),
                private_key_file: "/tls.key".into(),
            })),
            ..KafkaConnection::plaintext("k:1")
        };
        let none = KafkaConnection::plaintext("k:1");
        for (failure, config, part) in [
            (Failure::CertificateNotTrusted, &config, "/ca.crt"),
            (Failure::CertificateNotTrusted, &none, "public authorities"),
            (Failure::ClientCertificateRefused, &config, "/tls.crt"),
            (Failure::ClientCertificateRefused, &none, "kafka.auth.mtls"),
            (Failure::TlsExpected, &none, "kafka.tls"),
            (Failure::TlsNotExpected, &config, "kafka.tls"),
            (Failure::AuthenticationExpected, &none, "kafka.auth"),
        ] {
            let told = tell(failure, config);
            assert!(told.contains(part), "{failure:?}: {told}");
        }
    }
}
