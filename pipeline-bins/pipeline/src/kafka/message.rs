//! A message as it came from Kafka, borrowed from librdkafka's memory: nothing is copied until someone needs it.

use std::{ffi::CStr, marker::PhantomData, ptr};

use rdkafka_sys as sys;

/// One consumed message.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Partition of the source topic.
    pub partition: i32,
    /// Offset in that partition.
    pub offset: i64,
    /// Kafka time of the message, milliseconds since 1970; what is written on keeps it. Zero when the message has none.
    pub timestamp_ms: i64,
    /// `None` is no key, which is not the same as an empty key.
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers, in their order.
    pub headers: Headers<'a>,
}

impl<'a> Message<'a> {
    /// A message made of plain data, for tests and for tools that do not read from Kafka. Without key, headers or time.
    pub fn of(value: &'a [u8]) -> Self {
        Self {
            partition: 0,
            offset: 0,
            timestamp_ms: 0,
            key: None,
            value: Some(value),
            headers: Headers::none(),
        }
    }

    /// The same with a key.
    #[must_use]
    pub fn with_key(self, key: &'a [u8]) -> Self {
        Self { key: Some(key), ..self }
    }

    /// The same with a Kafka time, milliseconds since 1970.
    #[must_use]
    pub fn with_timestamp_ms(self, timestamp_ms: i64) -> Self {
        Self { timestamp_ms, ..self }
    }

    /// The same at another place.
    #[must_use]
    pub fn at(self, partition: i32, offset: i64) -> Self {
        Self { partition, offset, ..self }
    }

    /// The same with headers.
    #[must_use]
    pub fn with_headers(self, headers: &'a [(&'a str, Option<&'a [u8]>)]) -> Self {
        Self { headers: Headers(Source::Plain(headers)), ..self }
    }

    /// Bytes of key and value.
    pub fn size(&self) -> usize {
        self.key.map_or(0, <[u8]>::len) + self.value.map_or(0, <[u8]>::len)
    }
}

/// Headers of a message. Names that are not UTF-8 are left out of lookups, never of what is written on.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a>(Source<'a>);

#[derive(Clone, Copy, Debug)]
enum Source<'a> {
    Plain(&'a [(&'a str, Option<&'a [u8]>)]),
    // The message, not its headers: librdkafka parses them when they are asked for, which most messages never are.
    Native(*const sys::rd_kafka_message_t, PhantomData<&'a ()>),
}

impl<'a> Headers<'a> {
    /// No headers.
    pub const fn none() -> Self {
        Self(Source::Plain(&[]))
    }

    /// # Safety
    /// `message` is a consumed message that lives and stays unchanged for `'a`.
    pub(super) unsafe fn of_native(message: *const sys::rd_kafka_message_t) -> Self {
        Self(Source::Native(message, PhantomData))
    }

    /// The header at this position: name and value. `None` behind the last.
    pub fn at(&self, index: usize) -> Option<(&'a [u8], Option<&'a [u8]>)> {
        match self.0 {
            Source::Plain(list) => list.get(index).map(|(name, value)| (name.as_bytes(), *value)),
            Source::Native(message, _) => {
                let mut headers = ptr::null_mut();
                let mut name = ptr::null();
                let mut value = ptr::null();
                let mut size = 0;
                let fine = sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;
                // SAFETY: `message` is valid for 'a by the contract of `of_native`; the out-pointers are ours, and what
                // they come to point at belongs to the message.
                unsafe {
                    if sys::rd_kafka_message_headers(message, &raw mut headers) != fine
                        || sys::rd_kafka_header_get_all(
                            headers,
                            index,
                            &raw mut name,
                            &raw mut value,
                            &raw mut size,
                        ) != fine
                    {
                        return None;
                    }
                    let name = CStr::from_ptr(name).to_bytes();
                    let value = (!value.is_null()).then(|| std::slice::from_raw_parts(value.cast(), size));
                    Some((name, value))
                }
            }
        }
    }

    /// All headers in their order.
    pub fn iter(&self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + '_ {
        (0..).map_while(|index| self.at(index))
    }

    /// Value of the last header of this name, as Kafka's own clients look one up. `None` when there is none or it is null.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.iter().filter(|(other, _)| *other == name.as_bytes()).last().and_then(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_header_of_a_name_counts() {
        let headers = [("a", Some(&b"1"[..])), ("b", None), ("a", Some(&b"2"[..]))];
        let message = Message::of(b"").with_headers(&headers);
        assert_eq!(message.headers.get("a"), Some(&b"2"[..]));
        assert_eq!(message.headers.get("b"), None);
        assert_eq!(message.headers.get("c"), None);
        assert_eq!(message.headers.iter().count(), 3);
    }
}
