//! CEL rules that several fields share. A rule says in its message what to write instead.
//!
//! Everything that the schema accepts must be readable by the types of this crate: an object that passes the API server
//! and does not decode would stop the watch of every pipeline. Hence the digits of quantities are bounded here.

use kube::core::Rule;

/// What a duration looks like.
pub(crate) const DURATION_PATTERN: &str = "^([0-9]{1,9}(ms|s|m|h|d))+$";
/// What a number of bytes looks like.
const BYTES_PATTERN: &str = "^[0-9]{1,9}(k|M|G|Ki|Mi|Gi)?$";
/// What a count looks like.
const COUNT_PATTERN: &str = "^[0-9]{1,9}(k|M)?$";

/// CEL: milliseconds of the duration `self`.
fn milliseconds(value: &str) -> String {
    format!(
        "{value}.findAll('[0-9]+(ms|s|m|h|d)').map(part, int(part.find('^[0-9]+')) * (part.endsWith('ms') ? 1 : \
         part.endsWith('s') ? 1000 : part.endsWith('m') ? 60000 : part.endsWith('h') ? 3600000 : 86400000)).sum()"
    )
}

/// The duration lies in `least..=most` milliseconds, which `range` says for people: `1s to 1h`.
pub(crate) fn duration_between(least: u64, most: u64, range: &str) -> Rule {
    let ms = milliseconds("self");
    Rule::new(format!("!self.matches('{DURATION_PATTERN}') || ({ms} >= {least} && {ms} <= {most})"))
        .message(format!("must be a duration of {range}").as_str())
}

/// One duration of an object is at most another one of it, where both are given.
pub(crate) fn duration_order(shorter: &str, longer: &str) -> Rule {
    let (a, b) = (format!("self.{shorter}"), format!("self.{longer}"));
    Rule::new(format!(
        "!has({a}) || !has({b}) || !{a}.matches('{DURATION_PATTERN}') || !{b}.matches('{DURATION_PATTERN}') || {} <= {}",
        milliseconds(&a),
        milliseconds(&b)
    ))
    .message(format!("{shorter} must not be longer than {longer}").as_str())
}

/// The number of bytes lies in `least..=most`, which `range` says for people: `64Ki to 1Gi`.
pub(crate) fn bytes_between(least: u64, most: u64, range: &str) -> Rule {
    let text = "int(self.find('^[0-9]+')) * (self.endsWith('Ki') ? 1024 : self.endsWith('Mi') ? 1048576 : \
                self.endsWith('Gi') ? 1073741824 : self.endsWith('k') ? 1000 : self.endsWith('M') ? 1000000 : \
                self.endsWith('G') ? 1000000000 : 1)";
    quantity_between(BYTES_PATTERN, text, least, most)
        .message(format!("must be a number of bytes of {range}, for example 65536, 64Mi or 1Gi").as_str())
}

/// The count lies in `least..=most`, which `range` says for people: `1 to 1M`.
pub(crate) fn count_between(least: u64, most: u64, range: &str) -> Rule {
    let text = "int(self.find('^[0-9]+')) * (self.endsWith('k') ? 1000 : self.endsWith('M') ? 1000000 : 1)";
    quantity_between(COUNT_PATTERN, text, least, most)
        .message(format!("must be a number of {range}, for example 1000, 100k or 1M").as_str())
}

fn quantity_between(pattern: &str, text: &str, least: u64, most: u64) -> Rule {
    Rule::new(format!(
        "type(self) == int ? (self >= {least} && self <= {most}) : \
         (self.matches('{pattern}') && {text} >= {least} && {text} <= {most})"
    ))
}

/// A DNS label that begins with a letter, as the names of Services must. `what` is the subject of the message.
pub(crate) fn dns_label(what: &str) -> Rule {
    Rule::new("self.matches('^[a-z]([a-z0-9-]*[a-z0-9])?$')").message(
        format!(
            "{what} must be lower-case letters, digits and '-', beginning with a letter, for example web-shop"
        )
        .as_str(),
    )
}

/// Exactly one of two fields.
pub(crate) fn exactly_one_of(a: &str, b: &str) -> Rule {
    Rule::new(format!("has(self.{a}) != has(self.{b})"))
        .message(format!("write exactly one of {a} and {b}").as_str())
}

/// The value holds something else than white space.
pub(crate) fn not_blank(what: &str) -> Rule {
    Rule::new("self.matches('[^ \\\\t\\\\r\\\\n]')")
        .message(format!("{what} must not be empty; leave the field out instead").as_str())
}

/// Name of a Secret or ConfigMap.
pub(crate) fn object_name(what: &str) -> Rule {
    Rule::new("self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')").message(
        format!("{what} must be the name of an object in the pipeline's namespace: lower-case letters, digits, '-' and '.'")
            .as_str(),
    )
}

/// Key of a Secret or ConfigMap. `what` is the subject of the message.
pub(crate) fn object_key(what: &str, example: &str) -> Rule {
    Rule::new("self.matches('^[-._a-zA-Z0-9]+$')")
        .message(format!("{what} must be letters, digits, '-', '_' and '.', for example {example}").as_str())
}

/// A name that ClickHouse takes without quotes.
pub(crate) fn clickhouse_identifier(what: &str) -> Rule {
    Rule::new("self.matches('^[A-Za-z_][A-Za-z0-9_]*$')").message(
        format!("{what} must be letters, digits and '_', not beginning with a digit, for example web_events")
            .as_str(),
    )
}
