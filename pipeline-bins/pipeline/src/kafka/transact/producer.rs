//! The transactional producer: librdkafka's calls, and their failures as plain data.

use std::time::{Duration, Instant};

use rdkafka::{
    TopicPartitionList,
    consumer::ConsumerGroupMetadata,
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{BaseProducer, BaseRecord, Producer as _},
};
use rdkafka_sys as sys;

use super::{Options, lifecycle::Failure};
use crate::kafka::{
    client::{self, LogContext},
    connection,
};

/// Longest single wait inside a call, so that others (delivery errors) get their turn.
const SLICE: Duration = Duration::from_millis(100);

pub(super) struct Producer {
    inner: BaseProducer<LogContext>,
}

impl Producer {
    /// A client that is not initialised yet. Fails only when librdkafka refuses its configuration.
    pub fn new(options: &Options) -> Result<Self, KafkaError> {
        let transaction = &options.transaction;
        // Room for two transactions: outcomes are about as large as messages.
        let queue_bytes = transaction.max_bytes.saturating_mul(2).clamp(16 << 20, 512 << 20);
        let inner: BaseProducer<LogContext> = client::transactional_producer(
            &options.kafka,
            &options.component,
            &options.transactional_id(),
            transaction.timeout_ms,
            queue_bytes,
        )
        .create_with_context(options.kafka.context())?;
        connection::refresh(inner.client());
        Ok(Self { inner })
    }

    /// Takes over the transactional id: what a predecessor left open is ended by the broker first.
    pub fn init(&self, timeout: Duration) -> Result<(), Failure> {
        let result = self.inner.init_transactions(timeout).map_err(failure);
        self.inner.poll(Duration::ZERO);
        result
    }

    pub fn begin(&self) -> Result<(), Failure> {
        connection::refresh(self.inner.client());
        self.inner.begin_transaction().map_err(failure)
    }

    /// Hands a record to the queue.
    pub fn send(
        &self,
        topic: &str,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp_ms: i64,
        headers: Option<OwnedHeaders>,
    ) -> Result<(), Failure> {
        let record = BaseRecord {
            topic,
            partition: None,
            payload: value,
            key,
            timestamp: (timestamp_ms > 0).then_some(timestamp_ms),
            headers,
            delivery_opaque: (),
        };
        self.inner.send(record).map_err(|(error, _)| failure(error))
    }

    /// Serves what librdkafka reports; waits for as long when there is nothing.
    pub fn serve(&self, timeout: Duration) {
        connection::refresh(self.inner.client());
        self.inner.poll(timeout);
    }

    pub fn send_offsets(
        &self,
        offsets: &TopicPartitionList,
        group: &ConsumerGroupMetadata,
        timeout: Duration,
    ) -> Result<(), Failure> {
        self.inner.send_offsets_to_transaction(offsets, group, timeout).map_err(failure)
    }

    /// Waits until all records are acknowledged (or have failed, which the commit then tells).
    ///
    /// The crate's own flush sleeps in steps of 100 ms; librdkafka's wakes when the last acknowledgement comes, and stops
    /// lingering.
    pub fn flush(&self, timeout: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        loop {
            let slice = SLICE.min(deadline.saturating_duration_since(Instant::now()));
            let millis = i32::try_from(slice.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: the client is valid as long as `self`.
            let error = unsafe { sys::rd_kafka_flush(self.inner.client().native_ptr(), millis) };
            if error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return Ok(());
            }
            // Only failed records are reported, and they count as waiting until their report is taken.
            self.inner.poll(Duration::ZERO);
            if Instant::now() >= deadline {
                return Err(Failure {
                    code: RDKafkaErrorCode::OperationTimedOut,
                    fatal: false,
                    retriable: true,
                    requires_abort: false,
                    reason: format!("{} records are not acknowledged yet", self.inner.in_flight_count()),
                });
            }
        }
    }

    /// Commits, after [`Producer::flush`].
    pub fn commit(&self, timeout: Duration) -> Result<(), Failure> {
        self.inner.commit_transaction(timeout).map_err(failure)
    }

    /// Aborts. Records that wait are reported as failed, and must be served in between.
    pub fn abort(&self, timeout: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + timeout;
        loop {
            let slice = SLICE.min(deadline.saturating_duration_since(Instant::now()));
            match self.inner.abort_transaction(slice).map_err(failure) {
                Err(failure) if failure.retriable && Instant::now() < deadline => {
                    self.inner.poll(Duration::from_millis(5));
                }
                other => return other,
            }
        }
    }
}

/// Headers in the form that librdkafka takes.
pub(super) fn native_headers<'a>(
    headers: impl ExactSizeIterator<Item = (&'a str, Option<&'a [u8]>)>,
) -> OwnedHeaders {
    let empty = OwnedHeaders::new_with_capacity(headers.len());
    headers.fold(empty, |headers, (key, value)| headers.insert(Header { key, value }))
}

fn failure(error: KafkaError) -> Failure {
    match &error {
        KafkaError::Transaction(inner) => Failure {
            code: inner.code(),
            fatal: inner.is_fatal(),
            retriable: inner.is_retriable(),
            requires_abort: inner.txn_requires_abort(),
            reason: format!("{} ({})", inner.string(), inner.name()),
        },
        KafkaError::Flush(code) => Failure {
            code: *code,
            fatal: false,
            retriable: true,
            requires_abort: false,
            reason: error.to_string(),
        },
        other => Failure {
            code: other.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown),
            fatal: false,
            retriable: false,
            requires_abort: false,
            reason: other.to_string(),
        },
    }
}
