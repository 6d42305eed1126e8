//! The life of transactions as a pure state machine: states and events in, the next thing to do out.
//!
//! ```text
//!             made                  taken                    committed
//! NoProducer ──────> Rewinding ───> Idle ───────> Open ───────────────────> Idle
//!      ^   placed again ^             │ offsets only │ failed
//!      │                │             └──> (commit)  v
//!      │                └───── aborted ─────────── Aborting
//!      └── fenced, fatal, or the outcome is not known (from anywhere)
//! ```

use std::time::Duration;

use rdkafka::types::RDKafkaErrorCode;

use crate::config::TransactionConfig;

/// Bounds of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most messages.
    pub messages: u32,
    /// Most bytes of keys and values.
    pub bytes: u64,
    /// Longest time from the first message to the commit.
    pub wait: Duration,
    /// How long an idle engine waits before it commits positions alone.
    pub idle: Duration,
}

impl Limits {
    /// Of the configuration. A transaction is closed in less than half of the time after which the broker aborts it.
    pub fn of(config: &TransactionConfig) -> Self {
        let wait = Duration::from_millis(u64::from(config.max_wait_ms));
        Self {
            messages: config.max_messages.max(1),
            bytes: config.max_bytes.max(1),
            wait: wait.min(Duration::from_millis(u64::from(config.timeout_ms) / 2)),
            idle: wait.max(Duration::from_millis(250)),
        }
    }
}

/// Where the engine is. Times are since its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// There is no producer, or one that must not be used again.
    NoProducer,
    /// The last transaction did not happen, or nobody knows: positions are to be read again.
    Rewinding,
    /// Nothing is open. `commit_at`: when to commit positions alone, if there are any.
    Idle {
        /// Set when a position moved without a message.
        commit_at: Option<Duration>,
    },
    /// A transaction is open.
    Open {
        /// When it began.
        since: Duration,
        /// Messages in it.
        messages: u32,
        /// Bytes in it.
        bytes: u64,
    },
    /// A transaction is open and must not be committed.
    Aborting,
}

/// The next thing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a producer; the broker ends what its predecessor left open.
    MakeProducer,
    /// Read the committed offsets and put the consumer there.
    Rewind,
    /// Wait for what comes, at most so long.
    Poll(Duration),
    /// Send the offsets and commit what is open.
    Commit,
    /// Begin a transaction and commit positions in it, without messages.
    CommitPositions,
    /// Abort what is open.
    Abort,
    /// Leave the group and end.
    Leave,
}

/// The longest wait for something to come.
const POLL: Duration = Duration::from_millis(100);

/// Decides what to do next.
pub fn next(state: State, limits: &Limits, now: Duration, stopping: bool) -> Action {
    match state {
        State::Aborting => Action::Abort,
        State::Open { .. } if stopping => Action::Commit,
        State::Open { since, messages, bytes } => {
            let age = now.saturating_sub(since);
            if messages >= limits.messages || bytes >= limits.bytes || age >= limits.wait {
                Action::Commit
            } else {
                // A wait of less than a millisecond would not wait at all.
                Action::Poll((limits.wait - age).clamp(Duration::from_millis(1), POLL))
            }
        }
        State::Idle { commit_at: Some(_) } if stopping => Action::CommitPositions,
        _ if stopping => Action::Leave,
        State::NoProducer => Action::MakeProducer,
        State::Rewinding => Action::Rewind,
        State::Idle { commit_at: Some(at) } if now >= at => Action::CommitPositions,
        State::Idle { commit_at: Some(at) } => {
            Action::Poll(at.saturating_sub(now).clamp(Duration::from_millis(1), POLL))
        }
        State::Idle { commit_at: None } => Action::Poll(POLL),
    }
}

