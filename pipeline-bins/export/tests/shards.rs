//! The export into a cluster of real ClickHouse servers: every row is on its shard, once, whatever happens to a server.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use penstock_pipeline::{
    config::{BlockLimits, Destination, ExportConfig},
    events::sharding::shard_of,
};
use penstock_platform::shards::Shards;
use support::{
    proxy::{At, Mode, Proxy},
    warehouse::{LOCAL, try_sql},
    world::World,
};

/// Of some thousand rows each, so that a part of one goes to every shard and takes more than one packet.
const BLOCKS: BlockLimits = BlockLimits { max_rows: 2_000, max_bytes: 4 << 20, max_age_ms: 400 };

/// Less than an insert of a shard's part of a block has, and more than a question has.
const INTO_AN_INSERT: u64 = 8_000;

const PATIENCE: Duration = Duration::from_secs(90);

fn some_are_bad(number: u64) -> bool {
    number % 41 == 7
}

fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The configuration, with another URL for one of the shards.
fn through(config: &ExportConfig, shard: usize, url: String) -> ExportConfig {
    let mut config = config.clone();
    let Destination::ClickHouse(clickhouse) = &mut config.destination else { panic!("no table") };
    clickhouse.shards[shard].replicas = vec![url];
    config
}

/// Distinct ids of the rows on a shard.
fn ids_on(world: &World, url: &str) -> BTreeSet<String> {
    let ids =
        try_sql(url, &format!("SELECT DISTINCT distinct_id FROM {}.{LOCAL} FORMAT TSV", world.database));
    ids.unwrap().lines().map(ToOwned::to_owned).collect()
}

/// Each distinct id has rows on its own shard and nowhere else, by our rule and by the servers'.
fn assert_in_place(world: &World, shards: &Shards) {
    let mut all = BTreeSet::new();
    for shard in 0..shards.weights().count() {
        let ids = ids_on(world, &shards.url(shard));
        assert!(!ids.is_empty(), "nothing is on shard {shard}");
        for id in &ids {
            assert_eq!(shard_of(id, shards.weights()), shard, "{id}");
        }
        all.extend(ids);
    }
    // The servers look for a person on one shard only, and find all rows.
    for id in all.iter().take(20) {
        let count = |settings: &str| {
            world.sql(&format!(
                "SELECT count() FROM {}.events WHERE distinct_id = '{id}' SETTINGS {settings}",
                world.database
            ))
        };
        assert_eq!(
            count("optimize_skip_unused_shards = 1, force_optimize_skip_unused_shards = 2"),
            count("optimize_skip_unused_shards = 0"),
            "{id}"
        );
    }
}

/// Looks again and again whether a server shows a row twice, as long as it answers.
struct Watcher {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u32>,
}

impl Watcher {
    fn on(world: &World, shards: &Shards) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sql = format!(
            "SELECT count() - uniqExact(_partition, _offset) FROM {}.{LOCAL} FORMAT TSV",
            world.database
        );
        let urls: Vec<String> = (0..shards.weights().count()).map(|shard| shards.url(shard)).collect();
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let mut looks = 0;
            while !stopped.load(Ordering::SeqCst) {
                for url in &urls {
                    if let Some(doubled) = try_sql(url, &sql) {
                        assert_eq!(doubled.trim(), "0", "rows are there twice on {url}");
                        looks += 1;
                    }
                }
                thread::sleep(Duration::from_millis(100));
            }
            looks
        });
        Self { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        let looks = self.thread.join().expect("no row is seen twice");
        assert!(looks > 10, "only {looks} looks were taken");
    }
}

/// Rows on a server of blocks that are planned and not settled, by partition.
fn rows_of_open_blocks(world: &World, url: &str) -> BTreeMap<i32, u64> {
    let mut found = BTreeMap::new();
    for (partition, (_, metadata)) in world.committed() {
        let Some((start, end)) = metadata.split(' ').find_map(|word| word.split_once("..")) else { continue };
        let count = try_sql(
            url,
            &format!(
                "SELECT count() FROM {}.{LOCAL} WHERE _partition = {partition} AND _offset >= {start} AND _offset < {end}",
                world.database
            ),
        );
        found.insert(partition, count.unwrap().trim().parse().unwrap());
    }
    found
}

