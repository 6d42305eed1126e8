//! The properties of an event, rewritten without touching what needs no change: values stay the very text that the client
//! sent, so that no number loses a digit on the way.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// An object's members in their order; values are their text. Of a key that is repeated the last value counts, as in
/// JavaScript; a reader of ours that took the first would see another event.
#[derive(Debug, Default)]
pub struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::with_capacity(map.size_hint().unwrap_or(24));
                while let Some(Key(key)) = map.next_key()? {
                    members.push((key, map.next_value()?));
                }
                Ok(Members(keep_last(members)))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

fn keep_last<'a>(mut members: Vec<(Cow<'a, str>, &'a RawValue)>) -> Vec<(Cow<'a, str>, &'a RawValue)> {
    let last: HashMap<&str, usize> =
        members.iter().enumerate().map(|(index, (key, _))| (key.as_ref(), index)).collect();
    if last.len() == members.len() {
        return members;
    }
    let keep: Vec<bool> =
        members.iter().enumerate().map(|(index, (key, _))| last[key.as_ref()] == index).collect();
    let mut keep = keep.into_iter();
    members.retain(|_| keep.next().unwrap_or(true));
    members
}

/// A string that is borrowed when nothing in it is escaped.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'a> Members<'a> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(other, _)| other == key).map(|(_, value)| *value)
    }

    /// The text of a member that is a string.
    pub fn text(&self, key: &str) -> Option<Cow<'a, str>> {
        text(self.get(key)?)
    }
}

/// The text of a value that is a string.
pub fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    value
        .get()
        .starts_with('"')
        .then(|| serde_json::from_str::<Key<'_>>(value.get()).ok())
        .flatten()
        .map(|key| key.0)
}

/// What is added to the properties of an event, and taken out of them.
#[derive(Debug)]
pub struct Changes<'a> {
    /// `$set` of the event itself; its keys win over those of the property of that name.
    pub set: Option<&'a RawValue>,
    /// `$set_once` likewise.
    pub set_once: Option<&'a RawValue>,
    /// Address of the client; becomes `$ip` unless the client sent one.
    pub ip: &'a str,
    /// Becomes `$sent_at`.
    pub sent_at: Option<&'a str>,
}

/// Members that are taken out: what becomes a column, and what needs persons and groups, which are not kept.
fn is_taken_out(key: &str, value: &RawValue) -> bool {
    match key {
        // The column is a text; what is something else stays where it is.
        "$elements_chain" => value.get().starts_with('"'),
        "$group_0" | "$group_1" | "$group_2" | "$group_3" | "$group_4" => true,
        _ => false,
    }
}

/// Writes the properties anew, in place of what `out` held.
pub fn rewrite(out: &mut Vec<u8>, members: &Members<'_>, changes: &Changes<'_>) {
    out.clear();
    out.push(b'{');
    let mut has_ip = false;
    for (key, value) in &members.0 {
        match &**key {
            "$set" if changes.set.is_some() => continue,
            "$set_once" if changes.set_once.is_some() => continue,
            "$sent_at" if changes.sent_at.is_some() => continue,
            "$session_id" => {
                // Clients write the same UUID in two ways, and sessions are joined by text.
                if let Some(id) =
                    text(value).and_then(|id| uuid::Uuid::try_parse(&id).ok().map(|_| id.to_lowercase()))
                {
                    member(out, key, |out| string(out, &id));
                    continue;
                }
            }
            "$ip" => has_ip = true,
            key if is_taken_out(key, value) => continue,
            _ => {}
        }
        member(out, key, |out| out.extend_from_slice(value.get().as_bytes()));
    }
    for (name, of_event) in [("$set", changes.set), ("$set_once", changes.set_once)] {
        if let Some(of_event) = of_event {
            member(out, name, |out| merged(out, members.get(name), of_event));
        }
    }
    if !has_ip && !changes.ip.is_empty() {
        member(out, "$ip", |out| string(out, changes.ip));
    }
    if let Some(sent_at) = changes.sent_at {
        member(out, "$sent_at", |out| string(out, sent_at));
    }
    out.push(b'}');
}

/// Two objects as one; the keys of the second win. What is no object counts as none.
fn merged(out: &mut Vec<u8>, first: Option<&RawValue>, second: &RawValue) {
    let object = |value: &'_ RawValue| -> Option<Vec<(String, String)>> {
        let members: Members<'_> = serde_json::from_str(value.get()).ok()?;
        Some(members.0.into_iter().map(|(key, value)| (key.into_owned(), value.get().to_owned())).collect())
    };
    let Some(second_members) = object(second) else {
        out.extend_from_slice(first.unwrap_or(second).get().as_bytes());
        return;
    };
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    all.extend(first.and_then(object).unwrap_or_default());
    all.extend(second_members);
    out.push(b'{');
    for (key, value) in all {
        member(out, &key, |out| out.extend_from_slice(value.as_bytes()));
    }
    out.push(b'}');
}

