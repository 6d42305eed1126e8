//! Whether a server sees the cluster as the spec has it. Pure.

use std::collections::BTreeMap;

use super::Difference;
use crate::tables::{Cluster, Member, Place};

/// What is wrong with the cluster as the server at `place` is configured. Rows are placed by the number, the order and the
/// weights of the shards; a server that has others would look for them elsewhere.
pub(super) fn compare(cluster: &Cluster, place: Place, members: &[Member]) -> Vec<Difference> {
    if members.is_empty() {
        return vec![Difference::NoCluster { cluster: cluster.name.clone() }];
    }
    // By number: weight, and the replicas.
    let mut shards: BTreeMap<u32, (u32, usize)> = BTreeMap::new();
    for member in members {
        shards.entry(member.shard).or_insert((member.weight, 0)).1 += 1;
    }
    let has: Vec<(u32, usize)> = shards.into_values().collect();
    let wanted: Vec<(u32, usize)> =
        cluster.shards.iter().map(|shard| (shard.weight, shard.replicas.len())).collect();
    if has != wanted {
        return vec![Difference::Topology {
            cluster: cluster.name.clone(),
            has: describe(&has),
            wanted: describe(&wanted),
        }];
    }
    let mut differences = Vec::new();
    if let Place::Replica { shard, .. } = place {
        // A server behind an address that it does not know as its own is no member to itself; then nothing is known.
        let own: Vec<u32> =
            members.iter().filter(|member| member.is_local).map(|member| member.shard).collect();
        if let Some(first) = own.first()
            && !own.iter().any(|own| usize::try_from(*own) == Ok(shard))
        {
            differences.push(Difference::Misplaced { cluster: cluster.name.clone(), shard: *first });
        }
    }
    let mut several = members.iter().filter(|member| member.replica > 1).map(|member| member.shard);
    if several.any(|shard| members.iter().any(|of| of.shard == shard && !of.internal_replication)) {
        differences.push(Difference::WritesEveryReplica { cluster: cluster.name.clone() });
    }
    differences
}

/// `2 shards: weight 1 with 2 replicas, weight 1 with 1 replica`.
fn describe(shards: &[(u32, usize)]) -> String {
    let each: Vec<String> = shards
        .iter()
        .map(|(weight, replicas)| {
            format!("weight {weight} with {replicas} replica{}", if *replicas == 1 { "" } else { "s" })
        })
        .collect();
    format!("{} shard{}: {}", shards.len(), if shards.len() == 1 { "" } else { "s" }, each.join(", "))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tables::{Replication, layout::tests::clustered};

    /// How a server sees two shards with these replicas; `local` is its own shard.
    pub fn members(replicas: u32, local: Option<u32>) -> Vec<Member> {
        (1..=2)
            .flat_map(|shard| {
                (1..=replicas).map(move |replica| Member {
                    shard,
                    weight: 1,
                    replica,
                    address: format!("ch-{shard}-{replica}:9000"),
                    is_local: local == Some(shard) && replica == 1,
                    internal_replication: true,
                })
            })
            .collect()
    }

    fn cluster(replicas: usize) -> Cluster {
        clustered(Replication::Keeper, replicas).cluster.unwrap()
    }

    const FIRST: Place = Place::Replica { shard: 1, replica: 1, of: 1 };

    #[test]
    fn a_server_that_sees_the_same_is_as_it_should_be() {
        for local in [Some(1), None] {
            assert_eq!(compare(&cluster(2), FIRST, &members(2, local)), []);
        }
        assert_eq!(compare(&cluster(1), Place::Entry, &members(1, Some(2))), []);
    }

    #[test]
    fn other_shards_weights_and_replicas_are_told_side_by_side() {
        let mut heavier = members(1, None);
        heavier[1].weight = 3;
        for (members, says) in [
            (members(1, None)[..1].to_vec(), "1 shard: weight 1 with 1 replica"),
            (heavier, "2 shards: weight 1 with 1 replica, weight 3 with 1 replica"),
            (members(2, None), "2 shards: weight 1 with 2 replicas, weight 1 with 2 replicas"),
        ] {
            let differences = compare(&cluster(1), FIRST, &members);
            let [Difference::Topology { has, wanted, .. }] = &differences[..] else {
                panic!("{differences:?}")
            };
            assert_eq!(has, says);
            assert_eq!(wanted, "2 shards: weight 1 with 1 replica, weight 1 with 1 replica");
            assert!(differences[0].disputes_topology());
        }
    }

    #[test]
    fn a_server_at_the_place_of_another_is_found_out() {
        assert_eq!(
            compare(&cluster(1), FIRST, &members(1, Some(2))),
            [Difference::Misplaced { cluster: "penstock".to_owned(), shard: 2 }]
        );
    }

    #[test]
    fn a_cluster_that_the_server_does_not_know_is_no_cluster() {
        assert_eq!(
            compare(&cluster(1), FIRST, &[]),
            [Difference::NoCluster { cluster: "penstock".to_owned() }]
        );
    }

    #[test]
    fn replicas_that_would_each_be_written_are_told_of() {
        let mut members = members(2, None);
        members[3].internal_replication = false;
        let differences = compare(&cluster(2), FIRST, &members);
        assert_eq!(differences, [Difference::WritesEveryReplica { cluster: "penstock".to_owned() }]);
        assert!(!differences[0].disputes_topology());
    }
}
