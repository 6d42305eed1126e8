//! An event of which only that is decoded what a program needs.

use std::borrow::Cow;

use chrono::{DateTime, Datelike as _, NaiveDateTime, Utc};
use vrl::value::{KeyString, ObjectMap, Value};

use super::{
    fields::{FIELDS, FieldType, Presence, position},
    json::{self, Object},
    needs::{Members, Needs},
};

/// A message that is not an event, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message is not an event: {0}")]
pub struct NotAnEvent(String);

/// An event on its way through programs.
#[derive(Debug)]
pub struct Event<'a> {
    message: Object<'a>,
    /// Place in the message of every field that it has.
    places: [Option<usize>; FIELDS.len()],
    /// What programs see: the fields that were decoded, as programs left them.
    pub(super) current: Value,
    /// What was decoded, as it was.
    decoded: [Option<Decoded<'a>>; FIELDS.len()],
}

/// A field that was decoded.
#[derive(Debug)]
enum Decoded<'a> {
    /// All of it. `None`: the message does not have it.
    Scalar(Option<Value>),
    /// Some members.
    Object { text: Option<Object<'a>>, members: ObjectMap, all: bool },
}

impl<'a> Event<'a> {
    /// Finds the fields of a message of `ingested` or `transformed`; decodes none.
    pub fn parse(message: &'a [u8]) -> Result<Self, NotAnEvent> {
        let text = std::str::from_utf8(message).map_err(|error| NotAnEvent(error.to_string()))?;
        let message = Object::parse(Cow::Borrowed(text)).map_err(|error| NotAnEvent(error.to_string()))?;
        let mut places = [None; FIELDS.len()];
        for place in 0..message.len() {
            let name = message.name(place);
            if let Some(field) = position(&name)
                && places[field].replace(place).is_some()
            {
                return Err(NotAnEvent(format!("it has two fields named {name}")));
            }
        }
        for (field, place) in FIELDS.iter().zip(&places) {
            if field.presence == Presence::Required && place.is_none() {
                return Err(NotAnEvent(format!("it has no field {}", field.name)));
            }
        }
        Ok(Self {
            message,
            places,
            current: Value::Object(ObjectMap::new()),
            decoded: std::array::from_fn(|_| None),
        })
    }

    /// Decodes what is needed and was not decoded yet.
    pub(super) fn decode(&mut self, needs: &Needs) -> Result<(), String> {
        for (field, members) in needs.fields.iter().enumerate() {
            match (members, FIELDS[field].type_) {
                (Members::None, _) => {}
                (members, FieldType::Object) => self
                    .decode_members(field, members)
                    .map_err(|error| format!("{} cannot be read: {error}", FIELDS[field].name))?,
                _ => self
                    .decode_scalar(field)
                    .map_err(|error| format!("{} cannot be read: {error}", FIELDS[field].name))?,
            }
        }
        Ok(())
    }

    fn current(&mut self) -> &mut ObjectMap {
        match &mut self.current {
            Value::Object(object) => object,
            _ => unreachable!("the compiler lets no program replace the event as a whole"),
        }
    }

    fn raw(&self, field: usize) -> Option<&str> {
        self.places[field].map(|place| self.message.raw_value(place))
    }

    fn decode_scalar(&mut self, field: usize) -> Result<(), String> {
        if self.decoded[field].is_some() {
            return Ok(());
        }
        let was = self.raw(field).map(|raw| scalar(FIELDS[field].type_, raw)).transpose()?;
        // A field that programs may change is never missing for them.
        let is = match (&was, FIELDS[field].name) {
            (None, "elements_chain") => Some(Value::from("")),
            _ => was.clone(),
        };
        if let Some(is) = is {
            self.current().insert(KeyString::from(FIELDS[field].name), is);
        }
        self.decoded[field] = Some(Decoded::Scalar(was));
        Ok(())
    }

