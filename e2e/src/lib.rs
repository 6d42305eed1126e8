//! What the end-to-end tests share: the running platform, a pipeline of one's own, load, and the truth in Kafka and
//! ClickHouse.

pub mod acls;
pub mod audit;
pub mod authorities;
pub mod chaos;
pub mod cluster;
pub mod faults;
pub mod load;
pub mod pipeline;
pub mod receiver;
pub mod second_shard;
pub mod secrecy;
pub mod secured;
pub mod servers;
pub mod truth;
pub mod warehouse;
