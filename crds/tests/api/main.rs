//! The API as a real API server takes it: what is refused and with which message, what is taken, what may change.
//!
//! Needs the cluster of KUBECONFIG and leaves nothing there but the definition, if it was not installed.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

mod refused;
mod server;
mod taken;
mod transitions;
