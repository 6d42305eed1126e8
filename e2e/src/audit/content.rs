//! What an event says, as digests: so that it can be compared in several places without being kept.
//!
//! Equal means equal byte by byte, after what the pipeline is documented to change: the time of the event is compared as a
//! time, and of the properties those in [`Ignored`] are left out. The others must be there in the same order, each with the
//! very text that was sent: `1.0` is not `1`.

use std::{borrow::Cow, collections::BTreeSet, fmt};

use anyhow::{Context, Result};
use penstock_pipeline::events::{captured::CapturedEvent, ingested::IngestedEvent};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// Digests of what an event says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Of its name.
    pub event: u64,
    /// Of its distinct id.
    pub distinct_id: u64,
    /// Of its properties but for the ignored ones.
    pub properties: u64,
    /// Its time, microseconds since 1970.
    pub timestamp: i64,
}

impl Content {
    /// Names of the parts in which two events differ.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        [
            ("event", self.event == other.event),
            ("distinct_id", self.distinct_id == other.distinct_id),
            ("properties", self.properties == other.properties),
            ("timestamp", self.timestamp == other.timestamp),
        ]
        .into_iter()
        .filter_map(|(name, same)| (!same).then_some(name))
        .collect()
    }
}

/// Names of properties that are not compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored(BTreeSet<String>);

impl Default for Ignored {
    /// What the consumer adds, or is documented to rewrite.
    fn default() -> Self {
        let names = [
            "$ip",
            "$sent_at",
            "$set",
            "$set_once",
            "$session_id",
            "$elements_chain",
            "$group_0",
            "$group_1",
            "$group_2",
            "$group_3",
            "$group_4",
        ];
        Self(names.map(str::to_owned).into())
    }
}

impl Ignored {
    /// These as well: what transformation steps add or change.
    #[must_use]
    pub fn and(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.0.extend(names);
        self
    }
}

/// Digest of some bytes.
pub fn digest(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}

/// What is read of one message, dead letter or row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// UUID of the event.
    pub uuid: Uuid,
    /// What it says.
    pub content: Content,
    /// Digest of the event as it was sent, where a place keeps it.
    pub raw: Option<u64>,
    /// Digest of all else that the row must have from its message.
    pub rest: u64,
}

/// Reads a `captured` message.
///
/// # Errors
/// It is not one.
pub fn captured(value: &[u8], ignored: &Ignored) -> Result<Reading> {
    #[derive(Deserialize)]
    struct Data<'a> {
        #[serde(borrow, default)]
        properties: Option<&'a RawValue>,
    }
    let message: CapturedEvent = serde_json::from_slice(value).context("not a captured message")?;
    let data: Data<'_> = serde_json::from_str(&message.data).context("data is not an event")?;
    Ok(Reading {
        uuid: message.uuid.parse().context("its uuid")?,
        content: Content {
            event: digest(message.event.as_bytes()),
            distinct_id: digest(message.distinct_id.as_bytes()),
            properties: properties(data.properties.map_or("{}", RawValue::get), ignored)?,
            timestamp: microseconds(&message.timestamp)?,
        },
        raw: Some(digest(message.data.as_bytes())),
        rest: 0,
    })
}

/// Reads an `ingested` or `transformed` message.
///
/// # Errors
/// It is not one.
pub fn ingested(value: &[u8], ignored: &Ignored) -> Result<Reading> {
    let message: IngestedEvent = serde_json::from_slice(value).context("not an ingested message")?;
    of_ingested(&message, ignored)
}

/// Reads a message, or a row, which has the same fields.
///
/// # Errors
/// A field is not of its form.
pub fn of_ingested(message: &IngestedEvent, ignored: &Ignored) -> Result<Reading> {
    let mut rest = Xxh3::new();
    for text in [
        &message.properties,
        &message.elements_chain,
        &message.created_at,
        &message.captured_at,
        &message.person_id,
        &message.person_properties,
        &message.person_mode,
    ] {
        rest.update(text.as_bytes());
        rest.update(&[0]);
    }
    rest.update(&message.team_id.to_le_bytes());
    rest.update(&message.project_id.to_le_bytes());
    rest.update(&[message.historical_migration.into()]);
    Ok(Reading {
        uuid: message.uuid.parse().context("its uuid")?,
        content: Content {
            event: digest(message.event.as_bytes()),
            distinct_id: digest(message.distinct_id.as_bytes()),
            properties: properties(&message.properties, ignored)?,
            timestamp: microseconds(&message.timestamp)?,
        },
        raw: None,
        rest: rest.digest(),
    })
}

/// The UUID of an event as a client sends it, if it has one that is one.
pub fn uuid_of(value: &[u8]) -> Option<Uuid> {
    #[derive(Deserialize)]
    struct Named<'a> {
        #[serde(borrow, default)]
        uuid: Option<Cow<'a, str>>,
    }
    serde_json::from_slice::<Named<'_>>(value).ok()?.uuid?.parse().ok()
}

/// Digest of properties, a JSON object.
///
/// # Errors
/// It is not a JSON object.
pub fn properties(json: &str, ignored: &Ignored) -> Result<u64> {
    struct Members<'i>(&'i Ignored);
    impl<'de> Visitor<'de> for Members<'_> {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<u64, A::Error> {
            let mut hash = Xxh3::new();
            while let Some((name, value)) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                if !self.0.0.contains(&*name) {
                    hash.update(name.as_bytes());
                    hash.update(&[0]);
                    hash.update(value.get().as_bytes());
                    hash.update(&[0]);
                }
            }
            Ok(hash.digest())
        }
    }
    let mut reader = serde_json::Deserializer::from_str(json);
    reader.deserialize_map(Members(ignored)).context("properties are not an object")
}

/// A time as microseconds since 1970: RFC 3339, or as ClickHouse writes it in UTC.
///
/// # Errors
/// It is neither.
pub fn microseconds(text: &str) -> Result<i64> {
    let rfc: Cow<'_, str> = match text.as_bytes().get(10) {
        Some(b' ') => format!("{}Z", text.replacen(' ', "T", 1)).into(),
        _ => text.into(),
    };
    let time = OffsetDateTime::parse(&rfc, &Rfc3339).with_context(|| format!("{text:?} is not a time"))?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000).with_context(|| format!("{text:?} is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_the_same_only_when_each_has_the_same_text_in_the_same_order() {
        let of = |json| properties(json, &Ignored::default()).unwrap();
        let sent = of(r#"{"price":1.0,"title":"\u00fc"}"#);
        assert_eq!(sent, of(r#"{ "price" : 1.0, "title":"\u00fc","$ip":"203.0.113.1" }"#));
        for other in [
            r#"{"price":1,"title":"\u00fc"}"#,
            r#"{"price":1.0,"title":"ü"}"#,
            r#"{"title":"\u00fc","price":1.0}"#,
            r#"{"price":1.0}"#,
            r#"{"price":1.0,"title":"\u00fc","more":1}"#,
        ] {
            assert_ne!(sent, of(other), "{other}");
        }
        assert!(properties("[]", &Ignored::default()).is_err());
    }

    #[test]
    fn a_time_is_the_same_in_both_notations() {
        assert_eq!(
            microseconds("2025-04-01T02:00:00.000123+02:00").unwrap(),
            microseconds("2025-04-01 00:00:00.000123").unwrap()
        );
        assert!(microseconds("yesterday").is_err());
    }
}
