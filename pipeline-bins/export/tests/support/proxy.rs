//! A TCP proxy that can refuse, cut, and swallow answers.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

/// What the proxy does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Hands everything on.
    Pass,
    /// Closes new connections and those that are open.
    Cut,
    /// Hands requests on and closes instead of handing the first bytes of the answer on.
    LoseAnswers,
}

/// A proxy on a port of its own.
pub struct Proxy {
    pub address: SocketAddr,
    mode: Arc<AtomicU8>,
    lost: Arc<AtomicU64>,
}

impl Proxy {
    pub fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mode = Arc::new(AtomicU8::new(Mode::Pass as u8));
        let lost = Arc::new(AtomicU64::new(0));
        let (shared, counted) = (mode.clone(), lost.clone());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.load(Ordering::SeqCst) == Mode::Cut as u8 {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&target) else { continue };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let (up, down) = (shared.clone(), shared.clone());
                let counted = counted.clone();
                thread::spawn(move || pump(client, server, &up, false, &AtomicU64::new(0)));
                thread::spawn(move || pump(back.0, back.1, &down, true, &counted));
            }
        });
        Self { address, mode, lost }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Answers that were swallowed.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, mode: &AtomicU8, answers: bool, lost: &AtomicU64) {
    from.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer);
        let now = mode.load(Ordering::SeqCst);
        if now == Mode::Cut as u8 {
            break;
        }
        match read {
            Ok(0) => break,
            Ok(_) if answers && now == Mode::LoseAnswers as u8 => {
                lost.fetch_add(1, Ordering::SeqCst);
                break;
            }
            Ok(count) => {
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
