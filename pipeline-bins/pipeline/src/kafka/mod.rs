//! Kafka, as all components use it.

pub mod admin;
pub mod topic_ids;
