//! From one `captured` message to one `ingested` event, or to the reason why it can never be one.
//!
//! A pure function of message and projects: after an aborted transaction the same message gives the same bytes. The rules
//! are those of PostHog's ingestion as far as persons and groups are not concerned (facts, 2026-11): outer fields overlay
//! `data`; the token decides the project; what the client sent as `$set` and `$set_once` beside the properties is merged
//! into them; the address becomes `$ip`.

use std::borrow::Cow;

use penstock_pipeline::{
    events::{captured::header, dead_letter::Reason, ingested::IngestedEventRef, surrogates},
    kafka::Headers,
    projects::Projects,
};
use serde::Deserialize;
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    properties::{Changes, Members, rewrite, text},
    time,
};

/// Longest distinct id, characters. Capture cuts at 200; other producers may send more.
const MAX_DISTINCT_ID: usize = 400;

/// Namespace of the ids of persons that are not kept, PostHog's: version 5 of `<project>:<distinct_id>`.
const PERSONLESS: Uuid = Uuid::from_u128(0x932979b4_65c3_4424_8467_0b66ec27bc22);

/// When such a person was created, PostHog's.
const PERSONLESS_CREATED_AT: &str = "1970-01-01 00:00:05.000000";

/// Why a message can never be an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Code of the dead letter.
    pub reason: Reason,
    /// For people.
    pub detail: String,
}

fn refuse<T>(reason: Reason, detail: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal { reason, detail: detail.into() })
}

/// What is worth counting about an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Its time could not be read or stored, and is the time of its receipt.
    pub time_replaced: bool,
}

/// Memory that is used again from message to message.
#[derive(Debug, Default)]
pub struct Buffers {
    properties: Vec<u8>,
    timestamp: String,
    created_at: String,
    captured_at: String,
    name: String,
}

/// A `captured` message. Other producers may leave out what `data` has, send other types, and send more.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Outer<'a> {
    #[serde(borrow)]
    uuid: Option<&'a RawValue>,
    #[serde(borrow)]
    distinct_id: Option<&'a RawValue>,
    #[serde(borrow)]
    ip: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    now: Option<&'a RawValue>,
    #[serde(borrow)]
    sent_at: Option<&'a RawValue>,
    #[serde(borrow)]
    token: Option<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(borrow)]
    timestamp: Option<&'a RawValue>,
    #[serde(borrow)]
    historical_migration: Option<&'a RawValue>,
}

