//! VRL programs over events: the steps of a transformation and the `where` of an export.
//!
//! A program is compiled once, by whoever needs it: the operator to show its diagnostics, a binary to run it. It is a
//! pure function of the event: no function reads the network, the environment, files, the clock or a source of
//! randomness ([`functions`] says which are refused, and why), so that the same message always gives the same result,
//! after an aborted transaction, after a restart and when a topic is read again.
//!
//! # What a program sees
//! The event as an object with the fields of [`fields::FIELDS`]; `properties` and `person_properties` are objects,
//! times are VRL timestamps. Identity and bookkeeping (`uuid`, `team_id`, times of receipt, the person's id) are
//! read-only, which the compiler enforces.
//!
//! # What is kept
//! Whatever a program leaves as it was keeps its bytes: VRL's numbers are `i64` and `f64`, so text is never made anew
//! from a value that did not change, neither a top-level field nor a member deep inside `properties`. A message that no
//! step changed is passed on as it is.
//!
//! # Time
//! The budget is CPU time of the running thread, not time on the wall: a throttled container or a sleeping machine
//! never makes an event fail. VRL is interrupted between expressions; a single function call is not interrupted, but
//! measured when it returns.
//!
//! ```
//! use std::time::Duration;
//! use penstock_pipeline::program::{Budget, Event, Outcome, Predicate, Step};
//!
//! let message = br#"{"uuid":"0192d3b0-0000-7000-8000-000000000001","event":"order completed",
//!   "properties":"{\"$ip\":\"192.0.2.1\",\"total\":12.50}","timestamp":"2026-11-24 12:00:00.000000","team_id":1,
//!   "distinct_id":"ada"}"#;
//!
//! let step = Step::compile(r#"del(.properties."$ip")"#)?;
//! let mut event = Event::parse(message)?;
//! let budget = Budget::start(Duration::from_millis(100));
//! assert!(matches!(step.run(&mut event, &budget), Ok(Outcome::Kept)));
//! let changed = event.finish().expect("the step removed a property");
//! assert!(std::str::from_utf8(&changed)?.contains(r#""properties":"{\"total\":12.50}""#));
//!
//! let orders = Predicate::compile(r#".event == "order completed""#)?;
//! assert!(orders.test(message, Duration::from_millis(100))?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod budget;
mod compile;
pub mod diagnostics;
mod event;
pub mod fields;
pub mod functions;
mod json;
mod limits;
mod needs;
mod run;

pub use budget::Budget;
pub use diagnostics::{Diagnostic, Diagnostics};
pub use event::{Event, NotAnEvent};
pub use limits::MAX_SOURCE_BYTES;
pub use run::{Outcome, Predicate, PredicateError, RunError, Step};
