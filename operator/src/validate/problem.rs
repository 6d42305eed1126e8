//! What can be wrong with a pipeline that the API server let through.

use std::fmt;

/// One thing that is wrong, in words for the person who wrote the spec.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The object's name cannot name what is made from it.
    #[error("metadata.name {name:?} {why}; create the pipeline under another name")]
    Name {
        /// The name.
        name: String,
        /// What it breaks.
        why: &'static str,
    },
    /// A field has a value that nothing can be built from.
    #[error("{field}: {message}")]
    Field {
        /// Path of the field, `spec.exports[crm].webhook.url`.
        field: String,
        /// What is wrong and what to write instead.
        message: String,
    },
    /// A Secret or ConfigMap that the spec names is not there.
    #[error(
        "{field} names {kind} {name:?}, which does not exist in namespace {namespace:?}; create it with the key {key:?}"
    )]
    ReferenceMissing {
        /// Path of the field.
        field: String,
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Namespace of the pipeline.
        namespace: String,
        /// Key that is wanted from it.
        key: String,
    },
    /// The Secret or ConfigMap is there, the key is not.
    #[error(
        "{field} names the key {key:?} of {kind} {name:?}, which has {present}; add the key or name another"
    )]
    KeyMissing {
        /// Path of the field.
        field: String,
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key that is missing.
        key: String,
        /// The keys that are there, for people.
        present: String,
    },
    /// The value behind a reference cannot be used.
    #[error("{field}: the value of key {key:?} of {kind} {name:?} {message}")]
    ReferenceValue {
        /// Path of the field.
        field: String,
        /// `Secret` or `ConfigMap`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
        /// What is wrong; never the value of a Secret.
        message: String,
    },
    /// A VRL program does not compile.
    #[error("{field} does not compile: {diagnostics}")]
    Transformation {
        /// Path of the field, with the step's or export's name.
        field: String,
        /// The compiler's own words.
        diagnostics: String,
    },
    /// Exports that run would read another topic; see [`crate::sources`].
    #[error("{message}")]
    ExportSourceChange {
        /// Which exports, what would happen, and what to do.
        message: String,
    },
}

impl Problem {
    /// Reason of the condition that shows it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Name { .. } | Self::Field { .. } => "InvalidSpec",
            Self::ReferenceMissing { .. } => "ReferenceMissing",
            Self::KeyMissing { .. } => "ReferenceKeyMissing",
            Self::ReferenceValue { .. } => "ReferenceInvalid",
            Self::Transformation { .. } => "InvalidTransformation",
            Self::ExportSourceChange { .. } => "ExportSourceChange",
        }
    }
}

/// Everything that is wrong with a pipeline; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// `Err` with all that was found, if anything was.
    pub fn check(found: Vec<Problem>) -> Result<(), Self> {
        if found.is_empty() { Ok(()) } else { Err(Self(found)) }
    }

    /// Reason of the first.
    pub fn reason(&self) -> &'static str {
        self.0.first().map_or("InvalidSpec", Problem::reason)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}
