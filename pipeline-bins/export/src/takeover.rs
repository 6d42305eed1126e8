//! Taking partitions over: what the brokers say about them, and where each begins or why it stands still.
//!
//! Every export does it in the same way, whatever its destination: [`TakeOver::observe`] asks, [`begin`] decides, and
//! [`assign`] tells librdkafka. What was read before belongs to the topic that it was read from: whoever owns partitions
//! compares the topic's id with theirs ([`recreated`]) before it looks at new ones.

use std::time::{Duration, Instant};

use penstock_pipeline::{
    config::{self, StartFrom},
    health::Heartbeat,
    lifecycle::Shutdown,
};
use rdkafka::{
    consumer::Consumer,
    topic_partition_list::{Offset, TopicPartitionList},
};
use tracing::warn;

use crate::{
    ExportError,
    committed::{Metadata, Origin, Plan},
    source::{self, SourceConsumer},
};

/// Counts the assignments of a partition to this process. What was begun under one epoch has no say in another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
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

/// Where a partition begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beginning {
    /// Nothing is committed: here, and that is to be committed, so that it is the same after a crash.
    First(i64),
    /// At the committed offset. With a doubt, messages from here to before that offset may have been exported, though
    /// nothing says so.
    At {
        /// The offset.
        offset: i64,
        /// Where the doubt ends, if there is one.
        doubt: Option<i64>,
    },
    /// With the settling of a plan.
    Planned {
        /// The plan, which begins at the committed offset.
        plan: Plan,
        /// As in [`Beginning::At`].
        doubt: Option<i64>,
    },
    /// Nowhere, until somebody has looked at it.
    Held {
        /// The committed offset.
        offset: i64,
        /// Why.
        reason: HoldReason,
    },
}

impl Beginning {
    /// Offset of the message that comes next.
    pub fn offset(&self) -> i64 {
        match self {
            Self::First(offset) | Self::At { offset, .. } | Self::Held { offset, .. } => *offset,
            Self::Planned { plan, .. } => plan.range.start(),
        }
    }
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

/// Why a partition whose offsets count `origin` cannot go on in a topic with the id `current`, if that is so.
pub fn recreated(origin: &Origin, current: &str) -> Option<HoldReason> {
    (origin.topic_id != current).then(|| HoldReason::TopicRecreated {
        committed: origin.topic_id.clone(),
        current: current.to_owned(),
    })
}

/// Where an assigned partition begins.
pub fn begin(assignment: &Assignment) -> Beginning {
    let &Assignment { log_start, log_end, .. } = assignment;
    let Some(Committed { offset, metadata }) = &assignment.committed else {
        return Beginning::First(match assignment.start_at {
            StartAt::LogEnd if assignment.partition < assignment.origin.first_partitions => log_end,
            StartAt::LogStart | StartAt::LogEnd => log_start,
        });
    };
    let offset = *offset;
    let held = |reason| Beginning::Held { offset, reason };
    if let Some(reason) = metadata.origin().and_then(|was| recreated(was, &assignment.origin.topic_id)) {
        return held(reason);
    }
    let needed_end = match metadata {
        Metadata::Planned { plan, .. } => plan.range.end(),
        _ => offset,
    };
    if offset < log_start || needed_end > log_end {
        let offset = if offset < log_start { offset } else { needed_end };
        return held(HoldReason::OutOfRange { offset, log_start, log_end });
    }
    let behind = |doubt: Option<i64>| doubt.filter(|&doubt| doubt > offset);
    match metadata {
        // Nothing that was exported lies behind the end of the log.
        Metadata::Foreign => Beginning::At { offset, doubt: behind(Some(log_end)) },
        Metadata::Settled { doubt, .. } => Beginning::At { offset, doubt: behind(*doubt) },
        Metadata::Planned { plan, doubt } if plan.range.start() == offset => {
            Beginning::Planned { plan: plan.clone(), doubt: behind(*doubt) }
        }
        Metadata::Planned { .. } | Metadata::Unreadable => held(HoldReason::UnreadableMetadata),
    }
}

/// Asks about partitions that were assigned, and numbers their assignments.
#[derive(Debug, Default)]
pub struct TakeOver {
    last_epoch: u64,
}

/// What the brokers said about partitions that were assigned.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Id of the topic now.
    pub topic_id: String,
    /// One for each partition.
    pub assignments: Vec<Assignment>,
}

impl TakeOver {
    /// Asks until the brokers answer; a process that never learns what it was given gives it back by leaving.
    pub fn observe(
        &mut self,
        consumer: &SourceConsumer,
        from: &config::Source,
        partitions: &[i32],
        stop: &Shutdown,
        heart: &Heartbeat,
    ) -> Result<Taken, ExportError> {
        let patience = Duration::from_millis(from.max_poll_interval_ms.into()) / 2;
        let begun = Instant::now();
        let (origin, observed) = loop {
            match source::observe(consumer, &from.topic, partitions) {
                Ok(seen) => break seen,
                Err(error) if begun.elapsed() < patience && !stop.is_requested() => {
                    warn!(%error, "cannot look at the assigned partitions yet");
                    heart.beat();
                    std::thread::sleep(Duration::from_millis(500));
                }
                Err(error) => return Err(ExportError::Source(error)),
            }
        };
        let start_at = match from.start_from {
            StartFrom::Earliest => StartAt::LogStart,
            StartFrom::Latest => StartAt::LogEnd,
        };
        let assignments = observed
            .into_iter()
            .map(|one| {
                self.last_epoch += 1;
                Assignment {
                    epoch: Epoch(self.last_epoch),
                    partition: one.partition,
                    origin: origin.clone(),
                    committed: one.committed.map(|(offset, metadata)| Committed { offset, metadata }),
                    log_start: one.log_start,
                    log_end: one.log_end,
                    start_at,
                }
            })
            .collect();
        Ok(Taken { topic_id: origin.topic_id, assignments })
    }
}

