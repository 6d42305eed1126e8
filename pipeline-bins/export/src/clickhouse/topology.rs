//! The servers that hold the rows of one export, and which of them gets which row.

use penstock_pipeline::{config::ClickHouseDestination, events::sharding};
use sha2::{Digest, Sha256};

/// Where rows go: one server, or several that share them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    servers: Vec<Server>,
    fingerprint: Option<String>,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// URL of its HTTP interface.
    pub url: String,
    /// Its part of the rows, in relation to the sum.
    pub weight: u32,
}

impl Topology {
    /// The servers of a destination. Of the replicas of a shard the preferred one: another may be behind, and a read-back
    /// from it would miss rows.
    pub fn new(destination: &ClickHouseDestination) -> Self {
        if destination.shards.is_empty() {
            let server = Server { url: destination.url.clone(), weight: 1 };
            return Self { servers: vec![server], fingerprint: None };
        }
        let servers: Vec<Server> = destination
            .shards
            .iter()
            .map(|shard| Server {
                url: shard.replicas.first().cloned().unwrap_or_default(),
                weight: shard.weight,
            })
            .collect();
        let mut hash = Sha256::new();
        hash.update(format!("{}\n{}\n", destination.database, destination.table));
        for server in &servers {
            hash.update(format!("{} {}\n", server.weight, server.url));
        }
        let fingerprint = hex::encode(&hash.finalize()[..8]);
        Self { servers, fingerprint: Some(fingerprint) }
    }

    /// The servers, in their order.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// What a plan says about where its rows go: equal for the same servers in the same order with the same weights and
    /// the same table. `None`: there is one server.
    pub fn fingerprint(&self) -> Option<&str> {
        self.fingerprint.as_deref()
    }

    /// Index of the server that gets the rows of this `distinct_id`.
    pub fn server_of(&self, distinct_id: &str) -> u16 {
        if self.servers.len() == 1 {
            return 0;
        }
        let index = sharding::shard_of(distinct_id, self.servers.iter().map(|server| server.weight));
        u16::try_from(index).unwrap_or(u16::MAX)
    }
}

/// Checks what parsing cannot know of the shards.
pub fn check(destination: &ClickHouseDestination) -> Result<(), String> {
    let field = "destination.clickHouse.shards";
    for (index, shard) in destination.shards.iter().enumerate() {
        let Some(url) = shard.replicas.first() else {
            return Err(format!("{field}[{index}].replicas: at least one is needed"));
        };
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(format!("{field}[{index}].replicas[0]: {url:?} is not http://… or https://…"));
        }
    }
    if !destination.shards.is_empty() && destination.shards.iter().all(|shard| shard.weight == 0) {
        return Err(format!("{field}: no shard has a weight above 0"));
    }
    if destination.shards.len() > usize::from(u16::MAX) {
        return Err(format!("{field}: there are too many"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::config::{BlockLimits, ClickHouseShard, RetryConfig};

    use super::*;

    fn destination(shards: &[(u32, &str)]) -> ClickHouseDestination {
        ClickHouseDestination {
            url: "http://any:8123".into(),
            tls: None,
            auth: None,
            database: "analytics".into(),
            table: "events_local".into(),
            shards: shards
                .iter()
                .map(|(weight, url)| ClickHouseShard { weight: *weight, replicas: vec![(*url).to_owned()] })
                .collect(),
            block: BlockLimits { max_rows: 1, max_bytes: 1, max_age_ms: 1 },
            insert_timeout_ms: 1,
            retry: RetryConfig { max_attempts: None, min_backoff_ms: 1, max_backoff_ms: 1 },
        }
    }

    fn topology(shards: &[(u32, &str)]) -> Topology {
        Topology::new(&destination(shards))
    }

    #[test]
    fn one_server_needs_no_fingerprint_and_gets_everything() {
        let one = topology(&[]);
        assert_eq!(one.fingerprint(), None);
        assert_eq!(one.servers(), [Server { url: "http://any:8123".into(), weight: 1 }]);
        assert_eq!(one.server_of("a"), 0);
    }

    #[test]
    fn rows_go_where_the_distributed_table_looks_for_them() {
        let three = topology(&[(1, "http://a"), (0, "http://b"), (2, "http://c")]);
        let mut rows = [0; 3];
        for number in 0..3000 {
            let id = format!("user-{number}");
            let server = usize::from(three.server_of(&id));
            assert_eq!(server, sharding::shard_of(&id, [1, 0, 2].into_iter()));
            rows[server] += 1;
        }
        assert_eq!(rows[1], 0);
        assert!(rows[0] > 800 && rows[2] > 1600, "{rows:?}");
    }

    #[test]
    fn the_fingerprint_tells_servers_order_weights_and_table() {
        let base = topology(&[(1, "http://a"), (1, "http://b")]);
        assert_eq!(base, topology(&[(1, "http://a"), (1, "http://b")]));
        let mut other_table = destination(&[(1, "http://a"), (1, "http://b")]);
        other_table.table = "other".into();
        for other in [
            topology(&[(1, "http://b"), (1, "http://a")]),
            topology(&[(1, "http://a"), (2, "http://b")]),
            topology(&[(1, "http://a")]),
            topology(&[(1, "http://a"), (1, "http://b"), (1, "http://c")]),
            Topology::new(&other_table),
        ] {
            assert!(other.fingerprint().is_some());
            assert_ne!(base.fingerprint(), other.fingerprint());
        }
    }

    #[test]
    fn shards_that_make_no_sense_are_refused() {
        assert_eq!(check(&destination(&[])), Ok(()));
        assert_eq!(check(&destination(&[(1, "http://a"), (0, "https://b")])), Ok(()));
        let mut without = destination(&[(1, "http://a")]);
        without.shards[0].replicas.clear();
        assert!(check(&without).unwrap_err().contains("shards[0].replicas"));
        assert!(check(&destination(&[(1, "a:8123")])).unwrap_err().contains("not http"));
        assert!(check(&destination(&[(0, "http://a")])).unwrap_err().contains("weight"));
    }
}
