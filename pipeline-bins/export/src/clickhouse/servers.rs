//! The table of an export, on all of its servers: a block is there when each server has its rows of it.
//!
//! Each server gets its rows of a block as one insert, under the token of the block on that server. Rows are looked for on
//! all servers, whichever should have them: when shards were added since a plan was made, rows of it may lie where they would
//! not be put today, and are there all the same.

use std::collections::BTreeSet;

use futures::future::join_all;
use penstock_pipeline::config::ClickHouseDestination;

use super::{
    block::Block,
    connection::{Connection, Credentials},
    table::{CHUNK_BYTES, Table, TableError, TableFacts, Wanted},
    token::{Token, TokenScope},
    topology::Topology,
};
use crate::committed::Plan;

/// The servers. Clones share their connections.
#[derive(Clone)]
pub struct Servers {
    tables: Vec<(String, Table)>,
}

/// One insert or read-back of a block.
#[derive(Clone, Debug)]
pub struct Request {
    /// Partition of the source.
    pub partition: i32,
    /// The plan that the block belongs to.
    pub plan: Plan,
    /// The tables, in the order of the servers.
    pub scopes: Vec<TokenScope>,
}

impl Servers {
    /// The servers of an export. Connects to nothing yet.
    pub fn new(destination: &ClickHouseDestination, credentials: &Credentials, topology: &Topology) -> Self {
        let tables = topology
            .servers()
            .iter()
            .map(|server| {
                let connection = Connection::new(credentials, &server.url);
                (server.url.clone(), Table::new(destination, connection))
            })
            .collect();
        Self { tables }
    }

    /// Reads what must be known about the table on each server.
    pub async fn facts(&self) -> Result<Vec<TableFacts>, TableError> {
        let found = join_all(self.tables.iter().map(|(_, table)| table.facts())).await;
        self.all(found)
    }

    /// Inserts the rows of a block, or those at the offsets of `only`; each server gets its own. The number of rows that were
    /// acknowledged. An error is that of one server: what the others did is not known either.
    pub async fn insert(
        &self,
        block: &Block,
        only: Option<&BTreeSet<i64>>,
        token: Token,
        request: &Request,
    ) -> Result<u32, TableError> {
        let is_alone = self.tables.len() == 1;
        let inserts = self.tables.iter().zip(&request.scopes).zip(0u16..).map(
            |(((_, table), scope), server)| async move {
                let (count, rows) = match only {
                    None if is_alone => (block.row_count(), vec![block.bytes()]),
                    _ => block.rows_for(server, only, CHUNK_BYTES),
                };
                if count == 0 {
                    return Ok(0);
                }
                let token = scope.deduplication_token(request.partition, &request.plan, token);
                let query_id = scope.query_id(request.partition, &request.plan);
                table.insert(rows, &token, &query_id).await.map(|()| count)
            },
        );
        Ok(self.all(join_all(inserts).await)?.into_iter().sum())
    }

    /// Offsets of the rows of a block that no server has. With `allow_folded`, a row counts as there when its event is there
    /// under another offset.
    pub async fn missing(
        &self,
        block: &Block,
        request: &Request,
        allow_folded: bool,
    ) -> Result<BTreeSet<i64>, TableError> {
        let Some(timestamps_us) = block.timestamps_us else { return Ok(BTreeSet::new()) };
        let wanted = Wanted {
            topic_id: request.plan.origin.topic_id.clone(),
            partition: request.partition,
            range: block.range,
            timestamps_us,
        };
        let questions = self.tables.iter().zip(&request.scopes).map(|((_, table), scope)| {
            let query_id = scope.query_id(request.partition, &request.plan);
            let wanted = &wanted;
            async move { table.present(wanted, &query_id).await }
        });
        let present: BTreeSet<i64> = self.all(join_all(questions).await)?.into_iter().flatten().collect();
        let mut missing: BTreeSet<i64> = block.offsets().filter(|offset| !present.contains(offset)).collect();
        if allow_folded && !missing.is_empty() {
            let events = block.uuids_at(&missing);
            let uuids: Vec<uuid::Uuid> = events.iter().map(|(_, uuid)| *uuid).collect();
            let questions = self.tables.iter().map(|(_, table)| table.present_events(&uuids, timestamps_us));
            let folded: BTreeSet<uuid::Uuid> =
                self.all(join_all(questions).await)?.into_iter().flatten().collect();
            for (offset, uuid) in events {
                if folded.contains(&uuid) {
                    missing.remove(&offset);
                }
            }
        }
        Ok(missing)
    }

    /// All answers; else a refusal, if there is one, because somebody has to act on it; else what passes.
    fn all<T>(&self, answers: Vec<Result<T, TableError>>) -> Result<Vec<T>, TableError> {
        let mut good = Vec::with_capacity(answers.len());
        let mut trouble: Option<TableError> = None;
        for (answer, (url, _)) in answers.into_iter().zip(&self.tables) {
            match answer {
                Ok(answer) => good.push(answer),
                Err(error) => {
                    let error = if self.tables.len() == 1 { error } else { error.of(url) };
                    if trouble.as_ref().is_none_or(|known| error.is_refusal() && !known.is_refusal()) {
                        trouble = Some(error);
                    }
                }
            }
        }
        trouble.map_or(Ok(good), Err)
    }
}
