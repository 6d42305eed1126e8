//! What goes to ClickHouse, and what comes back.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use tracing::{error, warn};

use super::{Answer, Driver, scopes};
use crate::{
    clickhouse::{
        block::Block,
        protocol::{Content, Found, Input},
        servers::Request,
        steps::Moment,
        table::{TableError, TableFacts},
        token::Token,
    },
    committed::Plan,
    takeover::Epoch,
};

impl Driver {
    pub(super) fn insert(
        &mut self,
        partition: i32,
        epoch: Epoch,
        plan: Plan,
        content: Content,
        token: Token,
    ) {
        let Some(block) = self.block_of(partition, &plan) else { return };
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        let only = match content {
            Content::Whole => None,
            Content::Missing => Some(assigned.missing.clone()),
        };
        if let Some(only) = &only {
            let rows = only.len();
            warn!(partition, range = %plan.range, rows, "repairing: inserting what the table lacks of a block");
            self.table_metrics.repaired.inc_by(u64::try_from(rows).unwrap_or(u64::MAX));
        }
        if let Token::Repair(number) = token {
            warn!(partition, range = %plan.range, number, "rows that were acknowledged are not there: another token");
        }
        let request = Request { partition, plan, scopes: self.tokens.clone() };
        let (servers, answer, requests) = (self.servers.clone(), self.answer.clone(), self.requests.clone());
        // Another may own the partition when a session has passed since the last heartbeat, which came before this.
        let (decided, patience) = (Instant::now(), self.session_timeout / 2);
        let seconds = self.table_metrics.insert_seconds.clone();
        let task = self.runtime.spawn(async move {
            let Ok(_permit) = requests.acquire().await else { return };
            // While this waited, the process may have stood still and the partition may have gone to another.
            let result = if decided.elapsed() < patience {
                let begun = Instant::now();
                let result = servers.insert(&block, only.as_ref(), token, &request).await;
                seconds.observe(begun.elapsed().as_secs_f64());
                result
            } else {
                Err(TableError::Passing("waited too long for its turn".to_owned()))
            };
            let facts = match &result {
                Err(error) if error.is_refusal() => servers.facts().await.ok(),
                _ => None,
            };
            let _ = answer.send(Answer::Inserted { partition, epoch, result, facts });
        });
        assigned.request = Some(task.abort_handle());
    }

    pub(super) fn read_back(&mut self, partition: i32, epoch: Epoch, plan: Plan, allow_folded: bool) {
        let Some(block) = self.block_of(partition, &plan) else { return };
        let Some(assigned) = self.partitions.get_mut(&partition) else { return };
        let request = Request { partition, plan, scopes: self.tokens.clone() };
        let (servers, answer, requests) = (self.servers.clone(), self.answer.clone(), self.requests.clone());
        let task = self.runtime.spawn(async move {
            let Ok(_permit) = requests.acquire().await else { return };
            let result = servers.missing(&block, &request, allow_folded).await;
            let result = result.map(|missing| (block.row_count(), missing));
            let _ = answer.send(Answer::ReadBack { partition, epoch, result });
        });
        assigned.request = Some(task.abort_handle());
    }

    fn block_of(&self, partition: i32, plan: &Plan) -> Option<Arc<Block>> {
        let assigned = self.partitions.get(&partition)?;
        let block = assigned.blocks.front().filter(|block| block.range == plan.range).cloned();
        if block.is_none() {
            error!(partition, range = %plan.range, "the block of a plan is not at hand; this is a fault of ours");
            self.stop.request("the block of a plan is not at hand");
        }
        block
    }

    pub(super) fn take_answers(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            self.take_answer(answer);
        }
    }

    pub(super) fn take_answer(&mut self, answer: Answer) {
        match answer {
            Answer::Topic(now) => {
                self.compare_topic_id(&now.id);
                self.ends = now.ends;
            }
            Answer::DeadLetterKept { partition, epoch, offset, bytes } => {
                self.dead_letter_kept(partition, epoch, offset, bytes);
            }
            Answer::Inserted { partition, epoch, result, facts } => {
                if let Some(facts) = facts {
                    self.learn_tables(facts);
                }
                self.inserted(partition, epoch, result);
            }
            Answer::ReadBack { partition, epoch, result } => self.was_read_back(partition, epoch, result),
        }
    }

    fn learn_tables(&mut self, facts: Vec<TableFacts>) {
        let tokens = scopes(&self.config, &self.topology, facts);
        if tokens != self.tokens {
            warn!(?tokens, "a table was recreated");
            self.tokens = tokens;
        }
    }

    fn inserted(&mut self, partition: i32, epoch: Epoch, result: Result<u32, TableError>) {
        let Some(assigned) = self.current(partition, epoch) else { return };
        assigned.request = None;
        let committed = assigned.machine.committed();
        let input = match result {
            Ok(rows) => {
                assigned.refused = None;
                assigned.last_progress = Instant::now();
                self.last_trouble = None;
                self.table_metrics.rows.inc_by(rows.into());
                self.table_metrics.blocks.inc();
                self.observer.at(Moment::Inserted, partition, committed);
                Input::Inserted
            }
            Err(error) => {
                self.request_failed(partition, &error, "insert");
                self.observer.at(Moment::InsertUnclear, partition, committed);
                Input::InsertUnclear
            }
        };
        self.input(partition, epoch, input);
        self.hand_over(partition);
    }

    fn was_read_back(
        &mut self,
        partition: i32,
        epoch: Epoch,
        result: Result<(u32, BTreeSet<i64>), TableError>,
    ) {
        let Some(assigned) = self.current(partition, epoch) else { return };
        assigned.request = None;
        let input = match result {
            Ok((rows, missing)) => {
                let lacking = u32::try_from(missing.len()).unwrap_or(u32::MAX);
                assigned.missing = missing;
                if lacking == 0 {
                    // All of it is there, whatever was said to the last attempt.
                    assigned.refused = None;
                }
                let committed = assigned.machine.committed();
                if lacking == 0 {
                    self.last_trouble.take_if(|trouble| trouble.starts_with("ClickHouse"));
                }
                self.observer.at(Moment::ReadBack, partition, committed);
                Input::ReadBack(Found { present: rows.saturating_sub(lacking), missing: lacking })
            }
            Err(error) => {
                self.request_failed(partition, &error, "read_back");
                Input::ReadBackFailed
            }
        };
        self.input(partition, epoch, input);
        self.hand_over(partition);
    }

    fn request_failed(&mut self, partition: i32, error: &TableError, what: &'static str) {
        self.metrics.failure(if error.is_refusal() { "refused" } else { what });
        if let Some(assigned) = self.partitions.get_mut(&partition) {
            assigned.refused = error.is_refusal().then(|| format!("ClickHouse: {error}"));
        }
        if error.is_refusal() {
            error!(partition, what, %error, "ClickHouse refuses; somebody has to change the table, grants or settings");
        } else {
            warn!(partition, what, %error, "ClickHouse did not answer as wished; reading back before trying again");
        }
        self.last_trouble = Some(format!("ClickHouse: {error}"));
    }
}
