//! What capture counts.

use penstock_pipeline::{events::dead_letter::Reason, telemetry::Metrics};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Unit,
};

/// Metrics of capture. Clones share them.
#[derive(Clone, Debug)]
pub struct CaptureMetrics {
    requests: Family<RequestLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    dead_letters: Family<ReasonLabels, Counter>,
    write_failures: Family<ErrorLabels, Counter>,
    /// Events that were acknowledged.
    pub events: Counter,
    /// Time from handing a request's messages to Kafka to the last acknowledgement.
    pub acknowledgement_seconds: Histogram,
    /// Time from a request's headers to its answer.
    pub request_seconds: Histogram,
    /// Bodies as they came.
    pub body_bytes: Histogram,
    /// Text after decompression.
    pub text_bytes: Histogram,
    /// Open connections.
    pub connections: Gauge,
    /// Producers that were replaced after a fatal error.
    pub producers_replaced: Counter,
    /// Requests under way.
    pub requests_in_flight: Gauge,
    /// Bytes of bodies that are held.
    pub in_flight_bytes: Gauge,
    /// Bytes of records that wait for Kafka.
    pub queue_bytes: Gauge,
    /// Messages that librdkafka holds.
    pub queue_messages: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    error: &'static str,
}

impl CaptureMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let bytes = || Histogram::new(exponential_buckets(256.0, 4.0, 9));
        let this = Self {
            requests: Family::default(),
            refused: Family::default(),
            dead_letters: Family::default(),
            write_failures: Family::default(),
            events: Counter::default(),
            acknowledgement_seconds: seconds(),
            request_seconds: seconds(),
            body_bytes: bytes(),
            text_bytes: bytes(),
            connections: Gauge::default(),
            producers_replaced: Counter::default(),
            requests_in_flight: Gauge::default(),
            in_flight_bytes: Gauge::default(),
            queue_bytes: Gauge::default(),
            queue_messages: Gauge::default(),
        };
        let all = this.clone();
        metrics.register(|registry| {
            registry.register("capture_requests", "Answered requests", all.requests);
            registry.register("capture_refusals", "Requests that were not taken", all.refused);
            registry.register("capture_dead_letters", "Events put aside among good ones", all.dead_letters);
            let help = "Requests whose messages Kafka did not acknowledge";
            registry.register("capture_write_failures", help, all.write_failures);
            registry.register("capture_events", "Events acknowledged by Kafka", all.events);
            let help = "From handing messages to Kafka to the last acknowledgement";
            registry.register_with_unit(
                "capture_acknowledgement",
                help,
                Unit::Seconds,
                all.acknowledgement_seconds,
            );
            let help = "From the headers of a request to its answer";
            registry.register_with_unit("capture_request", help, Unit::Seconds, all.request_seconds);
            registry.register_with_unit("capture_body", "Bodies as they came", Unit::Bytes, all.body_bytes);
            registry.register_with_unit("capture_text", "Bodies decompressed", Unit::Bytes, all.text_bytes);
            registry.register("capture_connections", "Open connections", all.connections);
            let help = "Producers replaced after a fatal error";
            registry.register("capture_producers_replaced", help, all.producers_replaced);
            registry.register("capture_requests_in_flight", "Requests under way", all.requests_in_flight);
            let help = "Bodies that are held, compressed and decompressed";
            registry.register_with_unit("capture_in_flight", help, Unit::Bytes, all.in_flight_bytes);
            let help = "Records that wait for Kafka";
            registry.register_with_unit("capture_queue", help, Unit::Bytes, all.queue_bytes);
            registry.register("capture_queue_messages", "Messages that librdkafka holds", all.queue_messages);
        });
        this
    }

    /// A request was answered.
    pub fn answered(&self, route: &'static str, status: u16) {
        self.requests.get_or_create(&RequestLabels { route, status }).inc();
    }

    /// A request was not taken.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Events were put aside.
    pub fn dead_lettered(&self, reasons: &[Reason]) {
        for reason in reasons {
            self.dead_letters.get_or_create(&ReasonLabels { reason: reason.code() }).inc();
        }
    }

    /// Kafka did not take the messages of a request.
    pub fn write_failed(&self, error: &'static str) {
        self.write_failures.get_or_create(&ErrorLabels { error }).inc();
    }
}
