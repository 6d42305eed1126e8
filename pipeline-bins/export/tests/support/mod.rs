//! What the tests against real services share: a topic, a table, the binary, and a way to break the line between them.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod proxy;
pub mod warehouse;
pub mod world;

/// A number that no other test run has used.
pub fn unique() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    format!("{}_{}", std::process::id(), now.as_nanos())
}
