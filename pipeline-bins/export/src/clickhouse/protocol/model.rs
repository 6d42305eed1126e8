//! The protocol against a world that fails at random: owners are lost between any two steps, commits and answers get
//! lost, inserts land in part, tokens are remembered without rows or forgotten, offsets are set back.
//!
//! Whatever happens, in the end each row is in the table once.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::{
    clickhouse::token::TokenScope,
    takeover::{Committed, StartAt},
};

const TOPIC: &str = "topic";
const PARTITION: i32 = 0;

/// What decides: bytes, so that a failing run shrinks. When they are used up, nothing fails any more.
struct Chance {
    bytes: Vec<u8>,
    next: usize,
}

impl Chance {
    /// A number below `below`; 0 when all bytes are used up.
    fn pick(&mut self, below: usize) -> usize {
        let byte = self.bytes.get(self.next).copied().unwrap_or(0);
        self.next += 1;
        usize::from(byte) % below
    }

    /// Whether something happens that does so once in `times`. Never when all bytes are used up.
    fn once_in(&mut self, times: usize) -> bool {
        self.next < self.bytes.len() && self.pick(times) == times - 1
    }

    fn is_over(&self) -> bool {
        self.next >= self.bytes.len()
    }
}

/// What lies at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slot {
    /// A transaction marker: never delivered.
    Marker,
    /// A message that is no row.
    NoRow,
    /// A row of a table partition.
    Row(u8),
}

#[derive(Clone, Debug)]
struct Request {
    query_id: String,
    token: String,
    rows: Vec<(i64, u8)>,
}

/// ClickHouse: a table, its deduplication log, and inserts that run though nobody waits for them.
#[derive(Default)]
struct Server {
    rows: Vec<i64>,
    /// Token and table partition, with the time at which they were written down.
    remembered: BTreeMap<(String, u8), u64>,
    running: Vec<Request>,
    now: u64,
}

impl Server {
    /// One table partition after the other; stops after `parts` of them.
    fn apply(&mut self, request: &Request, parts: usize, lose_a_part: bool) {
        let mut by_month: BTreeMap<u8, Vec<i64>> = BTreeMap::new();
        for &(offset, month) in &request.rows {
            by_month.entry(month).or_default().push(offset);
        }
        for (index, (month, offsets)) in by_month.into_iter().take(parts).enumerate() {
            let is_new = self.remembered.insert((request.token.clone(), month), self.now).is_none();
            if is_new && !(lose_a_part && index == 0) {
                self.rows.extend(offsets);
            }
        }
    }

    fn is_running(&self, query_id: &str) -> bool {
        self.running.iter().any(|running| running.query_id == query_id)
    }

    fn insert(&mut self, request: Request, chance: &mut Chance) -> Input {
        if self.is_running(&request.query_id) {
            return Input::InsertUnclear;
        }
        match chance.pick(12) {
            7 => Input::InsertUnclear,
            8 => {
                self.apply(&request, usize::MAX, false);
                Input::InsertUnclear
            }
            9 => {
                let parts = chance.pick(3);
                self.apply(&request, parts, false);
                Input::InsertUnclear
            }
            10 => {
                self.running.push(request);
                Input::InsertUnclear
            }
            11 => {
                // The token is remembered and the part never appears; whoever repeats the token is told that all is well.
                self.apply(&request, usize::MAX, true);
                Input::InsertUnclear
            }
            _ => {
                self.apply(&request, usize::MAX, false);
                Input::Inserted
            }
        }
    }

    /// What goes on by itself.
    fn live(&mut self, chance: &mut Chance) {
        self.now += 1;
        if !self.running.is_empty() && (chance.is_over() || chance.once_in(3)) {
            // One table partition, and then the rest of them later, or never.
            let request = &mut self.running[0];
            let Some(&(_, month)) = request.rows.first() else {
                self.running.remove(0);
                return;
            };
            let (part, rest) = request.rows.iter().partition(|(_, of)| *of == month);
            request.rows = rest;
            let part = Request { rows: part, ..request.clone() };
            self.apply(&part, 1, false);
            if chance.once_in(4) {
                self.running.remove(0);
            }
        }
        // The deduplication window is bounded, and larger than what a few steps fill.
        if chance.once_in(8) {
            let oldest = self.now.saturating_sub(10);
            self.remembered.retain(|_, written| *written >= oldest);
        }
    }
}

