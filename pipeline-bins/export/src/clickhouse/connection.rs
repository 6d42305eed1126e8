//! The connection to one ClickHouse server: where the HTTP client is made, whom it trusts and who it is.
//!
//! User and password are read again when their files change, and count from the next request on. Authorities are read at
//! the start; with others a new process is made.

use std::{sync::Arc, time::Duration};

use clickhouse::{Client, Compression, error::Error};
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use penstock_pipeline::{
    config::ClickHouseDestination,
    kafka::security,
    live_file::{LiveFile, LiveFileError, LiveFileMetrics},
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

use super::{refusal::Files, table::TableError};

/// Connections that nobody used for so long are closed; servers close theirs after 3 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// Time between keep-alive packets of a connection that is silent.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why the credentials cannot be used. Nothing of their content is in it.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// User or password.
    #[error(transparent)]
    User(#[from] LiveFileError),
    /// The authorities.
    #[error(transparent)]
    Authorities(#[from] security::CredentialError),
}

/// Whom to trust and who to be, the same for all servers of an export. Clones share connections.
#[derive(Clone)]
pub struct Credentials {
    client: Client,
    user: Option<User>,
    files: Files,
}

#[derive(Clone)]
struct User {
    username: LiveFile<String>,
    password: LiveFile<String>,
}

impl Credentials {
    /// Reads the files, and goes on looking at user and password.
    ///
    /// # Errors
    /// A file cannot be used now.
    pub async fn open(
        destination: &ClickHouseDestination,
        metrics: &LiveFileMetrics,
    ) -> Result<Self, CredentialsError> {
        let client = match destination.tls.as_ref().and_then(|tls| tls.ca_file.as_ref()) {
            None => Client::default(),
            Some(file) => trusting(security::read(file, authorities)?),
        };
        let client = client
            .with_compression(Compression::Lz4)
            .with_product_info("penstock-export", env!("CARGO_PKG_VERSION"));
        let user = match &destination.auth {
            None => None,
            Some(files) => {
                let open = async |name: &str, path| LiveFile::open(name, path, security::line, metrics).await;
                Some(User {
                    username: open("clickhouse_username", &files.username_file).await?,
                    password: open("clickhouse_password", &files.password_file).await?,
                })
            }
        };
        Ok(Self { client, user, files: Files::of(destination) })
    }
}

/// The certificates of a PEM file.
fn authorities(content: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(content) {
        let certificate = certificate.map_err(|error| format!("is not PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("has a certificate that cannot be used: {error}"))?;
    }
    if roots.is_empty() { Err("has no certificate in PEM".to_owned()) } else { Ok(roots) }
}

/// A client that believes servers of these authorities, and no others.
fn trusting(roots: RootCertStore) -> Client {
    let mut connector = HttpConnector::new();
    connector.set_keepalive(Some(KEEPALIVE));
    connector.enforce_http(false);
    let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has the protocol versions that rustls takes by default")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    let http = HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_TIMEOUT).build(connector);
    Client::with_http_client(http)
}

/// How to reach one server. Clones share its connections.
#[derive(Clone)]
pub struct Connection {
    client: Client,
    user: Option<User>,
    files: Files,
}

impl Connection {
    /// A connection to the server at `url`. Connects to nothing yet.
    pub fn new(credentials: &Credentials, url: &str) -> Self {
        Self {
            client: credentials.client.clone().with_url(url),
            user: credentials.user.clone(),
            files: credentials.files.clone(),
        }
    }

    /// What an error of a request means, without the name of the user.
    pub fn failure(&self, error: Error) -> TableError {
        let username = self.user.as_ref().map(|user| user.username.snapshot());
        self.files.name(error.into(), username.as_deref().map(String::as_str))
    }

    /// The client for the next request. Asked for anew before each, so that what changes while the process runs counts
    /// from the next request on.
    pub fn client(&self) -> Client {
        match &self.user {
            None => self.client.clone(),
            Some(user) => self
                .client
                .clone()
                .with_user(user.username.load().as_str())
                .with_password(user.password.load().as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use penstock_pipeline::{
        config::{BlockLimits, Identity, PasswordFiles, RetryConfig, TlsConfig},
        telemetry::Metrics,
    };

    use super::*;

    fn destination() -> ClickHouseDestination {
        ClickHouseDestination {
            url: "https://ch:8443".to_owned(),
            tls: None,
            auth: None,
            database: "analytics".to_owned(),
            table: "events".to_owned(),
            shards: Vec::new(),
            block: BlockLimits { max_rows: 1, max_bytes: 1, max_age_ms: 1 },
            insert_timeout_ms: 1,
            retry: RetryConfig { max_attempts: None, min_backoff_ms: 1, max_backoff_ms: 1 },
        }
    }

    fn metrics() -> LiveFileMetrics {
        let identity = Identity { namespace: "n".into(), pipeline: "p".into(), component: "export-w".into() };
        LiveFileMetrics::new(&Metrics::new(&identity))
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_used_is_named_and_not_repeated() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| -> PathBuf { directory.path().join(name) };
        fs::write(path("word"), "s3cret").unwrap();
        fs::write(path("empty"), "").unwrap();
        let tls = |name: &str| ClickHouseDestination {
            tls: Some(TlsConfig { ca_file: Some(path(name)) }),
            ..destination()
        };
        let user = |username: &str, password: &str| ClickHouseDestination {
            auth: Some(PasswordFiles { username_file: path(username), password_file: path(password) }),
            ..destination()
        };
        for (destination, file) in [
            (tls("missing"), "missing"),
            (tls("word"), "word"),
            (user("word", "missing"), "missing"),
            (user("empty", "word"), "empty"),
        ] {
            let error = Credentials::open(&destination, &metrics()).await.err().unwrap().to_string();
            assert!(error.contains(file) && !error.contains("s3cret"), "{error}");
        }
        assert!(Credentials::open(&user("word", "word"), &metrics()).await.is_ok());
    }
}
