//! The fields of an event, as a program sees them.

use vrl::value::{
    Kind,
    kind::{Collection, Field as FieldName},
};

/// A field of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, in the message and in a program.
    pub name: &'static str,
    /// What a program finds in it.
    pub type_: FieldType,
    /// Who may change it.
    pub access: Access,
    /// Whether a message without it is not an event.
    pub presence: Presence,
}

/// What a program finds in a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// A string.
    String,
    /// An integer.
    Integer,
    /// A boolean.
    Boolean,
    /// A VRL timestamp; `YYYY-MM-DD HH:MM:SS.ffffff` in the message.
    Timestamp,
    /// An object; JSON in a string in the message.
    Object,
}

/// Who may change a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Programs read it and steps change it.
    Writable,
    /// Programs read it.
    ReadOnly,
}

/// Whether a message may lack a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A message without it is not an event.
    Required,
    /// A program finds nothing, or the empty value of a field that it may change.
    Optional,
}

const fn field(name: &'static str, type_: FieldType, access: Access, presence: Presence) -> Field {
    Field { name, type_, access, presence }
}

/// All fields. What tells one event from another, when and for whom it was received, and whose it is, cannot be
/// changed: the table folds repeated events by it.
pub const FIELDS: [Field; 15] = {
    use Access::{ReadOnly, Writable};
    use FieldType::{Boolean, Integer, Object, String, Timestamp};
    use Presence::{Optional, Required};
    [
        field("uuid", String, ReadOnly, Required),
        field("event", String, Writable, Required),
        field("properties", Object, Writable, Required),
        field("timestamp", Timestamp, Writable, Required),
        field("team_id", Integer, ReadOnly, Required),
        field("project_id", Integer, ReadOnly, Optional),
        field("distinct_id", String, Writable, Required),
        field("elements_chain", String, Writable, Optional),
        field("created_at", Timestamp, ReadOnly, Optional),
        field("captured_at", Timestamp, ReadOnly, Optional),
        field("person_id", String, ReadOnly, Optional),
        field("person_created_at", Timestamp, ReadOnly, Optional),
        field("person_properties", Object, Writable, Optional),
        field("person_mode", String, ReadOnly, Optional),
        field("historical_migration", Boolean, ReadOnly, Optional),
    ]
};

/// Index in [`FIELDS`] of the field with this name.
pub(super) fn position(name: &str) -> Option<usize> {
    FIELDS.iter().position(|field| field.name == name)
}

impl FieldType {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Integer => "integer",
            Self::Boolean => "boolean",
            Self::Timestamp => "timestamp",
            Self::Object => "object",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::String => Kind::bytes(),
            Self::Integer => Kind::integer(),
            Self::Boolean => Kind::boolean(),
            Self::Timestamp => Kind::timestamp(),
            Self::Object => Kind::object(Collection::json()),
        }
    }

    /// Whether a field of this type may hold a value of one of these kinds after a step. A timestamp may be given as a
    /// string as well.
    pub(super) fn accepts(self, kind: &Kind) -> bool {
        match self {
            Self::String => kind.contains_bytes(),
            Self::Integer => kind.contains_integer(),
            Self::Boolean => kind.contains_boolean(),
            Self::Timestamp => kind.contains_timestamp() || kind.contains_bytes(),
            Self::Object => kind.contains_object(),
        }
    }
}

/// The event's type for the compiler.
pub(super) fn event_kind() -> Kind {
    let known = FIELDS
        .iter()
        .map(|field| (FieldName::from(field.name), field.type_.kind()))
        .collect::<std::collections::BTreeMap<_, _>>();
    Kind::object(Collection::from_parts(known, Kind::undefined()))
}

/// Names of the fields that a step may change, for messages.
pub(super) fn writable_names() -> String {
    let names: Vec<_> = FIELDS
        .iter()
        .filter(|field| field.access == Access::Writable)
        .map(|field| format!(".{}", field.name))
        .collect();
    names.join(", ")
}
