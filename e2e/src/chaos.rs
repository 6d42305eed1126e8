//! Events under fire: a pipeline with servers of its own, a load that goes on while faults strike, and the account at the end.

pub mod ordeal;
pub mod plan;
pub mod strike;
