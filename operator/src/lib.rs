//! The operator of Penstock: it makes one `IngestionPipeline` true.
//!
//! One pass over one object is in [`reconcile`], readable from top to bottom; each of its phases is a module:
//! [`observe`] reads, [`validate`], [`build`] and [`sources`] are pure, [`apply`] writes, [`report`] tells. What is outside Kubernetes
//! is in [`topics`] and [`tables`].

pub mod apply;
pub mod build;
pub mod cleanup;
pub mod controller;
pub mod credentials;
pub mod failure;
pub mod memory;
pub mod metrics;
pub mod observe;
pub mod options;
pub mod reconcile;
pub mod report;
pub mod sources;
pub mod tables;
pub mod topics;
pub mod validate;