/// What must happen before partitions may go.
pub fn before_revocation(state: State, lost: bool) -> Option<Action> {
    match state {
        // Somebody else may have them already: what we have is theirs to do again.
        State::Open { .. } if lost => Some(Action::Abort),
        State::Open { .. } => Some(Action::Commit),
        State::Aborting => Some(Action::Abort),
        // A start that was chosen just now is what the next owner must begin with.
        State::Idle { commit_at: Some(_) } if !lost => Some(Action::CommitPositions),
        State::Idle { .. } | State::NoProducer | State::Rewinding => None,
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A producer was made and initialised.
    ProducerMade,
    /// All positions were read again and the consumer is there.
    Rewound,
    /// A transaction was begun for a first message.
    Begun,
    /// A message was processed and its outcome handed to the producer.
    Taken {
        /// Bytes of key and value.
        bytes: u64,
    },
    /// A position moved without a message.
    Moved,
    /// The transaction was committed.
    Committed,
    /// Nothing was left to commit.
    NothingToCommit,
    /// The transaction was aborted.
    Aborted,
    /// A step failed.
    Failed(Remedy),
    /// The consumer was replaced: its positions are gone.
    ConsumerReplaced,
}

/// Takes an event into account. Total: an event that does not fit leaves the state in which nothing can be lost.
pub fn after(state: State, event: Event, limits: &Limits, now: Duration) -> State {
    match (state, event) {
        (_, Event::ProducerMade) => State::Rewinding,
        (_, Event::Failed(Remedy::NewProducer)) => State::NoProducer,
        (state, Event::Failed(Remedy::Retry)) => state,
        (State::Open { .. } | State::Aborting, Event::Failed(Remedy::Abort)) => State::Aborting,
        // Nothing is open that could be aborted.
        (State::Idle { .. }, Event::Failed(Remedy::Abort)) => State::Rewinding,
        (state, Event::Failed(Remedy::Abort)) => state,
        (State::NoProducer, _) => State::NoProducer,
        (State::Open { .. } | State::Aborting, Event::ConsumerReplaced) => State::Aborting,
        (_, Event::ConsumerReplaced) => State::Rewinding,
        (State::Aborting, Event::Aborted) => State::Rewinding,
        (State::Aborting, _) => State::Aborting,
        (State::Open { .. }, Event::Aborted) => State::Rewinding,
        (State::Rewinding, Event::Rewound) => State::Idle { commit_at: None },
        (State::Rewinding, _) => State::Rewinding,
        (State::Idle { .. }, Event::Begun) => State::Open { since: now, messages: 0, bytes: 0 },
        (State::Open { since, messages, bytes }, Event::Taken { bytes: more }) => {
            State::Open { since, messages: messages.saturating_add(1), bytes: bytes.saturating_add(more) }
        }
        (_, Event::Committed | Event::NothingToCommit) => State::Idle { commit_at: None },
        (State::Idle { commit_at }, Event::Moved) => {
            State::Idle { commit_at: Some(commit_at.unwrap_or(now + limits.idle)) }
        }
        (state, _) => state,
    }
}

/// A step that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `init_transactions`.
    Init,
    /// `begin_transaction`.
    Begin,
    /// Handing a message to the producer.
    Produce,
    /// `send_offsets_to_transaction`.
    SendOffsets,
    /// `commit_transaction`.
    Commit,
    /// `abort_transaction`.
    Abort,
}

/// How a step failed, as librdkafka says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What it is.
    pub code: RDKafkaErrorCode,
    /// The producer cannot be used any more.
    pub fatal: bool,
    /// The same call may be made again.
    pub retriable: bool,
    /// The transaction must be aborted.
    pub requires_abort: bool,
    /// For people.
    pub reason: String,
}

/// What to do about a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The same call again.
    Retry,
    /// Abort and rewind.
    Abort,
    /// Give the producer up, make another, and rewind: the broker then says what became of the transaction.
    NewProducer,
}

/// Decides about a failure. `patience_left`: whether the same call may still be made again.
pub fn remedy(step: Step, failure: &Failure, patience_left: bool) -> Remedy {
    use RDKafkaErrorCode as E;
    let fenced = matches!(
        failure.code,
        E::Fatal | E::Fenced | E::InvalidProducerEpoch | E::ProducerFenced | E::InvalidProducerIdMapping
    );
    match step {
        _ if failure.fatal || fenced => Remedy::NewProducer,
        _ if failure.retriable && patience_left => Remedy::Retry,
        // Without an answer nobody knows whether the broker has committed; with a rejection it has not.
        Step::Begin | Step::Commit | Step::SendOffsets | Step::Produce if failure.requires_abort => {
            Remedy::Abort
        }
        Step::Produce if failure.code == E::QueueFull && patience_left => Remedy::Retry,
        Step::Produce | Step::SendOffsets if failure.retriable => Remedy::Abort,
        Step::Produce => Remedy::Abort,
        Step::Init | Step::Begin | Step::SendOffsets | Step::Commit | Step::Abort => Remedy::NewProducer,
    }
}

