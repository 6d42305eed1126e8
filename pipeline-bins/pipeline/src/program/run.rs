//! Running programs on events.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::LazyLock,
    time::Duration,
};

use vrl::{
    compiler::{
        ExpressionError, Program, TargetValueRef, TimeZone,
        runtime::{Runtime, Terminate},
    },
    value::{ObjectMap, Secrets, Value},
};

use super::{
    budget::{Budget, Interrupt},
    compile::{self, Compiled, Purpose},
    diagnostics::{Diagnostics, Position},
    event::{Event, NotAnEvent},
    needs::Needs,
};
use crate::events::dead_letter::Reason;

/// What a step did with an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The event goes on, changed or not.
    Kept,
    /// The program dropped it on purpose, with `abort`.
    Dropped,
}

/// Why a program failed on an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The program failed, or the event could not be read by it.
    #[error("{0}")]
    Failed(String),
    /// The programs took too much CPU time on this event.
    #[error("took more than {0:?} of CPU time")]
    TimedOut(Duration),
    /// What the program left is no event.
    #[error("the result is not an event: {0}")]
    InvalidResult(String),
}

impl RunError {
    /// Reason of the dead letter of a step that failed so.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Failed(_) => Reason::TransformationFailed,
            Self::TimedOut(_) => Reason::TransformationTimedOut,
            Self::InvalidResult(_) => Reason::InvalidTransformationResult,
        }
    }
}

/// A program that may change an event or drop it.
#[derive(Debug)]
pub struct Step(Runnable);

impl Step {
    /// Compiles a program; as an error, what is wrong with it.
    pub fn compile(source: &str) -> Result<Self, Diagnostics> {
        Runnable::compile(source, Purpose::Step).map(Self)
    }

    /// What is probably not meant.
    pub fn warnings(&self) -> &Diagnostics {
        &self.0.warnings
    }

    /// Runs the program on the event. After an error, the event is as it was before.
    ///
    /// The budget is of the event, not of the step: hand the same one to every step.
    pub fn run(&self, event: &mut Event<'_>, budget: &Budget) -> Result<Outcome, RunError> {
        self.0.decode(event)?;
        let before = event.current.clone();
        let result = match self.0.run(event, budget) {
            Ok(_) if budget.is_exceeded() => Err(RunError::TimedOut(budget.limit())),
            Ok(_) => event.check().map(|()| Outcome::Kept).map_err(RunError::InvalidResult),
            Err(Stop::Aborted) => Ok(Outcome::Dropped),
            Err(Stop::Error(error)) => Err(error),
        };
        if result != Ok(Outcome::Kept) {
            event.current = before;
        }
        result
    }
}

/// Why a condition could not be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PredicateError {
    /// The message is not an event.
    #[error(transparent)]
    NotAnEvent(#[from] NotAnEvent),
    /// The program failed.
    #[error(transparent)]
    Run(#[from] RunError),
}

/// A program that says yes or no to an event, and changes nothing: `where`.
#[derive(Debug)]
pub struct Predicate(Runnable);

impl Predicate {
    /// Compiles an expression, which must be boolean; as an error, what is wrong with it.
    pub fn compile(source: &str) -> Result<Self, Diagnostics> {
        Runnable::compile(source, Purpose::Predicate).map(Self)
    }

    /// What is probably not meant.
    pub fn warnings(&self) -> &Diagnostics {
        &self.0.warnings
    }

    /// Whether the condition is true for a message of `ingested` or `transformed`. `limit` is CPU time.
    pub fn test(&self, message: &[u8], limit: Duration) -> Result<bool, PredicateError> {
        let budget = Budget::start(limit);
        let mut event = Event::parse(message)?;
        self.0.decode(&mut event)?;
        match self.0.run(&mut event, &budget) {
            Ok(_) if budget.is_exceeded() => Err(RunError::TimedOut(limit).into()),
            Ok(Value::Boolean(answer)) => Ok(answer),
            Ok(other) => Err(RunError::Failed(format!("the answer is {}", other.kind_str())).into()),
            Err(Stop::Aborted) => Err(RunError::Failed("aborted".into()).into()),
            Err(Stop::Error(error)) => Err(error.into()),
        }
    }
}

/// Times without a zone are in UTC, wherever the program runs.
static UTC: LazyLock<TimeZone> =
    LazyLock::new(|| TimeZone::parse("UTC").expect("UTC is in the time zone database that VRL has"));

/// A compiled program with what it needs.
#[derive(Debug)]
struct Runnable {
    source: String,
    program: Program,
    needs: Needs,
    warnings: Diagnostics,
}

/// Why a program did not come to its end.
enum Stop {
    Aborted,
    Error(RunError),
}

impl Runnable {
    fn compile(source: &str, purpose: Purpose) -> Result<Self, Diagnostics> {
        let Compiled { program, warnings } = compile::compile(source, purpose)?;
        let needs = Needs::of(program.info());
        Ok(Self { source: source.to_owned(), program, needs, warnings })
    }

    fn decode(&self, event: &mut Event<'_>) -> Result<(), RunError> {
        event.decode(&self.needs).map_err(RunError::Failed)
    }

    fn run(&self, event: &mut Event<'_>, budget: &Budget) -> Result<Value, Stop> {
        let mut metadata = Value::Object(ObjectMap::new());
        let mut secrets = Secrets::new();
        let mut target =
            TargetValueRef { value: &mut event.current, metadata: &mut metadata, secrets: &mut secrets };
        let mut interrupt = Interrupt(budget);
        // One event on which VRL panics must not stop all that come after it.
        let result = catch_unwind(AssertUnwindSafe(|| {
            Runtime::default().resolve_with_control(&mut target, &self.program, &UTC, &mut interrupt)
        }));
        match result {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(Terminate::Abort(ExpressionError::Abort { .. }))) => Err(Stop::Aborted),
            Ok(Err(Terminate::Interrupted)) => Err(Stop::Error(RunError::TimedOut(budget.limit()))),
            Ok(Err(Terminate::Abort(error) | Terminate::Error(error))) => {
                Err(Stop::Error(RunError::Failed(with_positions(&self.source, &error.to_string()))))
            }
            Err(_) => Err(Stop::Error(RunError::Failed("a function of VRL panicked".into()))),
        }
    }
}

/// VRL names places as `(first byte:last byte)`; people count lines and columns.
fn with_positions(source: &str, message: &str) -> String {
    let mut rest = message;
    let mut text = String::with_capacity(message.len());
    while let Some(at) = rest.find(" at (") {
        let (before, after) = rest.split_at(at + " at (".len());
        let place = after.split_once(')').and_then(|(span, after)| {
            let (start, end) = span.split_once(':')?;
            let (start, _) = (start.parse::<usize>().ok()?, end.parse::<usize>().ok()?);
            Some((Position::of(source, start), after))
        });
        match place {
            Some((position, after)) => {
                text.push_str(before.trim_end_matches('('));
                text.push_str(&position.to_string());
                rest = after;
            }
            None => {
                text.push_str(before);
                rest = after;
            }
        }
    }
    text.push_str(rest);
    text
}
