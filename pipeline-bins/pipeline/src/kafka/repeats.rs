//! What librdkafka repeats: said once in a while, with the number of times that it was left out.
//!
//! A client says for every broker that it cannot be reached, at each attempt, and with several brokers and clients that
//! makes hundreds of lines a minute while Kafka is away.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// How often the same is said.
const INTERVAL: Duration = Duration::from_secs(30);

/// Different lines that are remembered; beyond, the oldest are forgotten.
const MOST: usize = 256;

/// What was said when.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    said: HashMap<String, Said>,
}

#[derive(Clone, Copy, Debug)]
struct Said {
    at: Instant,
    left_out: u64,
}

impl Repeats {
    /// Whether to say a line now: `Some` with the number of times that it was left out since it was last said.
    pub(super) fn say(&mut self, kind: &str, text: &str, now: Instant) -> Option<u64> {
        let key = key(kind, text);
        if let Some(said) = self.said.get_mut(&key) {
            if now.saturating_duration_since(said.at) < INTERVAL {
                said.left_out += 1;
                return None;
            }
            let left_out = said.left_out;
            *said = Said { at: now, left_out: 0 };
            return Some(left_out);
        }
        if self.said.len() >= MOST {
            self.said.retain(|_, said| now.saturating_duration_since(said.at) < INTERVAL);
            if self.said.len() >= MOST
                && let Some(oldest) =
                    self.said.iter().min_by_key(|(_, said)| said.at).map(|(key, _)| key.clone())
            {
                self.said.remove(&oldest);
            }
        }
        self.said.insert(key, Said { at: now, left_out: 0 });
        Some(0)
    }
}

/// What makes two lines the same: their kind, the thread or broker that they are from, and the text without its numbers,
/// which are times and counts.
fn key(kind: &str, text: &str) -> String {
    let (from, rest) = match text.strip_prefix("[thrd:").and_then(|text| text.split_once("]: ")) {
        Some((thread, rest)) => (thread, rest),
        None => text.split_once(": ").unwrap_or(("", text)),
    };
    let mut key = format!("{kind} {from} ");
    let rest = rest.split_once(" (after ").map_or(rest, |(rest, _)| rest);
    let mut in_number = false;
    for character in rest.chars() {
        if !character.is_ascii_digit() {
            key.push(character);
        } else if !in_number {
            key.push('#');
        }
        in_number = character.is_ascii_digit();
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &str = "[thrd:k-0:9092/0]: k-0:9092/0: Connect to ipv4#10.0.0.1:9092 failed: Connection refused \
                           (after 1ms in state CONNECT)";

    #[test]
    fn a_repeated_line_is_said_again_after_a_while_with_the_number_of_those_left_out() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        assert_eq!(repeats.say("FAIL", REFUSED, start), Some(0));
        for second in 1..30 {
            let again = REFUSED.replace("after 1ms", &format!("after {second}ms"));
            assert_eq!(repeats.say("FAIL", &again, start + Duration::from_secs(second)), None);
        }
        assert_eq!(repeats.say("FAIL", REFUSED, start + INTERVAL), Some(29));
        assert_eq!(repeats.say("FAIL", REFUSED, start + INTERVAL * 2), Some(0));
    }

    #[test]
    fn another_broker_another_text_and_another_kind_are_not_repeats() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        assert_eq!(repeats.say("FAIL", REFUSED, now), Some(0));
        assert_eq!(repeats.say("FAIL", &REFUSED.replace("k-0", "k-1"), now), Some(0));
        assert_eq!(repeats.say("FAIL", &REFUSED.replace("Connection refused", "denied"), now), Some(0));
        assert_eq!(repeats.say("ERROR", REFUSED, now), Some(0));
    }

    #[test]
    fn counts_in_a_text_do_not_make_it_another() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        assert_eq!(repeats.say("ERROR", "1/3 brokers are down", now), Some(0));
        assert_eq!(repeats.say("ERROR", "3/3 brokers are down", now), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut repeats = Repeats::default();
        let now = Instant::now();
        for broker in 0..1_000 {
            let (line, at) = (format!("[thrd:k-{broker}]: gone"), now + Duration::from_millis(broker));
            assert_eq!(repeats.say("FAIL", &line, at), Some(0));
            assert_eq!(repeats.say("FAIL", &line, at), None, "the newest is remembered");
        }
        assert_eq!(repeats.said.len(), MOST);
    }
}
