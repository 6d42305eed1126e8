//! Whether Kafka answers and allows what an export does: a check of readiness, beside the progress of partitions, which
//! tells nothing while none is assigned.

use std::time::{Duration, Instant};

use penstock_pipeline::{
    health::Check,
    kafka::{
        admin::AdminError,
        rights::{self, Missing, Needs},
    },
    lifecycle::Shutdown,
};
use rdkafka::producer::Producer;
use tracing::{info, warn};

use crate::dead_letters::DeadLetters;

/// Longest wait for one answer.
const QUESTION: Duration = Duration::from_secs(5);
/// Without an answer for so long, Kafka is away.
const LONGEST_SILENCE: Duration = Duration::from_secs(20);

/// Asks again and again until asked to stop, by the client that writes dead letters, and sets the check.
pub async fn watch(letters: DeadLetters, needs: Needs, check: Check, stop: Shutdown) {
    let mut answered = None;
    let mut denied = None;
    let mut asker = needs.asker();
    loop {
        let asking = letters.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let answer = asker.missing(asking.producer().client(), QUESTION);
            (answer, asker)
        });
        let Ok((answer, again)) = asked.await else { return };
        asker = again;
        if answer.is_ok() {
            answered = Some(Instant::now());
        }
        match verdict(&answer, answered.map(|at| at.elapsed())) {
            Some(Ok(())) => {
                check.pass();
                if denied.take().is_some() {
                    info!("Kafka allows what is needed");
                }
            }
            Some(Err(reason)) => {
                let reason = if answer.is_ok() { reason } else { letters.explain(reason) };
                if denied.as_ref() != Some(&reason) {
                    warn!("{reason}");
                    denied = Some(reason.clone());
                }
                check.fail(reason);
            }
            None => {}
        }
        let pause = if denied.is_some() { rights::INTERVAL_WHILE_DENIED } else { rights::INTERVAL };
        tokio::select! {
            () = stop.requested() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// What to say after an answer, `silence` after the last one that was one. `None`: what was said before.
fn verdict(
    answer: &Result<Vec<Missing>, AdminError>,
    silence: Option<Duration>,
) -> Option<Result<(), String>> {
    match answer {
        Ok(missing) => Some(rights::told(missing).map_or(Ok(()), Err)),
        // A broker that starts anew is no reason to say that nothing works.
        Err(error) => match silence {
            Some(silence) if silence < LONGEST_SILENCE => None,
            Some(_) => Some(Err(format!("Kafka does not answer: {error}"))),
            None => Some(Err(format!("Kafka has not answered yet: {error}"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::kafka::{admin::Operation, failure::Resource};
    use rdkafka::{
        ClientConfig,
        producer::{BaseProducer, DefaultProducerContext},
    };

    use super::*;

    #[test]
    fn a_short_silence_changes_nothing_and_a_missing_right_is_told_at_once() {
        let client: BaseProducer<DefaultProducerContext> =
            ClientConfig::new().set("bootstrap.servers", "127.0.0.1:1").create().unwrap();
        let silent = Needs::default()
            .write("p.dead-letter")
            .asker()
            .missing(client.client(), Duration::from_millis(100));
        assert!(silent.is_err());
        let s = Duration::from_secs;
        assert_eq!(verdict(&silent, Some(s(1))), None);
        assert!(verdict(&silent, Some(s(21))).unwrap().unwrap_err().starts_with("Kafka does not answer: "));
        assert!(verdict(&silent, None).unwrap().unwrap_err().starts_with("Kafka has not answered yet: "));
        let missing =
            Missing { operation: Operation::Write, resource: Resource::Topic, name: "p.dead-letter".into() };
        assert_eq!(
            verdict(&Ok(vec![missing]), Some(s(0))),
            Some(Err("Kafka does not allow Write on Topic p.dead-letter; add the ACL".into()))
        );
        assert_eq!(verdict(&Ok(Vec::new()), Some(s(0))), Some(Ok(())));
    }
}
