//! Bounds of a program's text that hold before the compiler sees it: compiler and runtime descend into nested
//! expressions on the stack, the compiler types a call twice for every call around it, and it fills everything below an
//! index. What is refused here would take down
//! the process, with everything else that runs in it.

use super::diagnostics::Diagnostic;

/// Longest source of a program, bytes.
pub const MAX_SOURCE_BYTES: usize = 64 * 1024;

/// Deepest nesting of an expression: brackets, and operators in a chain.
const MAX_DEPTH: usize = 200;

/// Deepest nesting of calls, and of blocks that are handed to calls.
const MAX_CALLS: usize = 8;

/// Largest index in a path: everything below it is filled, by the compiler with types, by an assignment with null.
const MAX_INDEX: usize = 1_000;

/// The first bound that the source breaks.
pub(super) fn broken(source: &str) -> Option<Diagnostic> {
    if source.trim().is_empty() {
        return Some(Diagnostic::error(
            "the program is empty",
            "write an expression, for example .event == \"x\"",
        ));
    }
    if source.len() > MAX_SOURCE_BYTES {
        return Some(Diagnostic::error(
            format!("the program has {} bytes, more than {MAX_SOURCE_BYTES}", source.len()),
            "split it into several steps",
        ));
    }
    let code = without_literals(source);
    if let Some(at) = too_deep(&code) {
        return Some(
            Diagnostic::error(
                format!("brackets and operators are nested more than {MAX_DEPTH} deep"),
                "use variables for parts of the expression, a regex for many alternatives, or several steps",
            )
            .at_byte(source, at),
        );
    }
    if let Some(at) = too_many_calls(&code) {
        return Some(
            Diagnostic::error(
                format!("calls are nested more than {MAX_CALLS} deep"),
                "use variables for the results of the inner calls",
            )
            .at_byte(source, at),
        );
    }
    if let Some((at, index)) = large_index(&code) {
        return Some(
            Diagnostic::error(
                format!("the index {index} is beyond {MAX_INDEX}"),
                "everything below the index would be filled with null; use an object",
            )
            .at_byte(source, at),
        );
    }
    None
}

/// The source with spaces in the place of what is in quotes, and of comments. Every byte keeps its place.
fn without_literals(source: &str) -> String {
    #[derive(PartialEq)]
    enum Inside {
        Code,
        Comment,
        Quotes(char),
    }
    let mut inside = Inside::Code;
    let mut escaped = false;
    let mut code = String::with_capacity(source.len());
    for c in source.chars() {
        let mut hide = inside != Inside::Code;
        match inside {
            Inside::Code if c == '#' => (inside, hide) = (Inside::Comment, true),
            Inside::Code if c == '"' || c == '\'' => inside = Inside::Quotes(c),
            Inside::Comment if c == '\n' => (inside, hide) = (Inside::Code, false),
            Inside::Quotes(_) if escaped => escaped = false,
            Inside::Quotes(_) if c == '\\' => escaped = true,
            Inside::Quotes(quote) if c == quote => (inside, hide) = (Inside::Code, false),
            _ => {}
        }
        if hide {
            code.extend(std::iter::repeat_n(' ', c.len_utf8()));
        } else {
            code.push(c);
        }
    }
    code
}

const OPERATORS: &[u8] = b"!=<>+-*/%?|&";

/// The byte at which an expression becomes too deep.
fn too_deep(code: &str) -> Option<usize> {
    let bytes = code.as_bytes();
    // Depth at every open bracket, and where the expression is now.
    let mut enclosing: Vec<usize> = Vec::new();
    let mut depth = 0;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'(' | b'[' | b'{' => {
                enclosing.push(depth);
                depth += 1;
            }
            b')' | b']' | b'}' => depth = enclosing.pop().unwrap_or(0),
            b';' | b',' => depth = enclosing.last().map_or(0, |depth| depth + 1),
            b'\n' if !continues(code, at) => depth = enclosing.last().map_or(0, |depth| depth + 1),
            // Of `==`, `??` and their like, one byte counts; of `!!`, each is an operator.
            b'!' | b'-' => depth += 1,
            operator if OPERATORS.contains(operator) && bytes.get(at + 1) != Some(operator) => depth += 1,
            b'e' if code[at..].starts_with("else") => depth += 1,
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Some(at);
        }
    }
    None
}

