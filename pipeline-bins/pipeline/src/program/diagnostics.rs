//! What the compiler says about a program, as plain text for a terminal, a log or a Kubernetes condition.

use std::fmt::{self, Write as _};

use vrl::{
    compiler::codes::{ExprCode, ParserCode},
    diagnostic::{DiagnosticList, Label, Note, Severity as VrlSeverity, Span},
};

use super::{fields, functions};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The program is refused.
    Error,
    /// The program runs, but something about it is probably not meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// A place in a program; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

impl Position {
    /// Of this byte of the source.
    pub(super) fn of(source: &str, byte: usize) -> Self {
        let before = &source[..source.floor_char_boundary(byte.min(source.len()))];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
    }
}

/// One thing that the compiler says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// VRL's code of the error (`E103`), if it is VRL's.
    pub code: Option<String>,
    /// What is wrong.
    pub message: String,
    /// Where.
    pub position: Option<Position>,
    /// What is said about the place, beyond the message.
    details: Vec<String>,
    /// Lines of the program with what is wrong in them, underlined.
    pub excerpts: Vec<String>,
    /// What to do about it.
    pub hints: Vec<String>,
}

impl Diagnostic {
    /// An error of our own, with what to do.
    pub(super) fn error(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code: None,
            message: message.into(),
            position: None,
            details: Vec::new(),
            excerpts: Vec::new(),
            hints: vec![hint.into()],
        }
    }

    /// Points at a byte of the program.
    pub(super) fn at_byte(mut self, source: &str, at: usize) -> Self {
        self.position = Some(Position::of(source, at));
        self.excerpts.extend(excerpt(source, Span::new(at, at + 1), ""));
        self
    }

    /// Points at the first place where this text stands for itself in the program.
    pub(super) fn at_text(mut self, source: &str, text: &str) -> Self {
        let place = source.match_indices(text).map(|(at, _)| at).find(|at| {
            let continues = |c: char| c.is_alphanumeric() || c == '_' || c == '@';
            !source[at + text.len()..].starts_with(continues) && !source[..*at].ends_with(continues)
        });
        if let Some(at) = place {
            self.position = Some(Position::of(source, at));
            self.excerpts.extend(excerpt(source, Span::new(at, at + text.len()), ""));
        }
        self
    }

    /// One line: where, what, and the first hint.
    pub fn summary(&self) -> String {
        let mut line = String::new();
        if let Some(position) = self.position {
            let _ = write!(line, "{position}: ");
        }
        line.push_str(&self.message);
        for detail in self.details.iter().chain(self.hints.first()) {
            let _ = write!(line, "; {detail}");
        }
        line
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.severity)?;
        if let Some(position) = self.position {
            write!(f, " at {position}")?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(code) = &self.code {
            write!(f, " ({code})")?;
        }
        for excerpt in &self.excerpts {
            write!(f, "\n{excerpt}")?;
        }
        for hint in &self.hints {
            write!(f, "\n  {}", hint.replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

/// What the compiler says about a program. As an error: why it was refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics(Vec<Diagnostic>);

impl Diagnostics {
    /// Each of them, errors first.
    pub fn iter(&self) -> impl Iterator<Item = &Diagnostic> {
        self.0.iter()
    }

    /// Whether there is nothing to say.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One line, for a condition or a log: the first of them, and how many more there are.
    pub fn summary(&self) -> String {
        match self.0.as_slice() {
            [] => String::new(),
            [only] => only.summary(),
            [first, rest @ ..] => format!("{} (and {} more)", first.summary(), rest.len()),
        }
    }

    pub(super) fn from_vrl(source: &str, list: DiagnosticList) -> Self {
        Self::from_iter(list.into_iter().map(|diagnostic| translated(source, diagnostic)))
    }
}

impl FromIterator<Diagnostic> for Diagnostics {
    fn from_iter<T: IntoIterator<Item = Diagnostic>>(diagnostics: T) -> Self {
        let mut diagnostics: Vec<_> = diagnostics.into_iter().collect();
        diagnostics.sort_by_key(|diagnostic| diagnostic.severity);
        Self(diagnostics)
    }
}

impl IntoIterator for Diagnostics {
    type Item = Diagnostic;
    type IntoIter = std::vec::IntoIter<Diagnostic>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, diagnostic) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{diagnostic}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

fn translated(source: &str, diagnostic: vrl::diagnostic::Diagnostic) -> Diagnostic {
    let primary = diagnostic.labels.iter().find(|label| label.primary).or(diagnostic.labels.first());
    let position = primary.map(|label| Position::of(source, label.span.start()));
    let refused = (diagnostic.code == ExprCode::UndefinedFunction as usize)
        .then(|| primary.and_then(|label| source.get(label.span.range())))
        .flatten()
        .and_then(|name| functions::refusal(name).map(|reason| (name, reason)));

    let mut translated = Diagnostic {
        severity: match diagnostic.severity {
            VrlSeverity::Error | VrlSeverity::Bug => Severity::Error,
            VrlSeverity::Warning | VrlSeverity::Note => Severity::Warning,
        },
        code: (diagnostic.code != 0).then(|| format!("E{:03}", diagnostic.code)),
        message: diagnostic.message.trim().to_owned(),
        position,
        details: Vec::new(),
        excerpts: Vec::new(),
        hints: Vec::new(),
    };
    if let (Some((name, reason)), Some(label)) = (refused, primary) {
        translated.message = format!("the function {name} is not available");
        translated.excerpts.extend(excerpt(source, label.span, ""));
        translated.hints.push(reason.explanation().to_owned());
        return translated;
    }
    // What a function says about its argument comes wrapped.
    if let Some((_, inner)) = translated
        .message
        .strip_prefix("function compilation error: error[")
        .and_then(|rest| rest.split_once("] "))
    {
        translated.message = inner.to_owned();
    }
    let mut labels = diagnostic.labels;
    labels.sort_by_key(|label| (!label.primary, label.span));
    // The list of everything that could stand there instead helps nobody in one line.
    translated.details = labels
        .iter()
        .map(|label| label.message.clone())
        .filter(|said| *said != translated.message && !said.starts_with("expected one of"))
        .take(1)
        .collect();
    translated.excerpts = excerpts(source, &labels, &translated.message);
    translated.hints = diagnostic.notes.iter().filter_map(hint).collect();
    translated.hints.extend(own_hint(source, diagnostic.code, &translated));
    translated
}

/// What to do about the errors that people meet first.
fn own_hint(source: &str, code: usize, diagnostic: &Diagnostic) -> Option<String> {
    const FALLIBLE: [usize; 2] =
        [ExprCode::FallibleExpression as usize, ExprCode::FallibleAssignment as usize];
    const SYNTAX: [usize; 4] = [
        ParserCode::InvalidToken as usize,
        ParserCode::ExtraToken as usize,
        ParserCode::UnrecognizedToken as usize,
        ParserCode::UnexpectedParse as usize,
    ];
    if FALLIBLE.contains(&code) {
        Some(
            "say what happens when it fails: with `??` another value, as in (to_float(.properties.total) ?? 0.0) > 10.0; \
             with `!` an error of the event, as in to_float!(.properties.total)"
                .to_owned(),
        )
    } else if diagnostic.message.contains("read-only") {
        Some(format!(
            "a step may change {} and what is in them; a condition changes nothing",
            fields::writable_names()
        ))
    } else if SYNTAX.contains(&code) && source.contains(".$") {
        Some("names with a $ are quoted, as in .properties.\"$ip\"".to_owned())
    } else {
        None
    }
}

/// A note that says what to do; links to VRL's pages are left out.
fn hint(note: &Note) -> Option<String> {
    let text = match note {
        Note::Hint(_) | Note::Example(_) | Note::CoerceValue | Note::Basic(_) | Note::UserErrorMessage(_) => {
            note.to_string()
        }
        _ => return None,
    };
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

/// Longest line of a program that is shown whole, in characters.
const EXCERPT_WIDTH: usize = 120;

/// One excerpt for all labels of a line.
fn excerpts(source: &str, labels: &[Label], message: &str) -> Vec<String> {
    let mut excerpts: Vec<(usize, String)> = Vec::new();
    for label in labels {
        let said = if label.message == message { "" } else { label.message.as_str() };
        let line = Position::of(source, label.span.start()).line;
        let Some(new) = excerpt(source, label.span, said) else { continue };
        match excerpts.last_mut() {
            // The line itself is there already.
            Some((last, text)) if *last == line => {
                if let Some((_, marks)) = new.split_once('\n') {
                    text.push('\n');
                    text.push_str(marks);
                }
            }
            _ => excerpts.push((line, new)),
        }
    }
    excerpts.into_iter().map(|(_, text)| text).collect()
}

/// The line of the program in which the span begins, what it spans underlined, and what is said about it.
fn excerpt(source: &str, span: Span, message: &str) -> Option<String> {
    let start = source.floor_char_boundary(span.start().min(source.len()));
    let end = source.ceil_char_boundary(span.end().clamp(start, source.len()));
    let position = Position::of(source, start);
    let line = source.lines().nth(position.line - 1)?.trim_end();
    let before = position.column - 1;
    let width = line.chars().count();
    if width > EXCERPT_WIDTH {
        return (!message.is_empty()).then(|| format!("  {message}"));
    }
    let marked = source[start..end].lines().next().map_or(0, |marked| marked.chars().count());
    // A tab is as wide in the line as in what stands below it.
    let indent: String = line.chars().take(before).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
    let number = position.line;
    let gutter = " ".repeat(number.to_string().len());
    let carets = "^".repeat(marked.clamp(1, width.saturating_sub(before).max(1)));
    let mut text = format!("  {number} | {line}\n  {gutter} | {indent}{carets}");
    if !message.is_empty() {
        let _ = write!(text, " {message}");
    }
    Some(text)
}
