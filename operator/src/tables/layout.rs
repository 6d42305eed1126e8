//! Which tables are on which server. Pure.

use super::{Cluster, Replication, WantedTable, server::without_credentials};

/// What comes after the name of the Distributed table in that of the table on a shard.
const LOCAL_SUFFIX: &str = "_local";

/// One server, and what is to be on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// URL of its HTTP interface.
    pub url: String,
    /// What it is.
    pub place: Place,
    /// Its tables. What others stand on comes first.
    pub tables: Vec<ServerTable>,
}

/// What a server is to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The only one.
    Alone,
    /// A replica of a shard. Numbers are the spec's, from 1.
    Replica {
        /// Number of the shard.
        shard: usize,
        /// Number of the replica.
        replica: usize,
        /// Replicas of the shard.
        of: usize,
    },
    /// Where the Distributed table is read: a load balancer, or a server without rows.
    Entry,
}

/// A table on one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTable {
    /// Database.
    pub database: String,
    /// Table.
    pub table: String,
    /// What it is.
    pub kind: Kind,
}

/// What a table is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rows of one server.
    Rows,
    /// Rows that replicas share, by this path in the Keeper.
    ReplicatedRows {
        /// The path, with the macro `{shard}`.
        path: String,
    },
    /// Rows of the shards, seen together.
    Distributed {
        /// Name of the cluster.
        cluster: String,
        /// Name of the table on the shards.
        local: String,
    },
}

impl Server {
    /// For people: empty for the only server.
    pub fn label(&self) -> String {
        let address = without_credentials(&self.url);
        match self.place {
            Place::Alone => String::new(),
            Place::Replica { shard, of: 1, .. } => format!("shard {shard} ({address})"),
            Place::Replica { shard, replica, .. } => format!("shard {shard}, replica {replica} ({address})"),
            Place::Entry => format!("url ({address})"),
        }
    }
}

impl WantedTable {
    /// `database.table`, for people.
    pub fn full_name(&self) -> String {
        format!("{}.{}", self.database, self.table)
    }

    /// The table that takes the rows.
    pub fn rows_table(&self) -> String {
        match self.cluster {
            Some(_) => format!("{}{LOCAL_SUFFIX}", self.table),
            None => self.table.clone(),
        }
    }

    /// The servers, shards in their order, each URL once.
    pub fn servers(&self) -> Vec<Server> {
        let Some(cluster) = &self.cluster else {
            return vec![Server {
                url: self.url.clone(),
                place: Place::Alone,
                tables: vec![self.on_server(self.table.clone(), Kind::Rows)],
            }];
        };
        let mut servers = Vec::new();
        for (shard, wanted) in cluster.shards.iter().enumerate() {
            for (replica, url) in wanted.replicas.iter().enumerate() {
                servers.push(Server {
                    url: url.clone(),
                    place: Place::Replica {
                        shard: shard + 1,
                        replica: replica + 1,
                        of: wanted.replicas.len(),
                    },
                    tables: vec![self.rows_of_shard(cluster), self.distributed(cluster)],
                });
            }
        }
        if !servers.iter().any(|server| is_same(&server.url, &self.url)) {
            servers.push(Server {
                url: self.url.clone(),
                place: Place::Entry,
                tables: vec![self.distributed(cluster)],
            });
        }
        servers
    }

    fn rows_of_shard(&self, cluster: &Cluster) -> ServerTable {
        let table = self.rows_table();
        let kind = match cluster.replication {
            Replication::None => Kind::Rows,
            // With names instead of the macros {database} and {table}, which would keep the table from being renamed, and
            // without {uuid}, which replicas would only have in common if one statement made them.
            Replication::Keeper => Kind::ReplicatedRows {
                path: format!("/clickhouse/tables/{{shard}}/{}/{table}", self.database),
            },
        };
        self.on_server(table, kind)
    }

    fn distributed(&self, cluster: &Cluster) -> ServerTable {
        let kind = Kind::Distributed { cluster: cluster.name.clone(), local: self.rows_table() };
        self.on_server(self.table.clone(), kind)
    }

    fn on_server(&self, table: String, kind: Kind) -> ServerTable {
        ServerTable { database: self.database.clone(), table, kind }
    }
}

/// Whether two URLs name one server by the same words.
pub fn is_same(a: &str, b: &str) -> bool {
    a.trim_end_matches('/').eq_ignore_ascii_case(b.trim_end_matches('/'))
}

#[cfg(test)]
pub(super) mod tests {
    use super::{super::Shard, *};

    /// Two shards with these replicas, read at a load balancer.
    pub fn clustered(replication: Replication, replicas: usize) -> WantedTable {
        let shard = |shard: usize| Shard {
            weight: 1,
            replicas: (0..replicas).map(|replica| format!("http://ch-{shard}-{replica}:8123")).collect(),
        };
        WantedTable {
            url: "http://ch:8123".to_owned(),
            database: "shop".to_owned(),
            table: "events".to_owned(),
            cluster: Some(Cluster {
                name: "penstock".to_owned(),
                replication,
                shards: vec![shard(0), shard(1)],
            }),
        }
    }

    #[test]
    fn every_replica_has_the_rows_below_the_distributed_table_and_the_entry_that_alone() {
        let servers = clustered(Replication::Keeper, 2).servers();
        let labels: Vec<String> = servers.iter().map(Server::label).collect();
        assert_eq!(
            labels,
            [
                "shard 1, replica 1 (ch-0-0:8123)",
                "shard 1, replica 2 (ch-0-1:8123)",
                "shard 2, replica 1 (ch-1-0:8123)",
                "shard 2, replica 2 (ch-1-1:8123)",
                "url (ch:8123)"
            ]
        );
        for server in &servers[..4] {
            let names: Vec<&str> = server.tables.iter().map(|table| table.table.as_str()).collect();
            assert_eq!(names, ["events_local", "events"], "rows first: the other stands on them");
            assert_eq!(
                server.tables[0].kind,
                Kind::ReplicatedRows { path: "/clickhouse/tables/{shard}/shop/events_local".to_owned() }
            );
        }
        assert_eq!(servers[4].tables, servers[0].tables[1..]);
    }

    #[test]
    fn an_entry_that_is_a_replica_is_no_server_of_its_own() {
        let mut wanted = clustered(Replication::None, 1);
        wanted.url = "http://CH-1-0:8123/".to_owned();
        let servers = wanted.servers();
        assert_eq!(servers.len(), 2);
        assert_eq!(servers[1].label(), "shard 2 (ch-1-0:8123)");
        assert_eq!(servers[1].tables[0].kind, Kind::Rows);
    }
}
