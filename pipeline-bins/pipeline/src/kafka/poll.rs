//! Polls a consumer's queue and says what came, with the partition and offset that belong to it.
//!
//! The `rdkafka` crate drops the offset of an end of partition and the partition of an error; both decide here (how far
//! an idle partition is done, which partition is held). It also allocates for each message. This is the
//! same poll, on the same queue, in a few lines.

use std::{ffi::CStr, ptr::NonNull, sync::Arc, time::Duration};

use rdkafka::{
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
    types::RDKafkaErrorCode,
};
use rdkafka_sys as sys;

use super::{
    connection::{self, Secured},
    message::{Headers, Message},
};

/// A consumer whose events are taken one by one.
///
/// Rebalances are not handled behind the caller's back: [`Polled::Assign`] and [`Polled::Revoke`] must be answered by
/// `incremental_assign` and `incremental_unassign` (librdkafka waits). Only when it is dropped, the consumer gives its
/// partitions back by itself and leaves the group; that takes as long as the broker needs to answer.
pub struct PolledConsumer<C: ConsumerContext + 'static> {
    queue: NonNull<sys::rd_kafka_queue_t>,
    consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's handles may be used from any thread.
unsafe impl<C: ConsumerContext + 'static> Send for PolledConsumer<C> {}

/// What came.
#[derive(Debug)]
pub enum Polled<'a> {
    /// A message.
    Message(Message<'a>),
    /// Everything below this offset that this reader may see has been delivered; nothing is there at the moment.
    EndOfPartition {
        /// Partition.
        partition: i32,
        /// The position of the end: behind transaction markers, and before what is not yet committed.
        offset: i64,
    },
    /// A partition cannot be read on.
    PartitionError {
        /// Partition.
        partition: i32,
        /// What it is.
        code: RDKafkaErrorCode,
        /// For people.
        reason: String,
    },
    /// Something that concerns no single partition.
    Error {
        /// What it is.
        code: RDKafkaErrorCode,
        /// The client cannot be used any more.
        fatal: bool,
        /// For people.
        reason: String,
    },
    /// These partitions come: answer by `incremental_assign`.
    Assign(Vec<i32>),
    /// These partitions go: answer by `incremental_unassign`.
    Revoke(Vec<i32>),
    /// A log line or another matter that has been dealt with.
    Nothing,
}

/// An event with what it owns. It keeps its consumer alive: librdkafka's events may not outlive their client.
pub struct Event<C: ConsumerContext + 'static> {
    event: NonNull<sys::rd_kafka_event_t>,
    consumer: Arc<BaseConsumer<C>>,
}

impl<C: ConsumerContext + 'static> Drop for Event<C> {
    fn drop(&mut self) {
        // SAFETY: the event came from `rd_kafka_queue_poll` and is destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.event.as_ptr()) }
    }
}

impl<C: ConsumerContext + Secured + 'static> PolledConsumer<C> {
    /// Takes over a consumer that has a `group.id`.
    pub fn new(consumer: BaseConsumer<C>) -> Option<Self> {
        // SAFETY: the handle is valid as long as the consumer, which this value owns.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        NonNull::new(queue).map(|queue| Self { queue, consumer: Arc::new(consumer) })
    }

    /// For everything but polling.
    pub fn client(&self) -> &BaseConsumer<C> {
        &self.consumer
    }

    /// Waits for the next event. Sub-millisecond waits do not wait. Gives the client new credentials when there are any.
    pub fn poll(&self, timeout: Duration) -> Option<Event<C>> {
        connection::refresh(self.consumer.client());
        let timeout = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: the queue is ours until `drop`.
        let event = unsafe { sys::rd_kafka_queue_poll(self.queue.as_ptr(), timeout) };
        NonNull::new(event).map(|event| Event { event, consumer: Arc::clone(&self.consumer) })
    }

    /// What an event says.
    pub fn read<'e>(&self, event: &'e Event<C>) -> Polled<'e> {
        let raw = event.event.as_ptr();
        // SAFETY (all below): `raw` lives as long as `event`; what is borrowed from it is bound to 'e; each accessor is
        // called for the type of event that it is for.
        match unsafe { sys::rd_kafka_event_type(raw) } {
            sys::RD_KAFKA_EVENT_FETCH => match unsafe { sys::rd_kafka_event_message_next(raw).as_ref() } {
                Some(message) => unsafe { read_message(message) },
                None => Polled::Nothing,
            },
            sys::RD_KAFKA_EVENT_ERROR => {
                let polled = unsafe { read_error(raw) };
                if let Polled::Error { code, reason, .. } = &polled {
                    event.consumer.context().error(KafkaError::Global(*code), reason);
                }
                polled
            }
            sys::RD_KAFKA_EVENT_OAUTHBEARER_TOKEN_REFRESH => {
                connection::renew(event.consumer.client());
                Polled::Nothing
            }
            sys::RD_KAFKA_EVENT_REBALANCE => {
                let partitions = unsafe { read_partitions(sys::rd_kafka_event_topic_partition_list(raw)) };
                match unsafe { sys::rd_kafka_event_error(raw) } {
                    sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                        Polled::Assign(partitions)
                    }
                    _ => Polled::Revoke(partitions),
                }
            }
            sys::RD_KAFKA_EVENT_LOG => {
                let mut facility = std::ptr::null();
                let mut line = std::ptr::null();
                let mut level = 0;
                unsafe {
                    if sys::rd_kafka_event_log(raw, &raw mut facility, &raw mut line, &raw mut level) == 0 {
                        event.consumer.context().log(log_level(level), &text(facility), &text(line));
                    }
                }
                Polled::Nothing
            }
            _ => Polled::Nothing,
        }
    }

    /// The consumer's member id (empty without one) and generation (negative without one). `None` when it knows neither.
    pub fn membership(&self) -> Option<(String, i32)> {
        // SAFETY: the client is valid; what is returned is ours, is read while it is there, and is destroyed once.
        unsafe {
            let metadata = sys::rd_kafka_consumer_group_metadata(self.consumer.client().native_ptr());
            if metadata.is_null() {
                return None;
            }
            let member_id = text(sys::rd_kafka_consumer_group_metadata_member_id(metadata));
            let generation = sys::rd_kafka_consumer_group_metadata_generation_id(metadata);
            sys::rd_kafka_consumer_group_metadata_destroy(metadata);
            Some((member_id, generation))
        }
    }

    /// Oldest offset and end of a partition as the last fetch told, without asking the broker. `None` before the first.
    pub fn known_watermarks(&self, topic: &CStr, partition: i32) -> Option<(i64, i64)> {
        let (mut low, mut high) = (-1, -1);
        // SAFETY: the client is valid; the out-pointers are ours.
        let error = unsafe {
            sys::rd_kafka_get_watermark_offsets(
                self.consumer.client().native_ptr(),
                topic.as_ptr(),
                partition,
                &raw mut low,
                &raw mut high,
            )
        };
        (error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some((low, high))
    }
}

