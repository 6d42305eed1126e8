//! The topics of a pipeline from the settings in its spec. Pure.

use std::collections::BTreeMap;

use penstock_crds::v1alpha1::{StageTopics, TopicSettings};
use penstock_pipeline::kafka::message_size;

use super::WantedTopic;

const PARTITIONS: i32 = 12;
const DEAD_LETTER_PARTITIONS: i32 = 3;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

const RETENTION: &str = "retention.ms";
const MAX_MESSAGE: &str = "max.message.bytes";
const MIN_IN_SYNC: &str = "min.insync.replicas";
const TIMESTAMPS: &str = "message.timestamp.type";

/// Replicas from which on an acknowledgement can, and should, mean two of them.
const DURABLE_REPLICAS: i16 = 3;

/// What a stage has where the spec says nothing.
struct Stage {
    name: &'static str,
    partitions: i32,
    retention_days: u64,
    max_message_bytes: u32,
    /// `message.timestamp.type`, where it matters.
    timestamps: Option<&'static str>,
}

const CAPTURED: Stage = Stage {
    name: "captured",
    partitions: PARTITIONS,
    retention_days: 7,
    max_message_bytes: message_size::CAPTURED_TOPIC,
    timestamps: None,
};
const INGESTED: Stage = Stage {
    name: "ingested",
    partitions: PARTITIONS,
    retention_days: 3,
    max_message_bytes: message_size::STAGE_TOPIC,
    // Components pass on the time of capture. Retention would count from there: what is written after a standstill that was
    // longer than it would be deleted before anybody has read it.
    timestamps: Some("LogAppendTime"),
};
const TRANSFORMED: Stage = Stage { name: "transformed", ..INGESTED };
const DEAD_LETTER: Stage = Stage {
    name: "dead-letter",
    partitions: DEAD_LETTER_PARTITIONS,
    retention_days: 30,
    max_message_bytes: message_size::DEAD_LETTER_TOPIC,
    timestamps: None,
};

/// Whether a pipeline has a transformation, and with it a `transformed` topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transformed {
    /// It has.
    Wanted,
    /// Exports read `ingested`.
    Absent,
}

/// The topics of a pipeline whose names begin with `prefix`, in the order of the flow.
///
/// Each setting comes from the topic's own settings, else from `defaults` in the spec, else from the stage. `retention`
/// is `retention.ms`, and wins over the same key in `config`. The dead-letter topic always takes larger messages than the
/// others, unless its own settings say otherwise, since a dead letter is a message of theirs with more headers.
pub fn stage_topics(
    prefix: &str,
    settings: Option<&StageTopics>,
    transformed: Transformed,
) -> Vec<WantedTopic> {
    let defaults = settings.and_then(|settings| settings.defaults.as_ref());
    let of = |own: fn(&StageTopics) -> Option<&TopicSettings>| settings.and_then(own);
    let mut topics = vec![
        topic(prefix, &CAPTURED, of(|topics| topics.captured.as_ref()), defaults),
        topic(prefix, &INGESTED, of(|topics| topics.ingested.as_ref()), defaults),
    ];
    if transformed == Transformed::Wanted {
        topics.push(topic(prefix, &TRANSFORMED, of(|topics| topics.transformed.as_ref()), defaults));
    }

    let own = of(|topics| topics.dead_letter.as_ref());
    let mut dead_letter = topic(prefix, &DEAD_LETTER, own, defaults);
    let sized_by_itself =
        own.and_then(|own| own.config.as_ref()).is_some_and(|config| config.contains_key(MAX_MESSAGE));
    if !sized_by_itself {
        let largest = topics
            .iter()
            .filter_map(|topic| topic.config.get(MAX_MESSAGE)?.trim().parse::<i64>().ok())
            .max()
            .unwrap_or(0);
        let room = largest
            .saturating_add(i64::from(message_size::DEAD_LETTER_ROOM))
            .min(i64::from(i32::MAX))
            .max(i64::from(message_size::DEAD_LETTER_TOPIC));
        dead_letter.config.insert(MAX_MESSAGE.to_owned(), room.to_string());
    }
    topics.push(dead_letter);
    topics
}

fn topic(
    prefix: &str,
    stage: &Stage,
    own: Option<&TopicSettings>,
    defaults: Option<&TopicSettings>,
) -> WantedTopic {
    let layers: Vec<&TopicSettings> = [own, defaults].into_iter().flatten().collect();
    let replication_factor = layers.iter().find_map(|settings| settings.replication_factor);

    let mut config = BTreeMap::from([
        ("cleanup.policy".to_owned(), "delete".to_owned()),
        ("compression.type".to_owned(), "zstd".to_owned()),
        (MAX_MESSAGE.to_owned(), stage.max_message_bytes.to_string()),
        (RETENTION.to_owned(), (stage.retention_days * DAY_MS).to_string()),
    ]);
    if let Some(timestamps) = stage.timestamps {
        config.insert(TIMESTAMPS.to_owned(), timestamps.to_owned());
    }
    if replication_factor.is_some_and(|replicas| replicas >= DURABLE_REPLICAS) {
        config.insert(MIN_IN_SYNC.to_owned(), "2".to_owned());
    }
    for settings in layers.iter().rev() {
        config.extend(settings.config.clone().unwrap_or_default());
        if let Some(retention) = settings.retention {
            config.insert(RETENTION.to_owned(), retention.as_millis().to_string());
        }
    }

    WantedTopic {
        name: format!("{prefix}{}", stage.name),
        partitions: layers.iter().find_map(|settings| settings.partitions).unwrap_or(stage.partitions),
        replication_factor,
        config,
        largest_message: stage.max_message_bytes,
    }
}