/// Adds partitions to what is read: each from its offset, those without one not at all.
pub fn assign(
    consumer: &SourceConsumer,
    topic: &str,
    positions: &[(i32, Option<i64>)],
) -> Result<(), ExportError> {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for &(partition, offset) in positions {
        let position = offset.map_or(Offset::End, Offset::Offset);
        list.add_partition_offset(topic, partition, position).map_err(ExportError::Kafka)?;
    }
    consumer.client().incremental_assign(&list).map_err(ExportError::Kafka)?;
    // A pause outlives the assignment that it was made in.
    consumer.client().resume(&list).map_err(ExportError::Kafka)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::committed::OffsetRange;

    fn origin(topic_id: &str) -> Origin {
        Origin { topic_id: topic_id.into(), first_partitions: 4 }
    }

    fn plan(start: i64, end: i64) -> Plan {
        let range = OffsetRange::new(start, end).unwrap();
        Plan { origin: origin("now"), range, made_at_ms: 0, topology: None }
    }

    fn settled(topic_id: &str, doubt: Option<i64>) -> Metadata {
        Metadata::Settled { origin: origin(topic_id), doubt }
    }

    fn assignment(committed: Option<(i64, Metadata)>) -> Assignment {
        Assignment {
            epoch: Epoch(1),
            partition: 3,
            origin: origin("now"),
            committed: committed.map(|(offset, metadata)| Committed { offset, metadata }),
            log_start: 5,
            log_end: 100,
            start_at: StartAt::LogStart,
        }
    }

    #[test]
    fn nothing_committed_begins_where_the_configuration_says() {
        for (start_at, offset) in [(StartAt::LogStart, 5), (StartAt::LogEnd, 100)] {
            assert_eq!(begin(&Assignment { start_at, ..assignment(None) }), Beginning::First(offset));
        }
        let added_later = Assignment { partition: 4, start_at: StartAt::LogEnd, ..assignment(None) };
        assert_eq!(begin(&added_later), Beginning::First(5));
    }

    #[test]
    fn an_offset_that_was_set_by_hand_leaves_everything_that_was_in_the_log_in_doubt() {
        let beginning = begin(&assignment(Some((10, Metadata::Foreign))));
        assert_eq!(beginning, Beginning::At { offset: 10, doubt: Some(100) });
        let at_the_end = begin(&assignment(Some((100, Metadata::Foreign))));
        assert_eq!(at_the_end, Beginning::At { offset: 100, doubt: None });
    }

    #[test]
    fn a_doubt_lasts_until_its_offset_over_any_number_of_owners() {
        for (offset, doubt) in [(10, Some(40)), (39, Some(40)), (40, None), (50, None)] {
            let beginning = begin(&assignment(Some((offset, settled("now", Some(40))))));
            assert_eq!(beginning, Beginning::At { offset, doubt });
        }
        let planned = Metadata::Planned { plan: plan(10, 20), doubt: Some(40) };
        assert_eq!(
            begin(&assignment(Some((10, planned)))),
            Beginning::Planned { plan: plan(10, 20), doubt: Some(40) }
        );
    }

    #[test]
    fn an_offset_outside_of_the_log_is_held() {
        let past_the_end = Metadata::Planned { plan: plan(90, 101), doubt: None };
        for (offset, metadata, named) in [
            (4, settled("now", None), 4),
            (101, settled("now", None), 101),
            (90, past_the_end, 101),
            (4, Metadata::Foreign, 4),
        ] {
            let reason = HoldReason::OutOfRange { offset: named, log_start: 5, log_end: 100 };
            assert_eq!(begin(&assignment(Some((offset, metadata)))), Beginning::Held { offset, reason });
        }
    }

    #[test]
    fn offsets_of_another_topic_of_the_same_name_are_held() {
        let planned =
            Metadata::Planned { plan: Plan { origin: origin("before"), ..plan(10, 20) }, doubt: None };
        for metadata in [settled("before", None), planned] {
            let reason = HoldReason::TopicRecreated { committed: "before".into(), current: "now".into() };
            assert_eq!(begin(&assignment(Some((10, metadata)))), Beginning::Held { offset: 10, reason });
        }
    }

    #[test]
    fn metadata_of_another_version_or_of_another_offset_is_held() {
        let elsewhere = Metadata::Planned { plan: plan(11, 20), doubt: None };
        for metadata in [Metadata::Unreadable, elsewhere] {
            let reason = HoldReason::UnreadableMetadata;
            assert_eq!(begin(&assignment(Some((10, metadata)))), Beginning::Held { offset: 10, reason });
        }
    }
}
