//! Kafka, as all components use it.
