//! Kafka, as all components use it.

pub mod admin;
pub mod client;
pub mod failure;
mod message;
pub mod message_size;
pub mod poll;
pub mod security;
pub mod topic_ids;
pub mod transact;

pub use message::{Headers, Message};
