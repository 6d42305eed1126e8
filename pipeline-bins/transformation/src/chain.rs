//! The steps of a pipeline, in order, on one event. Pure: no Kafka, no clock but CPU time.

use std::{collections::BTreeSet, time::Duration};

use penstock_pipeline::{
    config::{OnError, StepConfig},
    events::dead_letter::Reason,
    program::{Budget, Diagnostics, Event, Outcome, RunError, Step},
};

/// Steps that compiled.
#[derive(Debug)]
pub struct Chain {
    links: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    name: String,
    on_error: OnError,
    step: Step,
}

/// Why steps cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// Two steps have one name.
    #[error("steps[{place}].name: {name:?} is the name of an earlier step; names are unique")]
    RepeatedName {
        /// Place of the later one.
        place: usize,
        /// The name.
        name: String,
    },
    /// A program does not compile.
    #[error("steps[{place}] ({name}): the program does not compile:\n{diagnostics}")]
    Program {
        /// Place of the step.
        place: usize,
        /// Name of the step.
        name: String,
        /// What the compiler says.
        diagnostics: Diagnostics,
    },
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on; the bytes if they changed.
    Write(Option<Vec<u8>>),
    /// The step at this place dropped it on purpose.
    Drop(usize),
    /// It can never succeed.
    DeadLetter {
        /// Why.
        reason: Reason,
        /// For people.
        detail: String,
    },
}

/// A step failed on an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Place of the step.
    pub step: usize,
    /// What then happens to the event.
    pub then: OnError,
    /// Why.
    pub error: RunError,
}

impl Chain {
    /// Compiles all steps; the first that does not compile is the error.
    pub fn compile(steps: &[StepConfig]) -> Result<Self, ChainError> {
        let mut names = BTreeSet::new();
        let compile = |(place, config): (usize, &StepConfig)| {
            let name = config.name.clone();
            if !names.insert(name.clone()) {
                return Err(ChainError::RepeatedName { place, name });
            }
            match Step::compile(&config.vrl) {
                Ok(step) => Ok(Link { name, on_error: config.on_error, step }),
                Err(diagnostics) => Err(ChainError::Program { place, name, diagnostics }),
            }
        };
        Ok(Self { links: steps.iter().enumerate().map(compile).collect::<Result<_, _>>()? })
    }

