//! Which topic the exports that run read, and whether a new spec would change it. Pure.
//!
//! Exports read `ingested`, or `transformed` as soon as there is a transformation step. Their consumer groups have no place
//! in the other topic: the first step of a pipeline that runs, or the loss of its last one, would deliver again what the
//! topics still hold, or leave events out. That damages what is at the destinations and cannot be undone, so such a spec
//! is refused, unless somebody takes the consequences with [`ACCEPT_ANNOTATION`].

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::ConfigMap};
use kube::ResourceExt;
use penstock_pipeline::config::StartFrom;
use serde::Deserialize;

use crate::{
    build::{self, Objects},
    report::events::Notice,
    validate::{Component, Problem, ValidatedPipeline},
};

/// On a pipeline, with the value `true`: exports may change the topic that they read.
pub const ACCEPT_ANNOTATION: &str = "penstock.dev/accept-repeated-delivery";
/// A step that leaves every event as it is, byte for byte.
const STEP_WITHOUT_EFFECT: &str = ".";

/// Topics that exports read, by the name of the export.
pub type Sources = BTreeMap<String, String>;

/// A running export that would read another topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceChange {
    /// Name of the export.
    pub export: String,
    /// Topic that it reads.
    pub from: String,
    /// Topic that the spec wants it to read.
    pub to: String,
    /// Where its consumer group begins there.
    pub start_from: StartFrom,
}

/// The part of an export's configuration that matters here. The whole type would refuse a file that another version of
/// the operator wrote with a field more or less, and such a file says just as well what runs.
#[derive(Deserialize)]
struct Configuration {
    source: Source,
}

#[derive(Deserialize)]
struct Source {
    topic: String,
}

/// What the exports of a pipeline read at present: what is in the configuration that their Deployments mount.
///
/// An export whose Deployment or configuration is not there, because somebody has deleted it, reads what it read `before`,
/// if that is known; otherwise it does not run, and is not in the result.
pub fn running(
    pipeline: &ValidatedPipeline,
    objects: &Objects,
    deployments: &[Arc<Deployment>],
    config_maps: &[Arc<ConfigMap>],
    before: &Sources,
) -> Sources {
    objects
        .components
        .iter()
        .filter_map(|of| {
            let Component::Export(export) = &of.component else { return None };
            let live = deployments.iter().find(|live| live.name_any() == of.deployment.name_any());
            let mounted = live.and_then(|live| mounted_config_map(live));
            let topic = match mounted {
                // Named by its content, so it is what has just been built; the watch need not have seen it yet.
                Some(name) if name == of.config_map.name_any() => Some(pipeline.export_source()),
                Some(name) => {
                    config_maps.iter().find(|map| map.name_any() == name).and_then(|map| topic(map))
                }
                None => None,
            };
            let topic = topic.or_else(|| before.get(export).cloned())?;
            Some((export.clone(), topic))
        })
        .collect()
}

fn mounted_config_map(deployment: &Deployment) -> Option<&str> {
    let volumes = &deployment.spec.template.spec.as_ref()?.volumes;
    let config = volumes.iter().flatten().find(|volume| volume.name == build::CONFIG_VOLUME)?;
    Some(&config.config_map.as_ref()?.name)
}

fn topic(config_map: &ConfigMap) -> Option<String> {
    let yaml = config_map.data.as_ref()?.get(build::CONFIG_KEY)?;
    let configuration: Configuration = serde_yaml_ng::from_str(yaml).ok()?;
    Some(configuration.source.topic)
}

