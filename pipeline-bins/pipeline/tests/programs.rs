//! What programs may do, what they do, and what the compiler says when they may not.

use std::time::Duration;

use penstock_pipeline::program::{
    Budget, Event, Outcome, Predicate, PredicateError, RunError, Step, functions,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_millis(500);

/// A message with everything that the consumer writes.
const ORDER: &str = concat!(
    r#"{"uuid":"0192d3b0-0000-7000-8000-000000000001","event":"order completed","#,
    r#""properties":"{\"$ip\":\"192.0.2.7\",\"email\":\"Ada@example.com\",\"total\":12.50,\"#,
    r#""big\":123456789012345678901,\"items\":[{\"sku\":\"a\",\"price\":1.10}]}","#,
    r#""timestamp":"2026-11-24 12:00:00.123456","team_id":7,"project_id":7,"distinct_id":"ada","#,
    r#""elements_chain":"","created_at":"2026-11-24 12:00:02.000000","captured_at":"2026-11-24 12:00:01.000000","#,
    r#""person_id":"00000000-0000-5000-8000-000000000001","person_created_at":"1970-01-01 00:00:05.000000","#,
    r#""person_properties":"{}","person_mode":"propertyless","historical_migration":false}"#
);

/// Result of one step: `None` when it dropped the event.
fn run(source: &str, message: &str) -> Result<Option<String>, RunError> {
    let step = Step::compile(source).unwrap_or_else(|diagnostics| panic!("{diagnostics}"));
    let mut event = Event::parse(message.as_bytes()).expect("the message is an event");
    match step.run(&mut event, &Budget::start(LIMIT))? {
        Outcome::Dropped => Ok(None),
        Outcome::Kept => Ok(Some(match event.finish() {
            Some(changed) => String::from_utf8(changed).expect("the result is text"),
            None => message.to_owned(),
        })),
    }
}

fn properties(message: &str) -> String {
    let message: Value = serde_json::from_str(message).expect("the result is JSON");
    message["properties"].as_str().expect("properties are a string").to_owned()
}

fn field(message: &str, name: &str) -> Value {
    serde_json::from_str::<Value>(message).expect("the result is JSON")[name].clone()
}

#[test]
fn a_step_changes_what_it_names_and_nothing_else() {
    let result = run(r#"del(.properties."$ip")"#, ORDER).unwrap().unwrap();
    assert_eq!(result, ORDER.replace(r#"\"$ip\":\"192.0.2.7\","#, ""));

    let result = run(r#".event = "purchase""#, ORDER).unwrap().unwrap();
    assert_eq!(result, ORDER.replace("order completed", "purchase"));

    let result = run(".timestamp = t'2026-01-02T03:04:05.6Z'", ORDER).unwrap().unwrap();
    assert_eq!(result, ORDER.replace("2026-11-24 12:00:00.123456", "2026-01-02 03:04:05.600000"));
}

#[test]
fn what_a_step_takes_apart_keeps_its_numbers() {
    let result =
        run(".properties.items[0].sku = \"b\"\n.properties.n = length(.properties)", ORDER).unwrap().unwrap();
    assert_eq!(
        properties(&result),
        r#"{"$ip":"192.0.2.7","email":"Ada@example.com","total":12.50,"big":123456789012345678901,"items":[{"sku":"b","price":1.10}],"n":5}"#
    );
}

#[test]
fn a_compact_deletion_takes_no_neighbours_along() {
    let source = "del(.properties.\"$ip\", compact: true)\ndel(.person_properties.name, compact: true)";
    let result = run(source, ORDER).unwrap().unwrap();
    assert_eq!(result, ORDER.replace(r#"\"$ip\":\"192.0.2.7\","#, ""));

    let step = Step::compile(source).unwrap();
    let later = Step::compile(".properties.a = exists(.properties.total)").unwrap();
    let mut event = Event::parse(ORDER.as_bytes()).unwrap();
    let budget = Budget::start(LIMIT);
    assert_eq!(step.run(&mut event, &budget), Ok(Outcome::Kept));
    assert_eq!(later.run(&mut event, &budget), Ok(Outcome::Kept));
    let result = String::from_utf8(event.finish().unwrap()).unwrap();
    assert!(properties(&result).ends_with(r#""a":true}"#), "{result}");

    let result = run("if .team_id == 7 { del(.properties) }", ORDER).unwrap().unwrap();
    assert_eq!(properties(&result), "{}");
}

#[test]
fn personal_data_can_be_hashed() {
    let source = r#"
        if exists(.properties.email) {
            .properties.email = sha2(downcase(string!(.properties.email)))
        }
    "#;
    let result = run(source, ORDER).unwrap().unwrap();
    let properties: Value = serde_json::from_str(&properties(&result)).unwrap();
    // SHA-512/256, which sha2 takes by default.
    assert_eq!(properties["email"], "c49c6db60242a79e261ed1cc65ff72ca9722e726fa0189eac658353fb5f92ee5");
}

#[test]
fn abort_drops_the_event() {
    assert_eq!(run(r#"if .event == "order completed" { abort }"#, ORDER), Ok(None));
    assert!(run(r#"if .event == "other" { abort }"#, ORDER).unwrap().is_some());
}

#[test]
fn a_failed_step_leaves_the_event_as_it_was() {
    let step = Step::compile(".event = \"changed\"\n.properties.n = parse_int!(.properties.email)").unwrap();
    let mut event = Event::parse(ORDER.as_bytes()).unwrap();
    let error = step.run(&mut event, &Budget::start(LIMIT)).unwrap_err();
    assert!(matches!(&error, RunError::Failed(message) if message.contains("line 2, column 17")), "{error}");
    assert_eq!(event.finish(), None);
}

#[test]
fn a_result_that_is_no_event_is_an_error() {
    let long = "x".repeat(401);
    for (source, says) in [
        (".event = \"\"", "event is empty"),
        (".distinct_id = \"\"", "distinct_id must have 1 to 400 characters"),
        (&format!(".distinct_id = {long:?}"), "distinct_id must have 1 to 400 characters"),
        (".event = .properties.total", "event must be a string, not float"),
        (".distinct_id = .properties.missing", "distinct_id must be a string, not null"),
        (".timestamp = .properties.email", "is neither YYYY-MM-DD HH:MM:SS nor RFC 3339"),
        (".timestamp = t'1815-12-10T00:00:00Z'", "outside of the years 1900 to 2299"),
        (".properties = .properties.items", "properties must be a object, not array"),
        ("if .team_id == 7 { del(.event) }", "event is missing"),
    ] {
        match run(source, ORDER) {
            Err(RunError::InvalidResult(message)) => assert!(message.contains(says), "{source}: {message}"),
            other => panic!("{source}: {other:?}"),
        }
    }
}

#[test]
fn a_distinct_id_counts_characters_not_bytes() {
    let id = "ä".repeat(400);
    let result = run(&format!(".distinct_id = {id:?}"), ORDER).unwrap().unwrap();
    assert_eq!(field(&result, "distinct_id"), Value::from(id));
}

#[test]
fn a_timestamp_may_be_given_as_text() {
    let result = run(".timestamp = \"2026-02-03T04:05:06+01:00\"", ORDER).unwrap().unwrap();
    assert_eq!(field(&result, "timestamp"), "2026-02-03 03:05:06.000000");
}

#[test]
fn times_without_a_zone_are_utc() {
    let source = r#".timestamp = parse_timestamp!("2026-02-03 04:05:06", "%Y-%m-%d %H:%M:%S")"#;
    assert_eq!(field(&run(source, ORDER).unwrap().unwrap(), "timestamp"), "2026-02-03 04:05:06.000000");
}

#[test]
fn a_program_that_does_not_end_in_time_is_interrupted() {
    let source = "
        n = 0
        for_each(range!(0, 20000)) -> |_i, a| {
            for_each(range!(0, 20000)) -> |_j, b| { n = n + a + b }
        }
        .properties.n = n
    ";
    let step = Step::compile(source).unwrap();
    let mut event = Event::parse(ORDER.as_bytes()).unwrap();
    let limit = Duration::from_millis(20);
    assert_eq!(step.run(&mut event, &Budget::start(limit)), Err(RunError::TimedOut(limit)));
    assert_eq!(event.finish(), None);
}

#[test]
fn later_steps_see_what_earlier_ones_did() {
    let steps = [
        "del(.properties.email)",
        ".properties.had_email = exists(.properties.email)",
        ".properties.names = join!(keys(.properties), \",\")",
        ".properties.\"$ip\" = null",
    ]
    .map(|source| Step::compile(source).unwrap());
    let mut event = Event::parse(ORDER.as_bytes()).unwrap();
    let budget = Budget::start(LIMIT);
    for step in &steps {
        assert_eq!(step.run(&mut event, &budget), Ok(Outcome::Kept));
    }
    let result = String::from_utf8(event.finish().unwrap()).unwrap();
    assert_eq!(
        properties(&result),
        r#"{"$ip":null,"total":12.50,"big":123456789012345678901,"items":[{"sku":"a","price":1.10}],"had_email":false,"names":"$ip,big,had_email,items,total"}"#
    );
}

#[test]
fn a_message_of_another_producer_keeps_its_unknown_fields() {
    let message = r#"{ "event":"a", "uuid":"u","team_id":1,"distinct_id":"d","timestamp":"2026-11-24 12:00:00","properties":"{}", "group0_properties":"{\"n\":1.0}" }"#;
    let result = run(".elements_chain = \"a\"\n.person_properties.x = 1", message).unwrap().unwrap();
    assert_eq!(
        result,
        r#"{"event":"a","uuid":"u","team_id":1,"distinct_id":"d","timestamp":"2026-11-24 12:00:00","properties":"{}","group0_properties":"{\"n\":1.0}","elements_chain":"a","person_properties":"{\"x\":1}"}"#
    );
    assert_eq!(
        run(".elements_chain = downcase(.elements_chain)", message).unwrap().as_deref(),
        Some(message)
    );
}

#[test]
fn what_is_no_event_is_told_apart() {
    for message in [
        "",
        "[]",
        "{",
        r#"{"event":"a"}"#,
        "{\"event\":\"a\u{0}",
        &ORDER.replace("\"team_id\":7", "\"event\":7"),
    ] {
        assert!(Event::parse(message.as_bytes()).is_err(), "{message}");
    }
    assert!(Event::parse(b"\xff").is_err());
}

#[test]
fn broken_properties_fail_the_step_that_reads_them_only() {
    let message = ORDER.replace(r#""person_properties":"{}""#, r#""person_properties":"[1]""#);
    assert!(run(r#"del(.properties."$ip")"#, &message).is_ok());
    assert!(matches!(run("del(.person_properties.name)", &message), Err(RunError::Failed(_))));
}

#[test]
fn a_condition_answers() {
    for (source, answer) in [
        (r#".event == "order completed""#, true),
        (r#".event == "order completed" && exists(.properties.nothing)"#, false),
        ("(to_float(.properties.total) ?? 0.0) > 12.0", true),
        (r#"includes(["$pageview", "$screen"], .event)"#, false),
        (".timestamp >= t'2026-11-24T12:00:00Z'", true),
        (".team_id == 7", true),
        ("if .team_id == 7 { true } else { false }", true),
    ] {
        let condition =
            Predicate::compile(source).unwrap_or_else(|diagnostics| panic!("{source}: {diagnostics}"));
        assert_eq!(condition.test(ORDER.as_bytes(), LIMIT), Ok(answer), "{source}");
    }
}

#[test]
fn a_condition_that_fails_says_so() {
    let condition = Predicate::compile(r#"parse_int!(.properties.email) > 3"#).unwrap();
    assert!(matches!(condition.test(ORDER.as_bytes(), LIMIT), Err(PredicateError::Run(RunError::Failed(_)))));
    assert!(matches!(condition.test(b"[]", LIMIT), Err(PredicateError::NotAnEvent(_))));
}

#[test]
fn every_refused_function_is_refused_with_its_reason() {
    for (name, reason) in functions::REFUSED {
        let source = format!(".properties.x = {name}(.event)");
        let diagnostics = Step::compile(&source).expect_err(name);
        let text = diagnostics.to_string();
        assert!(text.contains(&format!("the function {name} is not available")), "{text}");
        assert!(text.contains(reason.explanation()), "{text}");
        assert!(Predicate::compile(&format!("{name}!(.event) == 1")).is_err(), "{name}");
    }
}

#[test]
fn nothing_available_is_of_the_system_or_random() {
    let available = functions::available_names();
    for (name, _) in functions::REFUSED {
        assert!(!available.contains(name), "{name}");
    }
    assert!(available.contains(&"sha2"));
}

fn step_diagnostics(source: &str) -> String {
    let diagnostics = Step::compile(source).map(|_| ()).expect_err(source);
    format!("{source}\n---\n{diagnostics}\n---\n{}", diagnostics.summary())
}

fn condition_diagnostics(source: &str) -> String {
    let diagnostics = Predicate::compile(source).map(|_| ()).expect_err(source);
    format!("{source}\n---\n{diagnostics}\n---\n{}", diagnostics.summary())
}

#[test]
fn diagnostics_of_steps() {
    for (name, source) in [
        ("syntax", ".event = "),
        ("unquoted_dollar", "del(.properties.$ip)"),
        ("fallible_assignment", "# total\n.properties.total = to_float(.properties.total)"),
        ("fallible_call", "string(.properties.email)"),
        ("undefined_function", ".properties.x = sha256(.event)"),
        ("network", ".properties.x = http_request!(\"https://example.com\")"),
        ("clock", ".timestamp = now()"),
        ("read_only", "\t.uuid = \"ä\""),
        ("read_only_deleted", "del(.team_id)"),
        ("whole_event_replaced", ". = {}"),
        ("whole_event_deleted", "del(.)"),
        ("unknown_field_read", "if .propertes.plan == \"free\" { abort }"),
        ("unknown_field_written", ".plan = \"free\""),
        ("metadata", "%plan = \"free\""),
        ("metadata_read", ".properties.x = %plan"),
        ("wrong_type", ".event = 5"),
        ("field_deleted", "del(.distinct_id)"),
        ("huge_index", ".properties.list[100000000] = 1"),
        ("two_errors", ".uuid = \"x\"\n.event = now()"),
        ("empty", "  \n"),
    ] {
        insta::assert_snapshot!(name, step_diagnostics(source));
    }
}

#[test]
fn diagnostics_of_conditions() {
    for (name, source) in [
        ("condition_not_boolean", ".event"),
        ("condition_of_a_property", ".properties.paid"),
        ("condition_fallible", ".properties.total > 10"),
        ("condition_changes", ".event = \"x\"\ntrue"),
        ("condition_aborts", "if .event == \"x\" { abort }\ntrue"),
        ("condition_returns_text", "if .event == \"x\" { return \"no\" }\ntrue"),
        ("condition_random", "random_bool()"),
    ] {
        insta::assert_snapshot!(name, condition_diagnostics(source));
    }
}

#[test]
fn warnings_are_kept() {
    let step = Step::compile("downcase(.event)\ndel(.properties.a)").unwrap();
    insta::assert_snapshot!("unused_result", step.warnings().to_string());
    assert!(!step.warnings().is_empty());
}

/// As deep as is allowed, on a stack as small as that of a thread: compiling and running must return.
#[test]
fn what_is_allowed_does_not_exhaust_the_stack() {
    for source in [
        format!(".properties.x = 1{}", " + 1".repeat(198)),
        format!(".properties.x = {}true", "!".repeat(198)),
        format!(".properties.x = {}1{}", "(".repeat(198), ")".repeat(198)),
        format!(".properties.x = {}1{}", "[".repeat(198), "]".repeat(198)),
        format!(".properties.x = {}1{}", "{\"a\": ".repeat(198), "}".repeat(198)),
        format!(".properties.x = {}1{}", "to_string(".repeat(8), ")".repeat(8)),
        format!(".properties.x = {}{{ 2 }}", "if .team_id == 1 { 1 } else ".repeat(190)),
        format!(".properties.x = {}1", ".properties.x ?? ".repeat(198)),
        format!("if true {{ {} 1 {} }}", "if true { ".repeat(190), "}".repeat(190)),
    ] {
        let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024).spawn(move || {
            if let Ok(step) = Step::compile(&source) {
                let mut event = Event::parse(ORDER.as_bytes()).unwrap();
                let _ = step.run(&mut event, &Budget::start(LIMIT));
            }
        });
        thread.unwrap().join().unwrap();
    }
}

#[test]
fn what_would_exhaust_the_stack_or_the_compiler_is_refused() {
    for source in [
        format!(".properties.x = 1{}", " + 1".repeat(10_000)),
        format!(".properties.x = {}1{}", "(".repeat(20_000), ")".repeat(20_000)),
        format!(".properties.x = {}true", "!".repeat(30_000)),
        format!(".properties.x = {}{{ 2 }}", "if false { 1 } else ".repeat(3_000)),
        format!(".properties.x = {}1{}", "to_string(".repeat(30), ")".repeat(30)),
    ] {
        assert!(Step::compile(&source).is_err());
    }
}

const HOW_TO: &str = include_str!("../../../docs/how-to/transformations.md");

/// The programs of the how-to, in order.
fn documented() -> Vec<&'static str> {
    HOW_TO.split("```coffee\n").skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

#[test]
fn the_documented_programs_do_what_they_say() {
    let programs = documented();
    let [bots, mask, address, rename, choose] = programs[..] else { panic!("{}", programs.len()) };

    assert!(run(bots, ORDER).unwrap().is_some());
    let bot = ORDER.replace(r#"\"$ip\":"#, r#"\"$raw_user_agent\":\"ExampleBot/2.1\",\"$ip\":"#);
    assert_eq!(run(bots, &bot), Ok(None));

    let masked = run(mask, ORDER).unwrap().unwrap();
    // SHA-256 of ada@example.com
    assert!(
        properties(&masked).contains("b5fc85e55755f9e0d030a10ab4429b6b2944855f9a0d60077fe832becbc41d72"),
        "{masked}"
    );

    assert!(!run(address, ORDER).unwrap().unwrap().contains("192.0.2.7"));

    let purchase = ORDER.replace("order completed", "purchase");
    assert_eq!(run(rename, &purchase).unwrap().as_deref(), Some(ORDER));
    assert_eq!(run(rename, ORDER).unwrap().as_deref(), Some(ORDER));

    let choose = Predicate::compile(choose).unwrap();
    assert_eq!(choose.test(ORDER.as_bytes(), LIMIT), Ok(false));
    let dear = ORDER.replace("12.50", "100");
    assert_eq!(choose.test(dear.as_bytes(), LIMIT), Ok(true));
}

#[test]
fn every_refused_function_is_documented() {
    for (name, reason) in functions::REFUSED {
        assert!(*reason == functions::Refusal::Vector || HOW_TO.contains(&format!("`{name}`")), "{name}");
    }
}