fn member(out: &mut Vec<u8>, key: &str, value: impl FnOnce(&mut Vec<u8>)) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    string(out, key);
    out.push(b':');
    value(out);
}

fn string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string is JSON, and memory takes it");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(properties: &str, changes: &Changes<'_>) -> String {
        let mut out = b"left over".to_vec();
        rewrite(&mut out, &serde_json::from_str(properties).unwrap(), changes);
        String::from_utf8(out).unwrap()
    }

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    const NOTHING: Changes<'static> = Changes { set: None, set_once: None, ip: "", sent_at: None };

    #[test]
    fn what_needs_no_change_stays_byte_by_byte() {
        let properties = r#"{"big":12345678901234567890123,"exact":0.1000,"exp":1E400,"deep":{ "a" : [1, 2] },"e":"\u00e9\/"}"#;
        assert_eq!(rewritten(properties, &NOTHING), properties);
        assert_eq!(rewritten("{}", &NOTHING), "{}");
    }

    #[test]
    fn columns_and_groups_are_taken_out() {
        let properties = r#"{"$elements_chain":"a","$group_0":"x","$group_4":"y","$group_5":"stays","a":1}"#;
        assert_eq!(rewritten(properties, &NOTHING), r#"{"$group_5":"stays","a":1}"#);
        let odd = r#"{"$elements_chain":["a"]}"#;
        assert_eq!(rewritten(odd, &NOTHING), odd);
    }

    #[test]
    fn of_a_key_that_is_repeated_the_last_value_counts() {
        assert_eq!(rewritten(r#"{"a":1,"b":2,"a":3}"#, &NOTHING), r#"{"b":2,"a":3}"#);
        let changes = Changes { ip: "203.0.113.9", ..NOTHING };
        assert_eq!(rewritten(r#"{"$ip":"x","a":1,"$ip":"y"}"#, &changes), r#"{"a":1,"$ip":"y"}"#);
    }

    #[test]
    fn the_address_is_added_unless_the_client_sent_one() {
        let changes = Changes { ip: "203.0.113.9", ..NOTHING };
        assert_eq!(rewritten(r#"{"a":1}"#, &changes), r#"{"a":1,"$ip":"203.0.113.9"}"#);
        assert_eq!(rewritten(r#"{"$ip":"198.51.100.1"}"#, &changes), r#"{"$ip":"198.51.100.1"}"#);
        assert_eq!(rewritten(r#"{"$ip":null}"#, &changes), r#"{"$ip":null}"#);
        assert_eq!(rewritten("{}", &changes), r#"{"$ip":"203.0.113.9"}"#);
    }

    #[test]
    fn set_of_the_event_wins_key_by_key() {
        let set = raw(r#"{"plan":"pro","seats":12345678901234567890}"#);
        let changes = Changes { set: Some(set), ..NOTHING };
        assert_eq!(
            rewritten(r#"{"$set":{"plan":"free","name":"é"},"a":1}"#, &changes),
            r#"{"a":1,"$set":{"name":"é","plan":"pro","seats":12345678901234567890}}"#
        );
        assert_eq!(
            rewritten(r#"{"$set":"odd"}"#, &changes),
            r#"{"$set":{"plan":"pro","seats":12345678901234567890}}"#
        );
        let odd = Changes { set_once: Some(raw("7")), ..NOTHING };
        assert_eq!(rewritten(r#"{"$set_once":{"a":1}}"#, &odd), r#"{"$set_once":{"a":1}}"#);
        assert_eq!(rewritten("{}", &odd), r#"{"$set_once":7}"#);
    }

    #[test]
    fn the_time_of_sending_and_the_session_are_normalised() {
        let changes = Changes { sent_at: Some("2026-01-01T00:00:00Z"), ..NOTHING };
        let properties = r#"{"$sent_at":"x","$session_id":"0198B6A2-5C2A-7E3B-8A52-0F1E2D3C4B5A"}"#;
        assert_eq!(
            rewritten(properties, &changes),
            r#"{"$session_id":"0198b6a2-5c2a-7e3b-8a52-0f1e2d3c4b5a","$sent_at":"2026-01-01T00:00:00Z"}"#
        );
        assert_eq!(rewritten(r#"{"$session_id":"My Own"}"#, &NOTHING), r#"{"$session_id":"My Own"}"#);
    }
}