impl<C: ConsumerContext + 'static> Drop for PolledConsumer<C> {
    fn drop(&mut self) {
        // SAFETY: our reference to the queue, given back once, before the client that it belongs to.
        unsafe { sys::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// # Safety
/// `message` lives for 'e.
unsafe fn read_message<'e>(message: &'e sys::rd_kafka_message_t) -> Polled<'e> {
    if message.err != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        let code = message.err.into();
        return Polled::PartitionError { partition: message.partition, code, reason: code.to_string() };
    }
    // SAFETY: librdkafka says that pointer and length belong together, and that null is the absence of key or value.
    unsafe {
        let bytes = |pointer: *mut std::ffi::c_void, len: usize| {
            (!pointer.is_null()).then(|| std::slice::from_raw_parts::<'e, u8>(pointer.cast(), len))
        };
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        let timestamp_ms = sys::rd_kafka_message_timestamp(message, &raw mut kind);
        Polled::Message(Message {
            partition: message.partition,
            offset: message.offset,
            timestamp_ms: timestamp_ms.max(0),
            key: bytes(message.key, message.key_len),
            value: bytes(message.payload, message.len),
            headers: Headers::of_native(message),
        })
    }
}

/// # Safety
/// `event` is a valid error event.
unsafe fn read_error(event: *mut sys::rd_kafka_event_t) -> Polled<'static> {
    // SAFETY: as the function's.
    unsafe {
        let error = sys::rd_kafka_event_error(event);
        let code: RDKafkaErrorCode = error.into();
        let reason = text(sys::rd_kafka_event_error_string(event));
        let place = sys::rd_kafka_event_topic_partition(event);
        let place = NonNull::new(place).map(|place| {
            let (partition, offset) = (place.as_ref().partition, place.as_ref().offset);
            sys::rd_kafka_topic_partition_destroy(place.as_ptr());
            (partition, offset)
        });
        match (place, error) {
            (Some((partition, offset)), sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__PARTITION_EOF) => {
                Polled::EndOfPartition { partition, offset }
            }
            (Some((partition, _)), _) => Polled::PartitionError { partition, code, reason },
            (None, _) => {
                Polled::Error { code, fatal: sys::rd_kafka_event_error_is_fatal(event) != 0, reason }
            }
        }
    }
}

/// # Safety
/// `list` is null or valid.
unsafe fn read_partitions(list: *const sys::rd_kafka_topic_partition_list_t) -> Vec<i32> {
    // SAFETY: as the function's; `elems` has `cnt` elements.
    unsafe {
        match list.as_ref() {
            Some(list) if list.cnt > 0 => {
                let count = usize::try_from(list.cnt).unwrap_or(0);
                std::slice::from_raw_parts(list.elems, count)
                    .iter()
                    .map(|element| element.partition)
                    .collect()
            }
            _ => Vec::new(),
        }
    }
}

/// # Safety
/// `text` is null or a C string.
unsafe fn text(text: *const std::ffi::c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the function's.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
}

/// librdkafka's levels are those of syslog.
fn log_level(level: i32) -> RDKafkaLogLevel {
    match level {
        i32::MIN..=0 => RDKafkaLogLevel::Emerg,
        1 => RDKafkaLogLevel::Alert,
        2 => RDKafkaLogLevel::Critical,
        3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}
