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
//! - The first blocks after a take-over are read back before they are inserted, until one is found to be absent: if the
//!   committed offset was set back (by a stalled former owner, by hand, or because the group expired), what lies in
//!   the table already is not inserted again.
//! - Rows of one block may land in several table partitions, which the server commits one after the other: a block can be
//!   there in part. Then only what is missing is sent, first under the token of the block: the server remembers tokens per
//!   table partition, so that an earlier attempt that is still at work and this one cannot both succeed. What was
//!   acknowledged and still does not show is sent under the token of a repair, and of another repair after that: a server
//!   may remember a token whose part it lost.

use super::plan::{Metadata, OffsetRange, Origin, Plan, Token};

/// Counts the assignments of a partition to this process. What was begun under one epoch has no say in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// What is known about a partition when it is assigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Number of this assignment.
    pub epoch: Epoch,
    /// Number of the partition.
    pub partition: i32,
    /// The topic as it is now, with the number of partitions that the group first saw.
    pub origin: Origin,
    /// What the group has committed.
    pub committed: Option<Committed>,
    /// Offset of the oldest message that the partition still has.
    pub log_start: i64,
    /// Offset after the newest message.
    pub log_end: i64,
    /// Where to begin when nothing is committed.
    pub start_at: StartAt,
}

/// An offset that the group has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Offset of the next message.
    pub offset: i64,
    /// What was committed with it.
    pub metadata: Metadata,
}

/// Where a partition without a committed offset begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the oldest message.
    LogStart,
    /// After the newest message; at the oldest of a partition that was added since the group began.
    LogEnd,
}

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

/// Why a partition stands still until a person has looked at it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoldReason {
    /// The committed offset is not in the partition.
    #[error(
        "the committed offset {offset} is outside of the partition's {log_start}..{log_end}: messages were deleted \
         before they were exported, or the topic was recreated; reset the group's offset to go on"
    )]
    OutOfRange {
        /// Committed offset, or the end of the plan.
        offset: i64,
        /// Oldest offset of the partition.
        log_start: i64,
        /// Offset after the newest message.
        log_end: i64,
    },
    /// Another topic of the same name.
    #[error(
        "the topic was recreated: offsets are of topic id {committed}, the topic has {current}; reset the group's \
         offsets to go on"
    )]
    TopicRecreated {
        /// Id in the metadata of the group, or at assignment.
        committed: String,
        /// Id now.
        current: String,
    },
    /// The plan in Kafka cannot be read.
    #[error(
        "the group's metadata is of a version that this one cannot read: run the version that wrote it until the export \
         is idle"
    )]
    UnreadableMetadata,
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
    ReadBack { plan: Plan, next: Token },
}

/// One assigned partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    epoch: Epoch,
    origin: Origin,
    /// Offset that the group has committed.
    committed: i64,
    /// The next block, sealed while the last was under way.
    ready: Option<Sealed>,
    /// Blocks are read back before their first insert.
    verify: bool,
    /// Failures in a row of what is under way.
    failures: u32,
    state: State,
}

impl Partition {
    /// Takes a partition over. The action is [`Action::Collect`], [`Action::CollectExactly`], [`Action::Commit`] (a first
    /// position, from which is collected at the same time) or [`Action::Hold`].
    pub fn assign(assignment: Assignment) -> (Self, Action) {
        let Assignment { epoch, partition: number, origin, committed, log_start, log_end, start_at } =
            assignment;
        let mut partition = Self {
            epoch,
            origin,
            committed: 0,
            ready: None,
            verify: true,
            failures: 0,
            state: State::Collecting { planned: None },
        };
        let Some(Committed { offset, metadata }) = committed else {
            let start = match start_at {
                StartAt::LogEnd if number < partition.origin.first_partitions => log_end,
                StartAt::LogStart | StartAt::LogEnd => log_start,
            };
            partition.committed = start;
            let action = partition.advance(start);
            return (partition, action);
        };
        partition.committed = offset;
        if let Metadata::Settled(was) | Metadata::Planned(Plan { origin: was, .. }) = &metadata
            && was.topic_id != partition.origin.topic_id
        {
            let reason = HoldReason::TopicRecreated {
                committed: was.topic_id.clone(),
                current: partition.origin.topic_id.clone(),
            };
            let action = partition.hold(reason);
            return (partition, action);
        }
        let needed_end = match &metadata {
            Metadata::Planned(plan) => plan.range.end(),
            _ => offset,
        };
        if offset < log_start || needed_end > log_end {
            let offset = if offset < log_start { offset } else { needed_end };
            let action = partition.hold(HoldReason::OutOfRange { offset, log_start, log_end });
            return (partition, action);
        }
        let action = match metadata {
            Metadata::Foreign | Metadata::Settled(_) => Action::Collect,
            Metadata::Planned(plan) if plan.range.start() == offset => {
                let range = plan.range;
                partition.state = State::Collecting { planned: Some(plan) };
                Action::CollectExactly(range)
            }
            Metadata::Planned(_) | Metadata::Unreadable => partition.hold(HoldReason::UnreadableMetadata),
        };
        (partition, action)
    }

    /// The assignment that this is.
    pub fn epoch(&self) -> Epoch {
        self.epoch
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
                Some((*to, self.settled()))
            }
            // The next plan travels with the move; without an insert behind it, the plan can be left out.
            State::Planning { plan } | State::Pausing { then: Retry::Plan(plan) }
                if plan.range.start() > self.committed =>
            {
                Some((plan.range.start(), self.settled()))
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
            Input::TopicId(current) if current != self.origin.topic_id => {
                return self
                    .hold(HoldReason::TopicRecreated { committed: self.origin.topic_id.clone(), current });
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
                if self.verify {
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
                self.pause(Retry::ReadBack { plan, next: token })
            }

            (State::ReadingBack { plan, .. }, Input::ReadBack(Found { missing: 0, .. })) => {
                self.finish(&plan, now_ms)
            }
            (State::ReadingBack { plan, next, before_first_insert }, Input::ReadBack(found)) => {
                let content = if found.present == 0 { Content::Whole } else { Content::Missing };
                if before_first_insert && found.present == 0 {
                    self.verify = false;
                }
                self.insert(plan, content, next, false)
            }
            (State::ReadingBack { plan, next, .. }, Input::ReadBackFailed) => {
                self.pause(Retry::ReadBack { plan, next })
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
                Retry::ReadBack { plan, next } => self.read_back(plan, next, false),
            },

            _ => Action::Nothing,
        }
    }

    fn settled(&self) -> Metadata {
        Metadata::Settled(self.origin.clone())
    }

    /// Begins the block that is ready, if there is one.
    fn begin_ready(&mut self, now_ms: i64) -> Action {
        match self.ready.take() {
            None => Action::Collect,
            Some(Sealed { range, rows: 0 }) => self.advance(range.end()),
            Some(Sealed { range, .. }) => {
                self.plan(Plan { origin: self.origin.clone(), range, made_at_ms: now_ms })
            }
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
        let action = Action::Commit { offset: plan.range.start(), metadata: Metadata::Planned(plan.clone()) };
        self.state = State::Planning { plan };
        action
    }

    fn advance(&mut self, to: i64) -> Action {
        self.state = State::Advancing { to };
        Action::Commit { offset: to, metadata: self.settled() }
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
