//! The Kubernetes API of Penstock: the `IngestionPipeline` resource, group `penstock.dev`, version `v1alpha1`.
//!
//! This crate holds types only. It talks to nobody, so that anything that reads or writes the resource can use it.
//! The YAML of the CustomResourceDefinition is generated from these types (see `src/bin`).

mod crd;
pub mod generated;
pub mod quantity;
mod rules;
pub mod v1alpha1;

pub use crd::crd;
pub use v1alpha1::{IngestionPipeline, IngestionPipelineSpec, IngestionPipelineStatus};

/// API group of the resource.
pub const GROUP: &str = "penstock.dev";

/// Field manager under which the operator writes everything that it owns (server-side apply).
pub const FIELD_MANAGER: &str = "penstock-operator";
