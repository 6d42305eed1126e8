//! Where a test makes a step of the engine fail, stand still, or be the last thing that the process does.
//!
//! Which faults there are is a type, and in production it is [`NoFaults`], of which nothing is left after compilation: no
//! option, no variable and no message can switch a fault on.

use super::lifecycle::{Failure, Step};

/// On which side of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The step has not been made.
    Before,
    /// The step was made, with success.
    After,
}

/// Faults of an engine, told of each step on its own thread.
pub trait Faults: Send + 'static {
    /// The engine is at this place; it goes on when this returns.
    ///
    /// # Errors
    /// Taken as the step's own failure. Before a step, the step is then not made (a request that was lost); after it, the
    /// step was made, and the engine does not learn so (an answer that was lost).
    fn strike(&mut self, side: Side, step: Step) -> Result<(), Failure>;
}

/// No faults: what runs in production.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl Faults for NoFaults {
    #[inline(always)]
    fn strike(&mut self, _: Side, _: Step) -> Result<(), Failure> {
        Ok(())
    }
}
