//! The events that are measured with: made up, the same at every run, and of the size and kind that web shops and
//! magazines send (about 1 KB of JSON).

use std::{fmt::Write as _, io::Write as _};

use anyhow::Result;
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use penstock_pipeline::events::{captured::CapturedEventRef, ingested::IngestedEventRef};
use uuid::{Builder, Uuid};

/// Token of the one project.
pub const TOKEN: &str = "phc_token_of_the_project_that_is_measured";
/// Id of the one project.
pub const PROJECT: i64 = 1;
/// Events of one batch.
pub const BATCH: usize = 50;
/// Visitors that the events come from.
const VISITORS: u64 = 80_000;
/// 2026-11-20T00:00:00Z, seconds since 1970; events lie in the four days after it.
const FIRST_DAY: i64 = 1_795_132_800;

const NAMES: [&str; 10] = [
    "$pageview",
    "$pageleave",
    "$autocapture",
    "$identify",
    "article read",
    "search submitted",
    "basket changed",
    "order completed",
    "newsletter opened",
    "trial started",
];
const SYSTEMS: [(&str, &str); 5] = [
    ("Windows", "Desktop"),
    ("Mac OS X", "Desktop"),
    ("Linux", "Desktop"),
    ("Android", "Mobile"),
    ("iOS", "Mobile"),
];
/// One in five is a robot, which the transformation that is measured drops.
const AGENTS: [&str; 5] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/131.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 14_6) Version/18.1 Safari/605.1.15",
    "Mozilla/5.0 (compatible; ExampleBot/3.0; +https://bots.example.org)",
    "Mozilla/5.0 (Linux; Android 15) AppleWebKit/537.36 Chrome/131.0 Mobile Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0",
];
const ROBOT: usize = 2;
const BROWSERS: [&str; 5] = ["Chrome", "Safari", "Firefox", "Edge", "Opera"];
const SECTIONS: [&str; 6] = ["kitchen", "garden", "travel", "books", "music", "tools"];
const SOURCES: [&str; 4] = ["search", "newsletter", "partner", "podcast"];
const TITLES: [&str; 4] =
    ["Teapot, 1.2 l", "Café crème – set of 6", "The \\\"quiet\\\" drill", "Folding chair"];

/// Numbers that look like chance and are the same for the same seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Numbers of this seed.
    pub fn of(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 to below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    fn pick<'a, T>(&mut self, among: &'a [T]) -> &'a T {
        &among[self.below(among.len() as u64) as usize]
    }

    fn uuid(&mut self) -> Uuid {
        let bytes = (u128::from(self.next()) << 64) | u128::from(self.next());
        Builder::from_random_bytes(bytes.to_be_bytes()).into_uuid()
    }
}

/// What a client sends for one event.
pub struct Sent {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: &'static str,
    /// Its distinct id.
    pub distinct_id: String,
    /// Its JSON; with the token when it is sent alone.
    pub json: String,
}

/// The next event of a client library, about 930 bytes.
pub fn sent(numbers: &mut Numbers, token: Option<&str>) -> Sent {
    let uuid = numbers.uuid();
    let name = *numbers.pick(&NAMES);
    let distinct_id = format!("visitor-{:06}", numbers.below(VISITORS));
    let (system, device) = *numbers.pick(&SYSTEMS);
    let (section, item) = (*numbers.pick(&SECTIONS), numbers.below(60_000));
    let (width, height) = *numbers.pick(&[(390, 844), (1366, 768), (1536, 864), (1920, 1080), (2560, 1440)]);
    let seconds = FIRST_DAY + numbers.below(4 * 86_400) as i64;
    let mut json = String::with_capacity(1100);
    json.push('{');
    if let Some(token) = token {
        write!(json, r#""token":"{token}","#).expect("a string takes everything");
    }
    write!(
        json,
        concat!(
            r#""uuid":"{uuid}","event":"{name}","distinct_id":"{distinct_id}","timestamp":"{time}.{millis:03}Z","#,
            r#""properties":{{"$current_url":"https://www.example.com/{section}/{item}?from={source}&page={page}","#,
            r#""$host":"www.example.com","$pathname":"/{section}/{item}","$browser":"{browser}","#,
            r#""$browser_version":{version},"$os":"{system}","$device_type":"{device}","$lib":"web","#,
            r#""$lib_version":"1.205.0","$screen_width":{width},"$screen_height":{height},"#,
            r#""$viewport_width":{width},"$viewport_height":{viewport},"$session_id":"{session}","#,
            r#""$window_id":"{window}","$device_id":"{device_id}","$referrer":"https://search.example.net/","#,
            r#""$referring_domain":"search.example.net","$insert_id":"{insert:016x}","title":"{title}","#,
            r#""price":{euros}.{cents:02},"quantity":{quantity},"load_ms":{load}.{load_micros:03},"is_member":{member}}}}}"#
        ),
        uuid = uuid,
        name = name,
        distinct_id = distinct_id,
        time = iso(seconds, 'T'),
        millis = numbers.below(1000),
        section = section,
        item = item,
        source = numbers.pick(&SOURCES),
        page = numbers.below(30),
        browser = numbers.pick(&BROWSERS),
        version = 100 + numbers.below(40),
        system = system,
        device = device,
        width = width,
        height = height,
        viewport = height - 96,
        session = numbers.uuid(),
        window = numbers.uuid(),
        device_id = numbers.uuid(),
        insert = numbers.next(),
        title = numbers.pick(&TITLES),
        euros = numbers.below(400),
        cents = numbers.below(100),
        quantity = 1 + numbers.below(9),
        load = numbers.below(3000),
        load_micros = numbers.below(1000),
        member = numbers.below(3) == 0,
    )
    .expect("a string takes everything");
    Sent { uuid, name, distinct_id, json }
}

/// How bodies are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One event a request.
    Single,
    /// [`BATCH`] events a request.
    Batch,
    /// The same, packed with gzip.
    GzipBatch,
}

