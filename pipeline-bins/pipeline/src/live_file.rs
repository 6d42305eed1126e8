//! A file that is read again when its content changes.
//!
//! Polled, and compared by content: Kubernetes swaps symbolic links under a mounted Secret, which file watchers of the
//! kernel see badly, and a kubelet takes up to a minute anyway. A file that cannot be used leaves the last good content
//! in force, and says so in the log and in `penstock_live_file_stale`.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use tracing::{error, info};

use crate::telemetry::Metrics;

/// How often files are looked at.
pub const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot use {path}: {reason}", path = path.display())]
pub struct LiveFileError {
    /// The file.
    pub path: PathBuf,
    /// Why, for people; without the file's content, which may be secret.
    pub reason: String,
}

/// Turns the content of a file into what is used, or says why it cannot. The reason must not repeat secrets.
pub type Parse<T> = fn(&[u8]) -> Result<T, String>;

/// Metrics of all live files of a process. Register once and clone.
#[derive(Clone, Debug)]
pub struct LiveFileMetrics {
    reloads: Family<FileLabels, Counter>,
    stale: Family<FileLabels, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabels {
    file: String,
}

impl LiveFileMetrics {
    /// Registers them.
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self { reloads: Family::default(), stale: Family::default() };
        metrics.register(|registry| {
            registry.register(
                "live_file_reloads",
                "Changes of the file that were taken up",
                this.reloads.clone(),
            );
            let help = "1 when the file cannot be used and its last good content is in force";
            registry.register("live_file_stale", help, this.stale.clone());
        });
        this
    }
}

/// The newest usable content of a file. Clones share it; reading takes no lock.
pub struct LiveFile<T> {
    current: Arc<ArcSwap<T>>,
}

impl<T> Clone for LiveFile<T> {
    fn clone(&self) -> Self {
        Self { current: Arc::clone(&self.current) }
    }
}

impl<T> fmt::Debug for LiveFile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveFile").finish_non_exhaustive()
    }
}

impl<T: Send + Sync + 'static> LiveFile<T> {
    /// Reads the file, and goes on looking at it until the last clone is dropped. `name` is its name in metrics and
    /// logs. Fails when the file cannot be used now: there is nothing to fall back to. Call it inside a runtime.
    pub async fn open(
        name: &str,
        path: &Path,
        parse: Parse<T>,
        metrics: &LiveFileMetrics,
    ) -> Result<Self, LiveFileError> {
        Self::open_polled(name, path, parse, metrics, POLL_INTERVAL).await
    }

    async fn open_polled(
        name: &str,
        path: &Path,
        parse: Parse<T>,
        metrics: &LiveFileMetrics,
        interval: Duration,
    ) -> Result<Self, LiveFileError> {
        let (content, value) = read(path, parse).await?;
        let this = Self::fixed(value);
        metrics.stale.get_or_create(&FileLabels { file: name.to_owned() }).set(0);
        let watch = Watch {
            labels: FileLabels { file: name.to_owned() },
            path: path.to_owned(),
            parse,
            metrics: metrics.clone(),
            current: Arc::downgrade(&this.current),
            content,
            complaint: None,
        };
        tokio::spawn(watch.run(interval));
        Ok(this)
    }

    /// Content that never changes, for tests and for what is not in a file.
    pub fn fixed(value: T) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(value)) }
    }

    /// The content in force. Do not keep the guard over an `await`; take [`LiveFile::snapshot`] for that.
    pub fn load(&self) -> Guard<Arc<T>> {
        self.current.load()
    }

    /// The content in force, to keep.
    pub fn snapshot(&self) -> Arc<T> {
        self.current.load_full()
    }
}

async fn read<T>(path: &Path, parse: Parse<T>) -> Result<(Vec<u8>, T), LiveFileError> {
    let failed = |reason: String| LiveFileError { path: path.to_owned(), reason };
    let content = tokio::fs::read(path).await.map_err(|error| failed(error.to_string()))?;
    let value = parse(&content).map_err(failed)?;
    Ok((content, value))
}

struct Watch<T> {
    labels: FileLabels,
    path: PathBuf,
    parse: Parse<T>,
    metrics: LiveFileMetrics,
    current: Weak<ArcSwap<T>>,
    /// The content that `current` was made of.
    content: Vec<u8>,
    /// What was last complained about, so that it is said once.
    complaint: Option<LiveFileError>,
}

impl<T: Send + Sync + 'static> Watch<T> {
    async fn run(mut self, interval: Duration) {
        loop {
            tokio::time::sleep(interval).await;
            let Some(current) = self.current.upgrade() else { return };
            self.look(&current).await;
        }
    }

    async fn look(&mut self, current: &ArcSwap<T>) {
        let outcome = match tokio::fs::read(&self.path).await {
            Ok(content) if content == self.content => Ok(None),
            Ok(content) => (self.parse)(&content).map(|value| Some((content, value))),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(None) => self.recovered(),
            Ok(Some((content, value))) => {
                current.store(Arc::new(value));
                self.content = content;
                self.metrics.reloads.get_or_create(&self.labels).inc();
                info!(file = self.labels.file, path = %self.path.display(), "file reloaded");
                self.recovered();
            }
            Err(reason) => {
                let complaint = LiveFileError { path: self.path.clone(), reason };
                if self.complaint.as_ref() != Some(&complaint) {
                    error!(file = self.labels.file, error = %complaint, "keeping the last good content");
                    self.complaint = Some(complaint);
                }
                self.metrics.stale.get_or_create(&self.labels).set(1);
            }
        }
    }

    fn recovered(&mut self) {
        self.complaint = None;
        self.metrics.stale.get_or_create(&self.labels).set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::config::Identity;

    const QUICK: Duration = Duration::from_millis(5);

    fn metrics() -> Metrics {
        Metrics::new(&Identity { namespace: "n".into(), pipeline: "p".into(), component: "c".into() })
    }

    fn number(content: &[u8]) -> Result<u32, String> {
        std::str::from_utf8(content)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .ok_or("not a number".into())
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        for _ in 0..400 {
            if condition() {
                return;
            }
            tokio::time::sleep(QUICK).await;
        }
        panic!("never: {what}");
    }

    #[tokio::test]
    async fn a_file_behind_swapped_links_is_taken_up_and_a_bad_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for (name, content) in [("one", "1"), ("two", "2"), ("bad", "x")] {
            fs::write(path(name), content).unwrap();
        }
        let point_to = |name: &str| {
            symlink(path(name), path("next")).unwrap();
            fs::rename(path("next"), path("current")).unwrap();
        };
        point_to("one");
        let metrics = metrics();
        let file_metrics = LiveFileMetrics::new(&metrics);
        let file =
            LiveFile::open_polled("number", &path("current"), number, &file_metrics, QUICK).await.unwrap();
        assert_eq!(**file.load(), 1);
        point_to("two");
        until("2 is taken up", || **file.load() == 2).await;
        point_to("bad");
        let stale = "penstock_live_file_stale{file=\"number\"} 1";
        until("stale is told", || metrics.encode().unwrap().contains(stale)).await;
        assert_eq!(*file.snapshot(), 2);
        point_to("one");
        until("1 is back", || **file.load() == 1).await;
        until("no longer stale", || !metrics.encode().unwrap().contains(stale)).await;
    }

    #[tokio::test]
    async fn a_file_that_is_missing_at_the_start_is_an_error_that_names_it() {
        let missing = Path::new("/does/not/exist");
        let error =
            LiveFile::open("x", missing, number, &LiveFileMetrics::new(&metrics())).await.unwrap_err();
        assert!(error.to_string().contains("/does/not/exist"), "{error}");
    }
}