/// The byte at which a call or its block is nested too deep in others.
fn too_many_calls(code: &str) -> Option<usize> {
    let mut brackets: Vec<bool> = Vec::new();
    for (at, byte) in code.bytes().enumerate() {
        let is_call = |before: &str| match byte {
            b'(' => before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '!'),
            b'{' => before.trim_end().ends_with('|'),
            _ => false,
        };
        match byte {
            b'(' | b'[' | b'{' => brackets.push(is_call(&code[..at])),
            b')' | b']' | b'}' => drop(brackets.pop()),
            _ => {}
        }
        if matches!(byte, b'(' | b'{') && brackets.iter().filter(|call| **call).count() > MAX_CALLS {
            return Some(at);
        }
    }
    None
}

/// Whether an expression goes on behind this line break.
fn continues(code: &str, at: usize) -> bool {
    let ends_open = code[..at].trim_end().bytes().last().is_some_and(|byte| OPERATORS.contains(&byte));
    let next = code[at..].trim_start();
    ends_open || next.starts_with("else") || next.bytes().next().is_some_and(|byte| OPERATORS.contains(&byte))
}

/// The first index of a path (`.list[5]`; not an array such as `[5]`) that is too large: where, and without its sign.
fn large_index(code: &str) -> Option<(usize, &str)> {
    code.match_indices('[').find_map(|(at, _)| {
        let in_path = code[..at].ends_with(|c: char| c.is_alphanumeric() || "_@\"])}.".contains(c));
        let rest = &code[at + 1..];
        let index = rest.trim_start_matches([' ', '-']);
        let start = at + 1 + (rest.len() - index.len());
        let digits = index.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(index.len());
        let index = &index[..digits];
        let value = index.replace('_', "");
        let too_large = !value.is_empty() && value.parse::<usize>().map_or(true, |value| value > MAX_INDEX);
        (in_path && too_large).then_some((start, index))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_quotes_and_comments_does_not_count() {
        let code = without_literals("x = \"a[1\\\"(\" # (((\ny = r'b|c\\'|d' + s'é'");
        assert_eq!(code, "x = \"      \"      \ny = r'       ' + s'  '");
        let many = "|x".repeat(2_000);
        assert_eq!(broken(&format!("match(.event, r'{many}') # {}", "(".repeat(300))), None);
    }

    #[test]
    fn statements_do_not_add_up_and_chains_do() {
        assert_eq!(broken(&".properties.a = 1 + 2\n".repeat(500)), None);
        assert_eq!(broken(&"if .team_id == 1 { abort }\n".repeat(500)), None);
        assert_eq!(broken(&format!("x = [{}]", "1 + 1, ".repeat(500))), None);
        assert!(broken(&format!("x = 1{}", " +\n 1".repeat(201))).is_some());
        assert!(broken(&format!("x = 1{}", "\n ?? 1".repeat(201))).is_some());
        assert!(broken(&format!("x = {}true", "!".repeat(201))).is_some());
        assert!(broken(&"x = 1 + if true {\n".repeat(100)).is_some());
    }

    #[test]
    fn nested_calls_are_few() {
        let nested = |depth: usize| format!("x = {}1{}", "to_string!(".repeat(depth), ")".repeat(depth));
        assert_eq!(broken(&nested(MAX_CALLS)), None);
        assert!(broken(&nested(MAX_CALLS + 1)).is_some());
        let blocks =
            |depth: usize| format!("{} 1 {}", "for_each([1]) -> |_i, _v| {".repeat(depth), "}".repeat(depth));
        assert_eq!(broken(&blocks(MAX_CALLS)), None);
        assert!(broken(&blocks(MAX_CALLS + 1)).is_some());
        assert_eq!(broken(&"x = downcase(upcase(.event))\n".repeat(100)), None);
    }

    #[test]
    fn an_index_is_bounded_and_an_array_is_not() {
        for source in [
            ".properties.a[1001] = 1",
            "x = .properties.\"a\"[-100000000]",
            "x[99999999999999999999] = 1",
            ".properties.list[1_000_000] = 1",
        ] {
            assert!(broken(source).is_some(), "{source}");
        }
        assert_eq!(broken(".properties.a[1000] = [100000, 2]"), None);
        assert_eq!(broken(".properties.a = \"b[5000]\""), None);
    }
}
