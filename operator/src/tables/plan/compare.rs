//! Whether what a server writes means what is wanted. Pure.

use penstock_pipeline::events::table::{Column, Value};

use super::Difference;
use crate::tables::ObservedColumn;

/// An expression list without blanks, back-quotes and the parentheses around all of it.
pub(super) fn bare(expression: &str) -> String {
    let text: String =
        expression.chars().filter(|character| !character.is_whitespace() && *character != '`').collect();
    match text.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) if balanced(inner) => inner.to_owned(),
        _ => text,
    }
}

/// Whether no parenthesis of `text` closes one that was opened before it.
fn balanced(text: &str) -> bool {
    let mut depth = 0_i32;
    for character in text.chars() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth < 0 {
            return false;
        }
    }
    depth == 0
}

/// How a column that takes rows differs.
pub(super) fn column(wanted: &Column, has: &ObservedColumn) -> Option<Difference> {
    let computed = matches!(has.default_kind.as_str(), "MATERIALIZED" | "ALIAS" | "EPHEMERAL");
    if wanted.value == Value::Inserted && computed {
        return Some(Difference::NotInsertable {
            column: wanted.name.to_owned(),
            kind: has.default_kind.clone(),
        });
    }
    column_type(wanted, has)
}

/// How the type of a column differs.
pub(super) fn column_type(wanted: &Column, has: &ObservedColumn) -> Option<Difference> {
    if value_type(&has.type_) != value_type(wanted.type_) {
        return Some(Difference::ColumnType {
            column: wanted.name.to_owned(),
            has: has.type_.clone(),
            wanted: wanted.type_.to_owned(),
        });
    }
    None
}

/// A type without what only concerns how values are shown: blanks, and the time zone of times.
fn value_type(text: &str) -> String {
    let mut bare: String = text.chars().filter(|character| !character.is_whitespace()).collect();
    for (with_zone, without) in [("DateTime64(", true), ("DateTime(", false)] {
        let mut from = 0;
        while let Some(start) = bare[from..].find(with_zone).map(|at| from + at + with_zone.len()) {
            let Some(end) = bare[start..].find(')').map(|at| start + at) else { break };
            let precision: String = if without {
                bare[start..end].split(',').next().unwrap_or("").to_owned()
            } else {
                String::new()
            };
            bare.replace_range(start..end, &precision);
            from = start;
        }
    }
    bare.replace("DateTime()", "DateTime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_compared_by_their_values() {
        for (a, b) in [
            ("DateTime64(3)", "DateTime64(3, 'UTC')"),
            ("DateTime", "DateTime('UTC')"),
            ("Nullable(DateTime64(6, 'UTC'))", "Nullable(DateTime64(6))"),
            ("Enum8('a' = 0, 'b' = 1)", "Enum8('a'=0,'b'=1)"),
        ] {
            assert_eq!(value_type(a), value_type(b), "{a} {b}");
        }
        for (a, b) in [
            ("DateTime64(3)", "DateTime64(6)"),
            ("DateTime", "DateTime64(3)"),
            ("String", "LowCardinality(String)"),
            ("String", "Nullable(String)"),
        ] {
            assert_ne!(value_type(a), value_type(b), "{a} {b}");
        }
    }

    #[test]
    fn an_expression_is_compared_without_its_outer_parentheses() {
        for (a, b) in [("(a, b)", "a, b"), ("(`a`)", "a"), ("f(a), g(b)", "f(a),g(b)")] {
            assert_eq!(bare(a), bare(b), "{a} {b}");
        }
        assert_ne!(bare("(a), (b)"), bare("a), (b"));
    }
}
