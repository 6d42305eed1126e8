//! Which functions of VRL a program may call.
//!
//! All of VRL's standard library that depends on its arguments alone, in bounded memory. What is refused, is refused by
//! name and with a reason, also where VRL was built without it, so that whoever writes a program learns why.

use std::sync::LazyLock;

use vrl::compiler::Function;

/// Why a function is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It speaks to other machines.
    Network,
    /// It reads the environment or the machine that the program runs on.
    System,
    /// It reads files.
    Files,
    /// Its result depends on the time of the run.
    Clock,
    /// Its result is random.
    Random,
    /// It writes logs.
    Log,
    /// It makes much out of little, without a bound.
    Expansion,
    /// It makes several events of one.
    Multiplication,
    /// It belongs to Vector, not to VRL.
    Vector,
}

impl Refusal {
    /// What to know, and what to do instead.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::Network => {
                "programs cannot reach the network; deliver events with an export, and enrich them there"
            }
            Self::System => {
                "programs cannot read the environment or the machine; write the value into the program, or take the \
                 program from a ConfigMap that has it"
            }
            Self::Files => "programs cannot read files; write what it needs into the program",
            Self::Clock => {
                "the same event must give the same result whenever it is read; use .timestamp (when it happened), \
                 .captured_at (when it was received) or .created_at (when it was processed first)"
            }
            Self::Random => {
                "the same event must give the same result whenever it is read; derive the value from the event, for \
                 example from .uuid or with sha2"
            }
            Self::Log => "programs do not write logs; put what you want to see into a property of the event",
            Self::Expansion => "it could turn one small event into more memory than the process has",
            Self::Multiplication => {
                "one event stays one event; go through the list with for_each or map_values"
            }
            Self::Vector => "it belongs to Vector and is not part of the VRL that runs here",
        }
    }
}

/// What is refused, with the reason.
pub const REFUSED: &[(&str, Refusal)] = &[
    ("dns_lookup", Refusal::Network),
    ("http_request", Refusal::Network),
    ("reverse_dns", Refusal::Network),
    ("get_env_var", Refusal::System),
    ("get_hostname", Refusal::System),
    ("get_timezone_name", Refusal::System),
    ("encode_proto", Refusal::Files),
    ("parse_etld", Refusal::Files),
    ("parse_proto", Refusal::Files),
    ("validate_json_schema", Refusal::Files),
    ("now", Refusal::Clock),
    // These guess a missing year from today's date.
    ("parse_groks", Refusal::Clock),
    ("parse_klog", Refusal::Clock),
    ("parse_linux_authorization", Refusal::Clock),
    ("parse_syslog", Refusal::Clock),
    ("random_bool", Refusal::Random),
    ("random_bytes", Refusal::Random),
    ("random_float", Refusal::Random),
    ("random_int", Refusal::Random),
    ("uuid_v4", Refusal::Random),
    ("uuid_v7", Refusal::Random),
    ("log", Refusal::Log),
    ("decode_gzip", Refusal::Expansion),
    ("decode_lz4", Refusal::Expansion),
    ("decode_snappy", Refusal::Expansion),
    ("decode_zlib", Refusal::Expansion),
    ("decode_zstd", Refusal::Expansion),
    // It also reads the whole event where its path names a part, which is then all that was decoded.
    ("unnest", Refusal::Multiplication),
    ("aggregate_vector_metrics", Refusal::Vector),
    ("find_enrichment_table_records", Refusal::Vector),
    ("find_vector_metrics", Refusal::Vector),
    ("get_enrichment_table_record", Refusal::Vector),
    ("get_secret", Refusal::Vector),
    ("get_vector_metric", Refusal::Vector),
    ("remove_secret", Refusal::Vector),
    ("set_secret", Refusal::Vector),
    ("set_semantic_meaning", Refusal::Vector),
];

/// Why this function is refused, if it is.
pub fn refusal(name: &str) -> Option<Refusal> {
    REFUSED.iter().find(|(refused, _)| *refused == name).map(|(_, reason)| *reason)
}

/// Names of the functions that a program may call, sorted.
pub fn available_names() -> Vec<&'static str> {
    let mut names: Vec<_> = available().iter().map(|function| function.identifier()).collect();
    names.sort_unstable();
    names
}

/// The functions that a program may call.
pub(super) fn available() -> &'static [Box<dyn Function>] {
    static AVAILABLE: LazyLock<Vec<Box<dyn Function>>> = LazyLock::new(|| {
        vrl::stdlib::all().into_iter().filter(|function| refusal(function.identifier()).is_none()).collect()
    });
    &AVAILABLE
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new release of VRL may bring functions: whoever accepts this snapshot has looked at each.
    #[test]
    fn the_available_functions_are_known() {
        insta::assert_snapshot!(available_names().join("\n"));
    }
}
