//! What is done about the difference between the topics that are wanted and those that are. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use penstock_crds::v1alpha1::Management;
use penstock_pipeline::kafka::admin::{ConfigChange, ConfigSource};

use super::{ConfigRepair, ManagedKeys, ObservedTopic, TopicAction, WantedTopic};

const MAX_MESSAGE: &str = "max.message.bytes";

/// What is done, and what is refused or only reported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicPlan {
    /// To be applied in this order.
    pub actions: Vec<TopicAction>,
    /// For the conditions; the same on every pass until the spec or the world changes.
    pub findings: Vec<Finding>,
    /// The memory after this plan. Written to the status before the plan is applied, a key that we set is never forgotten.
    pub managed_keys: ManagedKeys,
}

/// Something about a topic that is not as the spec says, and that the plan does not change.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// Somebody else manages the topics, and this one does not exist.
    Missing {
        /// The topic.
        topic: String,
        /// Partitions that it should have.
        partitions: i32,
    },
    /// Partitions without a leader: they can be neither written nor read.
    Leaderless {
        /// The topic.
        topic: String,
        /// The partitions.
        partitions: Vec<i32>,
    },
    /// Fewer partitions are wanted than there are. Kafka cannot take partitions away.
    ShrinkRefused {
        /// The topic.
        topic: String,
        /// Partitions that it has.
        has: i32,
        /// Partitions that the spec says.
        wanted: i32,
    },
    /// Somebody else manages the topics, and this one has fewer partitions than the spec says.
    FewerPartitions {
        /// The topic.
        topic: String,
        /// Partitions that it has.
        has: i32,
        /// Partitions that the spec says.
        wanted: i32,
    },
    /// Somebody else manages the topics, and a key of this one's configuration differs.
    ConfigDiffers {
        /// The topic.
        topic: String,
        /// Kafka's name of the key.
        key: String,
        /// Value in effect.
        has: Option<String>,
        /// Value that the spec says.
        wanted: String,
    },
    /// The replication factor differs; it is used at creation only.
    ReplicationDiffers {
        /// The topic.
        topic: String,
        /// Smallest number of replicas of a partition.
        has: i16,
        /// Number that the spec says.
        wanted: i16,
    },
    /// Three replicas or more, and yet an acknowledgement means one of them only.
    WeakAcknowledgement {
        /// The topic.
        topic: String,
        /// Smallest number of replicas of a partition.
        replicas: i16,
    },
    /// The topic refuses messages that a component may send, and a refused message stops the component.
    MessagesRefused {
        /// The topic.
        topic: String,
        /// `max.message.bytes` in effect.
        has: i64,
        /// Size that messages may have.
        needed: u32,
    },
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; all works.
    Notice,
    /// The spec asks for what is not done; what runs goes on. Stays until the spec is changed.
    Refused,
    /// Events cannot flow.
    Broken,
}

impl Finding {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Missing { .. } | Self::Leaderless { .. } => Severity::Broken,
            Self::ShrinkRefused { .. } | Self::MessagesRefused { .. } => Severity::Refused,
            Self::FewerPartitions { .. }
            | Self::ConfigDiffers { .. }
            | Self::ReplicationDiffers { .. }
            | Self::WeakAcknowledgement { .. } => Severity::Notice,
        }
    }

    /// Reason for a condition or an Event: one word, stable.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "TopicMissing",
            Self::Leaderless { .. } => "PartitionWithoutLeader",
            Self::ShrinkRefused { .. } => "PartitionDecreaseRefused",
            Self::FewerPartitions { .. } => "FewerPartitions",
            Self::ConfigDiffers { .. } => "TopicConfigDiffers",
            Self::ReplicationDiffers { .. } => "ReplicationFactorDiffers",
            Self::WeakAcknowledgement { .. } => "WeakAcknowledgement",
            Self::MessagesRefused { .. } => "MessagesRefused",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { topic, partitions } => write!(
                f,
                "topic {topic} does not exist and management is External; create it with {partitions} partitions"
            ),
            Self::Leaderless { topic, partitions } => {
                write!(
                    f,
                    "topic {topic} has no leader for partitions {}; see to the brokers",
                    Numbers(partitions)
                )
            }
            Self::ShrinkRefused { topic, has, wanted } => write!(
                f,
                "topic {topic} has {has} partitions and the spec says {wanted}; partitions cannot be taken away, \
                 set partitions to {has} or more"
            ),
            Self::FewerPartitions { topic, has, wanted } => {
                write!(
                    f,
                    "topic {topic} has {has} partitions and the spec says {wanted}; management is External"
                )
            }
            Self::ConfigDiffers { topic, key, has, wanted } => write!(
                f,
                "topic {topic} has {key}={} and the spec says {wanted}; management is External",
                has.as_deref().unwrap_or("(not set)")
            ),
            Self::ReplicationDiffers { topic, has, wanted } => write!(
                f,
                "topic {topic} has {has} replicas and the spec says {wanted}; the replication factor is used at \
                 creation only, change it with kafka-reassign-partitions"
            ),
            Self::WeakAcknowledgement { topic, replicas } => write!(
                f,
                "topic {topic} has {replicas} replicas but min.insync.replicas=1, so an acknowledged event may be on \
                 one broker only; set min.insync.replicas to 2 in its config"
            ),
            Self::MessagesRefused { topic, has, needed } => write!(
                f,
                "topic {topic} takes messages of at most {has} bytes, but they may have {needed}, and a refused one \
                 stops its component; set max.message.bytes to {needed} or more"
            ),
        }
    }
}

