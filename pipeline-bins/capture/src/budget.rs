//! Bounded memory: bytes are claimed before they are held.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that may be held at once. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget {
    free: Arc<Semaphore>,
    capacity: u64,
}

/// Why bytes cannot be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Exhausted {
    /// Others hold them now.
    #[error("too much is under way")]
    Now,
    /// One claim alone would exceed the budget: trying again is useless.
    #[error("more than may ever be held at once")]
    Ever,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(capacity: u64) -> Self {
        let permits = usize::try_from(capacity).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(permits)), capacity: permits as u64 }
    }

    /// Starts a claim, of nothing yet.
    pub fn claim(&self) -> Claim {
        Claim { budget: self.clone(), held: None }
    }

    /// Bytes that are claimed.
    pub fn used(&self) -> u64 {
        self.capacity.saturating_sub(self.free.available_permits() as u64)
    }
}

/// Bytes claimed from a [`Budget`]; given back when dropped.
#[derive(Debug)]
pub struct Claim {
    budget: Budget,
    held: Option<OwnedSemaphorePermit>,
}

impl Claim {
    /// Claims more. On an error the claim stays as it was.
    pub fn grow(&mut self, bytes: usize) -> Result<(), Exhausted> {
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let total = held.saturating_add(bytes);
        let (Ok(bytes), true) = (u32::try_from(bytes), total as u64 <= self.budget.capacity) else {
            return Err(Exhausted::Ever);
        };
        let more = Arc::clone(&self.budget.free).try_acquire_many_owned(bytes).map_err(|_| Exhausted::Now)?;
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_share_the_budget_and_give_back() {
        let budget = Budget::new(10);
        let mut one = budget.claim();
        one.grow(4).unwrap();
        one.grow(3).unwrap();
        let mut other = budget.claim();
        assert_eq!(other.grow(4), Err(Exhausted::Now));
        assert_eq!(other.grow(11), Err(Exhausted::Ever));
        other.grow(3).unwrap();
        assert_eq!(budget.used(), 10);
        drop(one);
        other.grow(7).unwrap();
        assert_eq!(other.grow(1), Err(Exhausted::Ever));
        drop(other);
        assert_eq!(budget.used(), 0);
    }
}
