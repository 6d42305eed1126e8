//! The local platform: a real single-node Kubernetes cluster with Kafka and ClickHouse in it.
//!
//! The `platform` command brings it up and takes it down. Tests use this library to learn where the
//! cluster is ([`layout::Layout`], [`info::PlatformInfo`]), to reach addresses inside it ([`forward::Forward`]), to do harm
//! to it ([`container::Container`]), and to have several ClickHouse servers beside it ([`shards::Shards`]).
//!
//! The node lives in a network namespace that has no link to the machine's own: pod, service and node
//! addresses mean nothing outside it, and nothing inside it can leave. Every way in is a listener on
//! 127.0.0.1 whose other side is dialled from within the namespace.

pub mod addons;
pub mod cache;
pub mod cgroup;
pub mod cleanup;
pub mod command;
pub mod container;
pub mod control_plane;
pub mod daemon;
pub mod forward;
pub mod images;
pub mod info;
pub mod layout;
pub mod network;
pub mod node;
pub mod pki;
pub mod preflight;
pub mod progress;
pub mod services;
pub mod shards;
pub mod toolchain;
pub mod up;
