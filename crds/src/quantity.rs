//! Durations, sizes and counts as Kubernetes users write them: `30s`, `7d`, `64Mi`, `100k`.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::rules::DURATION_PATTERN;

/// Why a quantity could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not {what}; write for example {example}")]
pub struct QuantityError {
    input: String,
    what: &'static str,
    example: &'static str,
}

/// A length of time: one or more of `<number><unit>` with the units `ms`, `s`, `m`, `h`, `d` (`1h30m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// Milliseconds, saturating.
    pub fn as_millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for HumanDuration {
    type Err = QuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let error =
            || QuantityError { input: s.to_owned(), what: "a duration", example: "500ms, 30s, 12h or 7d" };
        let mut rest = s;
        let mut total: u64 = 0;
        if rest.is_empty() {
            return Err(error());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
            let number: u64 = rest[..digits].parse().map_err(|_| error())?;
            rest = &rest[digits..];
            let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let factor = match &rest[..unit] {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(error()),
            };
            total = number.checked_mul(factor).and_then(|ms| total.checked_add(ms)).ok_or_else(error)?;
            rest = &rest[unit..];
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = self.as_millis();
        if ms == 0 {
            return f.write_str("0s");
        }
        for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if ms >= size {
                write!(f, "{}{unit}", ms / size)?;
                ms %= size;
            }
        }
        Ok(())
    }
}

/// A number of bytes: `64Mi`, `1G`, `500k`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A number of things: `1000`, `100k`, `1M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count(pub u64);

fn scaled(
    s: &str,
    suffixes: &[(&str, u64)],
    error: impl Fn() -> QuantityError,
) -> Result<u64, QuantityError> {
    let digits = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
    let number: u64 = s[..digits].parse().map_err(|_| error())?;
    let factor = match &s[digits..] {
        "" => 1,
        suffix => suffixes.iter().find(|(name, _)| *name == suffix).ok_or_else(&error)?.1,
    };
    number.checked_mul(factor).ok_or_else(error)
}

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let suffixes = [
            ("Ki", 1 << 10),
            ("Mi", 1 << 20),
            ("Gi", 1 << 30),
            ("k", 1_000),
            ("M", 1_000_000),
            ("G", 1_000_000_000),
        ];
        scaled(s, &suffixes, || QuantityError {
            input: s.to_owned(),
            what: "a size in bytes",
            example: "65536, 64Mi or 1Gi",
        })
        .map(Self)
    }
}

impl FromStr for Count {
    type Err = QuantityError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        scaled(s, &[("k", 1_000), ("M", 1_000_000)], || QuantityError {
            input: s.to_owned(),
            what: "a count",
            example: "1000, 100k or 1M",
        })
        .map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, size) in [("Gi", 1u64 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)] {
            if self.0 != 0 && self.0.is_multiple_of(size) {
                return write!(f, "{}{suffix}", self.0 / size);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, size) in [("M", 1_000_000), ("k", 1_000)] {
            if self.0 != 0 && self.0.is_multiple_of(size) {
                return write!(f, "{}{suffix}", self.0 / size);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for HumanDuration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [
                {
                    "rule": format!("self.matches('{DURATION_PATTERN}')"),
                    "message": "must be a duration; write for example 500ms, 30s, 12h or 7d",
                },
            ]
        })
    }
}

/// Number or string on the wire, as Kubernetes quantities are.
#[derive(Deserialize)]
#[serde(untagged)]
enum IntOrString {
    Int(u64),
    String(String),
}

// Which texts and numbers are taken is said by a rule on every field (`rules::bytes_between`, `rules::count_between`):
// kube would drop it if the type had rules of its own.
macro_rules! int_or_string {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match IntOrString::deserialize(deserializer)? {
                    IntOrString::Int(number) => Ok(Self(number)),
                    IntOrString::String(text) => text.parse().map_err(de::Error::custom),
                }
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "x-kubernetes-int-or-string": true,
                    "anyOf": [{"type": "integer"}, {"type": "string"}],
                    "maxLength": 12
                })
            }
        }
    };
}

int_or_string!(ByteSize);
int_or_string!(Count);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_and_written_as_kubernetes_users_do() {
        for (text, ms) in
            [("500ms", 500), ("30s", 30_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("0s", 0)]
        {
            let duration: HumanDuration = text.parse().unwrap();
            assert_eq!(duration.as_millis(), ms, "{text}");
            assert_eq!(duration.to_string(), text);
        }
        for text in ["", "5", "s", "5 s", "1w", "-1s", "99999999999999999999d", "18446744073709551615d"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn sizes_and_counts_are_taken_as_numbers_and_as_text() {
        assert_eq!(serde_json::from_str::<ByteSize>("\"64Mi\"").unwrap(), ByteSize(64 << 20));
        assert_eq!(serde_json::from_str::<ByteSize>("1024").unwrap(), ByteSize(1024));
        assert_eq!(serde_json::from_str::<Count>("\"100k\"").unwrap(), Count(100_000));
        assert_eq!(Count(1_000_000).to_string(), "1M");
        assert_eq!(ByteSize(1 << 20).to_string(), "1Mi");
        assert!("1Ti".parse::<ByteSize>().is_err());
        assert!("18446744073709551615M".parse::<Count>().is_err());
    }
}
