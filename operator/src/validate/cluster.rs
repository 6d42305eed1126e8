//! What one look at a cluster of ClickHouse servers tells.

use std::collections::BTreeSet;

use penstock_crds::v1alpha1::{ClickHouseClusterSpec, ClickHouseReplication};

use super::{Problem, names};

/// What is wrong with the shards, each under the field that it is in.
pub(super) fn problems(path: &str, cluster: &ClickHouseClusterSpec) -> Vec<Problem> {
    let mut problems: Vec<Problem> =
        names::identifier(&format!("{path}.name"), &cluster.name).into_iter().collect();
    let field = |field: String, message: String| Problem::Field { field, message };
    if !cluster.shards.iter().any(|shard| shard.weight != Some(0)) {
        let message = "no shard has a weight above 0; there is no place for a row";
        problems.push(field(format!("{path}.shards"), message.into()));
    }
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (index, shard) in cluster.shards.iter().enumerate() {
        let here = format!("{path}.shards[{index}]");
        if shard.replicas.is_empty() {
            problems.push(field(here.clone(), "a shard needs a replica; write its URL".into()));
        }
        if shard.replicas.len() > 1 && cluster.replication == Some(ClickHouseReplication::None) {
            let message =
                "several replicas need replication: Keeper; otherwise they would have different rows";
            problems.push(field(here.clone(), message.into()));
        }
        for url in &shard.replicas {
            if let Some(problem) = names::url(&format!("{here}.replicas"), url) {
                problems.push(problem);
            } else if !seen.insert(url.trim_end_matches('/').to_ascii_lowercase()) {
                problems.push(field(
                    format!("{here}.replicas"),
                    format!(
                        "{url:?} is there twice; each replica is a server of its own, with a URL of its own"
                    ),
                ));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(yaml: &str) -> Vec<String> {
        let cluster = serde_yaml_ng::from_str(yaml).unwrap();
        problems("cluster", &cluster).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_cluster_has_no_problem() {
        for yaml in [
            "{name: a, shards: [{replicas: ['http://x:1', 'http://y:1']}, {replicas: ['http://z:1'], weight: 3}]}",
            "{name: a, replication: None, shards: [{replicas: ['http://x:1']}, {replicas: ['http://x:2'], weight: 0}]}",
        ] {
            assert_eq!(said(yaml), Vec::<String>::new(), "{yaml}");
        }
    }

    #[test]
    fn what_would_lose_sight_of_rows_is_refused_by_field() {
        for (yaml, says) in [
            ("{name: a, shards: [{replicas: []}]}", "cluster.shards[0]: a shard needs a replica"),
            (
                "{name: a, shards: [{replicas: ['http://x:1']}, {replicas: ['http://X:1/']}]}",
                "cluster.shards[1].replicas: \"http://X:1/\" is there twice",
            ),
            (
                "{name: a, replication: None, shards: [{replicas: ['http://x:1', 'http://y:1']}]}",
                "cluster.shards[0]: several replicas need replication: Keeper",
            ),
            (
                "{name: a, shards: [{replicas: ['http://x:1'], weight: 0}]}",
                "cluster.shards: no shard has a weight above 0",
            ),
            ("{name: 'a b', shards: [{replicas: ['http://x:1']}]}", "cluster.name: "),
            ("{name: a, shards: [{replicas: ['x']}]}", "cluster.shards[0].replicas: "),
        ] {
            let said = said(yaml);
            assert!(said.len() == 1 && said[0].contains(says), "{yaml}: {said:?}");
        }
    }
}
