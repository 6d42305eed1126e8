//! Sends events through the HTTP API and keeps account of what was answered.
//!
//! Nothing is sent twice: an answer that never came, or a 503, may or may not have landed. Such events are told apart in the
//! journal, and new ones are sent in their place until the wanted number is acknowledged.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, bail};
use serde_json::json;
use uuid::Uuid;

use crate::audit::{
    content::{self, Content, Ignored, digest},
    journal::{Answer, Journal, Line, Sent},
};

/// Names of events that [`made`] makes.
const NAMES: [&str; 5] =
    ["$pageview", "product viewed", "order completed", "$identify", "naïve ☕ \\ \"quoted\""];

/// An event as a client sends it, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its distinct id; empty when it has none.
    pub distinct_id: String,
    /// Its time, RFC 3339.
    pub timestamp: String,
    /// Its properties.
    pub properties: String,
    /// All of it.
    pub json: String,
}

/// What [`made`] does to some events, by their number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It becomes a row.
    Row,
    /// It has `poison` among its properties, at which the transformation [`POISON`] fails.
    DiesInTransformation,
    /// It has no distinct id: capture writes a dead letter, and answers 200.
    DiesInCapture,
}

impl Fate {
    /// That of the event of this number: of a thousand, one each dies.
    pub fn of(number: u64) -> Self {
        match number % 1000 {
            507 => Self::DiesInTransformation,
            511 => Self::DiesInCapture,
            _ => Self::Row,
        }
    }
}

/// A transformation step for [`Fate::DiesInTransformation`].
pub const POISON: &str = "if .properties.poison == true { .properties.poison = to_int!(\"no number\") }";

/// The event of a number: always the same but for its UUID. Written by hand, so that its text has what a library would
/// write otherwise (`19.50`, `1e3`, escapes), and is expected back byte by byte. Its time lies in one of three months, so
/// that a block goes into several partitions of the table.
pub fn made(number: u64, uuid: Uuid, distinct_id: &str, run_id: &str) -> Made {
    let fate = Fate::of(number);
    let name = NAMES[(number % NAMES.len() as u64) as usize].to_owned();
    let timestamp =
        format!("2025-{:02}-{:02}T12:00:00.{:03}Z", 4 + number % 3, 1 + number % 28, number % 1000);
    let poison = if fate == Fate::DiesInTransformation { r#","poison":true"# } else { "" };
    let properties = format!(
        r#"{{"run_id":"{run_id}","number":{number},"$current_url":"https://shop.example.com/products/{}","price":19.50,"exact":{}.{:06}1000000001,"large":12345678901234567890,"power":1e3,"title":"\u00dcn\u00efcode ☕ \"{}\"","nested":{{"list":[1, 2.0,null,"{}"],"empty":{{}}}},"blank":""{poison}}}"#,
        number % 211,
        number % 97,
        number % 999_983,
        "x".repeat((number % 37) as usize),
        number % 13,
    );
    let distinct_id = if fate == Fate::DiesInCapture { "" } else { distinct_id };
    let whose =
        if distinct_id.is_empty() { String::new() } else { format!(r#","distinct_id":"{distinct_id}""#) };
    let json = format!(
        r#"{{"uuid":"{uuid}","event":{}{whose},"timestamp":"{timestamp}","properties":{properties}}}"#,
        json!(name)
    );
    Made { uuid, name, distinct_id: distinct_id.to_owned(), timestamp, properties, json }
}

impl Made {
    /// What is written into the journal. `number` counts the events of its distinct id, from 1.
    ///
    /// # Errors
    /// It is not well made.
    pub fn sent(&self, number: u32) -> Result<Sent> {
        Ok(Sent {
            uuid: self.uuid,
            number: if self.distinct_id.is_empty() { 0 } else { number },
            raw: digest(self.json.as_bytes()),
            content: Content {
                event: digest(self.name.as_bytes()),
                distinct_id: digest(self.distinct_id.as_bytes()),
                properties: content::properties(&self.properties, &Ignored::default())?,
                timestamp: content::microseconds(&self.timestamp)?,
            },
        })
    }
}

/// What to send, with a journal.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Base URL of capture.
    pub url: String,
    /// Token of the project.
    pub token: String,
    /// Events that are to be acknowledged at least.
    pub acknowledged: u64,
    /// Events of one request.
    pub batch: usize,
    /// Clients at once. Each has persons of its own, and sends one request after another, so that the order of one person's
    /// events is known.
    pub clients: usize,
    /// Events a second while [`Pace::held`]; behind that as fast as it goes.
    pub rate: u64,
    /// Value of the property `run_id`.
    pub run_id: String,
}

/// How far a campaign is, and how long it is to last.
#[derive(Debug)]
pub struct Pace {
    began: tokio::time::Instant,
    sent: AtomicU64,
    acknowledged: AtomicU64,
    held: AtomicBool,
    /// When the next request is due, microseconds since the beginning.
    due: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            began: tokio::time::Instant::now(),
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            held: AtomicBool::new(true),
            due: AtomicU64::new(0),
        }
    }
}

impl Pace {
    /// Events acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Whether events are to flow on, however many are acknowledged.
    pub fn held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Lets the campaign end when enough is acknowledged.
    pub fn release(&self) {
        self.held.store(false, Ordering::Relaxed);
    }

