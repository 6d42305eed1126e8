//! The HTTP client for ClickHouse, shared by all pipelines.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clickhouse::Client;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use url::Url;

use super::Access;
use crate::{
    credentials::Trust,
    failure::{Cause, Failure},
};

/// Longest time until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest time of one statement, connection included.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that nobody used for so long are closed; servers close theirs after 3 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// A client that nobody used for so long is dropped.
const UNUSED_AFTER: Duration = Duration::from_secs(15 * 60);

/// The clients for every server: one for each set of authorities that is trusted.
#[derive(Clone, Default)]
pub struct Servers {
    clients: Arc<Mutex<HashMap<Trust, (Client, Instant)>>>,
}

/// Why a statement failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct QueryError(Failure);

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        error.0
    }
}

impl Servers {
    /// Connects to nobody yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The client for one server, as one user.
    pub(super) fn at(&self, url: &str, access: &Access) -> Client {
        let client = self.trusting(&access.trust).with_url(url);
        match &access.user {
            None => client,
            Some(user) => {
                client.with_user(user.username.content.expose()).with_password(user.password.content.expose())
            }
        }
    }

    fn trusting(&self, trust: &Trust) -> Client {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        clients.retain(|_, (_, used)| now.duration_since(*used) < UNUSED_AFTER);
        let (client, used) = clients.entry(trust.clone()).or_insert_with(|| (client(trust), now));
        *used = now;
        client.clone()
    }
}

fn client(trust: &Trust) -> Client {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    connector.set_keepalive(Some(Duration::from_secs(60)));
    connector.enforce_http(false);
    let provider = ring::default_provider();
    let builder = hyper_rustls::HttpsConnectorBuilder::new();
    let https = match trust.pem() {
        None => builder
            .with_provider_and_webpki_roots(provider)
            .expect("ring has the protocol versions that rustls takes by default"),
        Some(pem) => builder.with_tls_config(
            ClientConfig::builder_with_provider(Arc::new(provider))
                .with_safe_default_protocol_versions()
                .expect("ring has the protocol versions that rustls takes by default")
                .with_root_certificates(authorities(pem))
                .with_no_client_auth(),
        ),
    };
    let connector = https.https_or_http().enable_http1().wrap_connector(connector);
    let http = HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_TIMEOUT).build(connector);
    Client::with_http_client(http).with_product_info("penstock-operator", env!("CARGO_PKG_VERSION"))
}

/// The certificates of a PEM file. It has been validated; one that cannot be read after all is trusted by nobody.
fn authorities(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()).flatten() {
        if let Err(error) = roots.add(certificate) {
            tracing::debug!(%error, "a certificate of an authority cannot be used");
        }
    }
    roots
}

/// Waits for `query`, with the time-out of a statement. `what` completes "cannot …".
pub(super) async fn within_time<T>(
    what: &str,
    url: &str,
    access: &Access,
    query: impl Future<Output = Result<T, clickhouse::error::Error>>,
) -> Result<T, QueryError> {
    let server = without_credentials(url);
    Err(QueryError(match tokio::time::timeout(QUERY_TIMEOUT, query).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => access.failure(what, &server, &error),
        Err(_) => Failure::new(
            Cause::Unreachable,
            format!(
                "cannot {what} on ClickHouse at {server}: no answer within {} s",
                QUERY_TIMEOUT.as_secs()
            ),
        ),
    }))
}

/// A URL that may be shown.
pub(super) fn without_credentials(url: &str) -> String {
    match Url::parse(url) {
        Ok(url) => match (url.host_str(), url.port_or_known_default()) {
            (Some(host), Some(port)) => format!("{host}:{port}"),
            (Some(host), None) => host.to_owned(),
            _ => "an address without a host".to_owned(),
        },
        Err(_) => "an address that is not a URL".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_do_not_show_credentials() {
        for (url, shown) in [
            ("http://ch:8123", "ch:8123"),
            ("https://user:secret@ch.example.com/?password=secret", "ch.example.com:443"),
            ("secret", "an address that is not a URL"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }
}
