//! The HTTP client: it decides on the resolved address each time it dials, follows nothing and uses no proxy.

use std::{error::Error, fmt, net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect::Policy,
};

use super::address::Allowed;

/// All addresses of the destination's name are special.
#[derive(Debug)]
pub struct Forbidden {
    host: String,
    address: SocketAddr,
    what: &'static str,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} resolves to {}, which is {}: a webhook reaches it only when allowedNetworks has its network",
            self.host,
            self.address.ip(),
            self.what
        )
    }
}

impl Error for Forbidden {}

/// Resolves names by the system's resolver and keeps the addresses that may be reached.
struct GuardedResolver {
    allowed: Arc<Allowed>,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = Arc::clone(&self.allowed);
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            Ok(reachable(&allowed, &host, addresses)?)
        })
    }
}

fn reachable(allowed: &Allowed, host: &str, addresses: Vec<SocketAddr>) -> Result<Addrs, Forbidden> {
    let mut forbidden = None;
    let mut reachable = Vec::with_capacity(addresses.len());
    for address in addresses {
        match allowed.admits(address.ip()) {
            Ok(()) => reachable.push(address),
            Err(what) => forbidden = Some(Forbidden { host: host.to_owned(), address, what }),
        }
    }
    match forbidden {
        Some(forbidden) if reachable.is_empty() => Err(forbidden),
        _ => Ok(Box::new(reachable.into_iter())),
    }
}

/// A client for one destination. Addresses written into the URL are not resolved: check them with [`Allowed`] before.
pub fn client(allowed: Allowed, timeout: Duration, concurrency: usize) -> reqwest::Result<Client> {
    Client::builder()
        .dns_resolver(Arc::new(GuardedResolver { allowed: Arc::new(allowed) }))
        .redirect(Policy::none())
        .no_proxy()
        .referer(false)
        .timeout(timeout)
        .connect_timeout(timeout)
        // A connection is as old as its address; a name that moves is followed soon.
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(concurrency)
        .user_agent(concat!("penstock-export/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// Whether a request failed because its destination may not be reached; what was said then.
pub fn forbidden(error: &reqwest::Error) -> Option<String> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(forbidden) = error.downcast_ref::<Forbidden>() {
            return Some(forbidden.to_string());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reachable_addresses_are_dialled() {
        let allowed = Allowed::default();
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>();
        let kept: Vec<_> =
            reachable(&allowed, "h", addresses(&["127.0.0.1:0", "1.1.1.1:0", "[::1]:0"])).unwrap().collect();
        assert_eq!(kept, addresses(&["1.1.1.1:0"]));
        let Err(error) = reachable(&allowed, "internal", addresses(&["10.0.0.1:0", "[fd00::1]:0"])) else {
            panic!("private addresses were taken");
        };
        assert!(error.to_string().contains("internal resolves to"), "{error}");
        assert!(error.to_string().contains("allowedNetworks"), "{error}");
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_this_machine_is_not_dialled() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://localhost:{}/", listener.local_addr().unwrap().port());
        let client = client(Allowed::default(), Duration::from_secs(5), 1).unwrap();
        let error = client.post(&url).send().await.unwrap_err();
        assert!(forbidden(&error).is_some_and(|said| said.contains("loopback")), "{error:?}");
        assert!(listener.accept().is_err(), "it was dialled");
    }
}
