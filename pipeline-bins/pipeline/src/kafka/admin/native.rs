//! The one place with `unsafe` of the admin calls: owned librdkafka objects, and one blocking request.
//!
//! Every request has a reply queue of its own and waits for its one answer on it, so nothing here needs callbacks,
//! opaque pointers or a background thread, and any thread may call with any client handle that exists already.
//! An answer is an [`Event`]; the objects inside it belong to it and are copied out before it goes.

use std::{
    ffi::{CStr, CString, c_char, c_int},
    ptr::NonNull,
    slice,
    time::Duration,
};

use rdkafka::{
    client::{Client, ClientContext},
    error::RDKafkaErrorCode,
};
use rdkafka_sys as sys;

use super::AdminError;

/// A librdkafka object that is destroyed when it goes out of scope.
pub(super) struct Owned<T> {
    ptr: NonNull<T>,
    destroy: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// Takes ownership of `ptr`; `None` when it is null.
    ///
    /// # Safety
    /// `ptr` is null, or points to an object that nobody else frees and that `destroy` is the destructor of.
    pub(super) unsafe fn new(ptr: *mut T, destroy: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        NonNull::new(ptr).map(|ptr| Self { ptr, destroy })
    }

    /// The pointer; valid as long as `self`.
    pub(super) fn as_ptr(&self) -> *mut T {
        self.ptr.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: by the contract of `new` the object is ours, and `drop` runs once.
        unsafe { (self.destroy)(self.ptr.as_ptr()) }
    }
}

/// The answer to a request.
pub(super) type Event = Owned<sys::rd_kafka_event_t>;

/// Options that a request may carry.
#[derive(Clone, Copy, Default)]
pub(super) struct RequestOptions {
    /// Which end of a partition is meant: with or without the messages of open transactions.
    pub(super) isolation: Option<sys::rd_kafka_IsolationLevel_t>,
    /// Whether the broker waits, within the time-out, until the change has happened.
    pub(super) wait_for_change: bool,
    /// Whether the answer tells what we may do with each topic or group.
    pub(super) allowed_operations: bool,
}

/// Time that the answer may take beyond the time-out, which librdkafka keeps itself.
const GRACE: Duration = Duration::from_millis(500);

/// Sends one admin request and waits for its answer. `what` is for the message of an error.
///
/// `submit` gets the client, the options and the queue for the answer, and calls the librdkafka function of `operation`
/// once. Blocks for at most `timeout` and a second.
pub(super) fn request<C: ClientContext>(
    client: &Client<C>,
    what: &str,
    operation: sys::rd_kafka_admin_op_t,
    options: RequestOptions,
    timeout: Duration,
    submit: impl FnOnce(*mut sys::rd_kafka_t, *const sys::rd_kafka_AdminOptions_t, *mut sys::rd_kafka_queue_t),
) -> Result<Event, AdminError> {
    let out_of_memory =
        || AdminError::new(what, RDKafkaErrorCode::CriticalSystemResource, "no memory for the request");
    let handle = client.native_ptr();
    // SAFETY: `handle` is valid while `client` is borrowed; both objects are ours until they drop.
    let queue = unsafe { Owned::new(sys::rd_kafka_queue_new(handle), sys::rd_kafka_queue_destroy) }
        .ok_or_else(out_of_memory)?;
    // SAFETY: as above.
    let native_options = unsafe {
        Owned::new(sys::rd_kafka_AdminOptions_new(handle, operation), sys::rd_kafka_AdminOptions_destroy)
    }
    .ok_or_else(out_of_memory)?;

    let timeout_ms = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX).clamp(1, 3_600_000);
    let mut reason = ReasonBuffer::new();
    // SAFETY: the options live, and the buffer is as long as it says.
    let error = unsafe {
        sys::rd_kafka_AdminOptions_set_request_timeout(
            native_options.as_ptr(),
            timeout_ms,
            reason.as_mut_ptr(),
            ReasonBuffer::LENGTH,
        )
    };
    check(what, error, &reason)?;
    if options.wait_for_change {
        // SAFETY: as above.
        let error = unsafe {
            sys::rd_kafka_AdminOptions_set_operation_timeout(
                native_options.as_ptr(),
                timeout_ms / 4 * 3,
                reason.as_mut_ptr(),
                ReasonBuffer::LENGTH,
            )
        };
        check(what, error, &reason)?;
    }
    if let Some(isolation) = options.isolation {
        // SAFETY: as above; a returned error is ours to destroy.
        let error = unsafe {
            Owned::new(
                sys::rd_kafka_AdminOptions_set_isolation_level(native_options.as_ptr(), isolation),
                sys::rd_kafka_error_destroy,
            )
        };
        if let Some(error) = error {
            return Err(error_of(what, error.as_ptr()));
        }
    }

    if options.allowed_operations {
        // SAFETY: as above.
        let error = unsafe {
            Owned::new(
                sys::rd_kafka_AdminOptions_set_include_authorized_operations(native_options.as_ptr(), 1),
                sys::rd_kafka_error_destroy,
            )
        };
        if let Some(error) = error {
            return Err(error_of(what, error.as_ptr()));
        }
    }

    submit(handle, native_options.as_ptr(), queue.as_ptr());

    let wait = c_int::try_from(GRACE.as_millis()).unwrap_or(0).saturating_add(timeout_ms);
    // SAFETY: the queue lives, and the event that it returns is ours to destroy. Should none come, destroying the queue
    // disables it, so that a late answer is thrown away by librdkafka and reaches nobody.
    let event =
        unsafe { Owned::new(sys::rd_kafka_queue_poll(queue.as_ptr(), wait), sys::rd_kafka_event_destroy) }
            .ok_or_else(|| {
                AdminError::new(
                    what,
                    RDKafkaErrorCode::OperationTimedOut,
                    &format!("no answer within {timeout_ms} ms"),
                )
            })?;
    // SAFETY: the event lives; its error string belongs to it and is copied.
    let (code, text) = unsafe {
        (sys::rd_kafka_event_error(event.as_ptr()), text_of(sys::rd_kafka_event_error_string(event.as_ptr())))
    };
    match code {
        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(event),
        code => {
            if code == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__TIMED_OUT {
                learn_brokers(client);
            }
            Err(AdminError::new(what, code.into(), &text))
        }
    }
}

