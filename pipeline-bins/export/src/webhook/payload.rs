//! What is posted: the event as it lies in Kafka, with `properties` and `person_properties` as objects instead of text,
//! and an id that belongs to the event for ever.

use std::{borrow::Cow, collections::BTreeMap};

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// Fields that are JSON in a string.
const EXPANDED: [&str; 2] = ["properties", "person_properties"];

/// Fields that make two messages the same event: those by which the ClickHouse table folds, the day of the timestamp
/// among them.
const IDENTITY: [&str; 4] = ["team_id", "event", "distinct_id", "uuid"];

/// One delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// `webhook-id`: the same for every attempt, for a repetition after a crash, and for an event that a client repeats.
    pub id: String,
    /// The body.
    pub body: Vec<u8>,
}

/// Makes the delivery of a message. The error says what is wrong with it, without its values.
pub fn payload(message: &[u8]) -> Result<Payload, String> {
    let mut fields: BTreeMap<Cow<'_, str>, &RawValue> =
        serde_json::from_slice(message).map_err(|_| "not a JSON object".to_owned())?;
    let id = id_of(&fields)?;
    let mut expanded = Vec::with_capacity(EXPANDED.len());
    for name in EXPANDED {
        if let Some(raw) = fields.get(name) {
            let text: String = serde_json::from_str(raw.get()).map_err(|_| format!("{name} is not text"))?;
            let object = RawValue::from_string(text).map_err(|_| format!("{name} is not JSON"))?;
            if !object.get().starts_with('{') {
                return Err(format!("{name} is not a JSON object"));
            }
            expanded.push((name, object));
        }
    }
    for (name, object) in &expanded {
        fields.insert(Cow::Borrowed(*name), object);
    }
    let body = serde_json::to_vec(&fields).map_err(|error| error.to_string())?;
    Ok(Payload { id, body })
}

fn id_of(fields: &BTreeMap<Cow<'_, str>, &RawValue>) -> Result<String, String> {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update(text.len().to_le_bytes());
        hash.update(text.as_bytes());
    };
    for name in IDENTITY {
        let raw = fields.get(name).ok_or_else(|| format!("{name} is missing"))?;
        // Two spellings of one text (escapes) are one event.
        match serde_json::from_str::<Cow<'_, str>>(raw.get()) {
            Ok(text) => add(&text),
            Err(_) => add(raw.get()),
        }
    }
    let timestamp: Cow<'_, str> = fields
        .get("timestamp")
        .and_then(|raw| serde_json::from_str(raw.get()).ok())
        .ok_or("timestamp is missing or not text")?;
    add(timestamp.get(..10).unwrap_or(&timestamp));
    Ok(format!("evt_{}", hex::encode(&hash.finalize()[..16])))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = r#"{"uuid":"u","event":"order","properties":"{\"total\":12345678901234567890.10,\"a\":[1]}","timestamp":"2026-11-22 12:00:00.000000","team_id":1,"distinct_id":"d","person_properties":"{}"}"#;

    #[test]
    fn properties_become_objects_and_numbers_stay_as_they_were_written() {
        let payload = payload(MESSAGE.as_bytes()).unwrap();
        let body = String::from_utf8(payload.body).unwrap();
        assert_eq!(
            body,
            r#"{"distinct_id":"d","event":"order","person_properties":{},"properties":{"total":12345678901234567890.10,"a":[1]},"team_id":1,"timestamp":"2026-11-22 12:00:00.000000","uuid":"u"}"#
        );
    }

    #[test]
    fn the_id_is_that_of_the_event_and_of_no_other() {
        let id = |from: &str, to: &str| payload(MESSAGE.replace(from, to).as_bytes()).unwrap().id;
        let own = id("", "");
        assert!(own.starts_with("evt_") && own.len() == 36, "{own}");
        assert_eq!(own, id("12:00:00", "13:00:00"), "the same day");
        assert_eq!(own, id("[1]", "[2]"), "other properties");
        assert_eq!(own, id("\"order\"", "\"\\u006frder\""), "another spelling");
        for (from, to) in [
            ("\"u\"", "\"v\""),
            ("\"order\"", "\"orders\""),
            ("\"d\"", "\"e\""),
            (":1,", ":2,"),
            ("11-22", "11-23"),
        ] {
            assert_ne!(own, id(from, to), "{to}");
        }
    }

    #[test]
    fn what_is_no_event_is_refused() {
        for (message, said) in [
            ("", "not a JSON object"),
            ("[]", "not a JSON object"),
            ("{}", "team_id is missing"),
            (&MESSAGE.replace(r#""{}""#, "5"), "person_properties is not text"),
            (&MESSAGE.replace(r#""{}""#, "\"x\""), "person_properties is not JSON"),
            (&MESSAGE.replace(r#""{}""#, "\"[]\""), "person_properties is not a JSON object"),
            (&MESSAGE.replace("\"timestamp\"", "\"time\""), "timestamp is missing or not text"),
        ] {
            assert_eq!(payload(message.as_bytes()).unwrap_err(), said, "{message}");
        }
    }
}