    /// Names of the steps, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.links.iter().map(|link| link.name.as_str())
    }

    /// Name of the step at a place.
    pub fn name(&self, place: usize) -> &str {
        self.links.get(place).map_or("", |link| &link.name)
    }

    /// What the compiler warns of, by step.
    pub fn warnings(&self) -> impl Iterator<Item = (&str, &Diagnostics)> {
        self.links
            .iter()
            .map(|link| (link.name.as_str(), link.step.warnings()))
            .filter(|(_, warnings)| !warnings.is_empty())
    }

    /// Decides about one message. `failed` hears of every step that fails, whatever then happens to the event.
    pub fn apply(&self, message: &[u8], limit: Duration, mut failed: impl FnMut(&Failure)) -> Verdict {
        let mut event = match Event::parse(message) {
            Ok(event) => event,
            Err(error) => {
                return Verdict::DeadLetter { reason: Reason::Malformed, detail: error.to_string() };
            }
        };
        let budget = Budget::start(limit);
        for (place, link) in self.links.iter().enumerate() {
            match link.step.run(&mut event, &budget) {
                Ok(Outcome::Kept) => {}
                Ok(Outcome::Dropped) => return Verdict::Drop(place),
                Err(error) => {
                    let failure = Failure { step: place, then: link.on_error, error };
                    failed(&failure);
                    match link.on_error {
                        OnError::Pass => {}
                        OnError::DeadLetter => {
                            return Verdict::DeadLetter {
                                reason: failure.error.reason(),
                                detail: format!("step {}: {}", link.name, failure.error),
                            };
                        }
                    }
                }
            }
        }
        Verdict::Write(event.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    fn message(event: &str, properties: &str) -> String {
        format!(
            r#"{{"uuid":"u","event":"{event}","properties":{properties:?},"timestamp":"2026-11-24 12:00:00.000000","team_id":1,"distinct_id":"d"}}"#
        )
    }

    fn step(name: &str, on_error: OnError, vrl: &str) -> StepConfig {
        StepConfig { name: name.to_owned(), on_error, vrl: vrl.to_owned() }
    }

    fn apply(steps: &[StepConfig], message: &str) -> (Verdict, Vec<Failure>) {
        let chain = Chain::compile(steps).unwrap();
        let mut failures = Vec::new();
        let verdict = chain.apply(message.as_bytes(), LIMIT, |failure| failures.push(failure.clone()));
        (verdict, failures)
    }

    fn written(event: &str, properties: &str) -> Verdict {
        Verdict::Write(Some(message(event, properties).into_bytes()))
    }

    #[test]
    fn steps_run_in_order() {
        let steps = [
            step("one", OnError::DeadLetter, r#".event = .event + "1""#),
            step("two", OnError::DeadLetter, r#".event = .event + "2""#),
        ];
        assert_eq!(apply(&steps, &message("e", "{}")), (written("e12", "{}"), vec![]));
    }

    #[test]
    fn what_no_step_changes_is_passed_on_as_it_is() {
        let steps = [step("look", OnError::DeadLetter, r#"if .event == "other" { abort }"#)];
        assert_eq!(apply(&steps, &message("e", "{}")), (Verdict::Write(None), vec![]));
    }

    #[test]
    fn a_dropped_event_reaches_no_later_step() {
        let steps = [
            step("keep", OnError::DeadLetter, "true"),
            step("drop", OnError::DeadLetter, "abort"),
            step("fail", OnError::DeadLetter, r#"assert!(false, "not reached")"#),
        ];
        assert_eq!(apply(&steps, &message("e", "{}")), (Verdict::Drop(1), vec![]));
    }

    #[test]
    fn a_failure_dead_letters_with_the_step_and_the_error() {
        let steps = [step("number", OnError::DeadLetter, ".properties.n = to_int!(.properties.n)")];
        let (verdict, failures) = apply(&steps, &message("e", r#"{"n":"many"}"#));
        let Verdict::DeadLetter { reason: Reason::TransformationFailed, detail } = verdict else {
            panic!("{verdict:?}")
        };
        assert!(detail.starts_with("step number: ") && detail.contains("line 1, column 17"), "{detail}");
        assert_eq!(failures.len(), 1);
    }

    #[test]
    fn a_passed_failure_goes_on_as_it_was_before_the_step() {
        let steps = [
            step("first", OnError::DeadLetter, ".properties.a = 1"),
            step("fails", OnError::Pass, ".event = \"changed\"\n.properties.a = to_int!(.event)"),
            step("last", OnError::DeadLetter, ".properties.b = .properties.a"),
        ];
        let (verdict, failures) = apply(&steps, &message("e", "{}"));
        assert_eq!(verdict, written("e", r#"{"a":1,"b":1}"#));
        assert_eq!((failures[0].step, failures[0].then), (1, OnError::Pass));
    }

    #[test]
    fn a_result_that_is_no_event_is_a_failure_of_its_step() {
        let steps = [step("rename", OnError::DeadLetter, ".event = .properties.name")];
        let (verdict, _) = apply(&steps, &message("e", "{}"));
        assert!(matches!(verdict, Verdict::DeadLetter { reason: Reason::InvalidTransformationResult, .. }));
    }

    #[test]
    fn the_time_budget_is_of_the_event_and_hits_the_step_that_runs() {
        let slow =
            "for_each(range!(0, 20000)) -> |_i, a| { for_each(range!(0, 20000)) -> |_j, b| { a + b } }";
        let steps = [step("fast", OnError::DeadLetter, "true"), step("slow", OnError::DeadLetter, slow)];
        let chain = Chain::compile(&steps).unwrap();
        let verdict = chain.apply(message("e", "{}").as_bytes(), Duration::from_millis(10), |_| {});
        let Verdict::DeadLetter { reason: Reason::TransformationTimedOut, detail } = verdict else {
            panic!("{verdict:?}")
        };
        assert_eq!(detail, "step slow: took more than 10ms of CPU time");
    }

    #[test]
    fn what_is_no_event_is_malformed_whatever_the_steps_say() {
        let steps = [step("keep", OnError::Pass, "true")];
        for message in ["", "null", r#"{"event":"e"}"#] {
            let (verdict, _) = apply(&steps, message);
            assert!(matches!(verdict, Verdict::DeadLetter { reason: Reason::Malformed, .. }), "{message}");
        }
    }

    #[test]
    fn a_step_that_does_not_compile_is_named() {
        let steps = [step("fine", OnError::Pass, "true"), step("broken", OnError::Pass, ".event = now()")];
        let error = Chain::compile(&steps).unwrap_err().to_string();
        assert!(error.starts_with("steps[1] (broken): "), "{error}");
        assert!(error.contains("line 1, column 10: the function now is not available"), "{error}");
    }

    #[test]
    fn names_are_unique() {
        let steps = [step("a", OnError::Pass, "true"), step("a", OnError::Pass, "true")];
        let error = Chain::compile(&steps).unwrap_err().to_string();
        assert_eq!(error, r#"steps[1].name: "a" is the name of an earlier step; names are unique"#);
    }
}
