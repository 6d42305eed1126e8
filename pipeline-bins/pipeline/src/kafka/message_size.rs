//! How large messages may be, stage by stage: each stage takes what the one before it can send, with room for what it
//! adds, and the dead-letter topic takes any message of the others with the headers that say what was wrong.
//!
//! The topics get these as `max.message.bytes` (which Kafka compares with the size of a batch after compression); a
//! producer's `message.max.bytes` is the limit of its topic, so that librdkafka refuses what the broker would.

/// Largest `captured` message: key, value and headers together, bytes. Capture answers 413 for a larger event. The
/// number is that of PostHog's capture.
pub const CAPTURED_EVENT: u32 = 1_000_000;

/// `max.message.bytes` of `captured`.
pub const CAPTURED_TOPIC: u32 = 2 * 1024 * 1024;

/// `max.message.bytes` of `ingested` and `transformed`: a captured event may grow by escaping, by the person's properties
/// and by transformation steps. A larger one is a dead letter.
pub const STAGE_TOPIC: u32 = 4 * 1024 * 1024;

/// `max.message.bytes` of `dead-letter`: any message of the other topics, unchanged, and its additional headers.
pub const DEAD_LETTER_TOPIC: u32 = 5 * 1024 * 1024;

/// What the dead-letter topic takes beyond the largest of the others.
pub const DEAD_LETTER_ROOM: u32 = 1024 * 1024;

const _: () = {
    assert!(CAPTURED_EVENT < CAPTURED_TOPIC);
    assert!(CAPTURED_TOPIC < STAGE_TOPIC);
    assert!(STAGE_TOPIC + DEAD_LETTER_ROOM <= DEAD_LETTER_TOPIC);
};
