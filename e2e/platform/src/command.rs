//! Running other programs, and writing files so that a crash leaves the old or the new one.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// One program to run, with what is said when it fails.
#[derive(Debug)]
pub struct Run {
    command: Command,
    shown: String,
    log: Option<PathBuf>,
    input: Option<Vec<u8>>,
}

impl Run {
    /// A program by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let shown = Path::new(program.as_ref())
            .file_name()
            .unwrap_or(program.as_ref())
            .to_string_lossy()
            .into_owned();
        Self { command: Command::new(program), shown, log: None, input: None }
    }

    /// Adds arguments.
    pub fn args<I, S>(mut self, args: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        for arg in args {
            self.shown.push(' ');
            self.shown.push_str(&arg.as_ref().to_string_lossy());
            self.command.arg(arg);
        }
        self
    }

    /// Adds one argument.
    pub fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.args([arg])
    }

    /// Sets the working folder.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Gives the program this on its standard input.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Appends the output to a log file, which a failure then names.
    pub fn log(mut self, path: impl Into<PathBuf>) -> Self {
        self.log = Some(path.into());
        self
    }

    /// Runs to the end and returns what was printed.
    ///
    /// # Errors
    /// The program cannot be started or fails; the message holds the command and the end of its output.
    pub fn output(mut self) -> Result<String> {
        self.command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut log = None;
        if let Some(path) = &self.log {
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            let mut file = append(path)?;
            writeln!(file, "$ {}", self.shown)?;
            self.command.stdout(file.try_clone()?).stderr(file.try_clone()?);
            log = Some(file);
        } else {
            self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        }
        let mut child = self.command.spawn().with_context(|| format!("starting `{}`", self.shown))?;
        if let (Some(input), Some(mut stdin)) = (self.input, child.stdin.take()) {
            stdin.write_all(&input).with_context(|| format!("writing to `{}`", self.shown))?;
        }
        let output = child.wait_with_output().with_context(|| format!("waiting for `{}`", self.shown))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        drop(log);
        let (said, whole) = match &self.log {
            Some(path) => (
                std::fs::read_to_string(path).unwrap_or_default(),
                format!("\nthe whole log: {}", path.display()),
            ),
            None => (
                format!(
                    "{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                ),
                String::new(),
            ),
        };
        bail!("`{}` failed ({}):\n{}{whole}", self.shown, output.status, tail(&said, 25))
    }

    /// Runs to the end and forgets what was printed.
    ///
    /// # Errors
    /// As [`Run::output`].
    pub fn quiet(self) -> Result<()> {
        self.output().map(drop)
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Opens a log file for appending.
///
/// # Errors
/// The file cannot be opened.
pub fn append(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening the log {}", path.display()))
}

/// Whether a program of this name is on the `PATH`.
pub fn on_path(program: &str) -> bool {
    find_on_path(program).is_some()
}

/// The path of a program, looked for on `PATH` and in the folders of system programs that `PATH` may lack.
/// The path of a program, looked for on `PATH` and in the folders of system programs that `PATH` may lack.
pub fn find_on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}

/// Writes a file under another name and renames it.
///
/// # Errors
/// The folder cannot be written.
pub fn write_atomically(path: &Path, content: &[u8]) -> Result<()> {
    let context = || format!("writing {}", path.display());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(context)?;
    }
    let mut name = path.file_name().ok_or_else(|| anyhow!("{} names no file", path.display()))?.to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    std::fs::write(&new, content).with_context(context)?;
    std::fs::rename(&new, path).with_context(context)
}

/// Tries until the attempt succeeds; after `limit` the last failure is returned.
///
/// # Errors
/// The last failure, with what was waited for and how long.
pub fn wait_until<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= limit => {
                return Err(error.context(format!("{what}: not within {} s", limit.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(150)),
        }
    }
}

/// A file whose lock is held for as long as this lives; other processes wait.
#[derive(Debug)]
pub struct Locked {
    _file: File,
}

impl Locked {
    /// Waits for the lock; `waiting` is printed once when somebody else holds it.
    ///
    /// # Errors
    /// The file cannot be made or locked.
    pub fn on(path: &Path, waiting: &str) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        }
        let file = append(path)?;
        if file.try_lock().is_err() {
            eprintln!("{waiting}");
            file.lock().with_context(|| format!("locking {}", path.display()))?;
        }
        Ok(Self { _file: file })
    }
}