#[cfg(test)]
mod tests {
    use penstock_crds::quantity::HumanDuration;

    use super::*;

    fn settings(json: serde_json::Value) -> StageTopics {
        serde_json::from_value(json).unwrap()
    }

    fn named<'a>(topics: &'a [WantedTopic], name: &str) -> &'a WantedTopic {
        topics.iter().find(|topic| topic.name == name).unwrap()
    }

    #[test]
    fn a_spec_that_says_nothing_gets_the_documented_defaults() {
        let topics = stage_topics("shop.web.", None, Transformed::Wanted);
        let names: Vec<_> = topics.iter().map(|topic| topic.name.as_str()).collect();
        assert_eq!(
            names,
            ["shop.web.captured", "shop.web.ingested", "shop.web.transformed", "shop.web.dead-letter"]
        );
        for (name, partitions, retention, largest) in [
            ("captured", 12, "7d", "2097152"),
            ("ingested", 12, "3d", "4194304"),
            ("transformed", 12, "3d", "4194304"),
            ("dead-letter", 3, "30d", "5242880"),
        ] {
            let topic = named(&topics, &format!("shop.web.{name}"));
            let retention: HumanDuration = retention.parse().unwrap();
            assert_eq!(topic.partitions, partitions, "{name}");
            assert_eq!(topic.replication_factor, None, "{name}");
            assert_eq!(topic.config["retention.ms"], retention.as_millis().to_string(), "{name}");
            assert_eq!(topic.config["max.message.bytes"], largest, "{name}");
            assert_eq!(topic.config["compression.type"], "zstd", "{name}");
            assert_eq!(topic.config["cleanup.policy"], "delete", "{name}");
            assert!(!topic.config.contains_key("min.insync.replicas"), "{name}");
        }
    }

    #[test]
    fn retention_between_components_counts_from_the_writing_and_not_from_the_capture() {
        let topics = stage_topics("p.", None, Transformed::Wanted);
        for (name, timestamps) in [
            ("captured", None),
            ("ingested", Some("LogAppendTime")),
            ("transformed", Some("LogAppendTime")),
            ("dead-letter", None),
        ] {
            let config = &named(&topics, &format!("p.{name}")).config;
            assert_eq!(config.get("message.timestamp.type").map(String::as_str), timestamps, "{name}");
        }
        let own =
            settings(serde_json::json!({"ingested": {"config": {"message.timestamp.type": "CreateTime"}}}));
        let topics = stage_topics("p.", Some(&own), Transformed::Absent);
        assert_eq!(named(&topics, "p.ingested").config["message.timestamp.type"], "CreateTime");
    }

    #[test]
    fn without_a_transformation_there_is_no_transformed_topic() {
        let topics = stage_topics("p.", None, Transformed::Absent);
        assert!(topics.iter().all(|topic| topic.name != "p.transformed"));
    }

    #[test]
    fn a_topics_own_settings_win_over_the_defaults_key_by_key() {
        let settings = settings(serde_json::json!({
            "defaults": {"partitions": 6, "retention": "1d", "config": {"compression.type": "lz4", "segment.ms": "600000"}},
            "captured": {"retention": "2d", "config": {"segment.ms": "60000"}},
        }));
        let topics = stage_topics("p.", Some(&settings), Transformed::Wanted);
        let captured = named(&topics, "p.captured");
        assert_eq!(captured.partitions, 6);
        assert_eq!(captured.config["retention.ms"], "172800000");
        assert_eq!(captured.config["segment.ms"], "60000");
        assert_eq!(captured.config["compression.type"], "lz4");
        assert_eq!(named(&topics, "p.ingested").config["retention.ms"], "86400000");
        assert_eq!(named(&topics, "p.dead-letter").partitions, 6);
    }

    #[test]
    fn an_acknowledgement_means_two_replicas_where_three_are_wanted() {
        let three = settings(serde_json::json!({"defaults": {"replicationFactor": 3}}));
        let topics = stage_topics("p.", Some(&three), Transformed::Absent);
        assert!(topics.iter().all(|topic| topic.config["min.insync.replicas"] == "2"));

        let own = settings(serde_json::json!({
            "defaults": {"replicationFactor": 3, "config": {"min.insync.replicas": "3"}}
        }));
        let topics = stage_topics("p.", Some(&own), Transformed::Absent);
        assert!(topics.iter().all(|topic| topic.config["min.insync.replicas"] == "3"));

        let two = settings(serde_json::json!({"defaults": {"replicationFactor": 2}}));
        let topics = stage_topics("p.", Some(&two), Transformed::Absent);
        assert!(topics.iter().all(|topic| !topic.config.contains_key("min.insync.replicas")));
    }

    #[test]
    fn dead_letters_fit_whatever_the_other_topics_take() {
        let large = settings(serde_json::json!({"defaults": {"config": {"max.message.bytes": "20971520"}}}));
        let topics = stage_topics("p.", Some(&large), Transformed::Wanted);
        assert_eq!(named(&topics, "p.captured").config["max.message.bytes"], "20971520");
        assert_eq!(named(&topics, "p.dead-letter").config["max.message.bytes"], "22020096");

        let own = settings(serde_json::json!({"dead-letter": {"config": {"max.message.bytes": "9000000"}}}));
        let topics = stage_topics("p.", Some(&own), Transformed::Wanted);
        assert_eq!(named(&topics, "p.dead-letter").config["max.message.bytes"], "9000000");

        let all = settings(serde_json::json!({"defaults": {"config": {"max.message.bytes": "2147483647"}}}));
        let topics = stage_topics("p.", Some(&all), Transformed::Wanted);
        assert_eq!(named(&topics, "p.dead-letter").config["max.message.bytes"], "2147483647");
    }
}
