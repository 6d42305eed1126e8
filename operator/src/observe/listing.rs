//! Whether every watch has listed once.
//!
//! A store can be waited for as well (`Store::wait_until_ready` of kube-runtime 5), by one task alone: of several, it wakes the
//! one that asked last, and the others wait for ever. Passes over many pipelines wait here at the same time.

use std::{collections::BTreeSet, sync::Arc};

use tokio::sync::watch;

/// The watches that have not listed yet.
#[derive(Clone, Debug)]
pub struct Listing {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Default)]
struct State {
    waiting: BTreeSet<&'static str>,
    abandoned: bool,
}

/// A watch has ended before it listed, which happens only while the process stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a watch has ended before it listed")]
pub struct Abandoned;

/// What one watch tells. Dropped untold, it has ended.
#[derive(Debug)]
pub struct Mark {
    name: &'static str,
    state: Arc<watch::Sender<State>>,
}

impl Default for Listing {
    fn default() -> Self {
        Self { state: Arc::new(watch::Sender::new(State::default())) }
    }
}

impl Listing {
    /// One watch more to be waited for. All are added before anybody waits.
    pub fn expect(&self, name: &'static str) -> Mark {
        self.state.send_modify(|state| {
            let new = state.waiting.insert(name);
            debug_assert!(new, "two watches are called {name}");
        });
        Mark { name, state: Arc::clone(&self.state) }
    }

    /// Waits until all have listed. Any number of tasks may wait.
    ///
    /// # Errors
    /// One has ended before.
    pub async fn complete(&self) -> Result<(), Abandoned> {
        let mut receiver = self.state.subscribe();
        match receiver.wait_for(|state| state.abandoned || state.waiting.is_empty()).await {
            Ok(state) if !state.abandoned => Ok(()),
            _ => Err(Abandoned),
        }
    }
}

impl Mark {
    /// The watch has listed, and the store has it.
    pub fn listed(&self) {
        self.state.send_if_modified(|state| state.waiting.remove(self.name));
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.state.send_if_modified(|state| {
            let untold = state.waiting.contains(self.name);
            state.abandoned |= untold;
            untold
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn everybody_who_waits_is_woken() {
        let listing = Listing::default();
        let marks = ["a", "b", "c"].map(|name| listing.expect(name));
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                let listing = listing.clone();
                tokio::spawn(async move { listing.complete().await })
            })
            .collect();
        for mark in &marks {
            tokio::task::yield_now().await;
            assert!(waiting.iter().all(|waiter| !waiter.is_finished()));
            mark.listed();
            mark.listed();
        }
        for waiter in waiting {
            let told = tokio::time::timeout(Duration::from_secs(30), waiter).await;
            assert_eq!(told.expect("it is woken").expect("it does not panic"), Ok(()));
        }
        drop(marks);
        assert_eq!(listing.complete().await, Ok(()), "what has listed may end");
    }

    #[tokio::test]
    async fn a_watch_that_ends_before_it_listed_is_told() {
        let listing = Listing::default();
        let (first, second) = (listing.expect("a"), listing.expect("b"));
        first.listed();
        let waiter = tokio::spawn({
            let listing = listing.clone();
            async move { listing.complete().await }
        });
        tokio::task::yield_now().await;
        drop(second);
        assert_eq!(waiter.await.expect("it does not panic"), Err(Abandoned));
        assert_eq!(listing.complete().await, Err(Abandoned));
    }
}
