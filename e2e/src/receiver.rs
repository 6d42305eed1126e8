//! A webhook receiver that pods can reach: it listens on the node, and answers as the test says.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, anyhow};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use penstock_platform::{layout::NODE_IP, network};
use tokio::task::JoinHandle;

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, byte for byte.
    pub body: Bytes,
    /// The status that it was answered.
    pub answered: StatusCode,
}

impl Delivery {
    /// A header's text.
    ///
    /// # Errors
    /// The request has no such header, or it is no text.
    pub fn header(&self, name: &str) -> Result<&str> {
        let value = self.headers.get(name).with_context(|| format!("a delivery without {name}"))?;
        Ok(value.to_str()?)
    }
}

/// Decides the answer to a request from its body and what came before it.
type Answers = dyn Fn(&Bytes, &[Delivery]) -> (StatusCode, HeaderMap) + Send + Sync;

struct Shared {
    seen: Mutex<Vec<Delivery>>,
    answers: Box<Answers>,
}

/// A receiver that listens until it is dropped.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

impl Receiver {
    /// Listens on a free port of the node.
    ///
    /// # Errors
    /// The platform is not up, or no port can be had.
    pub async fn start(
        answers: impl Fn(&Bytes, &[Delivery]) -> (StatusCode, HeaderMap) + Send + Sync + 'static,
    ) -> Result<Self> {
        // A thread of its own enters the node's network; the socket stays there, wherever it is served from.
        let listener = std::thread::spawn(|| -> Result<TcpListener> {
            network::enter()?;
            let node: Ipv4Addr = NODE_IP.parse()?;
            Ok(TcpListener::bind((node, 0))?)
        })
        .join()
        .map_err(|_| anyhow!("the thread that listens in the node's network ended in a panic"))?
        .context("listening on the node")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let shared = Arc::new(Shared { seen: Mutex::default(), answers: Box::new(answers) });
        let app = Router::new().fallback(receive).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            // It ends with the test, by being aborted.
            let _ = axum::serve(listener, app).await;
        });
        Ok(Self { address, shared, server })
    }

    /// Where pods reach it.
    pub fn url(&self) -> String {
        format!("http://{}/hook", self.address)
    }

    /// The network that an export must be allowed to reach.
    pub fn network(&self) -> String {
        format!("{}/32", self.address.ip())
    }

    /// What came so far.
    pub fn deliveries(&self) -> Vec<Delivery> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn receive(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let mut seen = shared.seen.lock().unwrap_or_else(PoisonError::into_inner);
    let (answered, extra) = (shared.answers)(&body, &seen);
    seen.push(Delivery { headers, body, answered });
    (answered, extra).into_response()
}