/// Kafka: the log and the committed offset.
struct Broker {
    log: Vec<Slot>,
    committed: Option<(i64, String)>,
    history: Vec<(i64, String)>,
}

impl Broker {
    fn commit(&mut self, offset: i64, metadata: &Metadata, chance: &mut Chance) -> Input {
        let lost_on_the_way = chance.once_in(10);
        if !lost_on_the_way {
            self.committed = Some((offset, metadata.to_string()));
            self.history.push((offset, metadata.to_string()));
        }
        if lost_on_the_way || chance.once_in(10) { Input::CommitFailed } else { Input::Committed }
    }

    fn end(&self) -> i64 {
        i64::try_from(self.log.len()).unwrap()
    }
}

/// A process that owns the partition.
struct Owner {
    machine: Partition,
    /// Next offset to collect.
    next: i64,
    planned: Option<OffsetRange>,
    blocks: Vec<(OffsetRange, Vec<(i64, u8)>)>,
    missing: BTreeSet<i64>,
    todo: Option<Action>,
}

impl Owner {
    fn take_over(broker: &Broker, epoch: u64) -> Self {
        let (machine, action) = Partition::assign(
            Assignment {
                epoch: Epoch(epoch),
                partition: PARTITION,
                origin: Origin { topic_id: TOPIC.into(), first_partitions: 1 },
                committed: broker
                    .committed
                    .as_ref()
                    .map(|(offset, text)| Committed { offset: *offset, metadata: Metadata::parse(text) }),
                log_start: 0,
                log_end: broker.end(),
                start_at: StartAt::LogStart,
            },
            None,
        );
        let planned = match action {
            Action::CollectExactly(range) => Some(range),
            _ => None,
        };
        let next = machine.committed();
        let todo = Some(action);
        Self { machine, next, planned, blocks: Vec::new(), missing: BTreeSet::new(), todo }
    }

    fn rows_of(broker: &Broker, range: OffsetRange) -> Vec<(i64, u8)> {
        (range.start()..range.end())
            .filter_map(|offset| match broker.log[usize::try_from(offset).unwrap()] {
                Slot::Row(month) => Some((offset, month)),
                _ => None,
            })
            .collect()
    }

    /// Seals the next block, if the machine takes one and there is one.
    fn collect(&mut self, broker: &Broker, chance: &mut Chance) -> Option<Input> {
        if !self.machine.takes_blocks() {
            return None;
        }
        let range = match self.planned.take() {
            Some(range) => range,
            None => {
                // A block ends after a message, never after a marker.
                let messages = (self.next..broker.end())
                    .filter(|&offset| broker.log[usize::try_from(offset).unwrap()] != Slot::Marker);
                let end = messages.take(1 + chance.pick(7)).last()? + 1;
                OffsetRange::new(self.next, end)?
            }
        };
        self.next = range.end();
        let rows = Self::rows_of(broker, range);
        let count = u32::try_from(rows.len()).unwrap();
        self.blocks.push((range, rows));
        Some(Input::Sealed(Sealed { range, rows: count }))
    }

    fn answer(
        &mut self,
        action: Action,
        broker: &mut Broker,
        server: &mut Server,
        chance: &mut Chance,
    ) -> Option<Input> {
        let tokens = TokenScope { group: "g".into(), table: "t".into(), topology: None };
        match action {
            Action::Commit { offset, metadata } => {
                self.next = self.next.max(offset);
                Some(broker.commit(offset, &metadata, chance))
            }
            Action::Insert { plan, content, token } => {
                let rows = self.rows_for(&plan);
                let rows = match content {
                    Content::Whole => rows,
                    Content::Missing => {
                        rows.into_iter().filter(|(offset, _)| self.missing.contains(offset)).collect()
                    }
                };
                let request = Request {
                    query_id: tokens.query_id(PARTITION, &plan),
                    token: tokens.deduplication_token(PARTITION, &plan, token),
                    rows,
                };
                Some(server.insert(request, chance))
            }
            Action::ReadBack { plan, .. } => {
                // A read-back has the query id of the insert: it waits until no attempt runs.
                if server.is_running(&tokens.query_id(PARTITION, &plan)) || chance.once_in(8) {
                    return Some(Input::ReadBackFailed);
                }
                let rows = self.rows_for(&plan);
                self.missing = rows
                    .iter()
                    .map(|(offset, _)| *offset)
                    .filter(|offset| !server.rows.contains(offset))
                    .collect();
                let missing = u32::try_from(self.missing.len()).unwrap();
                Some(Input::ReadBack(Found {
                    present: u32::try_from(rows.len()).unwrap() - missing,
                    missing,
                }))
            }
            Action::Pause { .. } => Some(Input::Elapsed),
            Action::Nothing | Action::Collect | Action::CollectExactly(_) => None,
            Action::Hold(reason) => panic!("held: {reason}"),
        }
    }

