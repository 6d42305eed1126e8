//! Ways into the cluster: a listener on 127.0.0.1 whose connections continue inside the node's network namespace.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::network;

/// How long a connection waits for the cluster's side before the client sees it closed.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections live on these threads only; the stack holds one buffer.
const STACK: usize = 192 * 1024;
const BUFFER: usize = 64 * 1024;

/// Forwards a port of 127.0.0.1 to an address in the cluster until it is dropped.
///
/// The target may be a pod's, a service's or the node's address: it is dialled from the node, so that a service's
/// address goes through kube-proxy as it does for pods. Dropping stops the listener; open connections end when
/// either side closes them.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
    stopped: Arc<AtomicBool>,
}

impl Forward {
    /// Listens on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// No port can be had, or the platform is not up.
    pub fn to(target: SocketAddr) -> Result<Self> {
        Self::from_port(0, target)
    }

    /// Listens on the given port of 127.0.0.1.
    ///
    /// # Errors
    /// The port is taken, or no thread can be started.
    pub fn from_port(port: u16, target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
            .with_context(|| format!("listening on 127.0.0.1:{port}"))?;
        let local = listener.local_addr().context("asking for the listener's port")?;
        let stopped = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&stopped);
        std::thread::Builder::new()
            .name(format!("forward {target}"))
            .spawn(move || {
                for client in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    match client {
                        Ok(client) => carry(client, target),
                        // Out of file descriptors: wait for connections to end rather than spin.
                        Err(_) => std::thread::sleep(Duration::from_millis(50)),
                    }
                }
            })
            .context("starting a thread for the forwarder")?;
        Ok(Self { local, stopped })
    }

    /// The address on this machine.
    pub fn address(&self) -> SocketAddr {
        self.local
    }

    /// `http://` and the address on this machine.
    pub fn url(&self) -> String {
        format!("http://{}", self.local)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // The accepting thread sees the flag at its next connection; this is that connection.
        let _ = TcpStream::connect_timeout(&self.local, Duration::from_millis(200));
    }
}

/// Carries one connection. The thread enters the namespace only to dial: an open socket stays where it was made.
fn carry(client: TcpStream, target: SocketAddr) {
    let started = std::thread::Builder::new().stack_size(STACK).spawn(move || {
        // A failure closes the client's connection, which is what a refused connection looks like to most clients.
        if network::enter().is_err() {
            return;
        }
        let Ok(server) = TcpStream::connect_timeout(&target, DIAL_TIMEOUT) else { return };
        let _ = client.set_nodelay(true);
        let _ = server.set_nodelay(true);
        let (Ok(client_in), Ok(server_out)) = (client.try_clone(), server.try_clone()) else { return };
        let back = std::thread::Builder::new().stack_size(STACK).spawn(move || pump(server, client));
        pump(client_in, server_out);
        if let Ok(back) = back {
            let _ = back.join();
        }
    });
    drop(started);
}

/// Copies until the end of the stream, then passes that end on, so that half-closed connections work.
fn pump(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; BUFFER];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            Ok(length) => {
                if to.write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
