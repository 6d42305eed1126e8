//! The events on their way, and the formats in which they lie between components.

pub mod captured;
pub mod dead_letter;
pub mod ingested;
pub mod sharding;
pub mod surrogates;
pub mod table;
