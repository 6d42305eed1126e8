use penstock_pipeline::{config::ProjectEntry, events::ingested::IngestedEvent, kafka::Message};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const UUID: &str = "0198b6a2-5c2a-7e3b-8a52-0f1e2d3c4b5a";
const KAFKA_TIME: i64 = 1_769_904_000_123;

fn projects() -> Projects {
    Projects::new(vec![ProjectEntry { id: 7, name: "web".into(), token: "phc_a".into() }]).unwrap()
}

fn captured(data: &str) -> Value {
    json!({
        "uuid": UUID, "distinct_id": "visitor", "ip": "203.0.113.9", "data": data,
        "now": "2026-02-01T00:00:01.000002Z", "token": "phc_a", "event": "order completed",
        "timestamp": "2026-01-31T23:59:59.5Z",
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut message = captured(r#"{"properties":{}}"#);
    message[field] = value;
    message
}

fn outcome(message: &[u8], headers: &[(&str, Option<&[u8]>)]) -> Result<(IngestedEvent, Notes), Refusal> {
    let message = Message::of(message).with_headers(headers);
    let mut out = Vec::new();
    let value = message.value.unwrap();
    let notes = ingest(value, KAFKA_TIME, &message.headers, &projects(), &mut Buffers::default(), &mut out)?;
    Ok((serde_json::from_slice(&out).unwrap(), notes))
}

fn ingested(message: &Value) -> IngestedEvent {
    outcome(message.to_string().as_bytes(), &[]).unwrap().0
}

fn refused(message: &Value) -> Reason {
    outcome(message.to_string().as_bytes(), &[]).unwrap_err().reason
}

#[test]
fn a_captured_message_becomes_a_row_for_clickhouse() {
    let event = ingested(&captured(
        r#"{"event":"inner","distinct_id":"inner","properties":{"price":0.10,"$elements_chain":"a:href"},"$set":{"plan":"pro"}}"#,
    ));
    let wanted = IngestedEvent {
        uuid: UUID.into(),
        event: "order completed".into(),
        properties: r#"{"price":0.10,"$set":{"plan":"pro"},"$ip":"203.0.113.9"}"#.into(),
        timestamp: "2026-01-31 23:59:59.500000".into(),
        team_id: 7,
        project_id: 7,
        distinct_id: "visitor".into(),
        elements_chain: "a:href".into(),
        created_at: "2026-02-01 00:00:00.123000".into(),
        captured_at: "2026-02-01 00:00:01.000002".into(),
        person_id: Uuid::new_v5(&PERSONLESS, b"7:visitor").to_string(),
        person_created_at: "1970-01-01 00:00:05.000000".into(),
        person_properties: "{}".into(),
        person_mode: "propertyless".into(),
        historical_migration: false,
    };
    assert_eq!(event, wanted);
}

#[test]
fn what_can_never_be_an_event_is_refused_with_its_reason() {
    for bytes in [&b""[..], b"{", b"[]", b"7", b"\xff\xfe", br#"{"token":"phc_a"} {}"#] {
        let refusal = outcome(bytes, &[]).unwrap_err();
        assert_eq!(refusal.reason, Reason::Malformed, "{bytes:?}");
    }
    let cases = [
        (json!({"token": "phc_a", "uuid": UUID}), Reason::MalformedData),
        (with("data", json!("[]")), Reason::MalformedData),
        (with("data", json!(7)), Reason::MalformedData),
        (with("data", json!("{")), Reason::MalformedData),
        (with("data", json!(r#"{"properties":7}"#)), Reason::MalformedData),
        (with("uuid", json!("x")), Reason::InvalidUuid),
        (with("uuid", Value::Null), Reason::InvalidUuid),
        (with("uuid", json!(7)), Reason::InvalidUuid),
        (with("token", json!("phc_other")), Reason::UnknownToken),
        (with("token", Value::Null), Reason::UnknownToken),
        (with("event", json!("")), Reason::MissingEvent),
        (with("distinct_id", json!(" ")), Reason::InvalidDistinctId),
        (with("distinct_id", json!("ü".repeat(401))), Reason::InvalidDistinctId),
    ];
    for (message, reason) in cases {
        assert_eq!(refused(&message), reason, "{message}");
    }
}

#[test]
fn a_refusal_quotes_nothing_of_the_event() {
    let message = with("data", json!(r#"{"properties": secret}"#));
    let refusal = outcome(message.to_string().as_bytes(), &[]).unwrap_err();
    assert!(!refusal.detail.contains("secret"), "{}", refusal.detail);
}

#[test]
fn a_project_that_only_capture_knows_yet_is_believed() {
    let message = with("token", json!("phc_new")).to_string();
    let event = outcome(message.as_bytes(), &[(header::PROJECT_ID, Some(b"12"))]).unwrap().0;
    assert_eq!(event.team_id, 12);
    for wrong in [&b"0"[..], b"-1", b"x", b""] {
        let refusal = outcome(message.as_bytes(), &[(header::PROJECT_ID, Some(wrong))]).unwrap_err();
        assert_eq!(refusal.reason, Reason::UnknownToken);
    }
    // The list that is known here decides when it has the token.
    let known = with("token", json!("phc_a")).to_string();
    assert_eq!(outcome(known.as_bytes(), &[(header::PROJECT_ID, Some(b"12"))]).unwrap().0.team_id, 7);
}

#[test]
fn what_the_message_leaves_out_is_taken_from_its_data() {
    let data = format!(
        r#"{{"uuid":"{UUID}","event":"inner","distinct_id":23,"timestamp":"2026-01-01T00:00:00Z","properties":{{}}}}"#
    );
    let message = json!({"data": data, "token": "phc_a"});
    let event = ingested(&message);
    assert_eq!((event.event.as_str(), event.distinct_id.as_str()), ("inner", "23"));
    assert_eq!(event.timestamp, "2026-01-01 00:00:00.000000");
    assert_eq!(event.captured_at, "2026-02-01 00:00:00.123000");
    assert_eq!(event.properties, "{}");
}

#[test]
fn other_types_and_more_fields_of_other_producers_are_understood() {
    let mut message = with("distinct_id", json!(23));
    message["data"] = json!({"properties": {"a": 1}});
    message["historical_migration"] = Value::Null;
    message["library"] = json!({"name": [1, 2]});
    message["timestamp"] = json!(1_769_904_000);
    let (event, notes) = outcome(message.to_string().as_bytes(), &[]).unwrap();
    assert_eq!(event.distinct_id, "23");
    assert_eq!(event.properties, r#"{"a":1,"$ip":"203.0.113.9"}"#);
    assert!(!event.historical_migration);
    assert!(notes.time_replaced);
    let message = json!({"uuid": UUID, "data": r#"{"api_key":"phc_a","event":"e","distinct_id":"d"}"#});
    assert_eq!(ingested(&message).team_id, 7);
}

#[test]
fn the_person_of_a_distinct_id_is_the_one_that_posthog_would_make() {
    // uuid.uuid5(uuid.UUID("932979b4-65c3-4424-8467-0b66ec27bc22"), "7:visitor") of Python.
    assert_eq!(ingested(&with("ip", json!(""))).person_id, "328ca068-faff-5782-8431-531840bbf453");
}

#[test]
fn a_time_that_cannot_be_read_or_stored_is_replaced_and_counted() {
    for time in ["yesterday", "0001-01-01T00:00:00Z", "9999-01-01T00:00:00Z"] {
        let message = with("timestamp", json!(time)).to_string();
        let (event, notes) = outcome(message.as_bytes(), &[]).unwrap();
        assert_eq!(event.timestamp, "2026-02-01 00:00:01.000002", "{time}");
        assert!(notes.time_replaced, "{time}");
    }
    let message = with("timestamp", Value::Null).to_string();
    assert!(!outcome(message.as_bytes(), &[]).unwrap().1.time_replaced);
}

#[test]
fn nul_and_lone_surrogates_harm_nothing() {
    let mut message = with("distinct_id", json!("a\0b"));
    message["event"] = json!("c\0d");
    message["data"] = json!(r#"{"properties":{"cut":"a\ud83d","whole":"\ud83d\ude00"}}"#);
    let event = ingested(&message);
    assert_eq!((event.distinct_id.as_str(), event.event.as_str()), ("a\u{fffd}b", "c\u{fffd}d"));
    let properties: Value = serde_json::from_str(&event.properties).unwrap();
    assert_eq!(properties["cut"], "a\u{fffd}");
    assert_eq!(properties["whole"], "😀");
    // Also in the message itself, where capture sends none.
    let text = with("event", json!("EVENT")).to_string().replace("EVENT", r"x\udc00");
    assert_eq!(outcome(text.as_bytes(), &[]).unwrap().0.event, "x\u{fffd}");
}

proptest! {
    #[test]
    fn any_bytes_give_an_event_or_a_reason(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = outcome(&bytes, &[]);
    }

    #[test]
    fn properties_arrive_as_they_were_sent(
        number in "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        text in any::<String>(),
        key in "[a-z]{1,10}",
    ) {
        let text = json!(text).to_string();
        let properties = format!("{{\"{key}\":{number},\"T\":{text}}}");
        let event = ingested(&captured(&format!("{{\"properties\":{properties}}}")));
        let wanted = format!("{},\"$ip\":\"203.0.113.9\"}}", &properties[..properties.len() - 1]);
        prop_assert_eq!(event.properties, wanted);
    }

    #[test]
    fn the_same_message_gives_the_same_bytes(id in ".{1,50}", data in "\\{\"properties\":\\{\"a\":\"[a-z]{0,9}\"\\}\\}") {
        let mut message = captured(&data);
        message["distinct_id"] = json!(id);
        prop_assert_eq!(
            outcome(message.to_string().as_bytes(), &[]),
            outcome(message.to_string().as_bytes(), &[])
        );
    }
}
