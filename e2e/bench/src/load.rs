//! A client that costs little: prepared bytes on kept-alive HTTP/1.1 connections, and of an answer no more than its status
//! is looked at. What it costs all the same is its own process's and is told apart.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// Longest time for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whole requests, head and body.
pub fn requests(path: &str, bodies: &[Bytes], gzip: bool) -> Vec<Bytes> {
    let encoding = if gzip { "content-encoding: gzip\r\n" } else { "" };
    let whole = |body: &Bytes| {
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: bench\r\nuser-agent: posthog-python/3.7.0\r\n\
             content-type: application/json\r\n{encoding}content-length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        Bytes::from(request)
    };
    bodies.iter().map(whole).collect()
}

/// A kept-alive connection.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream =
            TcpStream::connect(address).await.with_context(|| format!("nobody listens on {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    /// Sends a whole request and gives the status of the answer.
    ///
    /// # Errors
    /// The connection breaks, the answer is none, or takes longer than half a minute.
    pub async fn ask(&mut self, request: &[u8]) -> Result<u16> {
        tokio::time::timeout(PATIENCE, self.exchange(request))
            .await
            .context("no answer within half a minute")?
    }

    async fn exchange(&mut self, request: &[u8]) -> Result<u16> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        loop {
            let read = self.stream.read_buf(&mut self.buffer).await?;
            ensure!(read > 0, "the connection was closed before an answer");
            if let Some(answer) = answer(&self.buffer)? {
                return Ok(answer);
            }
        }
    }
}

/// The status of an answer that has arrived whole; `None` while it has not.
fn answer(bytes: &[u8]) -> Result<Option<u16>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).context("the head of an answer is not text")?;
    let status = head.get(9..12).and_then(|text| text.parse().ok()).context("an answer without a status")?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let length = length.context("an answer without content-length")?;
    Ok((bytes.len() >= end + 4 + length).then_some(status))
}

/// What became of a load.
#[derive(Clone, Debug)]
pub struct Answered {
    /// From the first request to the last answer.
    pub took: Duration,
    /// Time of each answer, sorted.
    pub latencies: Vec<Duration>,
}

/// Sends `count` requests, taking turns, over so many connections, each as soon as the one before it is answered.
///
/// # Errors
/// An answer is not 200, or a connection breaks.
pub async fn send(
    address: SocketAddr,
    requests: Arc<Vec<Bytes>>,
    count: u64,
    connections: usize,
) -> Result<Answered> {
    let mut open = Vec::with_capacity(connections);
    for _ in 0..connections {
        open.push(Connection::open(address).await?);
    }
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for mut connection in open {
        let (requests, next) = (Arc::clone(&requests), Arc::clone(&next));
        tasks.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(latencies);
                }
                let asked = Instant::now();
                let status = connection.ask(&requests[number as usize % requests.len()]).await?;
                if status != 200 {
                    bail!("request {number} was answered {status}");
                }
                latencies.push(asked.elapsed());
            }
        });
    }
    let mut latencies = Vec::with_capacity(usize::try_from(count)?);
    while let Some(done) = tasks.join_next().await {
        latencies.extend(done??);
    }
    let took = began.elapsed();
    latencies.sort_unstable();
    Ok(Answered { took, latencies })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(answer(&head[..20]).unwrap(), None);
        assert_eq!(answer(head).unwrap(), None);
        assert_eq!(answer(&[&head[..], b"abc"].concat()).unwrap(), Some(200));
        assert_eq!(answer(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").unwrap(), Some(503));
        assert!(answer(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn a_request_says_how_long_its_body_is() {
        let request = requests("/e", &[Bytes::from_static(b"{}")], true).remove(0);
        let text = std::str::from_utf8(&request).unwrap();
        assert!(text.starts_with("POST /e HTTP/1.1\r\n") && text.ends_with("content-length: 2\r\n\r\n{}"));
        assert!(text.contains("\r\ncontent-encoding: gzip\r\n"));
    }
}
