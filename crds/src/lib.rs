//! The Kubernetes API of Penstock: the `IngestionPipeline` resource, group `penstock.dev`, version `v1alpha1`.
//!
//! This crate holds types only. It talks to nobody, so that anything that reads or writes the resource can use it.
//! The YAML of the CustomResourceDefinition is generated from these types (see `src/bin`).

pub mod quantity;
pub mod v1alpha1;

pub use v1alpha1::{IngestionPipeline, IngestionPipelineSpec, IngestionPipelineStatus};

/// API group of the resource.
pub const GROUP: &str = "penstock.dev";

/// Field manager under which the operator writes everything that it owns (server-side apply).
pub const FIELD_MANAGER: &str = "penstock-operator";