/// Makes the event of a message and appends its JSON to `out`, which is untouched on a refusal.
///
/// `kafka_time_ms` is the time of the Kafka message, milliseconds since 1970. `headers` say which project capture found.
///
/// # Errors
/// The message can never be an event, whatever is tried: the reason for its dead letter.
pub fn ingest(
    message: &[u8],
    kafka_time_ms: i64,
    headers: &Headers<'_>,
    projects: &Projects,
    buffers: &mut Buffers,
    out: &mut Vec<u8>,
) -> Result<Notes, Refusal> {
    let Ok(message) = std::str::from_utf8(message) else {
        return refuse(Reason::Malformed, "not a captured message: it is not UTF-8");
    };
    // Values are not looked into here, so that half a surrogate in one of them refuses nothing yet.
    let outer: Outer<'_> = match serde_json::from_str(message) {
        // A list would be taken for the fields in their order.
        Ok(outer) if message.trim_start().starts_with('{') => outer,
        Ok(_) => return refuse(Reason::Malformed, "not a captured message: it is not an object"),
        Err(error) => return refuse(Reason::Malformed, format!("not a captured message: {}", place(&error))),
    };
    let Some(data) = outer.data else {
        return refuse(Reason::MalformedData, "the message has no data");
    };
    // Capture sends JSON in a string; a producer that sends the object itself is understood as well.
    let data = whole_text(data).unwrap_or(Cow::Borrowed(data.get()));
    let data = surrogates::replace_lone(&data);
    let fields: Members<'_> = match serde_json::from_str(&data) {
        Ok(fields) => fields,
        Err(error) => {
            return refuse(Reason::MalformedData, format!("data is not a JSON object: {}", place(&error)));
        }
    };
    let properties: Members<'_> = match fields.get("properties").map(RawValue::get) {
        None | Some("null") => Members::default(),
        Some(json) => match serde_json::from_str(json) {
            Ok(properties) => properties,
            Err(_) => return refuse(Reason::MalformedData, "properties is not an object"),
        },
    };

    let uuid = outer.uuid.map_or_else(|| fields.text("uuid"), whole_text);
    let Some(uuid) = uuid.as_deref().and_then(|uuid| Uuid::try_parse(uuid).ok()) else {
        return refuse(Reason::InvalidUuid, "uuid is missing or not a UUID");
    };
    let token =
        outer.token.map_or_else(|| fields.text("token").or_else(|| fields.text("api_key")), whole_text);
    let project_id = match token.as_deref().and_then(|token| projects.by_token(token)) {
        Some(project) => project.id,
        None => match project_of_capture(headers) {
            Some(id) => id,
            None => return refuse(Reason::UnknownToken, "no project has this token"),
        },
    };
    let named =
        outer.event.and_then(whole_text).filter(|name| !name.is_empty()).or_else(|| fields.text("event"));
    let Some(event) = named.filter(|name| !name.is_empty()).map(without_nul) else {
        return refuse(Reason::MissingEvent, "the event has no name");
    };
    let given = outer.distinct_id.and_then(as_text).filter(|id| !id.trim().is_empty());
    let given = given.or_else(|| fields.get("distinct_id").and_then(as_text));
    let Some(distinct_id) =
        given.or_else(|| properties.get("distinct_id").and_then(as_text)).filter(|id| !id.trim().is_empty())
    else {
        return refuse(Reason::InvalidDistinctId, "distinct_id is missing or blank");
    };
    let length = distinct_id.chars().count();
    if length > MAX_DISTINCT_ID {
        let detail = format!("distinct_id has {length} characters; at most {MAX_DISTINCT_ID} are possible");
        return refuse(Reason::InvalidDistinctId, detail);
    }
    let distinct_id = without_nul(distinct_id);

    let Buffers { properties: rewritten, timestamp, created_at, captured_at, name } = buffers;
    let received = outer.now.and_then(whole_text).and_then(|text| time::read(&text));
    let received = received.unwrap_or_else(|| time::of_kafka(kafka_time_ms));
    let happened = outer.timestamp.filter(|value| value.get() != "\"\"");
    let happened = happened.or_else(|| fields.get("timestamp").filter(|value| value.get() != "null"));
    let happened = happened.map(|value| whole_text(value).and_then(|text| time::read(&text)));
    // Without any time the time of receipt is no replacement.
    let time_replaced = happened == Some(None);
    time::write(timestamp, happened.flatten().unwrap_or(received));
    time::write(captured_at, received);
    time::write(created_at, time::of_kafka(kafka_time_ms));

    let object = |key| fields.get(key).filter(|value| value.get() != "null");
    let (ip, sent_at) = (outer.ip.and_then(whole_text), outer.sent_at.and_then(whole_text));
    let changes = Changes {
        set: object("$set"),
        set_once: object("$set_once"),
        ip: ip.as_deref().unwrap_or_default(),
        sent_at: sent_at.as_deref(),
    };
    rewrite(rewritten, &properties, &changes);
    let chain = properties.text("$elements_chain");

    name.clear();
    name.push_str(&project_id.to_string());
    name.push(':');
    name.push_str(&distinct_id);
    let person = Uuid::new_v5(&PERSONLESS, name.as_bytes());
    let (mut uuid_text, mut person_text) = (Uuid::encode_buffer(), Uuid::encode_buffer());
    let ingested = IngestedEventRef {
        uuid: uuid.as_hyphenated().encode_lower(&mut uuid_text),
        event: &event,
        properties: std::str::from_utf8(rewritten).expect("made of texts"),
        timestamp,
        team_id: project_id,
        project_id,
        distinct_id: &distinct_id,
        elements_chain: chain.as_deref().unwrap_or_default(),
        created_at,
        captured_at,
        person_id: person.as_hyphenated().encode_lower(&mut person_text),
        person_created_at: PERSONLESS_CREATED_AT,
        person_properties: "{}",
        person_mode: "propertyless",
        historical_migration: outer.historical_migration.is_some_and(|value| value.get() == "true"),
    };
    serde_json::to_writer(out, &ingested)
        .expect("strings and numbers are always JSON, and memory takes them");
    Ok(Notes { time_replaced })
}

/// The project that capture found: it answered 200 for it, with a list of projects that may be newer than ours.
fn project_of_capture(headers: &Headers<'_>) -> Option<i64> {
    std::str::from_utf8(headers.get(header::PROJECT_ID)?).ok()?.parse().ok().filter(|id| *id > 0)
}

/// A value as a distinct id: strings as they are, everything but null as its JSON.
fn as_text(value: &RawValue) -> Option<Cow<'_, str>> {
    whole_text(value)
        .or_else(|| (value.get() != "null" && !value.get().starts_with('"')).then(|| value.get().into()))
}

/// The text of a value that is a string, half surrogates in it replaced.
fn whole_text(value: &RawValue) -> Option<Cow<'_, str>> {
    text(value).or_else(|| match surrogates::replace_lone(value.get()) {
        Cow::Borrowed(_) => None,
        Cow::Owned(whole) => serde_json::from_str(&whole).ok().map(Cow::Owned),
    })
}

fn without_nul(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { text }
}

/// Where a JSON error is, without quoting what the event holds.
fn place(error: &serde_json::Error) -> String {
    let kind = match error.classify() {
        serde_json::error::Category::Eof => "it ends too early",
        serde_json::error::Category::Data => "a field is missing or of another type",
        _ => "it is not valid JSON",
    };
    format!("{kind}, line {} column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests;
