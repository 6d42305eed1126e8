//! The auditor, on real Kafka and ClickHouse: what is planted is found, counted and named, and nothing else is.

use std::{path::PathBuf, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, future::try_join_all, stream::FuturesUnordered};
use penstock_e2e::{
    audit::{
        self, Sources,
        account::{Account, Kind},
        content::Ignored,
        journal::{Answer, Journal, Line},
        table::Table,
    },
    load, truth,
    warehouse::Warehouse,
};
use penstock_pipeline::{
    events::{
        captured::CapturedEvent,
        dead_letter::header,
        ingested::IngestedEvent,
        table::{COLUMNS, Value as Filled},
    },
    kafka::admin::{NewTopic, create_topic},
};
use rdkafka::{
    ClientConfig,
    admin::AdminClient,
    client::DefaultClientContext,
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use serde_json::{Value, json};
use uuid::Uuid;

const EVENTS: usize = 60;
/// The events that the plants concern.
const VICTIM: usize = 30;
/// The next event of the same person.
const NEXT: usize = VICTIM + PERSONS;
const PERSONS: usize = 7;

/// A message that is to be written, in the order of the list.
#[derive(Clone)]
struct Message {
    key: String,
    value: String,
    headers: Vec<(&'static str, String)>,
}

/// A row that is to be written.
#[derive(Clone)]
struct Row {
    event: IngestedEvent,
    partition: i32,
    offset: i64,
}

/// What lies where; consistent before something is planted.
struct World {
    journal: Vec<Line>,
    captured: Vec<Message>,
    ingested: Vec<Message>,
    transformed: Vec<Message>,
    dead: Vec<Message>,
    rows: Vec<Row>,
    uuids: Vec<Uuid>,
}

fn consistent() -> Result<World> {
    let mut world = World {
        journal: Vec::new(),
        captured: Vec::new(),
        ingested: Vec::new(),
        transformed: Vec::new(),
        dead: Vec::new(),
        rows: Vec::new(),
        uuids: Vec::new(),
    };
    for number in 0..EVENTS {
        let uuid = Uuid::now_v7();
        let person = format!("person-{}", number % PERSONS);
        let event = load::made(number as u64, uuid, &person, "audit");
        world.journal.push(Line::Sent(event.sent(1 + (number / PERSONS) as u32)?));
        world.journal.push(Line::Answered(uuid, Answer::Acknowledged));
        let captured = CapturedEvent {
            uuid: uuid.to_string(),
            distinct_id: person.clone(),
            ip: "203.0.113.9".into(),
            data: event.json.clone(),
            now: "2026-11-25T01:02:03.000004Z".into(),
            sent_at: None,
            token: "phc_a".into(),
            event: event.name.clone(),
            timestamp: event.timestamp.clone(),
            is_cookieless_mode: false,
            historical_migration: false,
        };
        let sent: Value = serde_json::from_str(&event.json)?;
        let properties = event.properties.strip_suffix('}').context("properties are an object")?;
        let time = event.timestamp.replace('T', " ").replace('Z', "");
        let ingested = IngestedEvent {
            uuid: uuid.to_string(),
            event: sent["event"].as_str().context("no name")?.to_owned(),
            properties: format!("{properties},\"$ip\":\"203.0.113.9\"}}"),
            timestamp: format!("{time}000"),
            team_id: 1,
            project_id: 1,
            distinct_id: person.clone(),
            elements_chain: String::new(),
            created_at: "2026-11-25 01:02:03.000004".into(),
            captured_at: "2026-11-25 01:02:03.000004".into(),
            person_id: Uuid::nil().to_string(),
            person_created_at: "1970-01-01 00:00:05.000000".into(),
            person_properties: "{}".into(),
            person_mode: "propertyless".into(),
            historical_migration: false,
        };
        let message = |value: String| Message { key: format!("phc_a:{person}"), value, headers: Vec::new() };
        world.captured.push(message(serde_json::to_string(&captured)?));
        world.ingested.push(message(serde_json::to_string(&ingested)?));
        world.transformed.push(message(serde_json::to_string(&ingested)?));
        world.rows.push(Row { event: ingested, partition: 0, offset: number as i64 });
        world.uuids.push(uuid);
    }
    Ok(world)
}

/// Names of our own, taken away at the end.
struct Stand {
    servers: String,
    prefix: String,
    database: String,
    warehouse: Warehouse,
    clickhouse: String,
    directory: tempfile::TempDir,
}

impl Stand {
    fn new(case: &str) -> Result<Self> {
        let id = &Uuid::new_v4().simple().to_string()[..8];
        let servers = std::env::var("PENSTOCK_TEST_KAFKA").context("PENSTOCK_TEST_KAFKA")?;
        let clickhouse = std::env::var("PENSTOCK_TEST_CLICKHOUSE").context("PENSTOCK_TEST_CLICKHOUSE")?;
        Ok(Self {
            servers,
            prefix: format!("audit-{case}-{id}.shop."),
            database: format!("audit_{}_{id}", case.replace('-', "_")),
            warehouse: Warehouse::at(clickhouse.clone()),
            clickhouse,
            directory: tempfile::tempdir()?,
        })
    }

    fn journal(&self) -> PathBuf {
        self.directory.path().join("journal")
    }

    /// Writes a world down.
    async fn build(&self, world: &World) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.servers).create()?;
        let producer: FutureProducer = ClientConfig::new()
            .set("bootstrap.servers", &self.servers)
            .set("enable.idempotence", "true")
            .create()?;
        for (stage, messages) in [
            ("captured", &world.captured),
            ("ingested", &world.ingested),
            ("transformed", &world.transformed),
            ("dead-letter", &world.dead),
        ] {
            let topic = format!("{}{stage}", self.prefix);
            let (client, name) = (admin.inner(), topic.clone());
            let new = NewTopic { name, partitions: 1, replication_factor: None, config: Default::default() };
            create_topic(client, &new, Duration::from_secs(10))?;
            // In order: the producer is idempotent and writes to one partition.
            let mut acknowledgements = FuturesUnordered::new();
            for message in messages {
                let headers = message.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
                    headers.insert(Header { key, value: Some(value) })
                });
                let record =
                    FutureRecord::to(&topic).key(&message.key).payload(&message.value).headers(headers);
                let queued = producer.send_result(record).map_err(|(error, _)| error)?;
                acknowledgements.push(queued);
            }
            while let Some(acknowledged) = acknowledgements.next().await {
                acknowledged?.map_err(|(error, _)| error)?;
            }
        }
        let columns: Vec<String> = COLUMNS
            .iter()
            .map(|column| match column.value {
                Filled::Inserted => format!("`{}` {}", column.name, column.type_),
                Filled::Default(sql) => format!("`{}` {} DEFAULT {sql}", column.name, column.type_),
                Filled::Materialized(sql) => format!("`{}` {} MATERIALIZED {sql}", column.name, column.type_),
            })
            .collect();
        self.warehouse.text(&format!("CREATE DATABASE {}", self.database)).await?;
        self.warehouse
            .text(&format!(
                "CREATE TABLE {} ({}) ENGINE = MergeTree ORDER BY uuid",
                self.table(),
                columns.join(", ")
            ))
            .await?;
        let rows: Vec<String> = world
            .rows
            .iter()
            .map(|row| {
                let mut json = serde_json::to_value(&row.event)?;
                json["_timestamp"] = json!("2026-11-25 01:02:03");
                json["_topic_id"] = json!("the-topic");
                json["_partition"] = json!(row.partition);
                json["_offset"] = json!(row.offset);
                Ok(json.to_string())
            })
            .collect::<Result<_>>()?;
        if !rows.is_empty() {
            let insert = format!("INSERT INTO {} FORMAT JSONEachRow\n{}", self.table(), rows.join("\n"));
            self.warehouse.text(&insert).await?;
        }
        Journal::create(&self.journal())?.write(&world.journal)
    }

    fn table(&self) -> String {
        format!("{}.events", self.database)
    }

    fn sources(&self) -> Sources {
        Sources {
            bootstrap_servers: self.servers.clone(),
            kafka_properties: Vec::new(),
            topic_prefix: self.prefix.clone(),
            table: Table { url: self.clickhouse.clone(), user: None, password: None, name: self.table() },
            journal: Some(self.journal()),
            ignored: Ignored::default(),
            partitions_grown: false,
            others_send: false,
            progress: false,
        }
    }

    async fn remove(self) -> Result<()> {
        self.warehouse.text(&format!("DROP DATABASE IF EXISTS {}", self.database)).await?;
        tokio::task::spawn_blocking(move || truth::delete_topics(&self.servers, &self.prefix)).await?
    }
}