    /// Waits for the next request's turn. What was missed while capture was away is not caught up with.
    async fn turn(&self, events: u64, rate: u64) {
        if !self.held() {
            return;
        }
        let step = events * 1_000_000 / rate.max(1);
        let now = self.began.elapsed().as_micros() as u64;
        let mine = self
            .due
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| Some(due.max(now) + step))
            .unwrap_or(now)
            .max(now);
        tokio::time::sleep_until(self.began + Duration::from_micros(mine)).await;
    }
}

/// Events that were to die, by whether they were acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deaths {
    /// Acknowledged, [`Fate::DiesInTransformation`].
    pub in_transformation: u64,
    /// Acknowledged, [`Fate::DiesInCapture`].
    pub in_capture: u64,
    /// Neither acknowledged nor refused, of both.
    pub uncertain: u64,
}

/// Sends until enough is acknowledged and the pace is released. Nothing is sent twice.
///
/// # Errors
/// Capture refuses events (a 4xx answer), nothing is acknowledged for three minutes, or the journal cannot be written.
pub async fn campaign(campaign: Campaign, journal: Arc<Journal>, pace: Arc<Pace>) -> Result<Deaths> {
    let http = reqwest::Client::builder().timeout(Duration::from_secs(12)).build()?;
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..campaign.clients {
        clients.spawn(one_client(
            client,
            campaign.clone(),
            http.clone(),
            Arc::clone(&journal),
            Arc::clone(&pace),
        ));
    }
    let mut deaths = Deaths::default();
    let mut last = (0, tokio::time::Instant::now());
    loop {
        match tokio::time::timeout(Duration::from_secs(1), clients.join_next()).await {
            Ok(None) => return Ok(deaths),
            Ok(Some(done)) => {
                let of_client = done??;
                deaths.in_transformation += of_client.in_transformation;
                deaths.in_capture += of_client.in_capture;
                deaths.uncertain += of_client.uncertain;
            }
            Err(_) => {
                let now = pace.acknowledged();
                if now != last.0 {
                    last = (now, tokio::time::Instant::now());
                } else if last.1.elapsed() > Duration::from_secs(180) {
                    bail!("capture has acknowledged nothing for three minutes; {now} events before that");
                }
            }
        }
    }
}

/// Persons of one client: few, so that several events of one are in a request.
const PERSONS: u64 = 40;

async fn one_client(
    client: usize,
    campaign: Campaign,
    http: reqwest::Client,
    journal: Arc<Journal>,
    pace: Arc<Pace>,
) -> Result<Deaths> {
    let mut deaths = Deaths::default();
    let mut counts = [0_u32; PERSONS as usize];
    while pace.held() || pace.acknowledged() < campaign.acknowledged {
        pace.turn(campaign.batch as u64, campaign.rate).await;
        let first = pace.sent.fetch_add(campaign.batch as u64, Ordering::Relaxed);
        let (mut events, mut lines) = (Vec::new(), Vec::new());
        for number in first..first + campaign.batch as u64 {
            let person = number % PERSONS;
            let name = format!("visitor-{client}-{person}");
            let event = made(number, Uuid::now_v7(), &name, &campaign.run_id);
            counts[person as usize] += 1;
            lines.push(Line::Sent(event.sent(counts[person as usize])?));
            events.push((number, event));
        }
        journal.write(&lines)?;
        let batch: Vec<&str> = events.iter().map(|(_, event)| event.json.as_str()).collect();
        let body = format!(r#"{{"api_key":"{}","batch":[{}]}}"#, campaign.token, batch.join(","));
        let request = http
            .post(format!("{}/batch/", campaign.url))
            .header("content-type", "application/json")
            .body(body);
        let answer = match request.send().await {
            Err(_) => None,
            Ok(response) => {
                let status = response.status().as_u16();
                // The body is read so that the connection can be used again; what it says is in the status.
                let text = response.text().await.unwrap_or_default();
                match status {
                    200 => Some(Answer::Acknowledged),
                    503 => Some(Answer::TurnedAway),
                    400..500 => {
                        let refused: Vec<_> =
                            events.iter().map(|(_, one)| Line::Answered(one.uuid, Answer::Refused)).collect();
                        journal.write(&refused)?;
                        bail!("capture refuses good events: {status} {text}");
                    }
                    _ => None,
                }
            }
        };
        if let Some(answer) = answer {
            let answered: Vec<_> = events.iter().map(|(_, one)| Line::Answered(one.uuid, answer)).collect();
            journal.write(&answered)?;
        }
        let acknowledged = answer == Some(Answer::Acknowledged);
        for (number, _) in &events {
            match (Fate::of(*number), acknowledged) {
                (Fate::Row, _) => {}
                (Fate::DiesInTransformation, true) => deaths.in_transformation += 1,
                (Fate::DiesInCapture, true) => deaths.in_capture += 1,
                (_, false) => deaths.uncertain += 1,
            }
        }
        if acknowledged {
            pace.acknowledged.fetch_add(campaign.batch as u64, Ordering::Relaxed);
        } else {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    Ok(deaths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_that_is_made_is_json_that_says_what_it_says() {
        for number in 0..2_000 {
            let event = made(number, Uuid::now_v7(), "visitor-1-1", "r");
            let json: serde_json::Value = serde_json::from_str(&event.json).unwrap();
            assert_eq!(json["event"], event.name);
            assert_eq!(json["distinct_id"].as_str().unwrap_or_default(), event.distinct_id);
            assert_eq!(
                json["properties"],
                serde_json::from_str::<serde_json::Value>(&event.properties).unwrap()
            );
            event.sent(1).unwrap();
        }
    }
}
