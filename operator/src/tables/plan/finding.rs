//! What is wrong with a table, and how people are told. Pure.

use std::fmt;

use penstock_pipeline::events::table::DEDUPLICATION_WINDOW;

use crate::topics::Severity;

/// Something about a table that is not as the export needs it, and that the plan does not change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// `database.table`, and on which server of several.
    pub table: String,
    /// What it is.
    pub what: Difference,
}

/// How a table differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// Somebody else manages it, and there is no such database.
    NoDatabase,
    /// Somebody else manages it, and there is no such table.
    NoTable,
    /// Its engine is not of the MergeTree family, so that an insert cannot be told from its repetition.
    NotMergeTree {
        /// The engine.
        engine: String,
    },
    /// A key or the engine differs. Changing it would mean writing the table anew.
    Structure {
        /// `ENGINE`, `ORDER BY`, `PARTITION BY` or `SAMPLE BY`.
        clause: &'static str,
        /// What the table has.
        has: String,
        /// What the export needs.
        wanted: String,
    },
    /// A column is of another type. Changing it could change or lose values.
    ColumnType {
        /// The column.
        column: String,
        /// Type that it has.
        has: String,
        /// Type that it needs.
        wanted: String,
    },
    /// The export fills this column, but the table computes it.
    NotInsertable {
        /// The column.
        column: String,
        /// `MATERIALIZED`, `ALIAS` or `EPHEMERAL`.
        kind: String,
    },
    /// Somebody else manages the table, and columns are missing.
    ColumnsMissing {
        /// The columns.
        columns: Vec<String>,
        /// Whether the export fills one of them.
        inserted: bool,
    },
    /// The name of the Distributed table is that of a table of another kind.
    NotDistributed {
        /// The engine.
        engine: String,
    },
    /// The Distributed table stands on other tables, or places rows by another key.
    Distributed {
        /// Engine that it has.
        has: String,
        /// Engine that it needs.
        wanted: String,
    },
    /// The server's configuration has no such cluster.
    NoCluster {
        /// Its name.
        cluster: String,
    },
    /// The server's configuration and the spec have other shards.
    Topology {
        /// The cluster.
        cluster: String,
        /// What the server has.
        has: String,
        /// What the spec has.
        wanted: String,
    },
    /// The URL leads to another shard than the one that the spec has it at.
    Misplaced {
        /// The cluster.
        cluster: String,
        /// Number of the shard that it leads to.
        shard: u32,
    },
    /// Who inserts into the Distributed table writes each row to every replica.
    WritesEveryReplica {
        /// The cluster.
        cluster: String,
    },
    /// Somebody else manages the table, and the server remembers too few insert blocks.
    WindowTooSmall {
        /// Name of the setting.
        setting: &'static str,
        /// What the table sets.
        has: Option<u64>,
    },
}

impl Finding {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        self.what.severity()
    }

    /// Reason for a condition or an Event: one word, stable.
    pub fn reason(&self) -> &'static str {
        self.what.reason()
    }
}

impl Difference {
    fn severity(&self) -> Severity {
        match self {
            Difference::NoDatabase
            | Difference::NoTable
            | Difference::NotMergeTree { .. }
            | Difference::NotInsertable { .. }
            | Difference::NoCluster { .. }
            | Difference::Topology { .. }
            | Difference::Misplaced { .. }
            | Difference::ColumnsMissing { inserted: true, .. } => Severity::Broken,
            Difference::ColumnType { .. }
            | Difference::WindowTooSmall { .. }
            | Difference::NotDistributed { .. }
            | Difference::Distributed { .. } => Severity::Refused,
            Difference::Structure { clause, .. } if *clause == "ENGINE" || *clause == "ORDER BY" => {
                Severity::Refused
            }
            Difference::Structure { .. }
            | Difference::WritesEveryReplica { .. }
            | Difference::ColumnsMissing { inserted: false, .. } => Severity::Notice,
        }
    }

    /// Whether the servers' configuration and the spec disagree on which shards there are, so that rows could be written
    /// where nobody reads them.
    pub fn disputes_topology(&self) -> bool {
        matches!(
            self,
            Difference::NoCluster { .. } | Difference::Topology { .. } | Difference::Misplaced { .. }
        )
    }