/// What the consumer says of its place in the group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// The id that the coordinator gave it; empty without one.
    pub member_id: String,
    /// The generation that it last heard of; negative without one.
    pub generation: i32,
}

/// Whether a transaction may begin. A broker checks the member and the generation of offsets; offsets that have neither it
/// takes from anybody, as from clients that know of no groups. Whoever has lost both must therefore stop by itself.
///
/// # Errors
/// The failure of [`Step::Begin`].
pub fn may_begin(membership: Option<Membership>) -> Result<(), Failure> {
    match membership {
        Some(Membership { member_id, generation }) if !member_id.is_empty() && generation >= 0 => Ok(()),
        _ => Err(Failure {
            code: RDKafkaErrorCode::UnknownMemberId,
            fatal: false,
            retriable: false,
            requires_abort: true,
            reason: "this process is not a member of its consumer group any more".to_owned(),
        }),
    }
}

/// How long to wait after so many failures in a row: from 100 ms, doubling, to 5 s.
pub fn back_off(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        n => Duration::from_millis((100u64 << (n - 1).min(10)).min(5_000)),
    }
}

/// Whether to give the consumer up for a new one: nothing has gone through for so long (`trouble`), and since the last new
/// consumer for so long (`since_last`); `renewed` is how many there were in this trouble.
///
/// A client that has lost its way among brokers that came and went does not always find back, and a new one begins from the
/// bootstrap servers. Where it is the brokers that are away, a new one does no harm, as long as there are few: after 45
/// seconds, then each time twice as long after the one before, to 12 minutes.
pub fn renews_consumer(trouble: Duration, since_last: Duration, renewed: u32) -> bool {
    const FIRST: Duration = Duration::from_secs(45);
    trouble >= FIRST && since_last >= FIRST * (1 << renewed.min(4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lasting_trouble_makes_new_consumers_more_and_more_seldom() {
        let (mut last, mut renewals) = (0, Vec::new());
        for now in 0..3_600 {
            let seconds = Duration::from_secs;
            if renews_consumer(seconds(now), seconds(now - last), renewals.len() as u32) {
                last = now;
                renewals.push(now);
            }
        }
        assert_eq!(renewals, [45, 135, 315, 675, 1_395, 2_115, 2_835, 3_555]);
    }

    const LIMITS: Limits = Limits {
        messages: 10,
        bytes: 1000,
        wait: Duration::from_millis(50),
        idle: Duration::from_millis(500),
    };

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    const IDLE: State = State::Idle { commit_at: None };
    const OPEN: State = State::Open { since: ms(0), messages: 1, bytes: 10 };

    fn then(state: State, event: Event) -> State {
        after(state, event, &LIMITS, ms(7))
    }

    #[test]
    fn a_new_producer_always_leads_to_reading_positions_again() {
        for state in [State::NoProducer, State::Rewinding, IDLE, OPEN, State::Aborting] {
            assert_eq!(then(state, Event::ProducerMade), State::Rewinding);
        }
    }

    #[test]
    fn the_ordinary_way() {
        let mut state = State::NoProducer;
        assert_eq!(next(state, &LIMITS, ms(0), false), Action::MakeProducer);
        state = then(state, Event::ProducerMade);
        assert_eq!(next(state, &LIMITS, ms(0), false), Action::Rewind);
        state = then(state, Event::Rewound);
        assert_eq!(next(state, &LIMITS, ms(0), false), Action::Poll(POLL));
        state = then(state, Event::Begun);
        assert_eq!(state, State::Open { since: ms(7), messages: 0, bytes: 0 });
        state = then(state, Event::Taken { bytes: 5 });
        assert_eq!(state, State::Open { since: ms(7), messages: 1, bytes: 5 });
        assert_eq!(next(state, &LIMITS, ms(17), false), Action::Poll(ms(40)));
        assert_eq!(next(state, &LIMITS, ms(57), false), Action::Commit);
        assert_eq!(then(state, Event::Committed), IDLE);
    }

    #[test]
    fn a_transaction_is_closed_when_any_bound_is_reached() {
        let open = |messages, bytes| State::Open { since: ms(0), messages, bytes };
        assert_eq!(next(open(10, 0), &LIMITS, ms(1), false), Action::Commit);
        assert_eq!(next(open(1, 1000), &LIMITS, ms(1), false), Action::Commit);
        assert_eq!(next(open(1, 1), &LIMITS, ms(50), false), Action::Commit);
        assert_eq!(next(open(9, 999), &LIMITS, ms(49), false), Action::Poll(ms(1)));
    }

    #[test]
    fn a_transaction_is_closed_long_before_the_broker_would_abort_it() {
        let config = TransactionConfig {
            id_prefix: "x".into(),
            timeout_ms: 10_000,
            max_messages: 0,
            max_bytes: 0,
            max_wait_ms: 60_000,
        };
        let limits = Limits::of(&config);
        assert_eq!(limits.wait, ms(5_000));
        assert_eq!((limits.messages, limits.bytes), (1, 1));
    }

    #[test]
    fn a_failed_transaction_is_aborted_then_positions_are_read_again() {
        let state = then(OPEN, Event::Failed(Remedy::Abort));
        assert_eq!(state, State::Aborting);
        assert_eq!(next(state, &LIMITS, ms(0), false), Action::Abort);
        assert_eq!(next(state, &LIMITS, ms(0), true), Action::Abort);
        assert_eq!(then(state, Event::Aborted), State::Rewinding);
    }

    #[test]
    fn nothing_but_an_abort_ends_an_aborting_transaction() {
        for event in [Event::Taken { bytes: 1 }, Event::Committed, Event::Rewound, Event::Begun, Event::Moved]
        {
            assert_eq!(then(State::Aborting, event), State::Aborting, "{event:?}");
        }
    }

    #[test]
    fn a_lost_producer_is_replaced_from_any_state() {
        for state in [State::NoProducer, State::Rewinding, IDLE, OPEN, State::Aborting] {
            assert_eq!(then(state, Event::Failed(Remedy::NewProducer)), State::NoProducer);
        }
    }

    #[test]
    fn nothing_is_taken_while_positions_are_unknown() {
        for event in [Event::Begun, Event::Taken { bytes: 1 }, Event::Moved, Event::Committed] {
            assert_eq!(then(State::Rewinding, event), State::Rewinding, "{event:?}");
            assert_eq!(then(State::NoProducer, event), State::NoProducer, "{event:?}");
        }
    }

    #[test]
    fn positions_alone_are_committed_after_a_while_and_the_while_is_not_prolonged() {
        let state = then(IDLE, Event::Moved);
        assert_eq!(state, State::Idle { commit_at: Some(ms(507)) });
        assert_eq!(after(state, Event::Moved, &LIMITS, ms(400)), state);
        assert_eq!(next(state, &LIMITS, ms(500), false), Action::Poll(ms(7)));
        assert_eq!(next(state, &LIMITS, ms(507), false), Action::CommitPositions);
        assert_eq!(then(state, Event::NothingToCommit), IDLE);
    }

    #[test]
    fn a_position_that_moves_in_an_open_transaction_is_committed_with_it() {
        assert_eq!(then(OPEN, Event::Moved), OPEN);
    }

    #[test]
    fn stopping_finishes_what_is_open_and_then_leaves() {
        assert_eq!(next(OPEN, &LIMITS, ms(0), true), Action::Commit);
        assert_eq!(
            next(State::Idle { commit_at: Some(ms(900)) }, &LIMITS, ms(0), true),
            Action::CommitPositions
        );
        for state in [IDLE, State::Rewinding, State::NoProducer] {
            assert_eq!(next(state, &LIMITS, ms(0), true), Action::Leave, "{state:?}");
        }
    }

    #[test]
    fn partitions_go_only_after_the_transaction_is_finished() {
        assert_eq!(before_revocation(OPEN, false), Some(Action::Commit));
        assert_eq!(before_revocation(OPEN, true), Some(Action::Abort));
        assert_eq!(before_revocation(State::Aborting, false), Some(Action::Abort));
        assert_eq!(before_revocation(IDLE, false), None);
        let moved = State::Idle { commit_at: Some(ms(900)) };
        assert_eq!(before_revocation(moved, false), Some(Action::CommitPositions));
        assert_eq!(before_revocation(moved, true), None);
        assert_eq!(before_revocation(State::NoProducer, true), None);
    }

    #[test]
    fn a_replaced_consumer_aborts_what_is_open() {
        assert_eq!(then(OPEN, Event::ConsumerReplaced), State::Aborting);
        assert_eq!(then(IDLE, Event::ConsumerReplaced), State::Rewinding);
        assert_eq!(then(State::NoProducer, Event::ConsumerReplaced), State::NoProducer);
    }

    #[test]
    fn nothing_begins_without_a_place_in_the_group() {
        let membership =
            |member_id: &str, generation| Some(Membership { member_id: member_id.into(), generation });
        assert_eq!(may_begin(membership("a", 0)), Ok(()));
        for none in [None, membership("", 3), membership("a", -1), membership("", -1)] {
            let failure = may_begin(none).unwrap_err();
            assert_eq!(remedy(Step::Begin, &failure, false), Remedy::Abort);
        }
        // Nothing was begun, so there is nothing to abort, but the positions are doubtful.
        assert_eq!(then(IDLE, Event::Failed(Remedy::Abort)), State::Rewinding);
    }

    #[test]
    fn every_failure_has_its_remedy() {
        use RDKafkaErrorCode as E;
        let failure = |code, fatal, retriable, requires_abort| Failure {
            code,
            fatal,
            retriable,
            requires_abort,
            reason: String::new(),
        };
        let fatal = failure(E::Fatal, true, false, false);
        let fenced = failure(E::ProducerFenced, false, false, false);
        let retriable = failure(E::OperationTimedOut, false, true, false);
        let abortable = failure(E::IllegalGeneration, false, false, true);
        let other = failure(E::TopicAuthorizationFailed, false, false, false);
        let full = failure(E::QueueFull, false, false, false);
        let steps = [Step::Init, Step::Begin, Step::Produce, Step::SendOffsets, Step::Commit, Step::Abort];
        for step in steps {
            assert_eq!(remedy(step, &fatal, true), Remedy::NewProducer, "{step:?}");
            assert_eq!(remedy(step, &fenced, true), Remedy::NewProducer, "{step:?}");
            assert_eq!(remedy(step, &retriable, true), Remedy::Retry, "{step:?}");
        }
        for (step, failure, patience, expected) in [
            // The offsets were not committed, whatever became of the call: an abort is enough.
            (Step::SendOffsets, &retriable, false, Remedy::Abort),
            (Step::SendOffsets, &abortable, true, Remedy::Abort),
            (Step::SendOffsets, &other, true, Remedy::NewProducer),
            // No answer to a commit: only the broker knows.
            (Step::Commit, &retriable, false, Remedy::NewProducer),
            (Step::Commit, &abortable, true, Remedy::Abort),
            (Step::Commit, &other, true, Remedy::NewProducer),
            (Step::Abort, &retriable, false, Remedy::NewProducer),
            (Step::Abort, &other, true, Remedy::NewProducer),
            (Step::Begin, &other, true, Remedy::NewProducer),
            (Step::Init, &retriable, false, Remedy::NewProducer),
            (Step::Init, &other, true, Remedy::NewProducer),
            (Step::Produce, &full, true, Remedy::Retry),
            (Step::Produce, &full, false, Remedy::Abort),
            (Step::Produce, &other, true, Remedy::Abort),
        ] {
            assert_eq!(remedy(step, failure, patience), expected, "{step:?} {failure:?} {patience}");
        }
    }

    #[test]
    fn the_back_off_grows_and_is_bounded() {
        let times: Vec<_> = (0..9).map(|n| back_off(n).as_millis()).collect();
        assert_eq!(times, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(back_off(u32::MAX), ms(5_000));
    }
}
