//! From a request to the records that it becomes: pure, but for the memory that it claims on the way.

use bytes::Bytes;
use penstock_pipeline::{
    events::{dead_letter::Reason, surrogates},
    projects::Projects,
};

use crate::{
    budget::Claim,
    decode::{self, Packing, Query},
    event::{self, Fault, Parsed},
    record::{self, MAX_RECORD_BYTES, Receipt, Record, Stage},
    refusal::Refusal,
    shape::Body,
    timestamp::UnixMicros,
    token,
};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// When.
    pub now: UnixMicros,
    /// Address of the client.
    pub ip: String,
    /// Query parameters.
    pub query: Query,
    /// `Content-Type`.
    pub content_type: Option<String>,
    /// `Content-Encoding`.
    pub content_encoding: Option<String>,
    /// Body.
    pub body: Bytes,
    /// Most bytes after decompression.
    pub cap: usize,
}

/// What a request becomes. All of it is acknowledged, or none.
#[derive(Clone, Debug, Default)]
pub struct Prepared {
    /// Messages, in the order of the events.
    pub records: Vec<Record>,
    /// Events among them.
    pub events: usize,
    /// Events that are put aside, by reason.
    pub dead_letters: Vec<Reason>,
    /// Bytes of the text after decompression.
    pub text_bytes: usize,
}

