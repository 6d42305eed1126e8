//! All reads of a pass: children, references, Kafka and ClickHouse.

pub mod children;
pub mod listing;
pub mod outside;
pub mod pods;
mod readiness;
pub mod references;

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// A Secret or ConfigMap that the spec names.
    #[error("cannot read {kind} {name:?}, which the spec names: {source}")]
    Reference {
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The API server's answer.
        source: kube::Error,
    },
}
