//! What we may do with topics and groups, as the brokers' authorizer has it.

use std::{collections::BTreeMap, ffi::CString, slice, time::Duration};

use rdkafka::{
    client::{Client, ClientContext},
    error::RDKafkaErrorCode,
};
use rdkafka_sys::{self as sys, rd_kafka_admin_op_t as Request};

use super::{
    AdminError, naming,
    native::{self, Owned, RequestOptions},
};

/// What is done with a topic or a group, in Kafka's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "Kafka's own names")]
pub enum Operation {
    Read,
    Write,
}

impl Operation {
    fn number(self) -> u32 {
        match self {
            Self::Read => sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ as u32,
            Self::Write => sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE as u32,
        }
    }
}

/// What we may do with one topic or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Not even know that it is there.
    Nothing,
    /// These, by their numbers in Kafka's protocol.
    These(Vec<u32>),
    /// The broker does not say, or there is no such thing.
    Unknown,
}

impl Allowed {
    /// Whether the operation is known not to be allowed.
    pub fn denies(&self, operation: Operation) -> bool {
        match self {
            Self::Nothing => true,
            Self::These(numbers) => !numbers.contains(&operation.number()),
            Self::Unknown => false,
        }
    }

    /// # Safety
    /// `list` is null, or points to `count` numbers of operations that live during the call.
    pub(super) unsafe fn of(list: *const sys::rd_kafka_AclOperation_t, count: usize) -> Self {
        if list.is_null() || count == 0 {
            return Self::Unknown;
        }
        // SAFETY: by contract. Read as numbers: a broker may know operations that the enumeration does not.
        Self::These(unsafe { slice::from_raw_parts(list.cast::<u32>(), count) }.to_vec())
    }
}

/// What we may do with each of `topics`. Blocks for at most `timeout` and a second.
pub fn allowed_on_topics<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    timeout: Duration,
) -> Result<BTreeMap<String, Allowed>, AdminError> {
    if topics.is_empty() {
        return Ok(BTreeMap::new());
    }
    let what = format!("ask for the rights on topics {}", naming(topics));
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
        Request::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        RequestOptions { allowed_operations: true, ..Default::default() },
        timeout,
        // SAFETY: all four live during the call, which copies the collection.
        |handle, options, queue| unsafe {
            sys::rd_kafka_DescribeTopics(handle, collection.as_ptr(), options, queue);
        },
    )?;
    let mut allowed = BTreeMap::new();
    // SAFETY: the answer to DescribeTopics holds a result of that kind; everything read from it lives as long as `event`
    // and is copied.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event.as_ptr());
        let mut count = 0;
        let list = sys::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        for &topic in native::elements(&event, list, count) {
            let name = native::text_of(sys::rd_kafka_TopicDescription_name(topic));
            let error = native::error_of(&what, sys::rd_kafka_TopicDescription_error(topic));
            let mut count = 0;
            let operations = sys::rd_kafka_TopicDescription_authorized_operations(topic, &mut count);
            let these = match error.code() {
                RDKafkaErrorCode::NoError => Allowed::of(operations, count),
                RDKafkaErrorCode::TopicAuthorizationFailed => Allowed::Nothing,
                _ => Allowed::Unknown,
            };
            allowed.insert(name, these);
        }
    }
    Ok(allowed)
}

/// What we may do with a consumer group. Blocks for at most `timeout` and a second.
pub fn allowed_on_group<C: ClientContext>(
    client: &Client<C>,
    group: &str,
    timeout: Duration,
) -> Result<Allowed, AdminError> {
    let what = format!("ask for the rights on group {group:?}");
    let name = native::c_string(&what, group)?;
    let event = native::request(
        client,
        &what,
        Request::RD_KAFKA_ADMIN_OP_DESCRIBECONSUMERGROUPS,
        RequestOptions { allowed_operations: true, ..Default::default() },
        timeout,
        // SAFETY: all live during the call, which copies the name.
        |handle, options, queue| unsafe {
            sys::rd_kafka_DescribeConsumerGroups(handle, &mut name.as_ptr(), 1, options, queue);
        },
    );
    let event = match event {
        Err(error) if error.code() == RDKafkaErrorCode::GroupAuthorizationFailed => {
            return Ok(Allowed::Nothing);
        }
        event => event?,
    };
    // SAFETY: the answer to DescribeConsumerGroups holds a result of that kind; everything read from it lives as long as
    // `event` and is copied.
    unsafe {
        let result = sys::rd_kafka_event_DescribeConsumerGroups_result(event.as_ptr());
        let mut count = 0;
        let list = sys::rd_kafka_DescribeConsumerGroups_result_groups(result, &mut count);
        let Some(&group) = native::elements(&event, list, count).first() else {
            return Ok(Allowed::Unknown);
        };
        let error = native::error_of(&what, sys::rd_kafka_ConsumerGroupDescription_error(group));
        let mut count = 0;
        let operations = sys::rd_kafka_ConsumerGroupDescription_authorized_operations(group, &mut count);
        match error.code() {
            RDKafkaErrorCode::NoError => Ok(Allowed::of(operations, count)),
            RDKafkaErrorCode::GroupAuthorizationFailed => Ok(Allowed::Nothing),
            // Whoever coordinates the group is not known at the moment: nothing is known of its rights.
            _ if error.is_unreachable() => Err(error),
            _ => Ok(Allowed::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_is_denied() {
        assert!(Allowed::Nothing.denies(Operation::Read));
        assert!(!Allowed::Unknown.denies(Operation::Write));
        // Read, and what follows from it: Describe.
        let reads = Allowed::These(vec![3, 8]);
        assert!(reads.denies(Operation::Write) && !reads.denies(Operation::Read));
    }
}
