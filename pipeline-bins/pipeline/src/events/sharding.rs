//! On which shard of a ClickHouse cluster a row belongs.
//!
//! The operator gives the Distributed table [`SHARDING_KEY`], and the export, which writes to the shards directly, asks
//! [`shard_of`]: the two must agree, or a query that reads one shard only (`optimize_skip_unused_shards`) misses rows. The
//! key is the one that PostHog shards its events by, so that tables which exist already fit.

use std::hash::Hasher;

use siphasher::sip::SipHasher24;

/// Sharding key of the Distributed table.
pub const SHARDING_KEY: &str = "sipHash64(distinct_id)";

/// What ClickHouse's `sipHash64` gives for one string: SipHash-2-4 under the zero key.
pub fn sip_hash_64(text: &str) -> u64 {
    let mut hasher = SipHasher24::new();
    hasher.write(text.as_bytes());
    hasher.finish()
}

/// Index of the shard that has the rows of this `distinct_id`; `weights` are those of the shards, in their order. As a
/// Distributed table does it: the remainder of the hash by the sum of the weights falls into the interval of one shard.
/// Without a weight above 0 it is the first.
pub fn shard_of(distinct_id: &str, weights: impl Iterator<Item = u32> + Clone) -> usize {
    let total: u64 = weights.clone().map(u64::from).sum();
    let Some(mut slot) = sip_hash_64(distinct_id).checked_rem(total) else { return 0 };
    for (shard, weight) in weights.enumerate() {
        match slot.checked_sub(u64::from(weight)) {
            None => return shard,
            Some(rest) => slot = rest,
        }
    }
    // A remainder is smaller than the sum that it was taken by.
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hash_is_the_one_of_the_server() {
        // SELECT sipHash64('…'), ClickHouse 26.7.
        for (text, hash) in [
            ("", 2_202_906_307_356_721_367),
            ("a", 10_863_254_463_029_944_905),
            ("ada", 2_580_227_894_166_544_636),
            ("01234567", 5_448_329_059_885_170_114),
            ("012345678", 15_491_299_638_584_559_077),
            ("користувач", 6_631_224_244_631_376_485),
            ("a-long-distinct-id-0192d3b0-0000-7000-8000-000000000001", 6_747_986_572_678_304_608),
        ] {
            assert_eq!(sip_hash_64(text), hash, "{text:?}");
        }
    }

    #[test]
    fn a_shard_without_weight_gets_nothing() {
        for number in 0..1_000 {
            let shard = shard_of(&number.to_string(), [0, 1, 0, 2, 0].into_iter());
            assert!([1, 3].contains(&shard), "{shard}");
        }
        assert_eq!(shard_of("a", [0, 0].into_iter()), 0);
        assert_eq!(shard_of("a", [].into_iter()), 0);
    }

    proptest! {
        #[test]
        fn the_slots_of_a_shard_are_as_many_as_its_weight_and_lie_together(
            id in ".*",
            weights in proptest::collection::vec(0..5_u32, 1..6),
        ) {
            let slots: Vec<usize> = weights
                .iter()
                .enumerate()
                .flat_map(|(shard, &weight)| std::iter::repeat_n(shard, weight as usize))
                .collect();
            prop_assume!(!slots.is_empty());
            let slot = usize::try_from(sip_hash_64(&id) % slots.len() as u64).unwrap();
            prop_assert_eq!(shard_of(&id, weights.iter().copied()), slots[slot]);
        }
    }
}
