//! When to stop: a signal, or a part of the process that cannot go on.
//!
//! Stopping is asked for once and runs in order: readiness turns false, the binary finishes or gives up its work, then
//! its `main` returns. Metrics and health are served until the very end. A second signal exits at once.

use std::{
    io,
    sync::{Arc, OnceLock},
};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Exit code of a process that a second signal ended.
const EXIT_IMPATIENT: i32 = 130;

/// The wish that the process stops. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    token: CancellationToken,
    reason: Arc<OnceLock<String>>,
}

impl Shutdown {
    /// Nobody has asked yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the process to stop. The first reason is the one that is kept; asking again does nothing.
    pub fn request(&self, reason: impl Into<String>) {
        let reason = reason.into();
        if self.reason.set(reason.clone()).is_ok() {
            info!(reason, "stopping");
        }
        self.token.cancel();
    }

    /// Ends when stopping is asked for.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// Whether stopping has been asked for.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Why stopping was asked for.
    pub fn reason(&self) -> Option<&str> {
        self.reason.get().map(String::as_str)
    }

    /// The token behind it, for code that takes one. Cancelling the token asks the process to stop.
    pub fn token(&self) -> &CancellationToken {
        &self.token
    }
}

/// Turns SIGTERM and SIGINT into [`Shutdown::request`], and a second one into an exit.
///
/// Call it inside a runtime. Fails when the handlers cannot be installed.
pub fn listen_for_signals(shutdown: Shutdown) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if shutdown.reason.get().is_some_and(|reason| reason.starts_with("SIG")) {
                warn!(signal = name, "second signal: leaving at once");
                std::process::exit(EXIT_IMPATIENT);
            }
            shutdown.request(name);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_reason_is_kept_and_every_clone_sees_it() {
        let shutdown = Shutdown::new();
        let clone = shutdown.clone();
        assert!(!clone.is_requested());
        shutdown.request("SIGTERM");
        shutdown.request("later");
        clone.requested().await;
        assert!(clone.is_requested());
        assert_eq!(clone.reason(), Some("SIGTERM"));
    }
}
