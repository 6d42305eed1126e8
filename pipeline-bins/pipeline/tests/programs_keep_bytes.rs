//! What no program touched keeps its bytes, whatever it is.

use std::time::Duration;

use penstock_pipeline::program::{Budget, Event, Outcome, Step};
use proptest::prelude::*;

/// JSON as clients write it: numbers of every size and notation, escapes, spaces, repeated names.
fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|b| b.to_string()),
        "-?(0|[1-9][0-9]{0,40})(\\.[0-9]{1,30})?([eE][+-]?[0-9]{1,2})?",
        string(),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(|items| format!("[{}]", items.join(" , "))),
            prop::collection::vec((string(), inner), 0..5).prop_map(object),
        ]
    })
}

fn string() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>().prop_map(|text| serde_json::to_string(&text).expect("text is JSON")),
        Just(r#""\u0061\/\ud83d\ude00""#.to_owned()),
        "[a-c]".prop_map(|name| format!("\"{name}\"")),
    ]
}

fn object(members: Vec<(String, String)>) -> String {
    let members: Vec<_> = members.into_iter().map(|(name, value)| format!("{name}: {value}")).collect();
    format!("{{{}}}", members.join(","))
}

fn message(properties: &str) -> String {
    format!(
        r#"{{"uuid":"u","event":"e", "properties":{},"timestamp":"2026-11-24 12:00:00.5","team_id":1,"distinct_id":"d","extra":[1.0]}}"#,
        serde_json::to_string(properties).expect("text is JSON")
    )
}

/// What a program leaves of the message.
fn run(source: &str, message: &str) -> Option<String> {
    let step = Step::compile(source).expect("the program compiles");
    let mut event = Event::parse(message.as_bytes()).expect("the message is an event");
    let outcome = step.run(&mut event, &Budget::start(Duration::from_secs(5)));
    assert_eq!(outcome, Ok(Outcome::Kept));
    event.finish().map(|changed| String::from_utf8(changed).expect("the result is text"))
}

fn members() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec((string(), json()), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_step_that_changes_nothing_leaves_the_message_as_it_is(members in members()) {
        let message = message(&object(members));
        for source in [
            "true",
            "x = .properties",
            "x = .",
            ".event = .event\n.timestamp = .timestamp\n.distinct_id = .distinct_id",
            ".properties = merge(.properties, {})",
            ".properties.no = 1\ndel(.properties.no)",
        ] {
            prop_assert_eq!(run(source, &message), None, "{}", source);
        }
    }

    #[test]
    fn a_property_that_is_added_leaves_the_others_as_they_are(members in members()) {
        let before = object(members.clone());
        let added = r#""added":true"#;
        // A name that is there twice is one property: reading all of them keeps the last.
        let mut names = std::collections::HashSet::new();
        let mut kept: Vec<_> = members
            .into_iter()
            .rev()
            .filter(|(name, _)| names.insert(serde_json::from_str::<String>(name).expect("a name is a string")))
            .collect();
        kept.reverse();
        let joined: Vec<_> = kept.iter().map(|(name, value)| format!("{name}:{value}")).chain([added.to_owned()]).collect();
        let expected = format!("{{{}}}", joined.join(","));

        let result = run("x = .properties\n.properties.added = true", &message(&before)).expect("it changed");
        let result: serde_json::Value = serde_json::from_str(&result).expect("the result is JSON");
        prop_assert_eq!(result["properties"].as_str(), Some(expected.as_str()));
    }

    /// A program decodes what it names; it must not matter that the rest is not decoded.
    #[test]
    fn what_is_not_decoded_makes_no_difference(members in members()) {
        let message = message(&object(members));
        for source in [
            "del(.properties.a)",
            "del(.properties.a, compact: true)",
            "del(.properties.a.b, compact: true)",
            ".properties.a = .properties.b",
            "if exists(.properties.a) { .properties.c = is_null(.properties.b) }",
            ".properties.b.a = .properties.c",
            ".properties.a[1] = 2",
            ".properties.b = to_string(.properties.a) ?? .event",
            "del(.properties.a)\n.properties.b = exists(.properties.a)",
        ] {
            let properties = |result: Option<String>| {
                let result = result.unwrap_or_else(|| message.clone());
                let result: serde_json::Value = serde_json::from_str(&result).expect("the result is JSON");
                let text = result["properties"].as_str().expect("properties are text").to_owned();
                serde_json::from_str::<serde_json::Value>(&text).expect("properties are JSON")
            };
            let some = properties(run(source, &message));
            let all = properties(run(&format!("whole = .\n{source}\nwhole"), &message));
            prop_assert_eq!(some, all, "{}", source);
        }
    }
}