    fn reason(&self) -> &'static str {
        match self {
            Difference::NoDatabase => "DatabaseMissing",
            Difference::NoTable => "TableMissing",
            Difference::NotMergeTree { .. } => "TableEngineUnusable",
            Difference::Structure { .. } => "TableStructureDiffers",
            Difference::ColumnType { .. } => "ColumnTypeDiffers",
            Difference::NotInsertable { .. } => "ColumnNotInsertable",
            Difference::ColumnsMissing { .. } => "ColumnsMissing",
            Difference::WindowTooSmall { .. } => "DeduplicationWindowTooSmall",
            Difference::NotDistributed { .. } | Difference::Distributed { .. } => "DistributedTableDiffers",
            Difference::NoCluster { .. } => "ClusterUnknown",
            Difference::Topology { .. } | Difference::Misplaced { .. } => "ClusterDiffers",
            Difference::WritesEveryReplica { .. } => "InternalReplicationOff",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = &self.table;
        match &self.what {
            Difference::NoDatabase => write!(
                f,
                "the database of {table} does not exist and management is External; create it, or set management to \
                 Managed"
            ),
            Difference::NoTable => write!(
                f,
                "table {table} does not exist and management is External; create it, or set management to Managed"
            ),
            Difference::NotMergeTree { engine } => write!(
                f,
                "table {table} has engine {engine}, into which events cannot be written exactly once; name a table of \
                 the MergeTree family, or another table and the operator creates it"
            ),
            Difference::Structure { clause, has, wanted } => write!(
                f,
                "table {table} has {clause} {has} where {wanted} is needed; this is not changed, since it means \
                 writing the table anew: name another table, or rename this one and copy its rows"
            ),
            Difference::ColumnType { column, has, wanted } => write!(
                f,
                "column {column} of table {table} has type {has} where {wanted} is needed; this is not changed, since \
                 it could change values: use ALTER TABLE … MODIFY COLUMN yourself, or name another table"
            ),
            Difference::NotInsertable { column, kind } => write!(
                f,
                "column {column} of table {table} is {kind}, but the export fills it; rename that column, or name \
                 another table"
            ),
            Difference::ColumnsMissing { columns, .. } => write!(
                f,
                "table {table} lacks the columns {} and management is External; add them, or set management to Managed",
                columns.join(", ")
            ),
            Difference::NotDistributed { engine } => write!(
                f,
                "table {table} has engine {engine} where a Distributed table is needed; rows are written to the shards, \
                 but not read through it: rename it, and the operator creates the Distributed one"
            ),
            Difference::Distributed { has, wanted } => write!(
                f,
                "table {table} has engine {has} where {wanted} is needed; it has no rows of its own, but may have some \
                 that wait to be sent: use SYSTEM FLUSH DISTRIBUTED, then drop it, and the operator creates it anew"
            ),
            Difference::NoCluster { cluster } => write!(
                f,
                "the server of {table} knows no cluster {cluster}; add it to remote_servers in the server's \
                 configuration, or correct clickhouse.cluster.name"
            ),
            Difference::Topology { cluster, has, wanted } => write!(
                f,
                "for the server of {table} cluster {cluster} has {has}, in the spec it has {wanted}; make \
                 clickhouse.cluster.shards and remote_servers agree, in number, order and weight: the export is not \
                 changed until they do"
            ),
            Difference::Misplaced { cluster, shard } => write!(
                f,
                "the server of {table} is shard {shard} of cluster {cluster}; put its URL at that place in \
                 clickhouse.cluster.shards: the export is not changed until it is there"
            ),
            Difference::WritesEveryReplica { cluster } => write!(
                f,
                "for the server of {table} cluster {cluster} has internal_replication off; who inserts through the \
                 Distributed table writes each row once per replica (the export does not): set internal_replication to true"
            ),
            Difference::WindowTooSmall { setting, has } => write!(
                f,
                "table {table} has {setting} {} where {DEDUPLICATION_WINDOW} is needed and management is External; \
                 use ALTER TABLE … MODIFY SETTING {setting} = {DEDUPLICATION_WINDOW}",
                has.map_or("not set".to_owned(), |has| has.to_string())
            ),
        }
    }
}
