//! The protocol that brings a partition into the table exactly once: plan, insert, commit.
//!
//! One [`Partition`] is one assigned partition, from assignment to revocation. It is plain data: [`Partition::assign`]
//! and [`Partition::on`] say what to do next as an [`Action`], somebody else does it and reports back as an [`Input`].
//! At most one action is under way at a time.
//!
//! ```text
//!            block sealed          committed            inserted             committed
//! Collecting ───────────> Planning ─────────> Inserting ─────────> Advancing ─────────> Collecting
//!                            ^ │                  │ anything but a plain yes  ^ │
//!                            │ │ after take-over  v                           │ │ the next block is sealed:
//!                            │ └─────────────> Reading back ──────────────────┘ │ move and plan in one commit
//!                            │                    │ ^     nothing missing         │
//!                            │                    v │                             │
//!                            │           insert what is missing                   │
//!                            └────────────────────────────────────────────────────┘
//! ```
//!
//! Rules:
//! - The plan lies in Kafka before the insert is sent, and is never changed. Whoever takes the partition over finds it,
//!   collects exactly its range and settles it before anything else.
//! - A plain success of the first insert of a plan that this owner made is believed. After anything else (time-out, lost
//!   answer, any error, take-over) the table is asked which offsets of the range it has, also after a success: it may be
//!   the success of a token that an earlier attempt left behind without its rows. The table is the truth; tokens only keep
//!   two attempts that run at the same time from both succeeding.
//! - The first block after a take-over is read back before it is inserted. If some of it is there, nothing that was in the
//!   log at the take-over is trusted to be absent: the committed offset was set back (by a stalled former owner, or because
//!   the group expired). The same holds from the start when the offset was set by hand, because a plan may have
//!   been lost with it. Where such a doubt ends is committed with each offset, so that it outlives its owner. What lies in
//!   the table already is not inserted again.
//! - Rows of one block may land in several table partitions, which the server commits one after the other: a block can be
//!   there in part. Then only what is missing is sent, first under the token of the block: the server remembers tokens per
//!   table partition, so that an earlier attempt that is still at work and this one cannot both succeed. What was
//!   acknowledged and still does not show is sent under the token of a repair, and of another repair after that: a server
//!   may remember a token whose part it lost.

use super::token::Token;
use crate::{
    committed::{Metadata, OffsetRange, Origin, Plan},
    takeover::{self, Assignment, Beginning, Epoch, HoldReason},
};

/// A block that is complete: its bad rows lie in the dead-letter topic, acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// Its offsets.
    pub range: OffsetRange,
    /// Rows to insert; the other offsets of the range hold none.
    pub rows: u32,
}

/// What the table has of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Rows of the block that are there.
    pub present: u32,
    /// Rows of the block that are not.
    pub missing: u32,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The block being collected is complete.
    Sealed(Sealed),
    /// The commit that was asked for is done.
    Committed,
    /// The commit that was asked for failed, or nobody knows.
    CommitFailed,
    /// The server acknowledged the insert.
    Inserted,
    /// The insert failed, or nobody knows: time-out, transport, any answer but success.
    InsertUnclear,
    /// The table was read.
    ReadBack(Found),
    /// The table could not be read.
    ReadBackFailed,
    /// The pause is over.
    Elapsed,
    /// The end of the partition is reached at this position, and nothing is collected or under way.
    EndOfPartition {
        /// Offset of the message that comes next.
        position: i64,
    },
    /// The topic has this id now.
    TopicId(String),
    /// The broker does not have the offset that is to be read next.
    OutOfRange {
        /// That offset.
        offset: i64,
        /// Oldest offset of the partition.
        log_start: i64,
        /// Offset after the newest message.
        log_end: i64,
    },
}