struct Numbers<'a>(&'a [i32]);

impl fmt::Display for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, number) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{number}")?;
        }
        Ok(())
    }
}

impl TopicAction {
    /// What it does, for the Event that tells of it.
    pub fn note(&self) -> String {
        match self {
            Self::Create(WantedTopic { name, partitions, replication_factor, .. }) => format!(
                "created topic {name} with {partitions} partitions and {}",
                match replication_factor {
                    Some(replicas) => format!("replication factor {replicas}"),
                    None => "the brokers' replication factor".to_owned(),
                }
            ),
            Self::Grow { topic, from, to } => format!(
                "grew topic {topic} from {from} to {to} partitions. Keys are spread anew: for a person whose events \
                 move to another partition, events that were waiting in the old one may be processed after newer ones, \
                 until the old ones are read. After that every person's events are in order again"
            ),
            Self::ChangeConfig { topic, repairs } => {
                let repairs: Vec<_> = repairs
                    .iter()
                    .map(|ConfigRepair { change, was }| {
                        let was = was.as_deref().unwrap_or("not set");
                        match change {
                            ConfigChange::Set { key, value } => format!("{key}={value} (was {was})"),
                            ConfigChange::Reset { key } => {
                                format!("{key} back to the brokers' value (was {was})")
                            }
                        }
                    })
                    .collect();
                format!("set the configuration of topic {topic}: {}", repairs.join(", "))
            }
        }
    }
}

/// Decides. `managed` is the memory of the last plan.
///
/// `observed` holds those of the wanted topics that exist. With [`Management::External`] there are no actions, and the
/// memory stays as it was.
pub fn plan(
    wanted: &[WantedTopic],
    observed: &BTreeMap<String, ObservedTopic>,
    management: Management,
    managed: &ManagedKeys,
) -> TopicPlan {
    let mut plan = TopicPlan { managed_keys: managed.clone(), ..Default::default() };
    for wanted in wanted {
        match (observed.get(&wanted.name), management) {
            (None, Management::Managed) => plan.create(wanted),
            (None, Management::External) => plan
                .findings
                .push(Finding::Missing { topic: wanted.name.clone(), partitions: wanted.partitions }),
            (Some(observed), Management::Managed) => plan.keep(wanted, observed),
            (Some(observed), Management::External) => plan.check(wanted, observed),
        }
    }
    plan
}

impl TopicPlan {
    fn create(&mut self, wanted: &WantedTopic) {
        self.managed_keys.insert(wanted.name.clone(), wanted.config.keys().cloned().collect());
        self.actions.push(TopicAction::Create(wanted.clone()));
        self.check_message_size(wanted, wanted.config.get(MAX_MESSAGE).map(String::as_str));
    }