/// Something planted, and what must be found: its kind, how often, and a word that its name must hold beside the UUID.
struct Case {
    name: &'static str,
    plant: fn(&mut World) -> Result<()>,
    found: Option<(Kind, u64, &'static str)>,
}

fn change(text: &mut String, from: &str, to: &str) -> Result<()> {
    ensure!(text.contains(from), "{from:?} is not in {text}");
    *text = text.replacen(from, to, 1);
    Ok(())
}

const CASES: &[Case] = &[
    Case { name: "clean", plant: |_| Ok(()), found: None },
    Case {
        name: "lost-captured",
        plant: |world| {
            world.captured.remove(VICTIM);
            world.ingested.remove(VICTIM);
            world.transformed.remove(VICTIM);
            world.rows.remove(VICTIM);
            for row in &mut world.rows[VICTIM..] {
                row.offset -= 1;
            }
            Ok(())
        },
        found: Some((Kind::Lost, 1, "acknowledged")),
    },
    Case {
        name: "lost-transformed",
        plant: |world| {
            world.transformed.remove(VICTIM);
            world.rows.remove(VICTIM);
            for row in &mut world.rows[VICTIM..] {
                row.offset -= 1;
            }
            Ok(())
        },
        found: Some((Kind::Lost, 1, "0 in transformed")),
    },
    Case {
        name: "lost-row",
        plant: |world| {
            world.rows.remove(VICTIM);
            Ok(())
        },
        found: Some((Kind::Lost, 1, "0 in rows")),
    },
    Case {
        name: "dead-letter",
        plant: |world| {
            let mut letter = world.ingested[VICTIM].clone();
            letter.headers = vec![
                (header::STEP, "transformation".into()),
                (header::REASON, "transformation_failed".into()),
            ];
            world.dead.push(letter);
            world.transformed.remove(VICTIM);
            world.rows.remove(VICTIM);
            for row in &mut world.rows[VICTIM..] {
                row.offset -= 1;
            }
            Ok(())
        },
        found: None,
    },
    Case {
        name: "doubled-ingested",
        plant: |world| {
            let again = world.ingested[VICTIM].clone();
            world.ingested.push(again);
            Ok(())
        },
        found: Some((Kind::Doubled, 1, "2 in ingested (0/30 and again 0/60)")),
    },
    Case {
        name: "doubled-row",
        plant: |world| {
            let again = world.rows[VICTIM].clone();
            world.rows.push(again);
            Ok(())
        },
        found: Some((Kind::Doubled, 1, "2 in rows (0/30 and again 0/30)")),
    },
    Case {
        name: "altered-captured",
        plant: |world| change(&mut world.captured[VICTIM].value, "shop.example", "shop.exemple"),
        found: Some((Kind::Altered, 1, "captured 0/30: the event is not as it was sent")),
    },
    Case {
        name: "altered-number",
        plant: |world| change(&mut world.ingested[VICTIM].value, "19.50", "19.5"),
        found: Some((Kind::Altered, 1, "ingested 0/30: properties")),
    },
    Case {
        name: "altered-time",
        plant: |world| change(&mut world.transformed[VICTIM].value, ":00.", ":01."),
        found: Some((Kind::Altered, 1, "transformed 0/30: timestamp")),
    },
    Case {
        name: "altered-row",
        plant: |world| {
            world.rows[VICTIM].event.event.push('!');
            Ok(())
        },
        found: Some((Kind::Altered, 1, "row from 0/30: event")),
    },
    Case {
        name: "altered-column",
        plant: |world| {
            world.rows[VICTIM].event.team_id = 2;
            Ok(())
        },
        found: Some((Kind::Altered, 1, "another column")),
    },
    Case {
        name: "swapped-captured",
        plant: |world| {
            world.captured.swap(VICTIM, NEXT);
            world.ingested.swap(VICTIM, NEXT);
            world.transformed.swap(VICTIM, NEXT);
            world.rows.swap(VICTIM, NEXT);
            world.rows[VICTIM].offset = VICTIM as i64;
            world.rows[NEXT].offset = NEXT as i64;
            Ok(())
        },
        found: Some((Kind::OutOfOrder, 1, "was sent before")),
    },
    Case {
        name: "swapped-ingested",
        plant: |world| {
            world.ingested.swap(VICTIM, NEXT);
            world.transformed.swap(VICTIM, NEXT);
            world.rows.swap(VICTIM, NEXT);
            world.rows[VICTIM].offset = VICTIM as i64;
            world.rows[NEXT].offset = NEXT as i64;
            Ok(())
        },
        found: Some((Kind::OutOfOrder, 1, "was captured before")),
    },
    Case {
        name: "misplaced-row",
        plant: |world| {
            world.rows[VICTIM].offset = 1_000;
            Ok(())
        },
        found: Some((Kind::Misplaced, 1, "the row says 0/1000")),
    },
    Case {
        name: "refused",
        plant: |world| {
            for line in &mut world.journal {
                if let Line::Answered(uuid, answer) = line
                    && *uuid == world.uuids[VICTIM]
                {
                    *answer = Answer::Refused;
                }
            }
            Ok(())
        },
        found: Some((Kind::RefusedButThere, 1, "captured 0/30")),
    },
];

fn check(case: &Case, victim: Uuid, account: &Account) -> Result<()> {
    for kind in Kind::ALL {
        let wanted = case.found.filter(|(found, ..)| *found == kind).map_or(0, |(_, count, _)| count);
        ensure!(
            account.findings.count(kind) == wanted,
            "{}: {wanted} of {kind:?} wanted, and the account is\n{account}",
            case.name
        );
    }
    if let Some((kind, _, word)) = case.found {
        let named = account.findings.named(kind);
        ensure!(
            named.iter().any(|name| name.contains(&victim.to_string()) && name.contains(word)),
            "{}: {victim} and {word:?} are not in {named:?}",
            case.name
        );
    }
    Ok(())
}

/// Builds a world with its plant, audits it and takes it away.
async fn tried(case: &Case, with_journal: bool) -> Result<()> {
    let stand = Stand::new(case.name)?;
    let mut world = consistent()?;
    let victim = world.uuids[VICTIM];
    (case.plant)(&mut world).with_context(|| case.name)?;
    let outcome = async {
        stand.build(&world).await?;
        let mut sources = stand.sources();
        if !with_journal {
            sources.journal = None;
        }
        check(case, victim, &audit::take(&sources).await?)
    }
    .await;
    stand.remove().await?;
    outcome?;
    println!("found as planted: {}", case.name);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn a_planted_loss_duplicate_change_or_swap_is_found_and_named() -> Result<()> {
    try_join_all(CASES.iter().map(|case| tried(case, true))).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn without_a_journal_topics_and_table_are_held_against_each_other() -> Result<()> {
    // What only the sender knows cannot be found then.
    let known = CASES.iter().filter(|case| {
        !matches!(case.name, "lost-captured" | "altered-captured" | "swapped-captured" | "refused")
    });
    try_join_all(known.map(|case| tried(case, false))).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn the_program_prints_the_account_and_says_by_its_exit_code_whether_all_is_well() -> Result<()> {
    for (name, wanted) in [("clean", 0), ("doubled-row", 1)] {
        let case = CASES.iter().find(|case| case.name == name).context("no such case")?;
        let stand = Stand::new(&format!("program-{name}"))?;
        let mut world = consistent()?;
        let victim = world.uuids[VICTIM];
        (case.plant)(&mut world)?;
        stand.build(&world).await?;
        let program = |prefix: &str| {
            Command::new(env!("CARGO_BIN_EXE_audit"))
                .args(["--bootstrap-servers", &stand.servers, "--topic-prefix", prefix])
                .args(["--clickhouse", &stand.clickhouse, "--table", &stand.table(), "--settle", "1"])
                .arg("--journal")
                .arg(stand.journal())
                .output()
        };
        let output = program(&stand.prefix)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let absent = program("nobody.")?;
        stand.remove().await?;
        ensure!(output.status.code() == Some(wanted), "{name}: {:?}\n{text}", output.status);
        ensure!(text.contains(&victim.to_string()) == (wanted == 1), "{name}: {text}");
        ensure!(absent.status.code() == Some(2), "without topics: {:?}", absent.status);
        let said = String::from_utf8_lossy(&absent.stderr).into_owned();
        ensure!(said.contains("there is no topic nobody.captured"), "{said}");
    }
    Ok(())
}
