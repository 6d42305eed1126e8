//! Logs and metrics.
//!
//! Logs: one JSON object per line on standard output, each with `namespace`, `pipeline`, `component` and `pod`.
//! Metrics: the OpenMetrics text format; every name begins with `penstock_`, apart from those of the process itself.

use std::{
    fmt, fs,
    sync::{Arc, Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::{Registry, Unit},
};
use serde_json::{Map, Value};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    EnvFilter,
    fmt::{
        FmtContext, FormatEvent, FormattedFields,
        format::{JsonFields, Writer},
    },
    registry::LookupSpan,
};

use crate::config::Identity;

/// Ticks per second of the times in `/proc/<pid>/stat`: part of Linux' interface, the same on all of its machines.
const USER_HZ: f64 = 100.0;

/// Sends log lines to standard output and panics to the log. Level and targets come from `RUST_LOG`, default `info`.
/// Does nothing when logs are already set up (tests).
pub fn init_logs(identity: &Identity, pod: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let fields = JsonLines {
        identity: [
            ("namespace", identity.namespace.clone()),
            ("pipeline", identity.pipeline.clone()),
            ("component", identity.component.clone()),
            ("pod", pod.to_owned()),
        ],
    };
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(JsonFields::new())
        .event_format(fields)
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        let message = panic
            .payload()
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.payload().downcast_ref::<String>().cloned())
            .unwrap_or_default();
        let location = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(location, panic = message, "a thread panicked");
    }));
}

/// One JSON object per event: time, level, who, message, fields of the spans around it, fields of the event.
struct JsonLines {
    identity: [(&'static str, String); 4],
}

impl<S> FormatEvent<S, JsonFields> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = Map::new();
        let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
        line.insert("timestamp".to_owned(), now.into());
        line.insert("level".to_owned(), event.metadata().level().as_str().into());
        for (name, value) in &self.identity {
            line.insert((*name).to_owned(), value.clone().into());
        }
        line.insert("target".to_owned(), event.metadata().target().into());
        for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let fields = extensions.get::<FormattedFields<JsonFields>>().map(|fields| fields.as_str());
            if let Some(Ok(Value::Object(fields))) = fields.map(serde_json::from_str) {
                line.extend(fields);
            }
        }
        event.record(&mut JsonFieldsOf(&mut line));
        writeln!(writer, "{}", Value::Object(line))
    }
}

struct JsonFieldsOf<'a>(&'a mut Map<String, Value>);

impl JsonFieldsOf<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().trim_start_matches("r#").to_owned(), value);
    }
}

impl Visit for JsonFieldsOf<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format!("{value:?}").into());
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }
}

/// The metrics of a process. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// Media type of [`Metrics::encode`].
    pub const CONTENT_TYPE: &'static str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

    /// The metrics that every process has: `penstock_build_info` and those of the operating system.
    pub fn new(identity: &Identity) -> Self {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Process::new()));
        let build = Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("component", identity.component.clone()),
        ]);
        registry.sub_registry_with_prefix("penstock").register("build", "What is running", build);
        Self { registry: Arc::new(Mutex::new(registry)) }
    }

    /// Registers metrics. The prefix `penstock_` and a counter's suffix `_total` are added to the names.
    ///
    /// Register each name once: keep and clone the metric, not its registration.
    pub fn register<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        register(registry.sub_registry_with_prefix("penstock"))
    }

    /// All metrics, as Prometheus reads them.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(8 * 1024);
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

/// Processor time and memory of this process, read when Prometheus asks.
#[derive(Debug)]
struct Process {
    started: f64,
}

impl Process {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: now.as_secs_f64() }
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, unit, metric.metric_type())?)
        };
        gauge("process_start_time", "When the process started", Some(&Unit::Seconds), self.started)?;
        if let Some(bytes) = fs::read_to_string("/proc/self/status").ok().as_deref().and_then(resident_bytes)
        {
            gauge("process_resident_memory", "Memory in use", Some(&Unit::Bytes), bytes as f64)?;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            gauge("process_open_fds", "Open files and sockets", None, files.count() as f64)?;
        }
        if let Some(seconds) = fs::read_to_string("/proc/self/stat").ok().as_deref().and_then(cpu_seconds) {
            let metric = ConstCounter::new(seconds);
            let help = "Processor time, user and system";
            metric.encode(encoder.encode_descriptor(
                "process_cpu",
                help,
                Some(&Unit::Seconds),
                metric.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

/// `VmRSS` of `/proc/self/status`, in bytes.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// User and system time of `/proc/self/stat`. The second field may contain spaces, so fields are counted after it.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / USER_HZ)
}

#[cfg(test)]
mod tests {
    use std::io;

    use prometheus_client::metrics::counter::Counter;
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    fn identity() -> Identity {
        Identity { namespace: "shop".into(), pipeline: "web".into(), component: "capture".into() }
    }

    #[test]
    fn names_carry_the_prefix_and_the_process_tells_its_own() {
        let metrics = Metrics::new(&identity());
        let counter = Counter::<u64>::default();
        metrics.register(|registry| registry.register("things", "Things", counter.clone()));
        counter.inc();
        let text = metrics.encode().unwrap();
        assert!(text.contains("penstock_things_total 1\n"), "{text}");
        assert!(text.contains("penstock_build_info{version="), "{text}");
        assert!(text.contains("process_cpu_seconds_total "), "{text}");
        assert!(text.contains("process_resident_memory_bytes "), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn proc_files_are_read_even_with_spaces_in_the_name() {
        assert_eq!(cpu_seconds("1 (a ) b) S 1 1 1 0 -1 0 0 0 0 0 150 50 0 0"), Some(2.0));
        assert_eq!(cpu_seconds("nonsense"), None);
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t   12 kB\n"), Some(12 * 1024));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;
        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn a_log_line_is_json_and_says_who() {
        let lines = Lines::default();
        let format = JsonLines {
            identity: [
                ("namespace", "shop".into()),
                ("pipeline", "web".into()),
                ("component", "capture".into()),
                ("pod", "web-capture-0".into()),
            ],
        };
        let subscriber = tracing_subscriber::fmt()
            .with_writer(lines.clone())
            .fmt_fields(JsonFields::new())
            .event_format(format)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let _span = tracing::info_span!("batch", partition = 3).entered();
            tracing::warn!(topic = "captured", lag = 7_u64, "behind by \"much\"");
        });
        let bytes = lines.0.lock().unwrap().clone();
        let line: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(line["message"], "behind by \"much\"");
        assert_eq!(line["level"], "WARN");
        assert_eq!(line["namespace"], "shop");
        assert_eq!(line["pod"], "web-capture-0");
        assert_eq!(line["partition"], 3);
        assert_eq!(line["lag"], 7);
        assert_eq!(bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
