//! The HTTP client for ClickHouse, shared by all pipelines.

use std::time::Duration;

use clickhouse::Client;
use hyper_util::{
    client::legacy::{Client as HttpClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use url::Url;

/// Longest time until a connection stands.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest time of one statement, connection included.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections that nobody used for so long are closed; servers close theirs after 3 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(2);

/// The client for every server.
#[derive(Clone)]
pub struct Servers {
    client: Client,
}

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} on ClickHouse at {server}: {why}")]
pub struct QueryError {
    what: String,
    server: String,
    why: String,
}

impl Default for Servers {
    fn default() -> Self {
        Self::new()
    }
}

impl Servers {
    /// Connects to nobody yet.
    pub fn new() -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_keepalive(Some(Duration::from_secs(60)));
        connector.enforce_http(false);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())
            .expect("ring has the protocol versions that rustls takes by default")
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http = HttpClient::builder(TokioExecutor::new()).pool_idle_timeout(IDLE_TIMEOUT).build(connector);
        Self {
            client: Client::with_http_client(http)
                .with_product_info("penstock-operator", env!("CARGO_PKG_VERSION")),
        }
    }

    /// The client for one server.
    pub(super) fn at(&self, url: &str) -> Client {
        self.client.clone().with_url(url)
    }
}

/// Waits for `query`, with the time-out of a statement. `what` completes "cannot …".
pub(super) async fn within_time<T>(
    what: &str,
    url: &str,
    query: impl Future<Output = Result<T, clickhouse::error::Error>>,
) -> Result<T, QueryError> {
    let why = match tokio::time::timeout(QUERY_TIMEOUT, query).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(error)) => reason(&error),
        Err(_) => format!("no answer within {} s", QUERY_TIMEOUT.as_secs()),
    };
    Err(QueryError { what: what.to_owned(), server: without_credentials(url), why })
}

/// The whole chain of causes: hyper's own message says only that there was an error.
fn reason(error: &clickhouse::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

/// A URL that may be shown.
fn without_credentials(url: &str) -> String {
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