    fn keep(&mut self, wanted: &WantedTopic, observed: &ObservedTopic) {
        let topic = &wanted.name;
        if observed.partitions < wanted.partitions {
            self.actions.push(TopicAction::Grow {
                topic: topic.clone(),
                from: observed.partitions,
                to: wanted.partitions,
            });
        } else if observed.partitions > wanted.partitions {
            self.findings.push(Finding::ShrinkRefused {
                topic: topic.clone(),
                has: observed.partitions,
                wanted: wanted.partitions,
            });
        }

        let mut ours: BTreeSet<String> = wanted.config.keys().cloned().collect();
        let mut repairs = Vec::new();
        for (key, value) in &wanted.config {
            let is = observed.config.get(key);
            let kept = is.is_some_and(|is| {
                is.source == ConfigSource::Topic
                    && is.value.as_deref().is_some_and(|is| same_value(is, value))
            });
            if !kept {
                repairs.push(ConfigRepair {
                    change: ConfigChange::Set { key: key.clone(), value: value.clone() },
                    was: is.and_then(|is| is.value.clone()),
                });
            }
        }
        for key in self.managed_keys.get(topic).into_iter().flatten() {
            let set = observed.config.get(key).filter(|is| is.source == ConfigSource::Topic);
            if let (Some(is), false) = (set, wanted.config.contains_key(key)) {
                // Ours until it has been seen gone, so that a crash in between does not leave it behind.
                ours.insert(key.clone());
                repairs.push(ConfigRepair {
                    change: ConfigChange::Reset { key: key.clone() },
                    was: is.value.clone(),
                });
            }
        }
        self.managed_keys.insert(topic.clone(), ours);
        if !repairs.is_empty() {
            self.actions.push(TopicAction::ChangeConfig { topic: topic.clone(), repairs });
        }
        self.check_replicas(wanted, observed);
        self.check_message_size(wanted, wanted.config.get(MAX_MESSAGE).map(String::as_str));
    }

    fn check(&mut self, wanted: &WantedTopic, observed: &ObservedTopic) {
        let topic = &wanted.name;
        if observed.partitions < wanted.partitions {
            self.findings.push(Finding::FewerPartitions {
                topic: topic.clone(),
                has: observed.partitions,
                wanted: wanted.partitions,
            });
        }
        for (key, value) in &wanted.config {
            let has = observed.config.get(key).and_then(|has| has.value.as_deref());
            if !has.is_some_and(|has| same_value(has, value)) {
                self.findings.push(Finding::ConfigDiffers {
                    topic: topic.clone(),
                    key: key.clone(),
                    has: has.map(str::to_owned),
                    wanted: value.clone(),
                });
            }
        }
        self.check_replicas(wanted, observed);
        let size = observed.config.get(MAX_MESSAGE).and_then(|size| size.value.as_deref());
        self.check_message_size(wanted, size);
    }

    fn check_replicas(&mut self, wanted: &WantedTopic, observed: &ObservedTopic) {
        let topic = &wanted.name;
        if !observed.leaderless.is_empty() {
            self.findings
                .push(Finding::Leaderless { topic: topic.clone(), partitions: observed.leaderless.clone() });
        }
        let has = observed.replication_factor;
        if let Some(wanted) = wanted.replication_factor.filter(|wanted| *wanted != has) {
            self.findings.push(Finding::ReplicationDiffers { topic: topic.clone(), has, wanted });
        }
        let in_sync = observed.config.get("min.insync.replicas").and_then(|value| value.value.as_deref());
        if has >= 3 && in_sync == Some("1") && !wanted.config.contains_key("min.insync.replicas") {
            self.findings.push(Finding::WeakAcknowledgement { topic: topic.clone(), replicas: has });
        }
    }

    /// `size` is the `max.message.bytes` that holds after this plan.
    fn check_message_size(&mut self, wanted: &WantedTopic, size: Option<&str>) {
        let size = size.and_then(|size| size.trim().parse::<i64>().ok());
        if let Some(has) = size.filter(|has| *has < i64::from(wanted.largest_message)) {
            self.findings.push(Finding::MessagesRefused {
                topic: wanted.name.clone(),
                has,
                needed: wanted.largest_message,
            });
        }
    }
}

