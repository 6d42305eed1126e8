//! A TCP proxy that can refuse, cut, and swallow answers, and do something at a certain moment of an insert.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
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

/// A moment of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// So many bytes of it have gone through; the rest never does.
    Middle(u64),
    /// A request of more bytes than that is answered; the answer is lost.
    Answer(u64),
}

type Action = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    mode: AtomicU8,
    lost: AtomicU64,
    /// A moment that is waited for, and what happens then.
    trap: Mutex<Option<(At, Action)>>,
    sprung: AtomicBool,
}

/// A proxy on a port of its own.
pub struct Proxy {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl Proxy {
    pub fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.mode() == Mode::Cut as u8 {
                    continue;
                }
                let Ok(server) = TcpStream::connect(&target) else { continue };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                let (up, down) = (shared.clone(), shared.clone());
                // Bytes of the request that is under way.
                let asked = Arc::new(AtomicU64::new(0));
                let asking = asked.clone();
                thread::spawn(move || pump(client, server, &up, |bytes| request(&up, &asking, bytes)));
                thread::spawn(move || pump(back.0, back.1, &down, |_| answer(&down, &asked)));
            }
        });
        Self { address, state }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, mode: Mode) {
        self.state.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Does something the next time that this moment comes, on any connection.
    pub fn trap(&self, at: At, action: impl FnOnce() + Send + 'static) {
        self.state.sprung.store(false, Ordering::SeqCst);
        *self.state.trap.lock().unwrap() = Some((at, Box::new(action)));
    }

    /// Whether the moment has come, and all is done.
    pub fn has_sprung(&self) -> bool {
        self.state.sprung.load(Ordering::SeqCst)
    }

    /// Answers that were swallowed.
    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::SeqCst)
    }
}

impl State {
    fn mode(&self) -> u8 {
        self.mode.load(Ordering::SeqCst)
    }

    /// The action, if this is its moment.
    fn spring(&self, is_now: impl FnOnce(At) -> bool) -> Option<Action> {
        let mut trap = self.trap.lock().unwrap();
        let now = trap.as_ref().is_some_and(|(at, _)| is_now(*at));
        if now { trap.take().map(|(_, action)| action) } else { None }
    }
}

/// What becomes of some bytes.
enum Verdict {
    Pass,
    /// None go through, and the connection ends.
    End,
    /// So many go through, then this happens, and the connection ends.
    Trapped(u64, Action),
}

fn request(state: &State, asked: &AtomicU64, bytes: u64) -> Verdict {
    let before = asked.fetch_add(bytes, Ordering::SeqCst);
    let mut passes = 0;
    let action = state.spring(|at| match at {
        At::Middle(most) if before + bytes > most => {
            passes = most.saturating_sub(before);
            true
        }
        _ => false,
    });
    action.map_or(Verdict::Pass, |action| Verdict::Trapped(passes, action))
}

fn answer(state: &State, asked: &AtomicU64) -> Verdict {
    if state.mode() == Mode::LoseAnswers as u8 {
        state.lost.fetch_add(1, Ordering::SeqCst);
        return Verdict::End;
    }
    let asked = asked.swap(0, Ordering::SeqCst);
    let action = state.spring(|at| matches!(at, At::Answer(least) if asked > least));
    action.map_or(Verdict::Pass, |action| Verdict::Trapped(0, action))
}

fn pump(mut from: TcpStream, mut to: TcpStream, state: &State, judge: impl Fn(u64) -> Verdict) {
    from.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut buffer);
        if state.mode() == Mode::Cut as u8 {
            break;
        }
        match read {
            Ok(0) => break,
            Ok(count) => match judge(count as u64) {
                Verdict::Pass => {
                    if to.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                Verdict::End => break,
                Verdict::Trapped(passes, action) => {
                    let _ = to.write_all(&buffer[..passes as usize]);
                    action();
                    state.sprung.store(true, Ordering::SeqCst);
                    break;
                }
            },
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => break,
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