/// Takes a request apart, checks its token and its events, and builds their messages.
///
/// A bad event among good ones becomes a dead letter. A request without any good event is refused: its sender can know
/// at once. `in_flight` grows by what is decompressed, `queue` by what the messages will take.
pub fn prepare(
    request: Request,
    projects: &Projects,
    in_flight: &mut Claim,
    queue: &mut Claim,
) -> Result<Prepared, Refusal> {
    let payload = request.query.data.map_or(request.body, Bytes::from);
    let packing = Packing {
        compression: request.query.compression.as_deref(),
        content_type: request.content_type.as_deref(),
        content_encoding: request.content_encoding.as_deref(),
    };
    let text = decode::text(payload, packing, request.cap, in_flight)?;
    let text_bytes = text.len();
    let text = surrogates::replace_lone(&text);
    let body = Body::parse(&text)?;
    let parsed: Vec<Parsed<'_>> = body.events.iter().map(|raw| event::parse(raw)).collect();
    let token = token::of_request(body.token, parsed.iter().map(|parsed| parsed.token.clone()))?;
    let Some(project) = projects.by_token(&token) else {
        let message = "API key is not valid: no project has this key; see the pipeline's spec.projects";
        return Err(Refusal::unauthorized("unknown_token", message));
    };
    let sent_at = body.sent_at.or(request.query.sent_at);
    let receipt = Receipt {
        now: request.now,
        now_text: request.now.rfc3339(),
        sent_at,
        sent_at_text: sent_at.map(UnixMicros::rfc3339),
        ip: request.ip,
        token,
        project_id: project.id,
        historical_migration: body.historical_migration,
    };

    let mut prepared =
        Prepared { records: Vec::with_capacity(parsed.len()), text_bytes, ..Prepared::default() };
    let mut first_fault: Option<(usize, Fault<'_>)> = None;
    for (index, (parsed, raw)) in parsed.into_iter().zip(&body.events).enumerate() {
        let fault = match parsed.event {
            Ok(event) => {
                let record = record::captured(&receipt, &event, raw);
                let size = record.size();
                if size <= MAX_RECORD_BYTES {
                    claim(queue, &record)?;
                    prepared.records.push(record);
                    prepared.events += 1;
                    continue;
                }
                record::too_large(size, event.distinct_id)
            }
            Err(fault) => fault,
        };
        prepared.dead_letters.push(fault.reason);
        for record in record::dead_letters(&receipt, &fault, raw) {
            claim(queue, &record)?;
            prepared.records.push(record);
        }
        first_fault.get_or_insert((index, fault));
    }
    debug_assert!(prepared.events <= prepared.records.len());
    match first_fault {
        Some((index, fault)) if prepared.events == 0 => Err(refusal(body.is_single, index, &fault)),
        _ => Ok(prepared),
    }
}

fn claim(queue: &mut Claim, record: &Record) -> Result<(), Refusal> {
    queue.grow(record.cost()).map_err(|exhausted| Refusal::exhausted(exhausted, "queue_full"))
}

fn refusal(is_single: bool, index: usize, fault: &Fault<'_>) -> Refusal {
    let place =
        if is_single { String::new() } else { format!("no event of the batch is valid; event {index}: ") };
    let message = format!("{place}{}", fault.detail);
    match fault.reason {
        Reason::TooLarge => Refusal::too_large(message),
        reason => Refusal::bad_request(reason.code(), message),
    }
}

impl Prepared {
    /// Messages of one stage.
    pub fn of_stage(&self, stage: Stage) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(move |record| record.stage == stage)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use penstock_pipeline::config::ProjectEntry;

    use super::*;
    use crate::budget::Budget;

    fn request(body: &str) -> Request {
        Request {
            now: UnixMicros::now(),
            ip: "203.0.113.9".into(),
            query: Query::default(),
            content_type: None,
            content_encoding: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
            cap: 20 << 20,
        }
    }

    fn projects() -> Projects {
        let entry = |id, token: &str| ProjectEntry { id, name: token.into(), token: token.into() };
        Projects::new(vec![entry(1, "phc_a"), entry(2, "phc_b")]).unwrap()
    }

    fn run(body: &str) -> Result<Prepared, Refusal> {
        let budget = Budget::new(64 << 20);
        prepare(request(body), &projects(), &mut budget.claim(), &mut budget.claim())
    }

    #[test]
    fn bad_events_leave_their_neighbours_alone_and_keep_the_order() {
        let body = r#"{"api_key":"phc_a","batch":[{"event":"one","distinct_id":"u"},7,{"event":"two","distinct_id":"u"},
            {"distinct_id":"u"},{"event":"three","distinct_id":"u","uuid":"x"}]}"#;
        let prepared = run(body).unwrap();
        assert_eq!(prepared.events, 2);
        assert_eq!(prepared.dead_letters, [Reason::Malformed, Reason::MissingEvent, Reason::InvalidUuid]);
        let names: Vec<_> =
            prepared.of_stage(Stage::Captured).map(|record| record.headers.get("event").unwrap()).collect();
        assert_eq!(names, ["one", "two"]);
        let dead: Vec<_> =
            prepared.of_stage(Stage::DeadLetter).map(|record| record.value.as_slice()).collect();
        assert_eq!(dead[0], b"7");
        assert_eq!(dead[1], br#"{"distinct_id":"u"}"#);
    }

    #[test]
    fn a_request_without_a_good_event_is_refused_with_the_first_reason() {
        let refusal = run(r#"{"event":"","distinct_id":"u","token":"phc_a"}"#).unwrap_err();
        assert_eq!((refusal.status, refusal.reason), (StatusCode::BAD_REQUEST, "missing_event"));
        let refusal = run(r#"{"api_key":"phc_a","batch":[1,2]}"#).unwrap_err();
        assert_eq!(refusal.reason, "malformed");
        assert!(refusal.message.contains("event 0"), "{}", refusal.message);
    }

    #[test]
    fn an_event_that_is_too_large_is_413_alone_and_a_dead_letter_among_others() {
        let large =
            format!(r#"{{"event":"a","distinct_id":"u","properties":{{"p":"{}"}}}}"#, "x".repeat(1_000_000));
        let alone = format!(r#"{{"api_key":"phc_a","batch":[{large}]}}"#);
        assert_eq!(run(&alone).unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        let among = format!(r#"{{"api_key":"phc_a","batch":[{large},{{"event":"b","distinct_id":"u"}}]}}"#);
        let prepared = run(&among).unwrap();
        assert_eq!((prepared.events, prepared.dead_letters.as_slice()), (1, &[Reason::TooLarge][..]));
        let kept: Vec<u8> =
            prepared.of_stage(Stage::DeadLetter).flat_map(|record| record.value.clone()).collect();
        assert_eq!(kept, large.as_bytes());
    }

    #[test]
    fn unknown_and_missing_tokens_are_401() {
        for (body, reason) in [
            (r#"{"event":"a","distinct_id":"u"}"#, "missing_token"),
            (r#"{"event":"a","distinct_id":"u","token":"phc_x"}"#, "unknown_token"),
            (
                r#"[{"event":"a","distinct_id":"u","token":"phc_a"},{"event":"a","distinct_id":"u","token":"phc_b"}]"#,
                "inconsistent_token",
            ),
        ] {
            let refusal = run(body).unwrap_err();
            assert_eq!((refusal.status, refusal.reason), (StatusCode::UNAUTHORIZED, reason), "{body}");
            assert!(!refusal.message.contains("phc_x"), "{}", refusal.message);
        }
    }

    #[test]
    fn many_small_events_are_bounded_by_the_memory_of_their_messages() {
        let events = vec![r#"{"event":"a","distinct_id":"b"}"#; 1000].join(",");
        let body = format!(r#"{{"api_key":"phc_a","batch":[{events}]}}"#);
        let queue = Budget::new(500_000);
        let large = Budget::new(64 << 20);
        let refusal =
            prepare(request(&body), &projects(), &mut large.claim(), &mut queue.claim()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(queue.used(), 0, "a refused request holds nothing");

        let queue = Budget::new(5_000_000);
        let mut others = queue.claim();
        others.grow(4_500_000).unwrap();
        let refusal =
            prepare(request(&body), &projects(), &mut large.claim(), &mut queue.claim()).unwrap_err();
        assert_eq!((refusal.status, refusal.reason), (StatusCode::SERVICE_UNAVAILABLE, "queue_full"));
    }

    #[test]
    fn lone_surrogates_do_not_cost_the_event() {
        let prepared = run(r#"{"event":"cut \ud83d","distinct_id":"u","token":"phc_a"}"#).unwrap();
        assert_eq!(prepared.records[0].headers.get("event"), Some("cut \u{FFFD}"));
    }

    #[test]
    fn the_query_can_carry_the_payload_and_the_time_of_sending() {
        let data = r#"{"event":"a","distinct_id":"u","token":"phc_a","timestamp":"2026-11-25T10:59:00Z"}"#;
        let query = Query {
            data: Some(data.into()),
            sent_at: UnixMicros::parse("2026-11-25T11:00:00Z"),
            ..Query::default()
        };
        let now = UnixMicros::parse("2026-11-25T12:00:00Z").unwrap();
        let budget = Budget::new(1 << 20);
        let request = Request { query, now, ..request("") };
        let prepared = prepare(request, &projects(), &mut budget.claim(), &mut budget.claim()).unwrap();
        let value = String::from_utf8(prepared.records[0].value.clone()).unwrap();
        assert!(value.contains(r#""timestamp":"2026-11-25T11:59:00.000000Z""#), "{value}");
    }
}
