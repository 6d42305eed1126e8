//! Conditions by the kstatus convention: `Ready`, `Reconciling`, `Stalled`, and one for each dependency.

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

/// Longest message that the API takes for a condition.
const MAX_MESSAGE_CHARACTERS: usize = 4_000;

/// State of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can say at present.
    Unknown,
}

impl State {
    /// As Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

/// What one condition says, before time is put to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Type of the condition.
    pub type_: &'static str,
    /// Whether it holds.
    pub state: State,
    /// One word in PascalCase.
    pub reason: String,
    /// For people: what, why, and what to do.
    pub message: String,
}

impl Statement {
    /// A statement.
    pub fn new(
        type_: &'static str,
        state: State,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { type_, state, reason: reason.into(), message: message.into() }
    }
}

/// Writes statements as conditions over the previous ones: the transition time moves only where the state flips.
pub fn conditions(
    previous: &[Condition],
    statements: Vec<Statement>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    // Seconds, as the API server stores them: a comparison with what comes back must not find a difference.
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    statements
        .into_iter()
        .map(|statement| {
            let status = statement.state.as_str();
            let since = previous
                .iter()
                .find(|condition| condition.type_ == statement.type_ && condition.status == status)
                .map_or(Time(now), |condition| condition.last_transition_time.clone());
            Condition {
                type_: statement.type_.to_owned(),
                status: status.to_owned(),
                reason: statement.reason,
                message: shortened(statement.message),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}

fn shortened(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MAX_MESSAGE_CHARACTERS) {
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ready(state: State, message: &str) -> Vec<Statement> {
        vec![Statement::new("Ready", state, "Reason", message)]
    }

    #[test]
    fn the_transition_time_moves_only_when_the_state_flips() {
        let first = conditions(&[], ready(State::False, "a"), Some(1), at(100));
        let second = conditions(&first, ready(State::False, "b"), Some(2), at(200));
        assert_eq!(second[0].last_transition_time.0, at(100));
        assert_eq!((second[0].message.as_str(), second[0].observed_generation), ("b", Some(2)));
        let third = conditions(&second, ready(State::True, "b"), Some(2), at(300));
        assert_eq!(third[0].last_transition_time.0, at(300));
    }

    #[test]
    fn what_is_not_stated_any_more_is_gone() {
        let first = conditions(
            &[],
            vec![
                Statement::new("Ready", State::True, "R", ""),
                Statement::new("ClickHouseReady", State::True, "R", ""),
            ],
            Some(1),
            at(1),
        );
        assert_eq!(conditions(&first, ready(State::True, ""), Some(1), at(2)).len(), 1);
    }

    #[test]
    fn a_message_is_cut_at_a_character() {
        let long = "ä".repeat(5_000);
        let cut = conditions(&[], ready(State::True, &long), None, at(0));
        assert_eq!(cut[0].message.chars().count(), MAX_MESSAGE_CHARACTERS + 1);
    }
}
