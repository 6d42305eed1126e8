//! Where records go. The seam between HTTP and Kafka: what is above it is tested without a broker.

use std::future::Future;

use crate::{
    budget::{Budget, Claim},
    record::Record,
};

/// Why records are not, or not surely, stored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Kafka did not acknowledge all of them; this is final, and they may be sent again.
    #[error("not delivered: {0}")]
    Undelivered(String),
    /// The topic takes no message of this size; sending it again is useless.
    #[error("a message is larger than the topic allows")]
    TooLarge,
}

/// Takes the records of a request.
pub trait Sink: Send + Sync + 'static {
    /// Memory for records on their way. A request claims what it needs before it writes.
    fn queue(&self) -> &Budget;

    /// Writes all records, in their order for each key. `Ok` only when every one is durable; an error only when nothing
    /// more will come of any of them. The claim is held until then, also when the returned future is dropped.
    fn write(
        &self,
        records: Vec<Record>,
        claim: Claim,
    ) -> impl Future<Output = Result<(), WriteError>> + Send;
}
