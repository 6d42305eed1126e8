//! What is expensive to build, kept outside the clone and named by what it was built from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::command::Locked;
use crate::layout::Layout;

/// A name for one set of inputs.
#[derive(Debug)]
pub struct Key {
    thing: &'static str,
    hash: Sha256,
}

impl Key {
    /// Starts a key for a thing, say `kubernetes`.
    pub fn of(thing: &'static str) -> Self {
        Self { thing, hash: Sha256::new() }
    }

    /// Adds text, say the build flags.
    #[must_use]
    pub fn with(mut self, text: &str) -> Self {
        self.hash.update(text.len().to_le_bytes());
        self.hash.update(text);
        self
    }

    /// Adds a file's content.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(self.with(&text))
    }

    fn name(self) -> String {
        format!("{}-{}", self.thing, &hex::encode(self.hash.finalize())[..12])
    }
}

/// The folder of a thing in the cache, made by `build` when it is not there. An interrupted build leaves nothing
/// under the thing's name; two builders of one thing wait for each other.
///
/// # Errors
/// Those of `build`, or the cache cannot be written.
pub fn ensure(layout: &Layout, key: Key, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let name = key.name();
    let dir = layout.cache.join(&name);
    if dir.exists() {
        return Ok(dir);
    }
    let _lock = Locked::on(
        &layout.cache.join(format!("{name}.lock")),
        &format!("waiting for another build of {name}"),
    )?;
    if dir.exists() {
        return Ok(dir);
    }
    let new = layout.cache.join(format!("{name}.new"));
    let _ = std::fs::remove_dir_all(&new);
    std::fs::create_dir_all(&new).with_context(|| format!("making {}", new.display()))?;
    build(&new)?;
    std::fs::rename(&new, &dir).with_context(|| format!("putting {} in place", dir.display()))?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::HostPorts;

    fn layout(cache: &Path) -> Layout {
        Layout {
            state: cache.join("state"),
            cache: cache.to_owned(),
            sources: PathBuf::from(env!("CARGO_MANIFEST_DIR")),
            ports: HostPorts {
                api: 1,
                kafka: 2,
                kafka_tls: 3,
                kafka_sasl: 4,
                clickhouse: 5,
                clickhouse_tls: 6,
            },
        }
    }

    #[test]
    fn a_thing_is_built_once_and_again_when_its_inputs_change() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let layout = layout(dir.path());
        let first =
            ensure(&layout, Key::of("thing").with("a"), |new| Ok(std::fs::write(new.join("file"), "1")?))?;
        let again = ensure(&layout, Key::of("thing").with("a"), |_| panic!("built a second time"))?;
        assert_eq!(first, again);
        let other = ensure(&layout, Key::of("thing").with("b"), |_| Ok(()))?;
        assert_ne!(first, other);
        Ok(())
    }

    #[test]
    fn a_failed_build_leaves_nothing_under_the_name() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let layout = layout(dir.path());
        let failed = ensure(&layout, Key::of("thing").with("a"), |new| {
            std::fs::write(new.join("half"), "")?;
            anyhow::bail!("interrupted")
        });
        assert!(failed.is_err());
        let built = ensure(&layout, Key::of("thing").with("a"), |_| Ok(()))?;
        assert!(!built.join("half").exists());
        Ok(())
    }

    #[test]
    fn the_border_between_two_inputs_is_part_of_the_key() {
        assert_ne!(Key::of("t").with("ab").with("c").name(), Key::of("t").with("a").with("bc").name());
    }
}
