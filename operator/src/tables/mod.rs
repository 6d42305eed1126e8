//! ClickHouse tables from outside: what an export needs, what the server has, and what is done about the difference.
//!
//! - [`observe`] reads database, table and columns; that nobody answers is a value, not an error;
//! - [`plan`] decides (pure): create the database and the table, add missing columns, widen the deduplication window.
//!   Whatever would destroy or reinterpret data is refused, and a refusal is a [`Finding`];
//! - [`apply`] does it, and [`drop_table`] when the pipeline goes and its policy says so. Databases are never dropped.
//!
//! The columns are those of [`penstock_pipeline::events::table`]: what the export inserts is by type what the operator
//! creates. Columns of the user's own are left alone; inserts name theirs. One [`Servers`] is shared by all pipelines.

mod apply;
mod observe;
mod plan;
mod server;
mod sql;

pub use apply::{Applied, apply, drop_table};
pub use observe::observe;
pub use plan::{Difference, Finding, TablePlan, plan};
pub use server::{QueryError, Servers};

/// A table that an export inserts into.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WantedTable {
    /// URL of the HTTP interface.
    pub url: String,
    /// Database.
    pub database: String,
    /// Table.
    pub table: String,
}

/// What was seen of one table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Nobody answered, or not what was asked.
    Unreachable {
        /// For people: what was asked, and what went wrong.
        why: String,
    },
    /// The server answered.
    Reachable(Observed),
}

/// What the server said.
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

/// One change to database or table.
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
