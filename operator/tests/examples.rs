//! The pipelines in `docs/examples` can be built and do what they say.

#![allow(clippy::unwrap_used, reason = "a test ends by a panic")]

use std::{fs, path::Path, time::Duration};

use penstock_crds::{
    IngestionPipeline,
    v1alpha1::{ExportSpec, Project, TransformationStep},
};
use penstock_pipeline::program::{Budget, Event, Outcome, Predicate, Step};
use serde::Deserialize;
use serde_json::{Value, json};

/// The pipelines with the names of their files.
fn examples() -> Vec<(String, IngestionPipeline)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples");
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        for document in serde_yaml_ng::Deserializer::from_str(&fs::read_to_string(&path).unwrap()) {
            let value = Value::deserialize(document).unwrap();
            if value["kind"] == "IngestionPipeline" {
                let name = path.file_stem().unwrap().to_string_lossy().into_owned();
                let pipeline =
                    serde_json::from_value(value).unwrap_or_else(|error| panic!("{name}: {error}"));
                found.push((name, pipeline));
            }
        }
    }
    found
}

fn example(name: &str) -> IngestionPipeline {
    examples().into_iter().find(|(found, _)| found == name).unwrap_or_else(|| panic!("no example {name}")).1
}

#[test]
fn every_program_and_condition_of_the_examples_compiles() {
    let mut programs = 0;
    for (name, pipeline) in examples() {
        for step in pipeline.spec.transformation.iter().flat_map(|transformation| &transformation.steps) {
            let Some(vrl) = &step.vrl else { continue };
            let compiled = Step::compile(vrl);
            assert!(compiled.is_ok(), "{name}, step {}: {}", step.name, compiled.unwrap_err());
            programs += 1;
        }
        for export in &pipeline.spec.exports {
            let Some(condition) = &export.where_ else { continue };
            let compiled = Predicate::compile(condition);
            assert!(compiled.is_ok(), "{name}, export {}: {}", export.name, compiled.unwrap_err());
            programs += 1;
        }
    }
    assert!(programs >= 5, "only {programs} programs were found");
}

fn message(event: &str, team: i64, properties: &Value) -> Vec<u8> {
    serde_json::to_vec(&json!({
        "uuid": "0192d3b0-0000-7000-8000-000000000001", "event": event, "properties": properties.to_string(),
        "timestamp": "2026-11-24 12:00:00.000000", "team_id": team, "distinct_id": "ada",
    }))
    .unwrap()
}

/// The event's properties after all steps of the quickstart; nothing when a step dropped it.
fn through_the_quickstart(properties: &Value) -> Option<Value> {
    let message = message("$pageview", 1, properties);
    let mut event = Event::parse(&message).unwrap();
    for step in example("quickstart").spec.transformation.unwrap().steps {
        let compiled = Step::compile(step.vrl.as_deref().unwrap()).unwrap();
        match compiled.run(&mut event, &Budget::start(Duration::from_secs(5))) {
            Ok(Outcome::Kept) => {}
            Ok(_) => return None,
            Err(error) => panic!("step {}: {error}", step.name),
        }
    }
    let changed = event.finish().unwrap_or(message);
    let changed: Value = serde_json::from_slice(&changed).unwrap();
    Some(serde_json::from_str(changed["properties"].as_str().unwrap()).unwrap())
}

#[test]
fn the_quickstart_drops_bots_and_no_one_else() {
    for agent in ["ExampleBot/2.1", "a Crawler", "SPIDER"] {
        assert_eq!(through_the_quickstart(&json!({"$raw_user_agent": agent})), None, "{agent}");
    }
    for properties in [json!({"$raw_user_agent": "Firefox/144.0"}), json!({}), json!({"$raw_user_agent": 7})]
    {
        assert_eq!(through_the_quickstart(&properties), Some(properties));
    }
}

#[test]
fn the_quickstart_hashes_addresses_wherever_they_are() {
    // SHA-256 of ada@example.com.
    let hash = "b5fc85e55755f9e0d030a10ab4429b6b2944855f9a0d60077fe832becbc41d72";
    let out = through_the_quickstart(
        &json!({"email": "Ada@example.com", "$set": {"email": "ada@example.com", "plan": "member"}}),
    )
    .unwrap();
    assert_eq!(out["email"], out["$set"]["email"]);
    assert_eq!(out["email"], hash);
    assert_eq!(out["$set"]["plan"], "member");
}

#[test]
fn the_webhook_gets_completed_orders_only() {
    let pipeline = example("webhook");
    let condition = pipeline.spec.exports.iter().find_map(|export| export.where_.as_deref()).unwrap();
    let condition = Predicate::compile(condition).unwrap();
    let holds = |event: &str, properties: Value| {
        condition.test(&message(event, 1, &properties), Duration::from_secs(5)).unwrap()
    };
    assert!(holds("order completed", json!({"order_id": "O-1"})));
    assert!(!holds("order completed", json!({})));
    assert!(!holds("$pageview", json!({"order_id": "O-1"})));
}

/// The YAML that a page tells to add, block by block.
fn additions(page: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/how-to").join(page);
    let text = fs::read_to_string(path).unwrap();
    text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn what_the_page_on_changes_adds_to_the_quickstart_can_be_added() {
    let additions = additions("change-the-pipeline.md");
    let [step, project, export] = additions.as_slice() else { panic!("{} blocks of YAML", additions.len()) };
    let spec = example("quickstart").spec;

    let steps: Vec<TransformationStep> = serde_yaml_ng::from_str(step).unwrap();
    let compiled = Step::compile(steps[0].vrl.as_deref().unwrap()).unwrap_or_else(|error| panic!("{error}"));
    for (total, size) in
        [(json!(649.9), "large"), (json!(500), "large"), (json!(12.5), "small"), (json!("?"), "small")]
    {
        let message = message("order completed", 1, &json!({"total": total}));
        let mut event = Event::parse(&message).unwrap();
        assert!(matches!(
            compiled.run(&mut event, &Budget::start(Duration::from_secs(5))),
            Ok(Outcome::Kept)
        ));
        let changed: Value = serde_json::from_slice(&event.finish().unwrap()).unwrap();
        let properties: Value = serde_json::from_str(changed["properties"].as_str().unwrap()).unwrap();
        assert_eq!(properties["size"], size, "{total}");
    }

    let projects: Vec<Project> = serde_yaml_ng::from_str(project).unwrap();
    let exports: Vec<ExportSpec> = serde_yaml_ng::from_str(export).unwrap();
    assert!(Predicate::compile(exports[0].where_.as_deref().unwrap()).is_ok());
    assert!(spec.projects.iter().all(|old| old.id != projects[0].id && old.token != projects[0].token));
    assert!(spec.exports.iter().all(|old| old.name != exports[0].name));
}
