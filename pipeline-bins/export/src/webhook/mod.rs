//! Export to an HTTP endpoint: each event is one POST, at least once.

mod address;
mod deliver;
mod dial;
mod driver;
mod low_water;
mod payload;
mod signature;
mod verdict;

use std::{sync::Arc, time::Duration};

use penstock_pipeline::{
    command::Context,
    config::{ExportConfig, WebhookDestination},
    kafka::Connection,
    live_file::{LiveFile, LiveFileMetrics},
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::{Host, Url};

use crate::{ExportError, filter::Filter};
use address::Allowed;
use deliver::Endpoint;
use driver::Driver;
use signature::SigningKeys;

/// Headers that an export sets itself.
const OWN_HEADERS: [&str; 8] = [
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "user-agent",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// What parsing cannot know of a destination.
struct Checked {
    url: Url,
    allowed: Allowed,
    headers: HeaderMap,
}

/// Checks what parsing cannot know.
pub fn check(destination: &WebhookDestination) -> Result<(), String> {
    checked(destination).map(drop)
}

fn checked(destination: &WebhookDestination) -> Result<Checked, String> {
    let field = "destination.webhook";
    let url: Url = destination.url.parse().map_err(|error| format!("{field}.url: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("{field}.url: {:?} is neither http nor https", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{field}.url: user and password do not belong into the URL; use headers"));
    }
    let allowed = Allowed::parse(&destination.allowed_networks)
        .map_err(|error| format!("{field}.allowedNetworks: {error}"))?;
    // Names are looked at whenever they are resolved; an address is never resolved.
    let literal = match url.host() {
        Some(Host::Ipv4(address)) => Some(address.into()),
        Some(Host::Ipv6(address)) => Some(address.into()),
        Some(Host::Domain(_)) => None,
        None => return Err(format!("{field}.url: has no host")),
    };
    if let Some(Err(what)) = literal.map(|address| allowed.admits(address)) {
        return Err(format!(
            "{field}.url: the address is {what}; add its network to allowedNetworks to reach it"
        ));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &destination.headers {
        let parsed: HeaderName =
            name.parse().map_err(|_| format!("{field}.headers: {name:?} is not a header name"))?;
        if OWN_HEADERS.contains(&parsed.as_str()) {
            return Err(format!("{field}.headers: {name} is set by the export itself"));
        }
        let value = HeaderValue::from_str(value).map_err(|_| {
            format!("{field}.headers: the value of {name} has characters that no header may have")
        })?;
        headers.insert(parsed, value);
    }
    if destination.concurrency == 0 || destination.timeout_ms == 0 {
        return Err(format!("{field}: concurrency and timeoutMs are at least 1"));
    }
    if destination.retry.max_attempts == Some(0) {
        return Err(format!("{field}.retry.maxAttempts: is at least 1"));
    }
    Ok(Checked { url, allowed, headers })
}

/// Runs until asked to stop.
pub async fn run(
    config: ExportConfig,
    destination: WebhookDestination,
    filter: Option<Filter>,
    context: Context,
) -> Result<(), ExportError> {
    let Checked { url, allowed, headers } = checked(&destination).map_err(ExportError::Configuration)?;
    // Fails only when one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let timeout = Duration::from_millis(destination.timeout_ms.into());
    let concurrency = usize::try_from(destination.concurrency).unwrap_or(usize::MAX).min(4096);
    let keys = match &destination.signing_key_file {
        Some(path) => Some(
            LiveFile::open("signing_keys", path, SigningKeys::parse, &LiveFileMetrics::new(&context.metrics))
                .await?,
        ),
        None => None,
    };
    let endpoint = Endpoint {
        client: dial::client(allowed, timeout, concurrency).map_err(ExportError::HttpClient)?,
        url,
        headers,
        keys,
        timeout,
    };
    let Some(kafka) = Connection::open(&config.kafka, &context).await else { return Ok(()) };
    let driver =
        Driver::new(config, destination.retry, concurrency, filter.map(Arc::new), endpoint, kafka, &context)?;
    let (done, result) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("source".to_owned())
        .spawn(move || {
            let _ = done.send(driver.run());
        })
        .map_err(ExportError::Thread)?;
    result.await.unwrap_or(Err(ExportError::ThreadPanicked))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use penstock_pipeline::config::RetryConfig;

    use super::*;

    fn destination(url: &str) -> WebhookDestination {
        WebhookDestination {
            url: url.into(),
            signing_key_file: None,
            headers: BTreeMap::new(),
            timeout_ms: 1000,
            concurrency: 4,
            retry: RetryConfig { max_attempts: Some(3), min_backoff_ms: 1, max_backoff_ms: 2 },
            allowed_networks: vec!["127.0.0.0/8".into()],
        }
    }

    #[test]
    fn addresses_in_the_url_are_checked_in_all_their_spellings() {
        for url in
            ["https://example.com/in", "http://127.0.0.1:8080/in", "https://8.8.8.8/", "http://2130706433/"]
        {
            assert_eq!(check(&destination(url)), Ok(()), "{url}");
        }
        for url in [
            "http://10.0.0.1/",
            "http://169.254.169.254/latest/meta-data",
            "http://0xa000001/",
            "http://012.0.0.1/",
            "http://167772161/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[64:ff9b::7f00:1]/",
            "http://0/",
        ] {
            let error = check(&destination(url)).unwrap_err();
            assert!(error.contains("allowedNetworks"), "{url}: {error}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_field() {
        let refused = |change: fn(&mut WebhookDestination)| {
            let mut destination = destination("https://example.com/");
            change(&mut destination);
            check(&destination).unwrap_err()
        };
        assert!(refused(|d| d.url = "ftp://example.com".into()).contains("url"));
        assert!(refused(|d| d.url = "https://a:b@example.com".into()).contains("user and password"));
        assert!(refused(|d| d.allowed_networks = vec!["x".into()]).contains("allowedNetworks"));
        assert!(refused(|d| drop(d.headers.insert("Webhook-Id".into(), "x".into()))).contains("Webhook-Id"));
        assert!(refused(|d| drop(d.headers.insert("a b".into(), "x".into()))).contains("header name"));
        assert!(refused(|d| drop(d.headers.insert("a".into(), "x\ny".into()))).contains("headers"));
        assert!(refused(|d| d.concurrency = 0).contains("concurrency"));
        assert!(refused(|d| d.retry.max_attempts = Some(0)).contains("maxAttempts"));
    }
}
