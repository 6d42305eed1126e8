//! ClickHouse tables from outside: what an export needs, what the servers have, and what is done about the difference.
//!
//! - [`layout`] says (pure) which tables are on which server: one, or with a cluster a local one per shard and a
//!   Distributed one over them everywhere;
//! - [`observe`] reads databases, tables, columns and how servers see their cluster; that one does not answer is a value,
//!   not an error, and hides nothing of the others;
//! - [`plan`] decides (pure): create databases and tables, add missing columns, widen the deduplication window.
//!   Whatever would destroy or reinterpret data is refused, and a refusal is a [`Finding`] that names the server;
//! - [`apply`] does it, and [`drop_table`] when the pipeline goes and its policy says so. Databases are never dropped.
//!
//! Every server gets its own statements; none is sent `ON CLUSTER`. So a cluster without a Keeper is served as well, a
//! server that is away holds nobody up, each failure has its server's name, and one that comes back is completed by the
//! next pass.
//!
//! The columns are those of [`penstock_pipeline::events::table`]: what the export inserts is by type what the operator
//! creates. Columns of the user's own are left alone; inserts name theirs. One [`Servers`] is shared by all pipelines.

mod access;
mod apply;
mod layout;
mod observe;
mod plan;
mod server;
mod sql;

use std::collections::BTreeMap;

use penstock_crds::v1alpha1::{ClickHouseClusterSpec, ClickHouseReplication, ClickHouseSpec};

use crate::failure::Failure;

pub use access::Access;
pub use apply::{Applied, DropError, apply, drop_table};
pub use layout::{Kind, Place, Server, ServerTable};
pub use observe::observe;
pub use plan::{Change, Difference, Finding, TablePlan, plan};
pub use server::{QueryError, Servers};

/// A table that an export delivers into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WantedTable {
    /// URL of the HTTP interface; with a cluster, where the Distributed table is read.
    pub url: String,
    /// Database.
    pub database: String,
    /// Table; with a cluster, the Distributed one.
    pub table: String,
    /// Shards below it.
    pub cluster: Option<Cluster>,
}

/// Servers that share the rows of a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cluster {
    /// Its name in the servers' configuration.
    pub name: String,
    /// How the replicas of a shard come to have the same rows.
    pub replication: Replication,
    /// In the servers' order.
    pub shards: Vec<Shard>,
}

/// How the replicas of a shard come to have the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Replication {
    /// By a Keeper.
    Keeper,
    /// Not at all: there is one.
    None,
}

/// Servers with the same rows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Shard {
    /// Its part of the rows, in relation to the other shards.
    pub weight: u32,
    /// URLs of the HTTP interfaces; the first takes the inserts.
    pub replicas: Vec<String>,
}

impl From<&ClickHouseSpec> for WantedTable {
    fn from(spec: &ClickHouseSpec) -> Self {
        Self {
            url: spec.url.clone(),
            database: spec.database.clone(),
            table: spec.table.clone().unwrap_or_else(|| "events".to_owned()),
            cluster: spec.cluster.as_ref().map(Cluster::from),
        }
    }
}

impl From<&ClickHouseClusterSpec> for Cluster {
    fn from(spec: &ClickHouseClusterSpec) -> Self {
        Self {
            name: spec.name.clone(),
            replication: match spec.replication.unwrap_or_default() {
                ClickHouseReplication::Keeper => Replication::Keeper,
                ClickHouseReplication::None => Replication::None,
            },
            shards: spec
                .shards
                .iter()
                .map(|shard| Shard { weight: shard.weight.unwrap_or(1), replicas: shard.replicas.clone() })
                .collect(),
        }
    }
}

/// What was seen of a wanted table, by the URL of each of its servers.
pub type Observation = BTreeMap<String, Answer>;

/// What one server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It did not answer, or not what was asked.
    Unreachable {
        /// What was asked of whom, and what went wrong.
        why: Failure,
    },
    /// It answered.
    Reachable(Seen),
}

/// What one server has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its tables, by name.
    pub tables: BTreeMap<String, Observed>,
    /// The cluster as this server is configured; empty when it knows none of that name, or when there is none to know.
    pub members: Vec<Member>,
}

/// A row of `system.clusters`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Number of the shard, from 1.
    pub shard: u32,
    /// Weight of the shard.
    pub weight: u32,
    /// Number of the replica, from 1.
    pub replica: u32,
    /// Host and native port.
    pub address: String,
    /// Whether it is the server that was asked.
    pub is_local: bool,
    /// Whether the replicas of the shard exchange their rows themselves.
    pub internal_replication: bool,
}

/// What a server said of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// There is no such database.
    NoDatabase,
    /// There is the database, but no such table.
    NoTable,
    /// There is the table.
    Table(ObservedTable),
}

/// A table as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedTable {
    /// Engine, without its arguments: `ReplacingMergeTree`.
    pub engine: String,
    /// Engine with its arguments, clauses and settings, as the server writes it.
    pub engine_full: String,
    /// `PARTITION BY`, as the server writes it.
    pub partition_key: String,
    /// `ORDER BY`, as the server writes it.
    pub sorting_key: String,
    /// `SAMPLE BY`, as the server writes it.
    pub sampling_key: String,
    /// `non_replicated_deduplication_window` or, of a replicated table, `replicated_deduplication_window`, where the
    /// table itself sets it.
    pub deduplication_window: Option<u64>,
    /// Columns, in their order.
    pub columns: Vec<ObservedColumn>,
}

/// A column as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedColumn {
    /// Name.
    pub name: String,
    /// Type, as the server writes it.
    pub type_: String,
    /// `DEFAULT`, `MATERIALIZED`, `ALIAS`, `EPHEMERAL`, or empty.
    pub default_kind: String,
}

/// One change to a database or table of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableAction {
    /// Create the database.
    CreateDatabase,
    /// Create the table.
    CreateTable,
    /// Add one column, in its place.
    AddColumn {
        /// The column.
        column: &'static penstock_pipeline::events::table::Column,
        /// The column that it comes after; `None` for the first place.
        after: Option<String>,
    },
    /// Set the number of insert blocks whose tokens the server remembers.
    SetDeduplicationWindow {
        /// Name of the setting, which differs between replicated and other tables.
        setting: &'static str,
        /// What it was; `None` where the table did not set it.
        from: Option<u64>,
    },
}

impl TableAction {
    /// Reason of the Event that tells of it: one word, stable.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::CreateDatabase => "DatabaseCreated",
            Self::CreateTable => "TableCreated",
            Self::AddColumn { .. } => "ColumnAdded",
            Self::SetDeduplicationWindow { .. } => "DeduplicationWindowSet",
        }
    }
}