    fn decode_members(&mut self, field: usize, needed: &Members) -> Result<(), String> {
        let name = FIELDS[field].name;
        if self.decoded[field].is_none() {
            let text = self.raw(field).map(object_text).transpose()?.flatten();
            self.decoded[field] = Some(Decoded::Object { text, members: ObjectMap::new(), all: false });
            self.current().insert(name.into(), Value::Object(ObjectMap::new()));
        }
        let Some(Decoded::Object { text: Some(text), members, all }) = &mut self.decoded[field] else {
            return Ok(());
        };
        if *all {
            return Ok(());
        }
        let mut found = ObjectMap::new();
        for place in 0..text.len() {
            let member = text.name(place);
            if needed.include(&member) && !members.contains_key(member.as_ref()) {
                let value = serde_json::from_str::<Value>(text.raw_value(place))
                    .map_err(|error| format!("member {member}: {error}"))?;
                found.insert(KeyString::from(member.as_ref()), value);
            }
        }
        members.extend(found.iter().map(|(name, value)| (name.clone(), value.clone())));
        *all = *needed == Members::All;
        if let Some(Value::Object(current)) = self.current().get_mut(name) {
            current.extend(found);
        }
        Ok(())
    }

    /// Checks that what the programs left is still an event.
    pub(super) fn check(&mut self) -> Result<(), String> {
        self.restore_objects();
        let Value::Object(current) = &self.current else { return Err("it is no object".into()) };
        for (field, decoded) in FIELDS.iter().zip(&self.decoded) {
            let was = match decoded {
                None => continue,
                Some(Decoded::Object { .. }) => None,
                Some(Decoded::Scalar(was)) => was.as_ref(),
            };
            let is = current.get(field.name);
            if is.is_some() && is == was {
                continue;
            }
            match (field.type_, is) {
                (_, None) if field.presence == Presence::Optional => {}
                (FieldType::Timestamp, Some(value)) => drop(written_time(field.name, value)?),
                (FieldType::String, Some(Value::String(_) | Value::Bytes(_))) => {}
                (FieldType::Object, Some(Value::Object(_)))
                | (FieldType::Integer, Some(Value::Integer(_)))
                | (FieldType::Boolean, Some(Value::Boolean(_))) => {}
                (type_, Some(value)) => {
                    return Err(format!(
                        "{} must be a {}, not {}",
                        field.name,
                        type_.name(),
                        value.kind_str()
                    ));
                }
                (_, None) => return Err(format!("{} is missing", field.name)),
            }
            let length = || is.and_then(Value::to_str_lossy).map_or(0, |text| text.chars().count());
            match field.name {
                "event" if length() == 0 => return Err("event is empty".into()),
                "distinct_id" if !(1..=MAX_DISTINCT_ID).contains(&length()) => {
                    return Err(format!("distinct_id must have 1 to {MAX_DISTINCT_ID} characters"));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// An object that is gone is an empty one: `del(…, compact: true)` takes it away when it removes the last member
    /// that was decoded, which others that were not may have survived.
    fn restore_objects(&mut self) {
        let Value::Object(current) = &mut self.current else { return };
        for (field, decoded) in FIELDS.iter().zip(&self.decoded) {
            if matches!(decoded, Some(Decoded::Object { .. })) {
                current.entry(KeyString::from(field.name)).or_insert_with(|| Value::Object(ObjectMap::new()));
            }
        }
    }

    /// The message with what the programs changed, or `None` if they changed nothing.
    ///
    /// Call it after the last program that succeeded.
    pub fn finish(&self) -> Option<Vec<u8>> {
        let Value::Object(current) = &self.current else { return None };
        let changed: [Option<Vec<u8>>; FIELDS.len()] =
            std::array::from_fn(|field| self.changed(field, current.get(FIELDS[field].name)));
        if changed.iter().all(Option::is_none) {
            return None;
        }
        let mut out = Vec::with_capacity(1024);
        let mut separator = b'{';
        for place in 0..self.message.len() {
            out.push(std::mem::replace(&mut separator, b','));
            out.extend_from_slice(self.message.raw_name(place).as_bytes());
            out.push(b':');
            let new = self
                .places
                .iter()
                .position(|at| *at == Some(place))
                .and_then(|field| changed[field].as_ref());
            out.extend_from_slice(new.map_or(self.message.raw_value(place).as_bytes(), Vec::as_slice));
        }
        for (field, new) in changed.iter().enumerate() {
            if let (None, Some(new)) = (self.places[field], new) {
                out.push(b',');
                json::write_string(&mut out, FIELDS[field].name);
                out.push(b':');
                out.extend_from_slice(new);
            }
        }
        out.push(b'}');
        Some(out)
    }

    /// New JSON of a field, if it changed.
    fn changed(&self, field: usize, is: Option<&Value>) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        match (self.decoded[field].as_ref()?, is) {
            (Decoded::Scalar(was), is) => {
                let stays_empty =
                    || was.is_none() && is.and_then(Value::to_str_lossy).is_some_and(|text| text.is_empty());
                if is == was.as_ref() || stays_empty() {
                    return None;
                }
                let text = match (FIELDS[field].type_, is) {
                    (FieldType::Timestamp, Some(value)) => written_time(FIELDS[field].name, value).ok()?,
                    (_, Some(value)) => value.to_str_lossy()?.into_owned(),
                    // Only `elements_chain` can be deleted: without it, an event has no elements.
                    (_, None) => String::new(),
                };
                json::write_string(&mut out, &text);
            }
            (Decoded::Object { text, members, .. }, is) => {
                let empty = ObjectMap::new();
                let is = match is {
                    Some(Value::Object(is)) => is,
                    _ => &empty,
                };
                if is == members {
                    return None;
                }
                let mut text_out = Vec::with_capacity(1024);
                json::write_object(&mut text_out, is, members, text.as_ref());
                json::write_string(&mut out, std::str::from_utf8(&text_out).ok()?);
            }
        }
        Some(out)
    }
}

/// Longest distinct id, in characters.
const MAX_DISTINCT_ID: usize = 400;

/// Years that the table's `DateTime64` holds.
const YEARS: std::ops::RangeInclusive<i32> = 1900..=2299;

fn scalar(type_: FieldType, raw: &str) -> Result<Value, String> {
    let value: Value = serde_json::from_str(raw).map_err(|error| error.to_string())?;
    match (type_, value) {
        (FieldType::Timestamp, Value::String(text)) => time_of(&text).map(Value::Timestamp),
        (FieldType::String, value @ Value::String(_))
        | (FieldType::Integer, value @ Value::Integer(_))
        | (FieldType::Boolean, value @ Value::Boolean(_)) => Ok(value),
        (type_, value) => Err(format!("it is no {} but {}", type_.name(), value.kind_str())),
    }
}

/// The object in a JSON string; an empty string is an object without members.
fn object_text<'a>(raw: &str) -> Result<Option<Object<'a>>, String> {
    if !raw.starts_with('"') {
        return Err("it is not JSON in a string".into());
    }
    let text: String = serde_json::from_str(raw).map_err(|error| error.to_string())?;
    if text.is_empty() {
        return Ok(None);
    }
    Object::parse(Cow::Owned(text)).map(Some).map_err(|error| error.to_string())
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]` in UTC, or RFC 3339.
fn time_of(text: &str) -> Result<DateTime<Utc>, String> {
    NaiveDateTime::parse_from_str(text, "%Y-%m-%d %H:%M:%S%.f")
        .map(|time| time.and_utc())
        .or_else(|_| DateTime::parse_from_rfc3339(text).map(|time| time.with_timezone(&Utc)))
        .map_err(|_| format!("{text:?} is neither YYYY-MM-DD HH:MM:SS nor RFC 3339"))
}

/// A time as it is written into a message.
fn written_time(field: &str, value: &Value) -> Result<String, String> {
    let time = match value {
        Value::Timestamp(time) => *time,
        Value::String(_) | Value::Bytes(_) => {
            time_of(&value.to_str_lossy().unwrap_or_default()).map_err(|error| format!("{field}: {error}"))?
        }
        other => return Err(format!("{field} must be a timestamp, not {}", other.kind_str())),
    };
    if !YEARS.contains(&time.year()) {
        return Err(format!("{field} is outside of the years {} to {}", YEARS.start(), YEARS.end()));
    }
    Ok(time.format("%Y-%m-%d %H:%M:%S%.6f").to_string())
}
