//! The moments between the steps of the protocol, for tests that stop a process at each of them.

use std::fmt;

/// A moment in the life of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// The partition was taken over; nothing is read yet.
    Assigned,
    /// A dead letter is acknowledged, and its block may not be complete.
    DeadLetterKept,
    /// Its dead letters are acknowledged; nothing else has happened.
    Sealed,
    /// Its plan lies in Kafka.
    Planned,
    /// The server has acknowledged the insert; Kafka does not know yet.
    Inserted,
    /// The insert failed, or nobody knows.
    InsertUnclear,
    /// A commit failed, or nobody knows.
    CommitFailed,
    /// The table has been read back.
    ReadBack,
    /// Its end is committed.
    Advanced,
}

/// Is told of every moment, on the thread that runs the protocol and before it goes on.
pub trait Observer: Send + Sync {
    /// `moment` has come for the block of `partition` that begins or, for [`Moment::Advanced`], ends at `offset`; for
    /// [`Moment::DeadLetterKept`] it is that of the message.
    fn at(&self, moment: Moment, partition: i32, offset: i64);
}

/// Observes nothing: what production runs with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl Observer for Unobserved {
    fn at(&self, _: Moment, _: i32, _: i64) {}
}

impl fmt::Debug for dyn Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}
