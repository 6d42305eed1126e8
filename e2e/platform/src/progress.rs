//! What the person at the terminal sees while a step runs.

use std::io::{IsTerminal, Write};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Numbers the steps of one command and times them.
#[derive(Debug)]
pub struct Progress {
    start: Instant,
    step: usize,
    steps: usize,
}

impl Progress {
    /// Starts the clock of a command with so many steps.
    pub fn new(steps: usize) -> Self {
        Self { start: Instant::now(), step: 0, steps }
    }

    /// Runs one step, says what it is and how long it may take, and how long it took.
    ///
    /// # Errors
    /// Those of the step.
    pub fn step<T>(&mut self, what: &str, may_take: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.step += 1;
        let head = format!("[{:>2}/{}] {what}", self.step, self.steps);
        let terminal = std::io::stderr().is_terminal();
        if terminal {
            eprint!("{head} ({may_take}) ...");
            let _ = std::io::stderr().flush();
        }
        let begin = Instant::now();
        let (done, wait) = channel::<()>();
        let heartbeat = {
            let (head, may_take) = (head.clone(), may_take.to_owned());
            std::thread::spawn(move || {
                // A first sign early, so that a reader of a log knows what is being waited for; then one now and then.
                let mut pause = if terminal { 1 } else { 3 };
                while let Err(RecvTimeoutError::Timeout) = wait.recv_timeout(Duration::from_secs(pause)) {
                    let seconds = begin.elapsed().as_secs();
                    if terminal {
                        eprint!("\r{head} ({may_take}) ... {seconds} s");
                        let _ = std::io::stderr().flush();
                    } else {
                        eprintln!("{head} ({may_take}): working, {seconds} s so far");
                        pause = 30;
                    }
                }
            })
        };
        let result = work();
        drop(done);
        let _ = heartbeat.join();
        let clear = if terminal { "\r\x1b[K" } else { "" };
        let took = begin.elapsed().as_secs_f64();
        match &result {
            Ok(_) => eprintln!("{clear}{head}: {took:.1} s"),
            Err(_) => eprintln!("{clear}{head}: FAILED after {took:.1} s"),
        }
        result
    }

    /// Seconds since the command began.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}