/// What to insert of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All its rows.
    Whole,
    /// The rows that the last read-back did not find.
    Missing,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Go on as you are.
    Nothing,
    /// Take messages from the committed offset on and seal blocks as you see fit.
    Collect,
    /// Take exactly the messages of this range and seal them as one block, whatever its size.
    CollectExactly(OffsetRange),
    /// Commit this offset of the group with this metadata.
    Commit {
        /// Offset of the next message.
        offset: i64,
        /// Metadata to commit with it.
        metadata: Metadata,
    },
    /// Insert the block at hand.
    Insert {
        /// The plan that it belongs to.
        plan: Plan,
        /// Which rows.
        content: Content,
        /// Under which token.
        token: Token,
    },
    /// Read which rows of the block at hand the table has.
    ReadBack {
        /// The plan that it belongs to.
        plan: Plan,
        /// A missing row whose event the table has under another offset counts as present: a merge may have folded a
        /// client's repetition. True after a repair was acknowledged and rows still do not show.
        allow_folded: bool,
    },
    /// Pause, longer with each attempt, then report [`Input::Elapsed`].
    Pause {
        /// Failures of this block in a row, from 1.
        failures: u32,
    },
    /// Take nothing more from this partition and say why.
    Hold(HoldReason),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Waiting for a block to be sealed. With a plan: for exactly its range.
    Collecting { planned: Option<Plan> },
    /// The plan is being committed.
    Planning { plan: Plan },
    /// An insert is under way.
    Inserting { plan: Plan, token: Token, believe: bool },
    /// The table is being read.
    ReadingBack { plan: Plan, next: Token, before_first_insert: bool },
    /// The end of the block is being committed.
    Advancing { to: i64 },
    /// After a failure; then the given thing again.
    Pausing { then: Retry },
    /// For good.
    Held(HoldReason),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Retry {
    Plan(Plan),
    Advance(i64),
    ReadBack { plan: Plan, next: Token, before_first_insert: bool },
}

/// Which blocks are read back before their first insert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doubt {
    /// The first one. If some of it is there, all that begin before this offset, where the log ended at the take-over.
    First { log_end: i64 },
    /// Those that begin before this offset.
    Until(i64),
    /// None.
    No,
}

/// One assigned partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    epoch: Epoch,
    origin: Origin,
    /// Of the plans that are made here.
    topology: Option<String>,
    /// Offset that the group has committed.
    committed: i64,
    /// The next block, sealed while the last was under way.
    ready: Option<Sealed>,
    doubt: Doubt,
    /// Failures in a row of what is under way.
    failures: u32,
    state: State,
}

impl Partition {
    /// Takes a partition over. `topology` is the fingerprint of the servers among which rows are divided, if there are
    /// several. The action is [`Action::Collect`], [`Action::CollectExactly`], [`Action::Commit`] (a first position, from
    /// which is collected at the same time) or [`Action::Hold`].
    pub fn assign(assignment: Assignment, topology: Option<String>) -> (Self, Action) {
        let beginning = takeover::begin(&assignment);
        let Assignment { epoch, origin, log_end, .. } = assignment;
        let mut partition = Self {
            epoch,
            origin,
            topology,
            committed: beginning.offset(),
            ready: None,
            doubt: Doubt::First { log_end },
            failures: 0,
            state: State::Collecting { planned: None },
        };
        if let Beginning::At { doubt: Some(doubt), .. } | Beginning::Planned { doubt: Some(doubt), .. } =
            &beginning
        {
            partition.doubt = Doubt::Until(*doubt);
        }
        let action = match beginning {
            Beginning::First(offset) => partition.advance(offset),
            Beginning::At { .. } => Action::Collect,
            Beginning::Planned { plan, .. } => {
                let range = plan.range;
                partition.state = State::Collecting { planned: Some(plan) };
                Action::CollectExactly(range)
            }
            Beginning::Held { reason, .. } => partition.hold(reason),
        };
        (partition, action)
    }

    /// The assignment that this is.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The topic whose offsets it counts.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Offset that the group has committed, as far as this owner knows; where collecting begins at assignment.
    pub fn committed(&self) -> i64 {
        self.committed
    }

    /// Whether something is under way that a graceful end should wait for.
    pub fn is_busy(&self) -> bool {
        !matches!(self.state, State::Collecting { .. } | State::Held(_)) || self.ready.is_some()
    }

