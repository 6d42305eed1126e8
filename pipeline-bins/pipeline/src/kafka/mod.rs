//! Kafka, as all components use it.

pub mod admin;
pub mod client;
pub mod connection;
pub mod failure;
mod message;
pub mod message_size;
pub mod poll;
mod repeats;
pub mod rights;
pub mod security;
pub mod topic_ids;
pub mod transact;

pub use connection::Connection;
pub use message::{Headers, Message};
