//! What the binaries of the data plane share: the events, their configuration, Kafka, VRL, telemetry and life cycle.
//!
//! Nothing here talks to Kubernetes. The operator uses [`config`] to render the files that the binaries parse, so that
//! both sides agree by type.

pub mod command;
pub mod config;
pub mod events;
pub mod health;
pub mod kafka;
pub mod lifecycle;
pub mod live_file;
pub mod program;
pub mod projects;
pub mod telemetry;