#[test]
#[ignore = "needs Kafka and the platform's ClickHouse; make test provides them"]
fn every_row_is_on_the_shard_of_its_person_once() {
    let shards = Shards::start(&[1, 2]).unwrap();
    let world = World::sharded("sharded", 4, &shards);
    let mut exporter = world.start("one", &world.config(&shards.url(0), BLOCKS));
    world.produce(0, 20_000, some_are_bad);
    world.wait_until_exported(PATIENCE);
    world.assert_exactly_once(20_000, some_are_bad);
    assert_in_place(&world, &shards);
    assert_eq!(world.dead_letters().len(), (0..20_000).filter(|&number| some_are_bad(number)).count());
    assert!(exporter.stop().success());
}

#[test]
#[ignore = "needs Kafka and the platform's ClickHouse; make test provides them"]
fn a_shard_killed_in_the_middle_of_a_block_loses_and_doubles_nothing() {
    let shards = Arc::new(Mutex::new(Shards::start(&[1, 1]).unwrap()));
    let (world, proxy, urls) = {
        let shards = shards.lock().unwrap();
        let world = World::sharded("shardkill", 3, &shards);
        (world, Proxy::to(shards.address(1)), [shards.url(0), shards.url(1)])
    };
    let watcher = Watcher::on(&world, &shards.lock().unwrap());
    let mut config = through(&world.config(&urls[0], BLOCKS), 1, proxy.url());
    config.admin.stall_after_ms = 1_500;
    let mut exporter = world.start("one", &config);
    let mut sent = 0;
    let mut halves = 0;
    // What the shard has of the insert when it dies: a part of the request, or all of its rows.
    for at in [At::Middle(INTO_AN_INSERT), At::Answer(INTO_AN_INSERT)].repeat(2) {
        let victim = shards.clone();
        proxy.trap(at, move || victim.lock().unwrap().kill(1).unwrap());
        let failures = exporter.logged("did not answer as wished");
        world.produce(sent, 9_000, some_are_bad);
        sent += 9_000;
        wait_until("the shard is killed", || proxy.has_sprung());
        wait_until("the export has tried again in vain", || {
            exporter.logged("did not answer as wished") > failures + 3
        });
        halves += rows_of_open_blocks(&world, &urls[0]).values().filter(|&&rows| rows > 0).count();
        wait_until("it is said which shard is away", || exporter.readiness().contains(&proxy.url()));
        shards.lock().unwrap().restart(1).unwrap();
        world.wait_until_exported(PATIENCE);
    }
    assert!(halves > 0, "no block was there in part: the test did not test");
    world.assert_exactly_once(sent, some_are_bad);
    watcher.end();
    assert_in_place(&world, &shards.lock().unwrap());
    assert!(exporter.is_running());
    assert!(exporter.stop().success());
}

#[test]
#[ignore = "needs Kafka and the platform's ClickHouse; make test provides them"]
fn blocks_whose_owner_is_killed_while_a_shard_is_down_are_settled_by_the_next_one() {
    let mut shards = Shards::start(&[1, 1]).unwrap();
    let world = World::sharded("shardowner", 4, &shards);
    let watcher = Watcher::on(&world, &shards);
    let config = world.config(&shards.url(0), BLOCKS);
    let mut first = world.start("first", &config);
    let mut second = world.start("second", &config);
    wait_until("both own partitions", || [&first, &second].iter().all(|one| one.partitions() == 2));
    world.produce(0, 8_000, some_are_bad);
    world.wait_until_exported(PATIENCE);

    shards.kill(1).unwrap();
    world.produce(8_000, 12_000, some_are_bad);
    wait_until("every partition has a block that is there in part", || {
        let open = rows_of_open_blocks(&world, &shards.url(0));
        open.len() == 4 && open.values().all(|&rows| rows > 0)
    });
    let before = world.committed();
    first.kill();
    wait_until("the second has taken over, and asks in vain", || {
        second.partitions() == 4 && second.logged("taking over a block that may be in the table") == 2
    });
    // One that begins now cannot look at all its tables, says which server is in the way, and takes nothing over.
    let mut third = world.start("third", &config);
    wait_until("the third says which shard is away", || third.readiness().contains(&shards.address(1)));
    assert_eq!(world.committed(), before, "a plan is kept as it is until it is settled");

    shards.restart(1).unwrap();
    world.produce(20_000, 2_000, some_are_bad);
    world.wait_until_exported(PATIENCE);
    world.assert_exactly_once(22_000, some_are_bad);
    assert_in_place(&world, &shards);
    watcher.end();
    assert!(second.stop().success());
    assert!(third.stop().success());
}

