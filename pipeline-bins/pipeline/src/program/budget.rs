//! CPU time that one event may take.

use std::{
    cell::Cell,
    marker::PhantomData,
    ops::ControlFlow,
    time::{Duration, Instant},
};

use nix::time::{ClockId, clock_gettime};
use vrl::compiler::runtime::ExecutionControl;

/// CPU time that one event may take, over all the programs that run on it.
///
/// It counts CPU time of the thread that started it, and cannot leave that thread.
#[derive(Debug)]
pub struct Budget {
    limit: Duration,
    started: Instant,
    cpu_at_start: Duration,
    checkpoints: Cell<u32>,
    /// Not `Send`: another thread has another CPU clock.
    _thread: PhantomData<*const ()>,
}

/// Checkpoints between two looks at the clock. A checkpoint comes before every expression, so this is microseconds,
/// unless the expressions themselves are slow.
const CHECKPOINTS_PER_LOOK: u32 = 16;

impl Budget {
    /// Begins to count now.
    pub fn start(limit: Duration) -> Self {
        Self {
            limit,
            started: Instant::now(),
            cpu_at_start: thread_cpu_time(),
            checkpoints: Cell::new(0),
            _thread: PhantomData,
        }
    }

    /// The limit.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Whether more CPU time than the limit was used. CPU time is never more than time on the wall, which is cheaper
    /// to read and therefore looked at first.
    pub fn is_exceeded(&self) -> bool {
        self.started.elapsed() > self.limit
            && thread_cpu_time().saturating_sub(self.cpu_at_start) > self.limit
    }
}

/// Interrupts a program when its budget is exceeded.
pub(super) struct Interrupt<'a>(pub(super) &'a Budget);

impl ExecutionControl for Interrupt<'_> {
    fn checkpoint(&mut self) -> ControlFlow<()> {
        let count = self.0.checkpoints.get().wrapping_add(1);
        self.0.checkpoints.set(count);
        if count.is_multiple_of(CHECKPOINTS_PER_LOOK) && self.0.is_exceeded() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

fn thread_cpu_time() -> Duration {
    // The clock exists on every system that this runs on; without it, nothing is ever interrupted.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_asleep_does_not_count() {
        let budget = Budget::start(Duration::from_millis(5));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!budget.is_exceeded());
    }

    #[test]
    fn work_counts() {
        let budget = Budget::start(Duration::from_millis(5));
        let mut work = 0_u64;
        while budget.started.elapsed() < Duration::from_secs(30) && !budget.is_exceeded() {
            work = std::hint::black_box(work.wrapping_add(1));
        }
        assert!(budget.is_exceeded());
    }
}
