//! Tables against a real ClickHouse: planned, applied, observed again.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use penstock_crds::v1alpha1::Management;
use penstock_operator::tables::{
    self, Access, Answer, Difference, Observed, Servers, TableAction, TablePlan, WantedTable,
};
use penstock_pipeline::events::table::{COLUMNS, DEDUPLICATION_WINDOW, Value};

fn url() -> String {
    std::env::var("PENSTOCK_TEST_CLICKHOUSE").unwrap_or_else(|_| "http://127.0.0.1:18123".to_owned())
}

/// What a plan does, in its order.
fn actions(plan: &TablePlan) -> Vec<TableAction> {
    plan.changes.iter().map(|change| change.action.clone()).collect()
}

/// A table in a database of its own that is dropped when the test ends.
struct Place {
    servers: Servers,
    wanted: WantedTable,
    client: clickhouse::Client,
}

impl Place {
    fn new(database: &str, table: &str) -> Self {
        let database = format!("{database}_{}", uuid::Uuid::new_v4().simple());
        let wanted = WantedTable { url: url(), database, table: table.to_owned(), cluster: None };
        Self { servers: Servers::new(), wanted, client: clickhouse::Client::default().with_url(url()) }
    }

    /// As `database`.`table`, quoted by the client library and not by us.
    fn name(&self) -> String {
        let quote = |name: &str| format!("`{}`", name.replace('\\', "\\\\").replace('`', "\\`"));
        format!("{}.{}", quote(&self.wanted.database), quote(&self.wanted.table))
    }

    async fn run(&self, statement: &str) {
        self.client.query_raw(statement).execute().await.unwrap();
    }

    async fn number(&self, query: &str) -> u64 {
        self.client.query_raw(query).fetch_one::<u64>().await.unwrap()
    }

    async fn plan(&self, management: Management) -> TablePlan {
        let observation =
            tables::observe(&self.servers, &self.wanted, &Access::default(), &BTreeMap::new()).await;
        if let Some(Answer::Unreachable { why }) = observation.get(&self.wanted.url) {
            panic!("{why}");
        }
        tables::plan(&self.wanted, &observation, management)
    }

    /// One pass of an operator.
    async fn pass(&self) -> TablePlan {
        let plan = self.plan(Management::Managed).await;
        for applied in tables::apply(&self.servers, &Access::default(), plan.changes.clone()).await {
            applied.result.unwrap();
        }
        plan
    }

    /// Drops the table and says whether there was one.
    async fn drop(&self) -> bool {
        tables::drop_table(&self.servers, &self.wanted, &Access::default()).await.unwrap()
    }

    async fn end(self) {
        let database = self.name();
        let database = database.split_once("`.`").unwrap().0;
        self.run(&format!("DROP DATABASE IF EXISTS {database}` SYNC")).await;
    }
}

#[tokio::test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn database_and_table_are_created_once_and_are_then_as_wanted() {
    let place = Place::new("created", "events");
    let first = place.pass().await;
    assert_eq!(actions(&first), [TableAction::CreateDatabase, TableAction::CreateTable]);
    assert_eq!(place.pass().await, TablePlan::default());
    assert_eq!(place.plan(Management::External).await, TablePlan::default());

    let columns = place
        .number(&format!(
            "SELECT count() FROM system.columns WHERE database = '{}' AND table = 'events'",
            place.wanted.database
        ))
        .await;
    assert_eq!(columns, COLUMNS.len() as u64);

    // Rows that name what the export fills are taken, and the rest is computed.
    let inserted: Vec<_> = COLUMNS
        .iter()
        .filter(|column| column.value == Value::Inserted)
        .map(|column| format!("`{}`", column.name))
        .collect();
    place
        .run(&format!(
            "INSERT INTO {} ({}) SELECT * FROM generateRandom('{}', 1, 8) LIMIT 10",
            place.name(),
            inserted.join(", "),
            COLUMNS
                .iter()
                .filter(|column| column.value == Value::Inserted)
                .map(|column| format!("`{}` {}", column.name, column.type_.replace('\'', "\\'")))
                .collect::<Vec<_>>()
                .join(", "),
        ))
        .await;
    assert_eq!(
        place.number(&format!("SELECT count() FROM {} WHERE inserted_at > now() - 60", place.name())).await,
        10
    );
    place.end().await;
}

#[tokio::test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn names_that_look_like_statements_are_names() {
    let place = Place::new("a`b'; DROP DATABASE default; -- \\", "ev\"en`ts) ENGINE = Memory; --\\");
    place.pass().await;
    assert_eq!(place.pass().await, TablePlan::default());
    let found = place
        .client
        .query(
            "SELECT count() FROM system.tables WHERE database = ? AND name = ? AND engine LIKE '%MergeTree'",
        )
        .bind(&place.wanted.database)
        .bind(&place.wanted.table)
        .fetch_one::<u64>()
        .await
        .unwrap();
    assert_eq!(found, 1);
    assert!(place.drop().await);
    assert!(!place.drop().await, "dropped twice");
    let observation =
        tables::observe(&place.servers, &place.wanted, &Access::default(), &BTreeMap::new()).await;
    let Some(Answer::Reachable(seen)) = observation.get(&place.wanted.url) else { panic!("{observation:?}") };
    assert_eq!(seen.tables[&place.wanted.table], Observed::NoTable, "the database stays");
    place.end().await;
}