    /// Whether one more block may be sealed.
    pub fn takes_blocks(&self) -> bool {
        self.ready.is_none() && !matches!(self.state, State::Held(_))
    }

    /// Why it stands still, if it does.
    pub fn held(&self) -> Option<&HoldReason> {
        match &self.state {
            State::Held(reason) => Some(reason),
            _ => None,
        }
    }

    /// What to commit before giving the partition away: the end of a block that is in the table for certain, if its
    /// commit is not known to have succeeded.
    pub fn unsettled_advance(&self) -> Option<(i64, Metadata)> {
        match &self.state {
            State::Advancing { to } | State::Pausing { then: Retry::Advance(to) } => {
                Some((*to, self.settled(*to)))
            }
            // The next plan travels with the move; without an insert behind it, the plan can be left out.
            State::Planning { plan } | State::Pausing { then: Retry::Plan(plan) }
                if plan.range.start() > self.committed =>
            {
                Some((plan.range.start(), self.settled(plan.range.start())))
            }
            _ => None,
        }
    }

    /// Forgets the block that is sealed and not begun: the partition is about to be given away.
    pub fn forget_ready(&mut self) {
        self.ready = None;
    }

    /// What to do after `input`, which came of something begun under `epoch`. What belongs to another epoch, or does not
    /// answer what is under way, changes nothing. `now_ms`: milliseconds since 1970, for a plan made now.
    pub fn on(&mut self, epoch: Epoch, input: Input, now_ms: i64) -> Action {
        if epoch != self.epoch || matches!(self.state, State::Held(_)) {
            return Action::Nothing;
        }
        match input {
            Input::TopicId(current) => {
                return match takeover::recreated(&self.origin, &current) {
                    Some(reason) => self.hold(reason),
                    None => Action::Nothing,
                };
            }
            Input::OutOfRange { offset, log_start, log_end } => {
                return self.hold(HoldReason::OutOfRange { offset, log_start, log_end });
            }
            _ => {}
        }
        match (self.state.clone(), input) {
            (State::Collecting { planned: None }, Input::Sealed(block)) => {
                self.ready = Some(block);
                self.begin_ready(now_ms)
            }
            (State::Collecting { planned: Some(plan) }, Input::Sealed(block))
                if block.range == plan.range =>
            {
                if block.rows == 0 {
                    // Nothing of the range is a row any more (another `where`, say): nothing to settle.
                    return self.advance(plan.range.end());
                }
                self.read_back(plan, Token::Block, false)
            }
            (State::Collecting { planned: None }, Input::EndOfPartition { position })
                if position > self.committed =>
            {
                self.advance(position)
            }
            (_, Input::Sealed(block)) if self.ready.is_none() => {
                self.ready = Some(block);
                Action::Nothing
            }

            (State::Planning { plan }, Input::Committed) => {
                self.failures = 0;
                self.committed = plan.range.start();
                if self.doubts(&plan) {
                    self.read_back(plan, Token::Block, true)
                } else {
                    self.insert(plan, Content::Whole, Token::Block, true)
                }
            }
            (State::Planning { plan }, Input::CommitFailed) => self.pause(Retry::Plan(plan)),

            (State::Inserting { plan, believe: true, .. }, Input::Inserted) => self.finish(&plan, now_ms),
            (State::Inserting { plan, token, believe: false }, Input::Inserted) => {
                let next = match token {
                    Token::Block => Token::Repair(1),
                    Token::Repair(n) => Token::Repair(n.saturating_add(1)),
                };
                self.read_back(plan, next, false)
            }
            (State::Inserting { plan, token, .. }, Input::InsertUnclear) => {
                self.pause(Retry::ReadBack { plan, next: token, before_first_insert: false })
            }

            (
                State::ReadingBack { plan, before_first_insert, .. },
                Input::ReadBack(found @ Found { missing: 0, .. }),
            ) => {
                if before_first_insert {
                    self.learn(found);
                }
                self.finish(&plan, now_ms)
            }
            (State::ReadingBack { plan, next, before_first_insert }, Input::ReadBack(found)) => {
                let content = if found.present == 0 { Content::Whole } else { Content::Missing };
                if before_first_insert {
                    self.learn(found);
                }
                self.insert(plan, content, next, false)
            }
            (State::ReadingBack { plan, next, before_first_insert }, Input::ReadBackFailed) => {
                self.pause(Retry::ReadBack { plan, next, before_first_insert })
            }

            (State::Advancing { to }, Input::Committed) => {
                self.failures = 0;
                self.committed = to;
                self.state = State::Collecting { planned: None };
                self.begin_ready(now_ms)
            }
            (State::Advancing { to }, Input::CommitFailed) => self.pause(Retry::Advance(to)),

            (State::Pausing { then }, Input::Elapsed) => match then {
                Retry::Plan(plan) => self.plan(plan),
                Retry::Advance(to) => self.advance(to),
                Retry::ReadBack { plan, next, before_first_insert } => {
                    self.read_back(plan, next, before_first_insert)
                }
            },

            _ => Action::Nothing,
        }
    }