#[test]
#[ignore = "needs Kafka and the platform's ClickHouse; make test provides them"]
fn a_shard_that_stood_still_and_does_late_what_it_was_asked_doubles_nothing() {
    let shards = Shards::start(&[1, 1]).unwrap();
    let world = World::sharded("shardfrozen", 3, &shards);
    let mut config = world.config(&shards.url(0), BLOCKS);
    let Destination::ClickHouse(clickhouse) = &mut config.destination else { panic!("no table") };
    clickhouse.insert_timeout_ms = 1_500;
    let mut exporter = world.start("one", &config);
    world.produce(0, 3_000, some_are_bad);
    world.wait_until_exported(PATIENCE);
    let mut sent = 3_000;
    for _ in 0..3 {
        let failures = exporter.logged("did not answer as wished");
        shards.freeze(1).unwrap();
        world.produce(sent, 6_000, some_are_bad);
        sent += 6_000;
        // Each attempt waits in front of the server with its rows, and is not taken back by the time-out.
        wait_until("several attempts were made", || {
            exporter.logged("did not answer as wished") > failures + 6
        });
        shards.thaw(1).unwrap();
        world.wait_until_exported(PATIENCE);
    }
    world.assert_exactly_once(sent, some_are_bad);
    assert_in_place(&world, &shards);
    // What had not yet been read of the late attempts has been by now.
    thread::sleep(Duration::from_secs(2));
    world.assert_exactly_once(sent, some_are_bad);
    assert!(exporter.stop().success());
}

#[test]
#[ignore = "needs Kafka and the platform's ClickHouse; make test provides them"]
fn a_block_that_was_begun_before_a_shard_was_added_is_settled_where_it_lies() {
    let shards = Shards::start(&[1, 1]).unwrap();
    let world = World::sharded("shardadded", 3, &shards);
    let proxy = Proxy::to(shards.address(0));
    let mut alone = through(&world.config(&shards.url(0), BLOCKS), 0, proxy.url());
    let Destination::ClickHouse(clickhouse) = &mut alone.destination else { panic!("no table") };
    clickhouse.shards.truncate(1);
    let mut before = world.start("before", &alone);
    world.produce(0, 3_000, some_are_bad);
    world.wait_until_exported(PATIENCE);
    proxy.set(Mode::LoseAnswers);
    world.produce(3_000, 6_000, some_are_bad);
    wait_until("every partition has a block that is there and not settled", || {
        let open = rows_of_open_blocks(&world, &shards.url(0));
        open.len() == 3 && open.values().all(|&rows| rows > 0)
    });
    before.kill();
    assert!(
        ids_on(&world, &shards.url(0)).iter().any(|id| shard_of(id, shards.weights()) == 1),
        "nothing lies where it would not be put today: the test did not test"
    );

    let mut after = world.start("after", &world.config(&shards.url(0), BLOCKS));
    world.produce(9_000, 6_000, some_are_bad);
    world.wait_until_exported(PATIENCE);
    world.assert_exactly_once(15_000, some_are_bad);
    // What was inserted before the shard was there lies on the first, and the rest where it belongs.
    let elsewhere = ids_on(&world, &shards.url(1));
    assert!(!elsewhere.is_empty());
    assert!(elsewhere.iter().all(|id| shard_of(id, shards.weights()) == 1));
    assert!(after.stop().success());
}
