//! Tables of a cluster against two real ClickHouse servers, one of which is killed where that matters.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use penstock_crds::v1alpha1::Management;
use penstock_operator::tables::{
    self, Access, Answer, Cluster, Observation, Observed, Replication, Servers, Shard, TablePlan, WantedTable,
};
use penstock_pipeline::events::sharding::shard_of;
use penstock_platform::shards::Shards;

/// Two servers of a test's own, and a table over both.
struct Place {
    shards: Shards,
    servers: Servers,
    wanted: WantedTable,
}

impl Place {
    fn start(weights: [u32; 2]) -> Self {
        let shards = Shards::start(&weights).unwrap();
        let cluster = Cluster {
            name: Shards::CLUSTER.to_owned(),
            replication: Replication::None,
            shards: (0..)
                .zip(weights)
                .map(|(shard, weight)| Shard { weight, replicas: vec![shards.url(shard)] })
                .collect(),
        };
        let wanted = WantedTable {
            url: shards.url(0),
            database: "shop".to_owned(),
            table: "events".to_owned(),
            cluster: Some(cluster),
        };
        Self { shards, servers: Servers::new(), wanted }
    }

    fn client(&self, shard: usize) -> clickhouse::Client {
        clickhouse::Client::default().with_url(self.shards.url(shard))
    }

