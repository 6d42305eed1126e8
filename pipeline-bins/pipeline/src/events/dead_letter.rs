//! Dead letters: what can never succeed, kept with the reason.
//!
//! The value is the original bytes, unchanged; so are the original headers. The reason is in additional headers. Key:
//! the original key, except for dead letters of exports, whose key is `<topic>/<partition>/<offset>` of the source, so
//! that a repetition can be recognised.

use std::fmt;

/// Names of the additional headers. The first three are PostHog's.
pub mod header {
    /// A stable code: [`super::Reason`].
    pub const REASON: &str = "dlq_reason";
    /// The component: `consumer-main`, `transformation`, `export-<name>`.
    pub const STEP: &str = "dlq_step";
    /// When, RFC 3339.
    pub const TIMESTAMP: &str = "dlq_timestamp";
    /// What was wrong, for people; bounded to 1 KiB, without secrets.
    pub const DETAIL: &str = "dlq_detail";
    /// Topic that the message was read from.
    pub const SOURCE_TOPIC: &str = "dlq_source_topic";
    /// Partition that it was read from.
    pub const SOURCE_PARTITION: &str = "dlq_source_partition";
    /// Offset that it was read at.
    pub const SOURCE_OFFSET: &str = "dlq_source_offset";
    /// Only on a message that is too large to be one dead letter: `<part>/<parts>`, counted from 1. The values of all
    /// parts in their order are the original bytes.
    pub const PART: &str = "dlq_part";
}

/// Why a message can never succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The value is empty or not JSON of the expected shape.
    Malformed,
    /// `data` of a captured message is not a JSON object.
    MalformedData,
    /// The UUID is missing or not a UUID.
    InvalidUuid,
    /// The event has no name.
    MissingEvent,
    /// The event has no distinct id, or one that is longer than 400 characters.
    InvalidDistinctId,
    /// No project has this token.
    UnknownToken,
    /// A transformation step failed on it.
    TransformationFailed,
    /// A transformation step took too long on it.
    TransformationTimedOut,
    /// The result of the transformation is not an event.
    InvalidTransformationResult,
    /// `where` of an export failed on it.
    FilterFailed,
    /// It does not fit the columns of the table.
    InvalidRow,
    /// The destination refused it for good.
    DestinationRefused,
    /// All attempts to deliver it failed.
    AttemptsExhausted,
    /// The destination's address may not be reached.
    DestinationForbidden,
    /// It is larger than a message may be.
    TooLarge,
    /// Our own code failed on it.
    InternalError,
}

impl Reason {
    /// The code that is in the header and in metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::MalformedData => "malformed_data",
            Self::InvalidUuid => "invalid_uuid",
            Self::MissingEvent => "missing_event",
            Self::InvalidDistinctId => "invalid_distinct_id",
            Self::UnknownToken => "unknown_token",
            Self::TransformationFailed => "transformation_failed",
            Self::TransformationTimedOut => "transformation_timed_out",
            Self::InvalidTransformationResult => "invalid_transformation_result",
            Self::FilterFailed => "filter_failed",
            Self::InvalidRow => "invalid_row",
            Self::DestinationRefused => "destination_refused",
            Self::AttemptsExhausted => "attempts_exhausted",
            Self::DestinationForbidden => "destination_forbidden",
            Self::TooLarge => "too_large",
            Self::InternalError => "internal_error",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}