/// Whether two texts are the same value of a key: Kafka gives lists back without blanks and truth values in lower case.
fn same_value(a: &str, b: &str) -> bool {
    fn items(text: &str) -> impl Iterator<Item = &str> {
        text.split(',').map(str::trim)
    }
    let (a, b) = (a.trim(), b.trim());
    let truth = |text: &str| text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false");
    if truth(a) && truth(b) {
        return a.eq_ignore_ascii_case(b);
    }
    if let (Ok(a), Ok(b)) = (a.parse::<i64>(), b.parse::<i64>()) {
        return a == b;
    }
    items(a).eq(items(b))
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::kafka::{admin::ConfigValue, topic_ids::TopicId};
    use proptest::prelude::*;

    use super::*;

    fn config(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
        entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn wanted(partitions: i32, entries: &[(&str, &str)]) -> WantedTopic {
        WantedTopic {
            name: "t".to_owned(),
            partitions,
            replication_factor: None,
            config: config(entries),
            largest_message: 1000,
        }
    }

    fn observed(partitions: i32, entries: &[(&str, &str, ConfigSource)]) -> BTreeMap<String, ObservedTopic> {
        let config = entries
            .iter()
            .map(|(key, value, source)| {
                ((*key).to_owned(), ConfigValue { value: Some((*value).to_owned()), source: *source })
            })
            .collect();
        BTreeMap::from([(
            "t".to_owned(),
            ObservedTopic {
                id: TopicId::from_bits(1, 1),
                partitions,
                replication_factor: 1,
                leaderless: vec![],
                config,
            },
        )])
    }

    fn remembered(keys: &[&str]) -> ManagedKeys {
        BTreeMap::from([("t".to_owned(), keys.iter().map(|key| (*key).to_owned()).collect())])
    }

    use ConfigSource::{Broker, Topic};
    use Management::{External, Managed};

    #[test]
    fn a_topic_that_is_as_wanted_is_left_alone() {
        let plan = plan(
            &[wanted(12, &[("retention.ms", "1000"), ("cleanup.policy", "compact, delete")])],
            &observed(12, &[("retention.ms", "1000", Topic), ("cleanup.policy", "compact,delete", Topic)]),
            Managed,
            &ManagedKeys::new(),
        );
        assert_eq!(plan.actions, []);
        assert_eq!(plan.findings, []);
        assert_eq!(plan.managed_keys, remembered(&["cleanup.policy", "retention.ms"]));
    }

    #[test]
    fn a_missing_topic_is_created_with_all_that_is_wanted() {
        let topic = wanted(12, &[("retention.ms", "1000")]);
        let plan = plan(std::slice::from_ref(&topic), &BTreeMap::new(), Managed, &ManagedKeys::new());
        assert_eq!(plan.actions, [TopicAction::Create(topic)]);
        assert_eq!(plan.managed_keys, remembered(&["retention.ms"]));
    }

    #[test]
    fn growing_says_what_it_does_to_the_order() {
        let plan = plan(&[wanted(12, &[])], &observed(3, &[]), Managed, &ManagedKeys::new());
        assert_eq!(plan.actions, [TopicAction::Grow { topic: "t".to_owned(), from: 3, to: 12 }]);
        assert!(plan.actions[0].note().contains("order"), "{}", plan.actions[0].note());
    }

    #[test]
    fn a_partition_decrease_is_refused_and_stays_visible() {
        let observed = observed(12, &[]);
        for _ in 0..2 {
            let plan = plan(&[wanted(3, &[])], &observed, Managed, &ManagedKeys::new());
            assert_eq!(plan.actions, []);
            assert_eq!(plan.findings, [Finding::ShrinkRefused { topic: "t".to_owned(), has: 12, wanted: 3 }]);
            assert_eq!(plan.findings[0].severity(), Severity::Refused);
            assert!(plan.findings[0].to_string().contains("set partitions to 12"));
        }
    }

    #[test]
    fn a_changed_value_is_set_back_and_one_that_equals_the_brokers_is_set_all_the_same() {
        let plan = plan(
            &[wanted(1, &[("retention.ms", "1000"), ("compression.type", "producer")])],
            &observed(1, &[("retention.ms", "5", Topic), ("compression.type", "producer", Broker)]),
            Managed,
            &ManagedKeys::new(),
        );
        let [TopicAction::ChangeConfig { repairs, .. }] = plan.actions.as_slice() else {
            panic!("{:?}", plan.actions)
        };
        let changes: Vec<_> = repairs.iter().map(|repair| repair.change.clone()).collect();
        assert_eq!(
            changes,
            [
                ConfigChange::Set { key: "compression.type".to_owned(), value: "producer".to_owned() },
                ConfigChange::Set { key: "retention.ms".to_owned(), value: "1000".to_owned() },
            ]
        );
        assert_eq!(repairs[1].was.as_deref(), Some("5"));
    }

    #[test]
    fn what_somebody_else_set_is_left_alone() {
        let plan = plan(
            &[wanted(1, &[])],
            &observed(1, &[("segment.ms", "60000", Topic)]),
            Managed,
            &ManagedKeys::new(),
        );
        assert_eq!(plan.actions, []);
    }

    #[test]
    fn a_key_taken_out_of_the_spec_goes_back_to_the_brokers_value_and_is_then_forgotten() {
        let is = observed(1, &[("segment.ms", "60000", Topic)]);
        let first = plan(&[wanted(1, &[])], &is, Managed, &remembered(&["segment.ms"]));
        assert_eq!(
            first.actions,
            [TopicAction::ChangeConfig {
                topic: "t".to_owned(),
                repairs: vec![ConfigRepair {
                    change: ConfigChange::Reset { key: "segment.ms".to_owned() },
                    was: Some("60000".to_owned()),
                }],
            }]
        );
        assert_eq!(first.managed_keys, remembered(&["segment.ms"]), "forgotten before it was seen gone");

        let is = observed(1, &[("segment.ms", "604800000", Broker)]);
        let second = plan(&[wanted(1, &[])], &is, Managed, &first.managed_keys);
        assert_eq!(second.actions, []);
        assert_eq!(second.managed_keys, remembered(&[]));
    }

    #[test]
    fn an_external_topic_is_checked_and_never_changed() {
        let missing = plan(&[wanted(3, &[])], &BTreeMap::new(), External, &ManagedKeys::new());
        assert_eq!(missing.actions, []);
        assert_eq!(missing.findings, [Finding::Missing { topic: "t".to_owned(), partitions: 3 }]);

        let differing = plan(
            &[wanted(3, &[("retention.ms", "1000"), ("compression.type", "zstd")])],
            &observed(1, &[("retention.ms", "5", Topic), ("compression.type", "zstd", Broker)]),
            External,
            &remembered(&["segment.ms"]),
        );
        assert_eq!(differing.actions, []);
        assert_eq!(
            differing.findings,
            [
                Finding::FewerPartitions { topic: "t".to_owned(), has: 1, wanted: 3 },
                Finding::ConfigDiffers {
                    topic: "t".to_owned(),
                    key: "retention.ms".to_owned(),
                    has: Some("5".to_owned()),
                    wanted: "1000".to_owned(),
                },
            ]
        );
        assert_eq!(differing.managed_keys, remembered(&["segment.ms"]));
    }

    #[test]
    fn an_external_topic_with_more_partitions_than_asked_for_is_fine() {
        let plan = plan(&[wanted(3, &[])], &observed(12, &[]), External, &ManagedKeys::new());
        assert_eq!(plan.findings, []);
    }

    #[test]
    fn replicas_are_reported_and_never_changed() {
        let mut topic = wanted(1, &[]);
        topic.replication_factor = Some(2);
        let mut is = observed(1, &[("min.insync.replicas", "1", Broker)]);
        is.get_mut("t").unwrap().replication_factor = 3;
        is.get_mut("t").unwrap().leaderless = vec![0, 4];
        let plan = plan(&[topic], &is, Managed, &ManagedKeys::new());
        assert_eq!(plan.actions, []);
        assert_eq!(
            plan.findings,
            [
                Finding::Leaderless { topic: "t".to_owned(), partitions: vec![0, 4] },
                Finding::ReplicationDiffers { topic: "t".to_owned(), has: 3, wanted: 2 },
                Finding::WeakAcknowledgement { topic: "t".to_owned(), replicas: 3 },
            ]
        );
        assert!(plan.findings[0].to_string().contains("partitions 0, 4"));
    }

    #[test]
    fn a_topic_that_would_refuse_messages_is_told_of_whoever_manages_it() {
        let refused = |has| vec![Finding::MessagesRefused { topic: "t".to_owned(), has, needed: 1000 }];
        let small = wanted(1, &[("max.message.bytes", "999")]);
        let is = observed(1, &[("max.message.bytes", "999", Topic)]);
        let none = ManagedKeys::new();
        assert_eq!(
            plan(std::slice::from_ref(&small), &BTreeMap::new(), Managed, &none).findings,
            refused(999)
        );
        assert_eq!(plan(std::slice::from_ref(&small), &is, Managed, &none).findings, refused(999));
        assert_eq!(plan(&[small], &is, External, &none).findings, refused(999));
        let enough = wanted(1, &[("max.message.bytes", "1000")]);
        assert_eq!(plan(&[enough], &is, Managed, &none).findings, [], "it is about to be set right");
    }

    #[test]
    fn values_are_compared_as_kafka_means_them() {
        for (a, b) in [("a,b", "a, b"), ("True", "true"), ("007", "7"), (" zstd ", "zstd"), ("-1", "-1")] {
            assert!(same_value(a, b), "{a:?} {b:?}");
        }
        for (a, b) in [("a,b", "b,a"), ("true", "false"), ("7", "70"), ("zstd", "ZSTD"), ("", "a")] {
            assert!(!same_value(a, b), "{a:?} {b:?}");
        }
    }

    const KEYS: [&str; 4] = ["retention.ms", "segment.ms", "compression.type", "cleanup.policy"];

    fn any_topic_config() -> impl Strategy<Value = BTreeMap<String, String>> {
        prop::collection::btree_map(
            prop::sample::select(&KEYS[..]).prop_map(str::to_owned),
            "[1-9][0-9]{0,2}",
            0..4,
        )
    }

    /// What the brokers would do.
    fn perform(world: &mut BTreeMap<String, ObservedTopic>, actions: &[TopicAction]) {
        for action in actions {
            match action {
                TopicAction::Create(wanted) => {
                    world.insert(
                        wanted.name.clone(),
                        ObservedTopic {
                            id: TopicId::from_bits(2, 2),
                            partitions: wanted.partitions,
                            replication_factor: 1,
                            leaderless: vec![],
                            config: wanted
                                .config
                                .iter()
                                .map(|(key, value)| {
                                    (key.clone(), ConfigValue { value: Some(value.clone()), source: Topic })
                                })
                                .collect(),
                        },
                    );
                }
                TopicAction::Grow { topic, to, .. } => world.get_mut(topic).unwrap().partitions = *to,
                TopicAction::ChangeConfig { topic, repairs } => {
                    let config = &mut world.get_mut(topic).unwrap().config;
                    for repair in repairs {
                        match &repair.change {
                            ConfigChange::Set { key, value } => config.insert(
                                key.clone(),
                                ConfigValue { value: Some(value.clone()), source: Topic },
                            ),
                            ConfigChange::Reset { key } => config.insert(
                                key.clone(),
                                ConfigValue { value: Some("broker".to_owned()), source: Broker },
                            ),
                        };
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn one_application_reaches_rest_and_never_touches_what_others_set(
            before in any_topic_config(),
            after in any_topic_config(),
            foreign in any_topic_config(),
            had in 1..20,
            partitions in 1..20,
        ) {
            // S0 is applied, somebody sets keys of their own, the spec changes to S1.
            let mut world = BTreeMap::new();
            let mut topic = wanted(had, &[]);
            topic.config = before.clone();
            let first = plan(&[topic.clone()], &world, Managed, &ManagedKeys::new());
            perform(&mut world, &first.actions);
            let foreign: BTreeMap<_, _> =
                foreign.into_iter().filter(|(key, _)| !before.contains_key(key) && !after.contains_key(key)).collect();
            for (key, value) in &foreign {
                world.get_mut("t").unwrap().config.insert(
                    key.clone(),
                    ConfigValue { value: Some(value.clone()), source: Topic },
                );
            }
            topic.config = after.clone();
            topic.partitions = partitions;
            let second = plan(&[topic.clone()], &world, Managed, &first.managed_keys);
            perform(&mut world, &second.actions);

            let third = plan(&[topic], &world, Managed, &second.managed_keys);
            prop_assert_eq!(&third.actions, &[]);
            let is = &world["t"];
            prop_assert_eq!(is.partitions, had.max(partitions));
            let set: BTreeMap<String, String> = is
                .config
                .iter()
                .filter(|(_, value)| value.source == Topic)
                .map(|(key, value)| (key.clone(), value.value.clone().unwrap()))
                .collect();
            let mut expected = after;
            expected.extend(foreign);
            prop_assert_eq!(set, expected);
        }
    }
}
