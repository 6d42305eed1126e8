//! Topics: describe, create, grow, delete.

use std::{collections::BTreeMap, ffi::CString, time::Duration};

use rdkafka::{
    client::{Client, ClientContext},
    error::RDKafkaErrorCode,
};
use rdkafka_sys::{self as sys, rd_kafka_admin_op_t as Operation};

use super::{
    AdminError, Allowed, is_unknown_topic, naming,
    native::{self, Event, Owned, ReasonBuffer, RequestOptions},
};
use crate::kafka::topic_ids::TopicId;

/// A topic as the brokers know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicDescription {
    /// Identity of the topic: another one after it was deleted and created again.
    pub id: TopicId,
    /// Its partitions, by number.
    pub partitions: Vec<PartitionDescription>,
    /// What we may do with it.
    pub allowed: Allowed,
}

/// A partition as the brokers know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartitionDescription {
    /// Number of the partition.
    pub partition: i32,
    /// Broker that leads it, if any.
    pub leader: Option<i32>,
    /// Replicas that it should have.
    pub replicas: usize,
    /// Replicas that are in sync.
    pub in_sync: usize,
}

/// A topic to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTopic {
    /// Name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of each partition; `None` for the brokers' default.
    pub replication_factor: Option<i16>,
    /// Configuration, by Kafka's names.
    pub config: BTreeMap<String, String>,
}

/// Describes `topics`. Topics that do not exist are left out of the answer.
pub fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    timeout: Duration,
) -> Result<BTreeMap<String, TopicDescription>, AdminError> {
    if topics.is_empty() {
        return Ok(BTreeMap::new());
    }
    let what = format!("describe topics {}", naming(topics));
    let names =
        topics.iter().map(|topic| native::c_string(&what, topic)).collect::<Result<Vec<CString>, _>>()?;
    let mut pointers: Vec<_> = names.iter().map(|name| name.as_ptr()).collect();
    // SAFETY: the names live until after the call, which copies them; the collection is ours.
    let collection = unsafe {
        Owned::new(
            sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()),
            sys::rd_kafka_TopicCollection_destroy,
        )
    }
    .ok_or_else(|| AdminError::new(&what, RDKafkaErrorCode::CriticalSystemResource, ""))?;
    let event = native::request(
        client,
        &what,
        Operation::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        RequestOptions { allowed_operations: true, ..Default::default() },
        timeout,
        // SAFETY: all four live during the call, which copies the collection.
        |handle, options, queue| unsafe {
            sys::rd_kafka_DescribeTopics(handle, collection.as_ptr(), options, queue);
        },
    )?;

    let mut described = BTreeMap::new();
    // SAFETY: the answer to DescribeTopics holds a result of that kind; everything read from it lives as long as `event`
    // and is copied.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event.as_ptr());
        let mut count = 0;
        let list = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        for &topic in native::elements(&event, list, count) {
            let name = native::text_of(sys::rd_kafka_TopicDescription_name(topic));
            let error = native::error_of(
                &format!("describe topic {name:?}"),
                sys::rd_kafka_TopicDescription_error(topic),
            );
            match error.code() {
                RDKafkaErrorCode::NoError => {
                    described.insert(name, description(&event, topic));
                }
                code if is_unknown_topic(code) => {}
                _ => return Err(error),
            }
        }
    }
    Ok(described)
}

/// # Safety
/// `topic` belongs to `event`.
unsafe fn description(event: &Event, topic: *const sys::rd_kafka_TopicDescription_t) -> TopicDescription {
    // SAFETY: by contract; what the accessors return lives as long as `event` and is copied.
    unsafe {
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let id = TopicId::from_bits(
            sys::rd_kafka_Uuid_most_significant_bits(id),
            sys::rd_kafka_Uuid_least_significant_bits(id),
        );
        let mut count = 0;
        let list = sys::rd_kafka_TopicDescription_partitions(topic, &mut count);
        let mut partitions: Vec<_> = native::elements(event, list, count)
            .iter()
            .map(|&partition| {
                let leader = sys::rd_kafka_TopicPartitionInfo_leader(partition);
                let (mut replicas, mut in_sync) = (0, 0);
                sys::rd_kafka_TopicPartitionInfo_replicas(partition, &mut replicas);
                sys::rd_kafka_TopicPartitionInfo_isr(partition, &mut in_sync);
                PartitionDescription {
                    partition: sys::rd_kafka_TopicPartitionInfo_partition(partition),
                    leader: (!leader.is_null())
                        .then(|| sys::rd_kafka_Node_id(leader))
                        .filter(|broker| *broker >= 0),
                    replicas,
                    in_sync,
                }
            })
            .collect();
        partitions.sort_by_key(|partition| partition.partition);
        let mut count = 0;
        let operations = sys::rd_kafka_TopicDescription_authorized_operations(topic, &mut count);
        TopicDescription { id, partitions, allowed: Allowed::of(operations, count) }
    }
}