/// Changes of the topics that running exports read, if there are none or the pipeline's annotations accept them.
///
/// # Errors
/// There are some, and nobody has accepted them.
pub fn decide(
    pipeline: &ValidatedPipeline,
    running: &Sources,
    annotations: &BTreeMap<String, String>,
) -> Result<Vec<SourceChange>, Problem> {
    let to = pipeline.export_source();
    let changes: Vec<SourceChange> = pipeline
        .exports
        .iter()
        .filter_map(|export| {
            let from = running.get(&export.name).filter(|from| **from != to)?;
            Some(SourceChange {
                export: export.name.clone(),
                from: from.clone(),
                to: to.clone(),
                start_from: export.start_from,
            })
        })
        .collect();
    let accepted = annotations.get(ACCEPT_ANNOTATION).is_some_and(|value| value == "true");
    if changes.is_empty() || accepted {
        return Ok(changes);
    }
    Err(Problem::ExportSourceChange { message: refusal(pipeline, &changes) })
}

/// What people are told of changes that are being made.
pub fn notices(changes: &[SourceChange]) -> Vec<Notice> {
    changes
        .iter()
        .map(|change| {
            let note = format!(
                "export {} goes over from topic {:?} to {:?}, as the annotation {ACCEPT_ANNOTATION} accepts; {}; \
                 the annotation can be removed when the pipeline is ready",
                change.export,
                change.from,
                change.to,
                consequences(std::slice::from_ref(change)),
            );
            Notice::warning("ExportSourceChanged", "Apply", note)
        })
        .collect()
}

fn refusal(pipeline: &ValidatedPipeline, changes: &[SourceChange]) -> String {
    let stages = pipeline.stages();
    let (cause, advice) = match changes.first() {
        Some(change) if change.from == stages.ingested && change.to == stages.transformed => (
            "spec.transformation: with the first step",
            format!(
                "take the steps out again, or put them into another pipeline (one that may need steps later begins \
                 with one that has no effect, vrl: {STEP_WITHOUT_EFFECT:?})"
            ),
        ),
        Some(change) if change.from == stages.transformed && change.to == stages.ingested => (
            "spec.transformation: without the last step",
            format!("keep one step; one that has no effect is vrl: {STEP_WITHOUT_EFFECT:?}"),
        ),
        _ => ("spec", "set back what decides the topic".to_owned()),
    };
    let mut by_source: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for change in changes {
        by_source.entry(&change.from).or_default().push(&change.export);
    }
    let to = pipeline.export_source();
    let reads: Vec<String> = by_source
        .into_iter()
        .map(|(from, exports)| format!("{} ({to:?} instead of {from:?})", exports.join(", ")))
        .collect();
    format!(
        "{cause}, these exports would read another topic, in which their consumer groups have no place: {}. Then, {}. \
         What runs is left alone. What to do: {advice}; or accept it with the annotation {ACCEPT_ANNOTATION}: \"true\"",
        reads.join(", "),
        consequences(changes),
    )
}