    /// Whether rows of the block may be in the table though no plan says so.
    fn doubts(&self, plan: &Plan) -> bool {
        match self.doubt {
            Doubt::First { .. } => true,
            Doubt::Until(end) => plan.range.start() < end,
            Doubt::No => false,
        }
    }

    /// What the read-back of a block that was never inserted by this owner says about those behind it.
    fn learn(&mut self, found: Found) {
        if let Doubt::First { log_end } = self.doubt {
            self.doubt = if found.present == 0 { Doubt::No } else { Doubt::Until(log_end) };
        }
    }

    /// The doubt to commit with an offset.
    fn doubt_at(&self, offset: i64) -> Option<i64> {
        match self.doubt {
            Doubt::Until(end) => Some(end).filter(|&end| end > offset),
            Doubt::First { .. } | Doubt::No => None,
        }
    }

    fn settled(&self, offset: i64) -> Metadata {
        Metadata::Settled { origin: self.origin.clone(), doubt: self.doubt_at(offset) }
    }

    /// Begins the block that is ready, if there is one.
    fn begin_ready(&mut self, now_ms: i64) -> Action {
        match self.ready.take() {
            None => Action::Collect,
            Some(Sealed { range, rows: 0 }) => self.advance(range.end()),
            Some(Sealed { range, .. }) => self.plan(Plan {
                origin: self.origin.clone(),
                range,
                made_at_ms: now_ms,
                topology: self.topology.clone(),
            }),
        }
    }

    /// The block is in the table: move on, and plan the next one in the same commit if it is ready.
    fn finish(&mut self, plan: &Plan, now_ms: i64) -> Action {
        self.failures = 0;
        match self.ready {
            Some(_) => self.begin_ready(now_ms),
            None => self.advance(plan.range.end()),
        }
    }

    fn plan(&mut self, plan: Plan) -> Action {
        let offset = plan.range.start();
        let metadata = Metadata::Planned { plan: plan.clone(), doubt: self.doubt_at(offset) };
        let action = Action::Commit { offset, metadata };
        self.state = State::Planning { plan };
        action
    }

    fn advance(&mut self, to: i64) -> Action {
        self.state = State::Advancing { to };
        Action::Commit { offset: to, metadata: self.settled(to) }
    }

    fn insert(&mut self, plan: Plan, content: Content, token: Token, believe: bool) -> Action {
        let action = Action::Insert { plan: plan.clone(), content, token };
        self.state = State::Inserting { plan, token, believe };
        action
    }

    fn read_back(&mut self, plan: Plan, next: Token, before_first_insert: bool) -> Action {
        let allow_folded = matches!(next, Token::Repair(2..));
        let action = Action::ReadBack { plan: plan.clone(), allow_folded };
        self.state = State::ReadingBack { plan, next, before_first_insert };
        action
    }

    fn pause(&mut self, then: Retry) -> Action {
        self.failures = self.failures.saturating_add(1);
        self.state = State::Pausing { then };
        Action::Pause { failures: self.failures }
    }

    fn hold(&mut self, reason: HoldReason) -> Action {
        self.ready = None;
        self.state = State::Held(reason.clone());
        Action::Hold(reason)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