impl Shape {
    /// Events of one request.
    pub fn events(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Batch | Self::GzipBatch => BATCH,
        }
    }
}

/// So many different bodies of a shape.
///
/// # Errors
/// Compression fails, which memory does not.
pub fn bodies(shape: Shape, count: usize) -> Result<Vec<Bytes>> {
    let mut numbers = Numbers::of(7);
    let mut body = || -> Result<Bytes> {
        if shape == Shape::Single {
            return Ok(sent(&mut numbers, Some(TOKEN)).json.into());
        }
        let events: Vec<String> = (0..BATCH).map(|_| sent(&mut numbers, None).json).collect();
        let json = format!(r#"{{"api_key":"{TOKEN}","batch":[{}]}}"#, events.join(","));
        if shape == Shape::Batch {
            return Ok(json.into());
        }
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(json.as_bytes())?;
        Ok(packed.finish()?.into())
    };
    (0..count).map(|_| body()).collect()
}

/// A message of `captured` or `ingested`.
pub struct Message {
    /// Kafka key.
    pub key: String,
    /// JSON.
    pub value: Vec<u8>,
    /// Headers.
    pub headers: Vec<(&'static str, String)>,
    /// Whether the transformation that is measured keeps it.
    pub kept: bool,
}

/// The next message of `captured`, as capture writes it.
///
/// # Errors
/// None that can happen: strings are always JSON.
pub fn captured(numbers: &mut Numbers) -> Result<Message> {
    use penstock_pipeline::events::captured::header;
    let event = sent(numbers, None);
    let now = "2026-11-24T12:00:00.123456Z";
    let uuid = event.uuid.to_string();
    let value = CapturedEventRef {
        uuid: &uuid,
        distinct_id: &event.distinct_id,
        ip: "203.0.113.77",
        data: &event.json,
        now,
        sent_at: None,
        token: TOKEN,
        event: event.name,
        timestamp: "2026-11-24T11:59:59.000000Z",
        is_cookieless_mode: false,
        historical_migration: false,
    };
    let value = serde_json::to_vec(&value)?;
    let key = format!("{TOKEN}:{}", event.distinct_id);
    let headers = vec![
        (header::TOKEN, TOKEN.to_owned()),
        (header::DISTINCT_ID, event.distinct_id),
        (header::TIMESTAMP, "1795607999000".to_owned()),
        (header::EVENT, event.name.to_owned()),
        (header::UUID, uuid),
        (header::NOW, now.to_owned()),
        (header::PROJECT_ID, PROJECT.to_string()),
    ];
    Ok(Message { key, value, headers, kept: true })
}

/// The next message of `ingested`, as the consumer writes it: about 980 bytes of JSON with the properties in a string.
///
/// # Errors
/// None that can happen: strings are always JSON.
pub fn ingested(numbers: &mut Numbers) -> Result<Message> {
    let visitor = numbers.below(VISITORS);
    let distinct_id = format!("visitor-{visitor:06}");
    let agent = numbers.below(AGENTS.len() as u64) as usize;
    let (section, item) = (*numbers.pick(&SECTIONS), numbers.below(60_000));
    let mut properties = String::with_capacity(700);
    write!(
        properties,
        concat!(
            r#"{{"$current_url":"https://www.example.com/{section}/{item}?page={page}","$browser":"{browser}","#,
            r#""$browser_version":{version},"$os":"{system}","$lib":"web","$lib_version":"1.205.0","#,
            r#""$session_id":"{session}","$raw_user_agent":"{agent}","$ip":"198.51.100.{ip}","#,
            r#""email":"visitor{visitor}@example.com","source":"{source}","title":"{title}","#,
            r#""price":{euros}.{cents:02},"quantity":{quantity},"load_ms":{load},"is_member":{member}}}"#
        ),
        section = section,
        item = item,
        page = numbers.below(30),
        browser = numbers.pick(&BROWSERS),
        version = 100 + numbers.below(40),
        system = numbers.pick(&SYSTEMS).0,
        session = numbers.uuid(),
        agent = AGENTS[agent],
        ip = numbers.below(255),
        visitor = visitor,
        source = numbers.pick(&SOURCES),
        title = numbers.pick(&TITLES),
        euros = numbers.below(400),
        cents = numbers.below(100),
        quantity = 1 + numbers.below(9),
        load = numbers.below(3000),
        member = numbers.below(3) == 0,
    )?;
    let time = iso(FIRST_DAY + numbers.below(4 * 86_400) as i64, ' ');
    let event = IngestedEventRef {
        uuid: &numbers.uuid().to_string(),
        event: numbers.pick::<&str>(&NAMES),
        properties: &properties,
        timestamp: &format!("{time}.{:06}", numbers.below(1_000_000)),
        team_id: PROJECT,
        project_id: PROJECT,
        distinct_id: &distinct_id,
        elements_chain: "",
        created_at: "2026-11-24 12:00:00.250000",
        captured_at: "2026-11-24 12:00:00.123456",
        person_id: &numbers.uuid().to_string(),
        person_created_at: "1970-01-01 00:00:05.000000",
        person_properties: "{}",
        person_mode: "propertyless",
        historical_migration: false,
    };
    Ok(Message {
        key: format!("{TOKEN}:{distinct_id}"),
        value: serde_json::to_vec(&event)?,
        headers: Vec::new(),
        kept: agent != ROBOT,
    })
}

/// `2026-11-20T01:02:03`, of a second in November 2026.
fn iso(seconds: i64, between: char) -> String {
    let since = seconds - FIRST_DAY;
    let (day, second) = (20 + since / 86_400, since % 86_400);
    format!("2026-11-{day:02}{between}{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::events::{captured::CapturedEvent, ingested::IngestedEvent};
    use serde_json::Value;

    use super::*;

    #[test]
    fn events_are_the_same_at_every_run_and_differ_from_each_other() {
        let make = || -> Vec<String> {
            let mut numbers = Numbers::of(1);
            (0..100).map(|_| sent(&mut numbers, None).json).collect()
        };
        let first = make();
        assert_eq!(first, make());
        assert_eq!(first.iter().collect::<std::collections::BTreeSet<_>>().len(), first.len());
    }

    #[test]
    fn events_are_json_of_about_a_kilobyte() {
        let mut numbers = Numbers::of(1);
        let mut bytes = 0;
        for _ in 0..1000 {
            let event = sent(&mut numbers, Some(TOKEN));
            let json: Value = serde_json::from_str(&event.json).unwrap();
            assert_eq!(json["uuid"], event.uuid.to_string());
            assert_eq!(json["token"], TOKEN);
            bytes += event.json.len();
        }
        assert!((900_000..1_050_000).contains(&bytes), "{} bytes on average", bytes / 1000);
    }

    #[test]
    fn messages_are_those_of_the_pipeline() {
        let mut numbers = Numbers::of(1);
        let (mut bytes, mut kept) = (0, 0);
        for _ in 0..1000 {
            let message = captured(&mut numbers).unwrap();
            let value: CapturedEvent = serde_json::from_slice(&message.value).unwrap();
            assert_eq!(message.key, format!("{}:{}", value.token, value.distinct_id));
            assert!(serde_json::from_str::<Value>(&value.data).is_ok());

            let message = ingested(&mut numbers).unwrap();
            let value: IngestedEvent = serde_json::from_slice(&message.value).unwrap();
            let properties: Value = serde_json::from_str(&value.properties).unwrap();
            let robot = properties["$raw_user_agent"].as_str().unwrap().contains("Bot");
            assert_eq!(message.kept, !robot);
            bytes += message.value.len();
            kept += u32::from(message.kept);
        }
        assert!((930_000..1_030_000).contains(&bytes), "{} bytes on average", bytes / 1000);
        assert!((750..850).contains(&kept), "{kept} of 1000 are kept");
    }

    #[test]
    fn a_batch_has_fifty_events() {
        for shape in [Shape::Batch, Shape::GzipBatch] {
            let body = bodies(shape, 1).unwrap().remove(0);
            let json: Value = match shape {
                Shape::GzipBatch => {
                    serde_json::from_reader(flate2::read::GzDecoder::new(body.as_ref())).unwrap()
                }
                _ => serde_json::from_slice(&body).unwrap(),
            };
            assert_eq!(json["batch"].as_array().map(Vec::len), Some(shape.events()));
        }
    }
}
