//! What the conditions say of Kafka and ClickHouse.

use super::conditions::{State, Statement};
use crate::failure::{Cause, Failure};

/// How much a trouble matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; all works.
    Notice,
    /// The spec asks for what is not done; what runs goes on.
    Refused,
    /// Events cannot flow.
    Broken,
}

/// Something that is not as the spec says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// How much it matters.
    pub severity: Severity,
    /// One word in PascalCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// Something outside Kubernetes that the pipeline needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dependency {
    /// Nobody has looked.
    NotObserved,
    /// Nobody answered.
    Unreachable {
        /// Who was asked what, and what is in the way.
        why: Failure,
    },
    /// Somebody answered, a change that was due failed.
    Failed {
        /// What was being done, and what is in the way.
        why: Failure,
    },
    /// Somebody answered.
    Observed {
        /// What is not as the spec says.
        troubles: Vec<Trouble>,
        /// What is there, for people.
        summary: String,
    },
}

impl Dependency {
    /// The worst trouble that keeps it from being ready.
    fn worst(&self) -> Option<&Trouble> {
        let Self::Observed { troubles, .. } = self else { return None };
        troubles
            .iter()
            .filter(|trouble| trouble.severity > Severity::Notice)
            .min_by_key(|trouble| std::cmp::Reverse(trouble.severity))
    }

    /// Whether only a change of the spec, or of the world by a person, helps.
    pub fn is_refused(&self) -> bool {
        match self {
            Self::Unreachable { why } | Self::Failed { why } => why.cause.needs_a_person(),
            _ => self.worst().is_some_and(|trouble| trouble.severity == Severity::Refused),
        }
    }

    /// Whether it is as the spec says.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Observed { .. }) && self.worst().is_none()
    }

    /// The condition of this type.
    pub fn statement(&self, type_: &'static str) -> Statement {
        match self {
            Self::NotObserved => Statement::new(
                type_,
                State::Unknown,
                "NotObserved",
                "not looked at, because the spec is not valid",
            ),
            Self::Unreachable { why } => {
                Statement::new(type_, State::False, why.cause.reason(), why.why.as_str())
            }
            Self::Failed { why } => {
                let reason = match why.cause {
                    Cause::Unreachable => "ChangeFailed",
                    cause => cause.reason(),
                };
                Statement::new(type_, State::False, reason, why.why.as_str())
            }
            Self::Observed { troubles, summary } => match self.worst() {
                Some(worst) => {
                    let messages: Vec<&str> = troubles
                        .iter()
                        .filter(|trouble| trouble.severity > Severity::Notice)
                        .map(|trouble| trouble.message.as_str())
                        .collect();
                    Statement::new(type_, State::False, worst.reason, messages.join("; "))
                }
                None => {
                    let mut message = summary.clone();
                    for notice in troubles {
                        message.push_str("; note: ");
                        message.push_str(&notice.message);
                    }
                    Statement::new(type_, State::True, "AsSpecified", message)
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trouble(severity: Severity, reason: &'static str) -> Trouble {
        Trouble { severity, reason, message: format!("because {reason}") }
    }

    #[test]
    fn a_notice_is_told_and_changes_nothing() {
        let kafka = Dependency::Observed {
            troubles: vec![trouble(Severity::Notice, "ReplicationFactorDiffers")],
            summary: "4 topics".into(),
        };
        assert!(kafka.is_ready());
        let statement = kafka.statement("KafkaReady");
        assert_eq!(statement.state, State::True);
        assert_eq!(statement.message, "4 topics; note: because ReplicationFactorDiffers");
    }

    #[test]
    fn the_worst_gives_the_reason_and_all_are_told() {
        let kafka = Dependency::Observed {
            troubles: vec![trouble(Severity::Refused, "Shrink"), trouble(Severity::Broken, "Missing")],
            summary: String::new(),
        };
        let statement = kafka.statement("KafkaReady");
        assert_eq!((statement.state, statement.reason.as_str()), (State::False, "Missing"));
        assert_eq!(statement.message, "because Shrink; because Missing");
        assert!(!kafka.is_refused());
    }
}
