//! How far a partition is resolved without a gap, while its events end in any order.

use std::collections::BTreeMap;

/// The events of one partition that are not resolved or lie behind one that is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LowWater {
    /// Everything below is resolved.
    mark: i64,
    /// Where the mark goes when all are resolved: after the last event, or behind transaction markers.
    end: i64,
    /// Offset → resolved, from the first that is not.
    waiting: BTreeMap<i64, bool>,
}

impl LowWater {
    /// Nothing is under way; the next event is at `start` or later.
    pub fn new(start: i64) -> Self {
        Self { mark: start, end: start, waiting: BTreeMap::new() }
    }

    /// Offset to commit: no event below it is unresolved.
    pub fn mark(&self) -> i64 {
        self.mark
    }

    /// Offset after the last event that was begun.
    pub fn end(&self) -> i64 {
        self.end
    }

    /// Events that are held back: unresolved ones, and those behind them.
    pub fn held(&self) -> usize {
        self.waiting.len()
    }

    /// The event at `offset` is under way. Offsets come in ascending order; others are ignored.
    pub fn begin(&mut self, offset: i64) {
        if offset >= self.end {
            self.waiting.insert(offset, false);
            self.end = offset + 1;
        }
    }

    /// The event at `offset` is delivered, dead-lettered, or left out on purpose.
    pub fn resolve(&mut self, offset: i64) {
        if let Some(resolved) = self.waiting.get_mut(&offset) {
            *resolved = true;
        }
        while let Some(first) = self.waiting.first_entry() {
            if !*first.get() {
                break;
            }
            self.mark = *first.key() + 1;
            first.remove();
        }
        self.settle();
    }

    /// Everything below `position` was seen: what is no event (transaction markers) is passed.
    pub fn pass(&mut self, position: i64) {
        self.end = self.end.max(position);
        self.settle();
    }

    fn settle(&mut self) {
        if self.waiting.is_empty() {
            self.mark = self.mark.max(self.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_mark_waits_for_the_first_unresolved_event() {
        let mut water = LowWater::new(10);
        for offset in [10, 12, 13] {
            water.begin(offset);
        }
        water.resolve(13);
        water.resolve(12);
        assert_eq!((water.mark(), water.held()), (10, 3));
        water.resolve(10);
        assert_eq!((water.mark(), water.held()), (14, 0));
        water.pass(17);
        assert_eq!(water.mark(), 17);
        water.resolve(12);
        water.begin(5);
        assert_eq!((water.mark(), water.held()), (17, 0), "late and old words change nothing");
    }

    proptest! {
        #[test]
        fn the_mark_never_passes_an_unresolved_event_and_never_goes_back(
            steps in prop::collection::vec((any::<bool>(), 0usize..40, 0i64..3), 1..200)
        ) {
            let mut water = LowWater::new(0);
            let mut open: Vec<i64> = Vec::new();
            let mut next = 0;
            let mut last_mark = 0;
            for (begin, pick, gap) in steps {
                if begin || open.is_empty() {
                    next += gap;
                    water.begin(next);
                    open.push(next);
                    next += 1;
                } else {
                    let offset = open.remove(pick % open.len());
                    water.resolve(offset);
                }
                prop_assert!(open.iter().all(|&offset| water.mark() <= offset));
                prop_assert!(water.mark() >= last_mark);
                if open.is_empty() {
                    prop_assert_eq!(water.mark(), next);
                }
                last_mark = water.mark();
            }
        }
    }
}