/// Creates `topic`. That it exists already is an error ([`RDKafkaErrorCode::TopicAlreadyExists`]).
pub fn create_topic<C: ClientContext>(
    client: &Client<C>,
    topic: &NewTopic,
    timeout: Duration,
) -> Result<(), AdminError> {
    let what = format!("create topic {:?}", topic.name);
    let name = native::c_string(&what, &topic.name)?;
    let mut reason = ReasonBuffer::new();
    // SAFETY: the name and the buffer live during the call; the new object is ours.
    let new = unsafe {
        Owned::new(
            sys::rd_kafka_NewTopic_new(
                name.as_ptr(),
                topic.partitions,
                topic.replication_factor.map_or(-1, i32::from),
                reason.as_mut_ptr(),
                ReasonBuffer::LENGTH,
            ),
            sys::rd_kafka_NewTopic_destroy,
        )
    }
    .ok_or_else(|| AdminError::new(&what, RDKafkaErrorCode::InvalidArgument, &reason.text()))?;
    for (key, value) in &topic.config {
        let (key, value) = (native::c_string(&what, key)?, native::c_string(&what, value)?);
        // SAFETY: all live during the call, which copies both texts.
        let error = unsafe { sys::rd_kafka_NewTopic_set_config(new.as_ptr(), key.as_ptr(), value.as_ptr()) };
        if error != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return Err(AdminError::new(&what, error.into(), &format!("configuration {key:?}")));
        }
    }
    let event = native::request(
        client,
        &what,
        Operation::RD_KAFKA_ADMIN_OP_CREATETOPICS,
        RequestOptions { wait_for_change: true, ..Default::default() },
        timeout,
        // SAFETY: all live during the call, which copies the new topics.
        |handle, options, queue| unsafe {
            sys::rd_kafka_CreateTopics(handle, &mut new.as_ptr(), 1, options, queue);
        },
    )?;
    // SAFETY: the answer to CreateTopics holds a result of that kind.
    unsafe {
        let result = sys::rd_kafka_event_CreateTopics_result(event.as_ptr());
        let mut count = 0;
        let list = sys::rd_kafka_CreateTopics_result_topics(result, &mut count);
        single_result(&event, list, count, &what)
    }
}

/// Grows `topic` to `total` partitions.
pub fn create_partitions<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    total: i32,
    timeout: Duration,
) -> Result<(), AdminError> {
    let what = format!("grow topic {topic:?} to {total} partitions");
    let name = native::c_string(&what, topic)?;
    let total = usize::try_from(total).unwrap_or(0);
    let mut reason = ReasonBuffer::new();
    // SAFETY: the name and the buffer live during the call; the new object is ours.
    let new = unsafe {
        Owned::new(
            sys::rd_kafka_NewPartitions_new(name.as_ptr(), total, reason.as_mut_ptr(), ReasonBuffer::LENGTH),
            sys::rd_kafka_NewPartitions_destroy,
        )
    }
    .ok_or_else(|| AdminError::new(&what, RDKafkaErrorCode::InvalidArgument, &reason.text()))?;
    let event = native::request(
        client,
        &what,
        Operation::RD_KAFKA_ADMIN_OP_CREATEPARTITIONS,
        RequestOptions { wait_for_change: true, ..Default::default() },
        timeout,
        // SAFETY: all live during the call, which copies the new partitions.
        |handle, options, queue| unsafe {
            sys::rd_kafka_CreatePartitions(handle, &mut new.as_ptr(), 1, options, queue);
        },
    )?;
    // SAFETY: the answer to CreatePartitions holds a result of that kind.
    unsafe {
        let result = sys::rd_kafka_event_CreatePartitions_result(event.as_ptr());
        let mut count = 0;
        let list = sys::rd_kafka_CreatePartitions_result_topics(result, &mut count);
        single_result(&event, list, count, &what)
    }
}

/// Deletes `topic` and all that it holds. That it does not exist is an error ([`AdminError::is_unknown_topic`]).
pub fn delete_topic<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    timeout: Duration,
) -> Result<(), AdminError> {
    let what = format!("delete topic {topic:?}");
    let name = native::c_string(&what, topic)?;
    // SAFETY: the name lives during the call, which copies it; the new object is ours.
    let new = unsafe {
        Owned::new(sys::rd_kafka_DeleteTopic_new(name.as_ptr()), sys::rd_kafka_DeleteTopic_destroy)
    }
    .ok_or_else(|| AdminError::new(&what, RDKafkaErrorCode::InvalidArgument, ""))?;
    let event = native::request(
        client,
        &what,
        Operation::RD_KAFKA_ADMIN_OP_DELETETOPICS,
        RequestOptions { wait_for_change: true, ..Default::default() },
        timeout,
        // SAFETY: all live during the call, which copies the topics.
        |handle, options, queue| unsafe {
            sys::rd_kafka_DeleteTopics(handle, &mut new.as_ptr(), 1, options, queue);
        },
    )?;
    // SAFETY: the answer to DeleteTopics holds a result of that kind.
    unsafe {
        let result = sys::rd_kafka_event_DeleteTopics_result(event.as_ptr());
        let mut count = 0;
        let list = sys::rd_kafka_DeleteTopics_result_topics(result, &mut count);
        single_result(&event, list, count, &what)
    }
}

/// What the brokers answered for the one topic of a request.
///
/// # Safety
/// `list` and `count` come from `event`.
unsafe fn single_result(
    event: &Event,
    list: *mut *const sys::rd_kafka_topic_result_t,
    count: usize,
    what: &str,
) -> Result<(), AdminError> {
    // SAFETY: by contract; the text is copied.
    unsafe {
        let Some(&result) = native::elements(event, list, count).first() else {
            return Err(AdminError::new(
                what,
                RDKafkaErrorCode::BadMessage,
                "the answer does not name the topic",
            ));
        };
        match sys::rd_kafka_topic_result_error(result) {
            sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
            error => Err(AdminError::new(
                what,
                error.into(),
                &native::text_of(sys::rd_kafka_topic_result_error_string(result)),
            )),
        }
    }
}
