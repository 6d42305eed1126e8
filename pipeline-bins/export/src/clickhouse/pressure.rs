//! Which partitions take messages while memory is short.

use std::collections::BTreeSet;

/// One partition, as far as memory is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Partition.
    pub partition: i32,
    /// Bytes that it holds.
    pub held: usize,
    /// A plan says which messages it has to have before it can go on.
    pub is_planned: bool,
}

/// The partitions that take nothing under pressure: all but the one of those with a plan that holds the most. A
/// planned block can neither be cut short nor given back, so that one of them goes on until it is complete, and then the
/// next: what is held exceeds the bound by one block at most.
pub fn paused_under_pressure(loads: &[Load]) -> BTreeSet<i32> {
    let goes_on = loads
        .iter()
        .filter(|load| load.is_planned)
        .max_by_key(|load| (load.held, std::cmp::Reverse(load.partition)))
        .map(|load| load.partition);
    loads.iter().map(|load| load.partition).filter(|&partition| Some(partition) != goes_on).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(partition: i32, held: usize, is_planned: bool) -> Load {
        Load { partition, held, is_planned }
    }

    #[test]
    fn one_planned_block_at_a_time_goes_on() {
        let loads = [load(1, 10, true), load(2, 30, true), load(3, 90, false), load(4, 30, true)];
        assert_eq!(paused_under_pressure(&loads), [1, 3, 4].into());
        // It stays the same one, because nobody else grows.
        let later = [load(1, 10, true), load(2, 40, true), load(3, 90, false), load(4, 30, true)];
        assert_eq!(paused_under_pressure(&later), [1, 3, 4].into());
    }

    #[test]
    fn without_plans_all_are_paused() {
        assert_eq!(paused_under_pressure(&[load(1, 10, false), load(2, 0, false)]), [1, 2].into());
        assert_eq!(paused_under_pressure(&[]), BTreeSet::new());
    }
}