    async fn text(&self, shard: usize, sql: &str) -> String {
        let query = self.client(shard).query_raw(sql).fetch_one::<String>();
        query.await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn number(&self, shard: usize, sql: &str) -> u64 {
        let query = self.client(shard).query_raw(sql).fetch_one::<u64>();
        query.await.unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    async fn run(&self, shard: usize, sql: &str) {
        let statement = self.client(shard).query_raw(sql).execute();
        statement.await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// Events of so many persons, by the Distributed table of a shard, which divides them.
    async fn insert(&self, shard: usize, persons: u32) {
        self.run(
            shard,
            &format!(
                "INSERT INTO shop.events (uuid, event, team_id, distinct_id) SETTINGS distributed_foreground_insert = 1 \
                 SELECT generateUUIDv4(), 'order', 1, 'user-' || toString(number) FROM numbers({persons})"
            ),
        )
        .await;
    }

    async fn observe(&self) -> Observation {
        tables::observe(&self.servers, &self.wanted, &Access::default(), &BTreeMap::new()).await
    }

    async fn plan(&self, management: Management) -> TablePlan {
        tables::plan(&self.wanted, &self.observe().await, management)
    }

    /// One pass of an operator: what it did, and what it found.
    async fn pass(&self) -> (Vec<String>, Vec<String>) {
        let plan = self.plan(Management::Managed).await;
        let mut done = Vec::new();
        for applied in tables::apply(&self.servers, &Access::default(), plan.changes).await {
            applied.result.unwrap();
            done.push(applied.change.note());
        }
        (done, plan.findings.iter().map(ToString::to_string).collect())
    }

    /// As people are told of it: shards from 1.
    fn label(&self, shard: usize) -> String {
        format!("shard {} ({})", shard + 1, self.shards.address(shard))
    }
}

const NOTHING: (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());

#[tokio::test]
#[ignore = "needs the platform's ClickHouse; make test provides it"]
async fn every_shard_has_its_rows_and_sees_all_of_them() {
    let place = Place::start([1, 3]);
    let (first, second) = (place.label(0), place.label(1));
    let (done, found) = place.pass().await;
    assert_eq!(
        done,
        [
            format!("created database shop on {first}"),
            format!("created table shop.events_local on {first}"),
            format!("created database shop on {second}"),
            format!("created table shop.events_local on {second}"),
            format!("created table shop.events on {first}"),
            format!("created table shop.events on {second}"),
        ]
    );
    assert_eq!(found, Vec::<String>::new());
    assert_eq!(place.pass().await, NOTHING);
    assert_eq!(place.plan(Management::External).await, TablePlan::default());

    place.insert(0, 300).await;
    place.insert(1, 300).await;
    for shard in 0..2 {
        assert_eq!(place.number(shard, "SELECT count() FROM shop.events").await, 600);
        let ids = place
            .text(shard, "SELECT arrayStringConcat(groupUniqArray(distinct_id), ' ') FROM shop.events_local")
            .await;
        assert!(!ids.is_empty());
        for id in ids.split(' ') {
            assert_eq!(shard_of(id, place.shards.weights()), shard, "{id}: another shard than the export's");
        }
    }
}

#[tokio::test]
#[ignore = "needs the platform's ClickHouse; make test provides it"]
async fn a_column_that_is_missing_comes_back_on_every_shard_without_a_row_lost() {
    let place = Place::start([1, 1]);
    place.pass().await;
    place.insert(0, 100).await;
    for shard in 0..2 {
        place.run(shard, "ALTER TABLE shop.events DROP COLUMN elements_chain").await;
        place.run(shard, "ALTER TABLE shop.events_local DROP COLUMN elements_chain").await;
        place
            .run(
                shard,
                "ALTER TABLE shop.events_local MODIFY SETTING non_replicated_deduplication_window = 7",
            )
            .await;
    }
    let (done, found) = place.pass().await;
    let mut wanted = Vec::new();
    for shard in 0..2 {
        let label = place.label(shard);
        wanted.push(format!("added column elements_chain String to table shop.events_local on {label}"));
        wanted.push(format!(
            "set non_replicated_deduplication_window of table shop.events_local to 10000 (was 7) on {label}"
        ));
    }
    for shard in 0..2 {
        wanted.push(format!(
            "added column elements_chain String to table shop.events on {}",
            place.label(shard)
        ));
    }
    assert_eq!((done, found), (wanted, Vec::new()));
    assert_eq!(place.pass().await, NOTHING);
    for shard in 0..2 {
        assert_eq!(place.number(shard, "SELECT countIf(elements_chain = '') FROM shop.events").await, 100);
    }
}

#[tokio::test]
#[ignore = "needs the platform's ClickHouse; make test provides it"]
async fn a_shard_that_is_down_is_named_and_completed_when_it_is_back() {
    let mut place = Place::start([1, 1]);
    place.shards.kill(1).unwrap();
    let observation = place.observe().await;
    let Some(Answer::Unreachable { why }) = observation.get(&place.shards.url(1)) else {
        panic!("{observation:?}")
    };
    let why = why.to_string();
    assert!(why.contains(&place.shards.address(1)) && why.to_lowercase().contains("refused"), "{why}");
    let first = place.label(0);
    assert_eq!(
        place.pass().await,
        (
            vec![
                format!("created database shop on {first}"),
                format!("created table shop.events_local on {first}"),
                format!("created table shop.events on {first}"),
            ],
            Vec::new()
        ),
        "nobody waits for a shard that is down"
    );
    place.shards.restart(1).unwrap();
    let second = place.label(1);
    assert_eq!(
        place.pass().await.0,
        [
            format!("created database shop on {second}"),
            format!("created table shop.events_local on {second}"),
            format!("created table shop.events on {second}"),
        ]
    );
    assert_eq!(place.pass().await, NOTHING);

    // A column is not shown to readers before every shard has it: a query over all of them would fail.
    place.insert(0, 100).await;
    for table in ["shop.events", "shop.events_local"] {
        place.run(0, &format!("ALTER TABLE {table} DROP COLUMN elements_chain")).await;
    }
    place.shards.kill(1).unwrap();
    assert_eq!(
        place.pass().await.0,
        [format!("added column elements_chain String to table shop.events_local on {first}")]
    );
    place.shards.restart(1).unwrap();
    assert_eq!(
        place.pass().await.0,
        [format!("added column elements_chain String to table shop.events on {first}")]
    );
    assert_eq!(place.pass().await, NOTHING);
    assert_eq!(place.number(0, "SELECT countIf(elements_chain = '') FROM shop.events").await, 100);
}

#[tokio::test]
#[ignore = "needs the platform's ClickHouse; make test provides it"]
async fn what_would_destroy_or_hide_rows_is_refused_by_the_name_of_its_shard() {
    let place = Place::start([1, 1]);
    place.pass().await;
    place.insert(0, 100).await;
    let label = place.label(1);
    let rows = place.number(1, "SELECT count() FROM shop.events_local").await;

    place.run(1, "RENAME TABLE shop.events_local TO shop.kept, shop.events TO shop.view").await;
    place
        .run(1, "CREATE TABLE shop.events_local AS shop.kept ENGINE = ReplacingMergeTree ORDER BY (team_id, cityHash64(distinct_id))")
        .await;
    place
        .run(1, "INSERT INTO shop.events_local (uuid, team_id, distinct_id) SELECT generateUUIDv4(), 1, toString(number) FROM numbers(7)")
        .await;
    for (statement, says) in [
        (
            "CREATE TABLE shop.events (uuid UUID) ENGINE = MergeTree ORDER BY uuid",
            "has engine MergeTree where a Distributed table is needed",
        ),
        (
            "CREATE TABLE shop.events AS shop.events_local ENGINE = Distributed(penstock, shop, events_local, rand())",
            "has engine Distributed('penstock', 'shop', 'events_local', rand()) where",
        ),
    ] {
        place.run(1, statement).await;
        let (_, found) = place.pass().await;
        let (done, again) = place.pass().await;
        assert_eq!(
            (done, &found),
            (Vec::new(), &again),
            "what can be done is done once, and the refusal stays"
        );
        for (table, says) in [
            ("shop.events_local", "has ORDER BY team_id, cityHash64(distinct_id) where"),
            ("shop.events", says),
        ] {
            let about = format!("table {table} on {label} {says}");
            assert!(found.iter().any(|text| text.contains(&about)), "{found:?} lacks {about}");
        }
        place.run(1, "DROP TABLE shop.events SYNC").await;
    }
    assert_eq!(place.number(1, "SELECT count() FROM shop.events_local").await, 7);
    assert_eq!(place.number(1, "SELECT count() FROM shop.kept").await, rows);
}

#[tokio::test]
#[ignore = "needs the platform's ClickHouse; make test provides it"]
async fn servers_that_see_other_shards_than_the_spec_are_told_of() {
    let mut place = Place::start([1, 1]);
    let right = place.wanted.clone();
    let change = |place: &mut Place, change: &dyn Fn(&mut Cluster)| {
        place.wanted = right.clone();
        change(place.wanted.cluster.as_mut().unwrap());
    };
    change(&mut place, &|cluster| cluster.shards.swap(0, 1));
    let plan = place.plan(Management::Managed).await;
    let texts: Vec<String> = plan.findings.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(
        texts[0].contains("is shard 2 of cluster penstock") && texts[1].contains("is shard 1 of"),
        "{texts:?}"
    );
    assert!(plan.findings.iter().all(|finding| finding.what.disputes_topology()));

    change(&mut place, &|cluster| cluster.shards[1].weight = 3);
    let (_, texts) = place.pass().await;
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(
        texts[0].contains("2 shards: weight 1 with 1 replica, weight 1 with 1 replica")
            && texts[0].contains("weight 3 with 1 replica"),
        "{texts:?}"
    );

    change(&mut place, &|cluster| cluster.name = "other".to_owned());
    place.wanted.database = "other".to_owned();
    let (done, texts) = place.pass().await;
    assert!(texts.iter().all(|text| text.contains("knows no cluster other")), "{texts:?}");
    assert!(!done.iter().any(|done| done.contains("table other.events ")), "no table over nothing: {done:?}");
}

#[tokio::test]
#[ignore = "needs the platform's ClickHouse; make test provides it"]
async fn all_of_it_is_dropped_and_what_a_dead_shard_keeps_is_told() {
    let mut place = Place::start([1, 1]);
    place.pass().await;
    place.insert(0, 100).await;
    let drop = async |place: &Place| {
        tables::drop_table(&place.servers, &place.wanted, &Access::default())
            .await
            .map_err(|error| error.to_string())
    };
    place.shards.kill(1).unwrap();
    let error = drop(&place).await.unwrap_err();
    assert!(error.contains(&place.shards.address(1)) && !error.contains(&place.shards.address(0)), "{error}");
    place.shards.restart(1).unwrap();
    assert!(drop(&place).await.unwrap(), "what the dead shard kept is dropped now");
    assert!(!drop(&place).await.unwrap(), "dropped twice");
    for (url, answer) in place.observe().await {
        let Answer::Reachable(seen) = answer else { panic!("{url}: {answer:?}") };
        assert!(seen.tables.values().all(|table| *table == Observed::NoTable), "{url}: {seen:?}");
    }
}
