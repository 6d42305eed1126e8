//! Offsets: the two ends of partitions, and what a consumer group has committed.

use std::{collections::BTreeMap, slice, time::Duration};

use rdkafka::{
    client::{Client, ClientContext},
    error::RDKafkaErrorCode,
};
use rdkafka_sys::{self as sys, rd_kafka_admin_op_t as Operation};

use super::{
    AdminError, naming,
    native::{self, Owned, RequestOptions},
};

/// Which end of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OffsetSpec {
    /// The oldest message that is still there: the log start.
    Earliest,
    /// The offset after the newest message. With [`Isolation::ReadCommitted`] this is the last stable offset: the first
    /// offset of the oldest transaction that is still open, if there is one.
    Latest,
}

/// Whether messages of open transactions count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Up to the last stable offset.
    ReadCommitted,
    /// Up to the end of the log.
    ReadUncommitted,
}

/// What a consumer group has committed for a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Offset of the next message to read.
    pub offset: i64,
    /// What was committed with it; empty when nothing was.
    pub metadata: Vec<u8>,
}

/// An answer per topic and partition; one partition may fail while others do not.
pub type PartitionResult<T> = BTreeMap<(String, i32), Result<T, AdminError>>;

/// An end of each of `partitions`.
pub fn list_offsets<C: ClientContext>(
    client: &Client<C>,
    partitions: &[(&str, i32)],
    spec: OffsetSpec,
    isolation: Isolation,
    timeout: Duration,
) -> Result<PartitionResult<i64>, AdminError> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let what = format!("list offsets of {}", naming(&topics_of(partitions)));
    let (spec, isolation) = (
        match spec {
            OffsetSpec::Earliest => sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_EARLIEST,
            OffsetSpec::Latest => sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_LATEST,
        },
        match isolation {
            Isolation::ReadCommitted => {
                sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED
            }
            Isolation::ReadUncommitted => {
                sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED
            }
        },
    );
    let list = native::partition_list(&what, partitions, spec as i64)?;
    let event = native::request(
        client,
        &what,
        Operation::RD_KAFKA_ADMIN_OP_LISTOFFSETS,
        RequestOptions { isolation: Some(isolation), ..Default::default() },
        timeout,
        // SAFETY: all live during the call, which copies the list.
        |handle, options, queue| unsafe {
            sys::rd_kafka_ListOffsets(handle, list.as_ptr(), options, queue);
        },
    )?;
    // SAFETY: the answer to ListOffsets holds a result of that kind; everything read from it lives as long as `event` and
    // is copied.
    unsafe {
        let result = sys::rd_kafka_event_ListOffsets_result(event.as_ptr());
        let mut count = 0;
        let list = sys::rd_kafka_ListOffsets_result_infos(result, &mut count);
        Ok(native::elements(&event, list, count)
            .iter()
            .map(|&info| {
                let element = &*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(info);
                partition_answer(&what, element, element.offset)
            })
            .collect())
    }
}

/// What `group` has committed for each of `partitions`; `None` where it has committed nothing, as for a group that does
/// not exist. An offset that belongs to a transaction which is still open is not waited for: the one before it is
/// answered.
pub fn committed_offsets<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    partitions: &[(&str, i32)],
    timeout: Duration,
) -> Result<PartitionResult<Option<Committed>>, AdminError> {
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let what =
        format!("read the committed offsets of group {group:?} for {}", naming(&topics_of(partitions)));
    let list = native::partition_list(&what, partitions, i64::from(sys::RD_KAFKA_OFFSET_INVALID))?;
    let group = native::c_string(&what, group)?;
    // SAFETY: the name and the list live during the call, which copies both; the new object is ours.
    let query = unsafe {
        Owned::new(
            sys::rd_kafka_ListConsumerGroupOffsets_new(group.as_ptr(), list.as_ptr()),
            sys::rd_kafka_ListConsumerGroupOffsets_destroy,
        )
    }
    .ok_or_else(|| AdminError::new(&what, RDKafkaErrorCode::InvalidArgument, ""))?;
    let event = native::request(
        client,
        &what,
        Operation::RD_KAFKA_ADMIN_OP_LISTCONSUMERGROUPOFFSETS,
        RequestOptions::default(),
        timeout,
        // SAFETY: all live during the call, which copies the query.
        |handle, options, queue| unsafe {
            sys::rd_kafka_ListConsumerGroupOffsets(handle, &mut query.as_ptr(), 1, options, queue);
        },
    )?;
    // SAFETY: the answer to ListConsumerGroupOffsets holds a result of that kind; everything read from it lives as long as
    // `event` and is copied. Metadata is `metadata_size` bytes long.
    unsafe {
        let result = sys::rd_kafka_event_ListConsumerGroupOffsets_result(event.as_ptr());
        let mut count = 0;
        let list = sys::rd_kafka_ListConsumerGroupOffsets_result_groups(result, &mut count);
        let Some(&group) = native::elements(&event, list, count).first() else {
            return Err(AdminError::new(
                &what,
                RDKafkaErrorCode::BadMessage,
                "the answer does not name the group",
            ));
        };
        let error = native::error_of(&what, sys::rd_kafka_group_result_error(group));
        if error.code() != RDKafkaErrorCode::NoError {
            return Err(error);
        }
        let list = sys::rd_kafka_group_result_partitions(group);
        Ok(native::partitions(&event, list)
            .iter()
            .map(|element| {
                let metadata = if element.metadata.is_null() || element.metadata_size == 0 {
                    Vec::new()
                } else {
                    slice::from_raw_parts(element.metadata.cast::<u8>(), element.metadata_size).to_vec()
                };
                let committed =
                    (element.offset >= 0).then_some(Committed { offset: element.offset, metadata });
                partition_answer(&what, element, committed)
            })
            .collect())
    }
}

/// # Safety
/// `element` comes from a list of librdkafka, so that its topic is a C string.
unsafe fn partition_answer<T>(
    what: &str,
    element: &sys::rd_kafka_topic_partition_t,
    answer: T,
) -> ((String, i32), Result<T, AdminError>) {
    // SAFETY: by contract.
    let topic = unsafe { native::text_of(element.topic) };
    let answer = match element.err {
        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(answer),
        error => Err(AdminError::new(
            what,
            error.into(),
            &format!("partition {} of topic {topic:?}", element.partition),
        )),
    };
    ((topic, element.partition), answer)
}

fn topics_of<'a>(partitions: &[(&'a str, i32)]) -> Vec<&'a str> {
    let mut topics: Vec<_> = partitions.iter().map(|(topic, _)| *topic).collect();
    topics.sort_unstable();
    topics.dedup();
    topics
}