fn consequences(changes: &[SourceChange]) -> String {
    let with = |start_from: StartFrom| -> Option<String> {
        let names: Vec<&str> = changes
            .iter()
            .filter(|change| change.start_from == start_from)
            .map(|change| change.export.as_str())
            .collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let earliest = with(StartFrom::Earliest).map(|names| {
        format!("with startFrom Earliest ({names}) events that the topics still hold are delivered again")
    });
    let latest = with(StartFrom::Latest).map(|names| {
        format!("with startFrom Latest ({names}) events that are under way are left out or delivered again")
    });
    earliest.into_iter().chain(latest).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use penstock_pipeline::program::{Budget, Event, Outcome, Step};

    use super::*;
    use crate::build::tests::{images, pipeline};

    /// A webhook that starts at the end and a table that starts at the beginning, without steps.
    const BARE: &str = r#"
apiVersion: penstock.dev/v1alpha1
kind: IngestionPipeline
metadata: {name: web, namespace: shop, uid: 0a1b}
spec:
  projects: [{id: 1, name: web, token: phc_web}]
  kafka: {bootstrapServers: "kafka:9092"}
  exports:
  - {name: warehouse, clickhouse: {url: "http://clickhouse:8123", database: analytics}}
  - {name: crm, startFrom: Latest, webhook: {url: "https://hooks.example.com/in"}}
"#;
    const STEP: &str = r#"  transformation: {steps: [{name: mark, vrl: ".properties.seen = true"}]}"#;

    /// [`BARE`] with a step.
    fn stepped() -> String {
        format!("{BARE}{STEP}")
    }

    /// What is in the cluster when a spec has been made true.
    #[derive(Default)]
    struct Cluster {
        deployments: Vec<Arc<Deployment>>,
        config_maps: Vec<Arc<ConfigMap>>,
    }

    impl Cluster {
        fn with(yaml: &str) -> Self {
            let built = build::objects(&pipeline(yaml), &images()).unwrap();
            let (deployments, config_maps) = built
                .components
                .into_iter()
                .map(|of| (Arc::new(of.deployment), Arc::new(of.config_map)))
                .unzip();
            Self { deployments, config_maps }
        }

        fn without(mut self, object: &str) -> Self {
            self.deployments.retain(|live| live.name_any() != object);
            self.config_maps.retain(|live| !live.name_any().starts_with(object));
            self
        }

        fn running(&self, yaml: &str, before: &Sources) -> Sources {
            let pipeline = pipeline(yaml);
            let objects = build::objects(&pipeline, &images()).unwrap();
            running(&pipeline, &objects, &self.deployments, &self.config_maps, before)
        }

        /// The decision about a new spec.
        fn decide(&self, yaml: &str, annotations: &[(&str, &str)]) -> Result<Vec<SourceChange>, Problem> {
            let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            decide(&pipeline(yaml), &self.running(yaml, &Sources::new()), &annotations.collect())
        }
    }

    const ACCEPTED: [(&str, &str); 1] = [(ACCEPT_ANNOTATION, "true")];

    #[test]
    fn a_running_export_keeps_its_topic_unless_somebody_accepts_the_consequences() {
        let stepped = stepped();
        let other_step = stepped.replace("seen = true", "seen = 2");
        let smaller_blocks =
            BARE.replace("database: analytics}", "database: analytics}, block: {maxRows: 7}");
        let renamed = BARE.replace("name: warehouse", "name: lake").replace("name: crm", "name: sales");
        let none = Cluster::default;
        let bare = || Cluster::with(BARE);
        // What runs; the new spec; annotations; exports that would change, or `None` for a refusal.
        type Row<'a> = (&'a str, Cluster, &'a str, &'a [(&'a str, &'a str)], Option<&'a [&'a str]>);
        let rows: [Row<'_>; 15] = [
            ("nothing runs", none(), BARE, &[], Some(&[])),
            ("nothing runs, with a step", none(), &stepped, &[], Some(&[])),
            ("nothing changes", bare(), BARE, &[], Some(&[])),
            ("the first step", bare(), &stepped, &[], None),
            ("the last step goes", Cluster::with(&stepped), BARE, &[], None),
            ("another step", Cluster::with(&stepped), &other_step, &[], Some(&[])),
            ("another block", bare(), &smaller_blocks, &[], Some(&[])),
            ("the first step, accepted", bare(), &stepped, &ACCEPTED, Some(&["warehouse", "crm"])),
            (
                "the last step, accepted",
                Cluster::with(&stepped),
                BARE,
                &ACCEPTED,
                Some(&["warehouse", "crm"]),
            ),
            ("an acceptance of nothing", bare(), BARE, &ACCEPTED, Some(&[])),
            ("accepted with another word", bare(), &stepped, &[(ACCEPT_ANNOTATION, "yes")], None),
            ("other exports run", Cluster::with(&renamed), &stepped, &[], Some(&[])),
            ("one of two runs", bare().without("web-export-crm"), &stepped, &[], None),
            (
                "one of two runs, accepted",
                bare().without("web-export-crm"),
                &stepped,
                &ACCEPTED,
                Some(&["warehouse"]),
            ),
            (
                "configuration that nothing mounts",
                Cluster { deployments: Vec::new(), ..bare() },
                &stepped,
                &[],
                Some(&[]),
            ),
        ];
        for (what, cluster, spec, annotations, expected) in rows {
            let decided = cluster.decide(spec, annotations);
            let changed = decided
                .as_ref()
                .ok()
                .map(|changes| changes.iter().map(|change| change.export.as_str()).collect::<Vec<_>>());
            assert_eq!(changed.as_deref(), expected, "{what}: {decided:?}");
            if let Err(problem) = decided {
                assert_eq!(problem.reason(), "ExportSourceChange", "{what}");
            }
        }
    }

    #[test]
    fn the_refusal_of_a_first_step_says_what_would_happen_and_what_to_do() {
        let message = Cluster::with(BARE).decide(&stepped(), &[]).unwrap_err().to_string();
        insta::assert_snapshot!(message);
        assert!(message.len() < 1_024, "an Event takes no more: {}", message.len());
    }

    #[test]
    fn the_refusal_of_a_loss_of_the_last_step_says_what_would_happen_and_what_to_do() {
        let message = Cluster::with(&stepped()).decide(BARE, &[]).unwrap_err().to_string();
        insta::assert_snapshot!(message);
    }

    #[test]
    fn each_export_that_goes_over_is_told() {
        let notices = notices(&Cluster::with(BARE).decide(&stepped(), &ACCEPTED).unwrap());
        insta::assert_debug_snapshot!(notices);
    }

    #[test]
    fn a_step_without_effect_compiles_and_leaves_every_byte() {
        let step = Step::compile(STEP_WITHOUT_EFFECT).unwrap();
        assert!(step.warnings().is_empty(), "{}", step.warnings());
        let message =
            br#"{"uuid":"0192d3b0-0000-7000-8000-000000000001","event":"e","properties":"{\"a\": 12.50}",
            "timestamp":"2026-11-24 12:00:00.000000","team_id":1,"distinct_id":"ada"}"#;
        let mut event = Event::parse(message).unwrap();
        let outcome = step.run(&mut event, &Budget::start(std::time::Duration::from_secs(5)));
        assert_eq!(outcome, Ok(Outcome::Kept));
        assert_eq!(event.finish(), None, "the message goes on as it is");
    }

    #[test]
    fn what_an_export_read_is_remembered_when_its_deployment_or_configuration_is_deleted() {
        let before = Cluster::with(BARE).running(&stepped(), &Sources::new());
        assert_eq!(before["crm"], "shop.web.ingested");
        let after = Cluster::default().running(&stepped(), &before);
        assert_eq!(after, before);
        let bare = Cluster { config_maps: Vec::new(), ..Cluster::with(BARE) };
        assert_eq!(bare.running(&stepped(), &before), before);
    }

    #[test]
    fn an_export_that_is_not_wanted_any_more_is_forgotten() {
        let before = Cluster::with(BARE).running(BARE, &Sources::new());
        let without = BARE.lines().filter(|line| !line.contains("name: crm")).collect::<Vec<_>>().join("\n");
        assert_eq!(
            Cluster::with(BARE).running(&without, &before).into_keys().collect::<Vec<_>>(),
            ["warehouse"]
        );
    }

    #[test]
    fn configuration_that_was_just_applied_need_not_have_been_seen() {
        let cluster = Cluster { config_maps: Vec::new(), ..Cluster::with(&stepped()) };
        let before = Cluster::with(BARE).running(BARE, &Sources::new());
        assert_eq!(cluster.running(&stepped(), &before)["warehouse"], "shop.web.transformed");
    }

    #[test]
    fn configuration_of_another_version_is_understood() {
        let map = |yaml: &str| ConfigMap {
            data: Some(BTreeMap::from([(build::CONFIG_KEY.to_owned(), yaml.to_owned())])),
            ..ConfigMap::default()
        };
        assert_eq!(topic(&map("{source: {topic: a.b, lanes: 3}, more: []}")).as_deref(), Some("a.b"));
        assert_eq!(topic(&map("{source: {}}")), None);
        assert_eq!(topic(&map("nonsense: [")), None);
        assert_eq!(topic(&ConfigMap::default()), None);
    }
}