#[tokio::test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn drift_comes_back_without_a_row_lost() {
    let place = Place::new("drift", "events");
    place.pass().await;
    place
        .run(&format!(
            "INSERT INTO {} (uuid, event, team_id) VALUES (generateUUIDv4(), 'order', 1)",
            place.name()
        ))
        .await;
    place.run(&format!("ALTER TABLE {} DROP COLUMN `$window_id`", place.name())).await;
    place.run(&format!("ALTER TABLE {} DROP COLUMN elements_chain", place.name())).await;
    place.run(&format!("ALTER TABLE {} ADD COLUMN mine String FIRST", place.name())).await;
    place
        .run(&format!("ALTER TABLE {} MODIFY SETTING non_replicated_deduplication_window = 7", place.name()))
        .await;

    let external = place.plan(Management::External).await;
    assert_eq!(actions(&external), []);
    assert_eq!(external.findings.len(), 2, "{:?}", external.findings);

    let plan = place.pass().await;
    let reasons: Vec<_> = plan.changes.iter().map(|change| change.action.reason()).collect();
    assert_eq!(reasons, ["ColumnAdded", "ColumnAdded", "DeduplicationWindowSet"]);
    assert_eq!(place.pass().await, TablePlan::default());
    assert_eq!(place.number(&format!("SELECT count() FROM {} WHERE event = 'order'", place.name())).await, 1);
    let window = place
        .number(&format!(
            "SELECT toUInt64(extract(engine_full, 'non_replicated_deduplication_window = (\\\\d+)')) \
             FROM system.tables WHERE database = '{}'",
            place.wanted.database
        ))
        .await;
    assert_eq!(window, u64::from(DEDUPLICATION_WINDOW));
    let order = place
        .number(&format!(
            "SELECT position FROM system.columns WHERE database = '{}' AND name = 'elements_chain'",
            place.wanted.database
        ))
        .await;
    assert_eq!(order, 9, "after distinct_id, which is the eighth with the user's own in front");

    place.run(&format!("DROP TABLE {} SYNC", place.name())).await;
    assert_eq!(actions(&place.pass().await), [TableAction::CreateTable]);
    place.end().await;
}

#[tokio::test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
async fn a_table_of_another_kind_is_refused_and_stays_as_it_is() {
    let place = Place::new("foreign", "events");
    place.run(&format!("CREATE DATABASE `{}`", place.wanted.database)).await;
    place
        .run(&format!(
            "CREATE TABLE {} (uuid String, event String, team_id Int64) ENGINE = MergeTree ORDER BY team_id \
             SETTINGS non_replicated_deduplication_window = 100000",
            place.name()
        ))
        .await;
    let plan = place.plan(Management::Managed).await;
    assert!(plan.changes.iter().all(|change| change.action.reason() == "ColumnAdded"), "{:?}", plan.changes);
    let differences: Vec<_> = plan.findings.iter().map(|finding| &finding.what).collect();
    assert!(
        differences.contains(&&Difference::ColumnType {
            column: "uuid".to_owned(),
            has: "String".to_owned(),
            wanted: "UUID".to_owned(),
        }),
        "{differences:?}"
    );
    assert!(
        differences.iter().any(|what| matches!(what, Difference::Structure { clause: "ENGINE", .. })),
        "{differences:?}"
    );
    // Columns are added, and the refusal stays.
    let before = plan.findings.clone();
    assert_eq!(place.pass().await.findings, before);
    let after = place.pass().await;
    assert_eq!(actions(&after), []);
    assert_eq!(after.findings, before);

    place.run(&format!("DROP TABLE {} SYNC", place.name())).await;
    place.run(&format!("CREATE VIEW {} AS SELECT 1 AS uuid", place.name())).await;
    let plan = place.pass().await;
    assert_eq!(actions(&plan), []);
    assert!(matches!(plan.findings[0].what, Difference::NotMergeTree { .. }));
    assert!(!place.drop().await, "a view was dropped");
    place.end().await;
}

#[tokio::test]
async fn a_server_that_is_away_is_a_value() {
    let wanted = WantedTable {
        url: "http://127.0.0.1:1".to_owned(),
        database: "d".to_owned(),
        table: "t".to_owned(),
        cluster: None,
    };
    let started = Instant::now();
    let observation = tables::observe(&Servers::new(), &wanted, &Access::default(), &BTreeMap::new()).await;
    match &observation[&wanted.url] {
        Answer::Unreachable { why } => {
            let why = why.to_string();
            assert!(why.contains("127.0.0.1:1") && why.to_lowercase().contains("refused"), "{why}");
        }
        Answer::Reachable(seen) => panic!("{seen:?}"),
    }
    assert!(started.elapsed() < Duration::from_secs(4));
}