/// Longest time that [`learn_brokers`] takes.
const LEARNING: Duration = Duration::from_millis(400);

/// Asks whichever broker can be had for the metadata of the cluster.
///
/// librdkafka 2.12 forgets a broker that a metadata answer leaves out, as answers do that are given while the only broker
/// starts. Requests to the controller then wait for a broker that it no longer knows, and a client without a subscription
/// asks for metadata by itself never again: without this it would wait for ever. Seen after a restart of a single broker.
fn learn_brokers<C: ClientContext>(client: &Client<C>) {
    let mut metadata = std::ptr::null();
    // SAFETY: the handle is valid while `client` is borrowed; no topics are asked for beyond those that it knows; what is
    // returned is ours and goes at once.
    unsafe {
        let wait = c_int::try_from(LEARNING.as_millis()).unwrap_or(c_int::MAX);
        sys::rd_kafka_metadata(client.native_ptr(), 0, std::ptr::null_mut(), &mut metadata, wait);
        if !metadata.is_null() {
            sys::rd_kafka_metadata_destroy(metadata);
        }
    }
}

/// A name for librdkafka. Names with a NUL character cannot be given to it.
pub(super) fn c_string(what: &str, text: &str) -> Result<CString, AdminError> {
    CString::new(text).map_err(|_| {
        AdminError::new(
            what,
            RDKafkaErrorCode::InvalidArgument,
            &format!("{text:?} contains a NUL character; remove it"),
        )
    })
}

/// Copies a C string; null is the empty text.
///
/// # Safety
/// `text` is null, or points to a NUL-terminated string that lives during the call.
pub(super) unsafe fn text_of(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: not null, and by contract a C string.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// The error that an error object says.
pub(super) fn error_of(what: &str, error: *const sys::rd_kafka_error_t) -> AdminError {
    // SAFETY: librdkafka's accessors take null as "no error"; the text belongs to the error and is copied.
    unsafe {
        AdminError::new(
            what,
            sys::rd_kafka_error_code(error).into(),
            &text_of(sys::rd_kafka_error_string(error)),
        )
    }
}

/// The elements of an array that an answer owns.
///
/// # Safety
/// `list` is null, or points to `count` pointers that live as long as the borrow of `_event`.
pub(super) unsafe fn elements<T>(_event: &Event, list: *mut *const T, count: usize) -> &[*const T] {
    if list.is_null() || count == 0 {
        return &[];
    }
    // SAFETY: by contract.
    unsafe { slice::from_raw_parts(list, count) }
}

/// The partitions of a list.
///
/// # Safety
/// `list` is null, or points to a list that lives as long as the borrow of `_owner`.
pub(super) unsafe fn partitions<T>(
    _owner: &Owned<T>,
    list: *const sys::rd_kafka_topic_partition_list_t,
) -> &[sys::rd_kafka_topic_partition_t] {
    if list.is_null() {
        return &[];
    }
    // SAFETY: by contract `list` points to a list; its elements are `cnt` many.
    unsafe {
        let list = &*list;
        match usize::try_from(list.cnt) {
            Ok(count) if count > 0 && !list.elems.is_null() => slice::from_raw_parts(list.elems, count),
            _ => &[],
        }
    }
}

/// A new list of partitions, each with `offset`.
pub(super) fn partition_list(
    what: &str,
    wanted: &[(&str, i32)],
    offset: i64,
) -> Result<Owned<sys::rd_kafka_topic_partition_list_t>, AdminError> {
    let size = c_int::try_from(wanted.len()).unwrap_or(c_int::MAX);
    // SAFETY: the new list is ours.
    let list = unsafe {
        Owned::new(sys::rd_kafka_topic_partition_list_new(size), sys::rd_kafka_topic_partition_list_destroy)
    }
    .ok_or_else(|| {
        AdminError::new(what, RDKafkaErrorCode::CriticalSystemResource, "no memory for the request")
    })?;
    for (topic, partition) in wanted {
        let topic = c_string(what, topic)?;
        // SAFETY: the list lives; it copies the topic's name, and returns a valid element of itself.
        unsafe {
            let element = sys::rd_kafka_topic_partition_list_add(list.as_ptr(), topic.as_ptr(), *partition);
            (*element).offset = offset;
        }
    }
    Ok(list)
}

/// Where librdkafka writes why it refused an argument.
pub(super) struct ReasonBuffer([c_char; Self::LENGTH]);

impl ReasonBuffer {
    pub(super) const LENGTH: usize = 512;

    pub(super) fn new() -> Self {
        Self([0; Self::LENGTH])
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut c_char {
        self.0.as_mut_ptr()
    }

    pub(super) fn text(&self) -> String {
        // SAFETY: the buffer starts zeroed, and librdkafka ends what it writes with a NUL inside the given length.
        unsafe { text_of(self.0.as_ptr()) }
    }
}

fn check(what: &str, error: sys::rd_kafka_resp_err_t, reason: &ReasonBuffer) -> Result<(), AdminError> {
    match error {
        sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(()),
        error => Err(AdminError::new(what, error.into(), &reason.text())),
    }
}