    fn rows_for(&self, plan: &Plan) -> Vec<(i64, u8)> {
        self.blocks.iter().find(|(range, _)| *range == plan.range).expect("the block of the plan").1.clone()
    }
}

fn run(log: Vec<Slot>, bytes: Vec<u8>, offsets_are_set_back: bool) -> Result<(), TestCaseError> {
    let mut chance = Chance { bytes, next: 0 };
    let mut broker = Broker { log, committed: None, history: Vec::new() };
    let mut server = Server::default();
    let mut epoch = 1;
    let mut owner = Owner::take_over(&broker, epoch);
    for _ in 0..20_000 {
        server.live(&mut chance);
        if chance.once_in(12) {
            if offsets_are_set_back && !broker.history.is_empty() && chance.once_in(3) {
                let index = chance.pick(broker.history.len());
                let (offset, text) = broker.history[index].clone();
                let is_settled = broker
                    .committed
                    .as_ref()
                    .is_none_or(|(_, text)| matches!(Metadata::parse(text), Metadata::Settled { .. }));
                // A stalled owner sets it back with its metadata. By hand a plan is lost with it, and its block may lie half
                // inserted; an export is stopped for that, so that no insert is at work any more.
                if is_settled && chance.pick(2) == 0 {
                    broker.committed = Some((offset, text));
                } else if server.running.is_empty() {
                    broker.committed = Some((offset, String::new()));
                }
            }
            epoch += 1;
            owner = Owner::take_over(&broker, epoch);
        }
        let input = match owner.todo.take() {
            Some(
                action @ (Action::Commit { .. }
                | Action::Insert { .. }
                | Action::ReadBack { .. }
                | Action::Pause { .. }),
            ) => {
                // Blocks are collected while other things are under way.
                if chance.once_in(3)
                    && let Some(sealed) = owner.collect(&broker, &mut chance)
                {
                    let nothing = owner.machine.on(Epoch(epoch), sealed, 0);
                    prop_assert_eq!(nothing, Action::Nothing);
                }
                owner.answer(action, &mut broker, &mut server, &mut chance)
            }
            _ => match owner.collect(&broker, &mut chance) {
                Some(sealed) => Some(sealed),
                None if owner.machine.committed() < broker.end() => {
                    Some(Input::EndOfPartition { position: broker.end() })
                }
                None if chance.is_over() && server.running.is_empty() => break,
                None => None,
            },
        };
        if let Some(input) = input {
            owner.todo = Some(owner.machine.on(Epoch(epoch), input, 0));
        }
    }
    let mut found = server.rows.clone();
    found.sort_unstable();
    let expected: Vec<i64> = Owner::rows_of(&broker, OffsetRange::new(0, broker.end()).unwrap())
        .into_iter()
        .map(|(o, _)| o)
        .collect();
    prop_assert_eq!(found, expected);
    prop_assert_eq!(broker.committed.map(|(offset, _)| offset), Some(owner.machine.committed()));
    prop_assert_eq!(owner.machine.committed(), i64::try_from(broker.log.len()).unwrap());
    Ok(())
}

fn a_log() -> impl Strategy<Value = Vec<Slot>> {
    let slot = prop_oneof![
        1 => Just(Slot::Marker),
        1 => Just(Slot::NoRow),
        6 => (0u8..3).prop_map(Slot::Row),
    ];
    prop::collection::vec(slot, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    #[test]
    fn lost_owners_answers_commits_and_parts_lose_and_double_no_row(
        log in a_log(), bytes in prop::collection::vec(any::<u8>(), 0..500)
    ) {
        run(log, bytes, false)?;
    }

    #[test]
    fn offsets_that_are_set_back_double_no_row(
        log in a_log(), bytes in prop::collection::vec(any::<u8>(), 0..500)
    ) {
        run(log, bytes, true)?;
    }
}
