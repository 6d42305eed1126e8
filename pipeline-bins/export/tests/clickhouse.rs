//! The export into ClickHouse against real Kafka and ClickHouse: whatever happens, each message is one row.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod support;

use std::{
    thread,
    time::{Duration, Instant},
};

use penstock_pipeline::config::BlockLimits;
use support::{
    proxy::{Mode, Proxy},
    warehouse::{authority, clickhouse},
    world::World,
};

const SMALL_BLOCKS: BlockLimits = BlockLimits { max_rows: 700, max_bytes: 1 << 20, max_age_ms: 150 };

fn none_is_bad(_: u64) -> bool {
    false
}

fn some_are_bad(number: u64) -> bool {
    number % 41 == 7
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn every_message_is_one_row_and_bad_ones_are_dead_letters() {
    let world = World::new("plain", 5);
    let mut exporter = world.start("one", &world.config(&clickhouse(), SMALL_BLOCKS));
    world.produce(0, 20_000, some_are_bad);
    world.wait_until_exported(Duration::from_secs(60));
    world.assert_exactly_once(20_000, some_are_bad);

    let bad = (0..20_000).filter(|&number| some_are_bad(number)).count();
    let letters = world.dead_letters();
    assert_eq!(letters.len(), bad);
    for (key, reason) in &letters {
        assert!(key.starts_with(&format!("{}/", world.topic)), "{key}");
        assert!(reason == "malformed" || reason == "invalid_row", "{reason}");
    }

    let row = world.sql(&format!(
        "SELECT uuid, event, JSONExtractUInt(properties, 'number'), `$session_id`, timestamp, team_id, project_id, \
         distinct_id, elements_chain, created_at, person_id, person_created_at, person_properties, person_mode, \
         historical_migration FROM {}.events WHERE JSONExtractUInt(properties, 'number') = 4242 FORMAT TSV",
        world.database
    ));
    assert_eq!(
        row.trim_end(),
        "0190f3d2-7c1a-7e2b-8000-000000001092\tevent 2\t4242\ts\"4242\t2026-10-10 12:42:00.004242\t1\t1\tuser-254\t\t\
         2026-11-25 00:00:00.000000\t00006c09-0000-4000-a000-00000d0dea67\t1970-01-01 00:00:05.000\t{}\tpropertyless\t\
         false"
    );

    let begun = Instant::now();
    assert!(exporter.stop().success());
    assert!(begun.elapsed() < Duration::from_secs(10), "stopping took {:?}", begun.elapsed());
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_process_killed_again_and_again_loses_and_doubles_nothing() {
    let world = World::new("kill", 4);
    let config = world.config(&clickhouse(), SMALL_BLOCKS);
    let total = 60_000;
    world.produce(0, total, some_are_bad);
    let mut pause = 700;
    for round in 0..8 {
        let mut exporter = world.start(&format!("round-{round}"), &config);
        thread::sleep(Duration::from_millis(pause));
        exporter.kill();
        // Not in step with anything.
        pause = 700 + (pause * 7919 + 13) % 1900;
    }
    let mut exporter = world.start("last", &config);
    world.wait_until_exported(Duration::from_secs(90));
    world.assert_exactly_once(total, some_are_bad);
    assert!(exporter.stop().success());
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn members_that_come_and_go_lose_and_double_nothing() {
    let world = World::new("members", 6);
    let config = world.config(&clickhouse(), SMALL_BLOCKS);
    let mut first = world.start("first", &config);
    let mut sent = 0;
    let mut send = |count| {
        world.produce(sent, count, some_are_bad);
        sent += count;
    };
    send(15_000);
    thread::sleep(Duration::from_secs(2));
    let mut second = world.start("second", &config);
    for _ in 0..5 {
        send(3_000);
        thread::sleep(Duration::from_millis(800));
    }
    assert!(first.stop().success());
    send(10_000);
    let mut third = world.start("third", &config);
    thread::sleep(Duration::from_secs(2));
    second.kill();
    send(10_000);
    world.wait_until_exported(Duration::from_secs(90));
    world.assert_exactly_once(sent, some_are_bad);
    assert!(third.stop().success());
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_member_that_stood_still_writes_nothing_for_partitions_that_others_have_taken() {
    let world = World::new("zombie", 4);
    let config = world.config(&clickhouse(), SMALL_BLOCKS);
    let mut sleeper = world.start("sleeper", &config);
    world.produce(0, 30_000, none_is_bad);
    let mut other = world.start("other", &config);
    for round in 0..2 {
        thread::sleep(Duration::from_millis(900));
        sleeper.signal("STOP");
        world.produce(30_000 + round * 5_000, 5_000, none_is_bad);
        // Longer than the session: the others take over.
        thread::sleep(Duration::from_secs(9));
        sleeper.signal("CONT");
    }
    world.wait_until_exported(Duration::from_secs(90));
    world.assert_exactly_once(40_000, none_is_bad);
    assert!(sleeper.is_running());
    assert!(sleeper.stop().success());
    assert!(other.stop().success());
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_cut_line_and_lost_answers_lose_and_double_nothing() {
    let world = World::new("line", 4);
    let proxy = Proxy::to(authority(&clickhouse()));
    let config = world.config(&format!("http://{}", proxy.address), SMALL_BLOCKS);
    let mut exporter = world.start("one", &config);
    let mut sent = 0;
    for round in 0..6 {
        world.produce(sent, 5_000, some_are_bad);
        sent += 5_000;
        thread::sleep(Duration::from_millis(400));
        proxy.set(if round % 2 == 0 { Mode::LoseAnswers } else { Mode::Cut });
        world.produce(sent, 2_000, some_are_bad);
        sent += 2_000;
        thread::sleep(Duration::from_millis(1200));
        proxy.set(Mode::Pass);
    }
    assert!(proxy.lost() > 0, "no answer was lost: the test did not test");
    world.wait_until_exported(Duration::from_secs(90));
    world.assert_exactly_once(sent, some_are_bad);
    assert!(exporter.is_running());
    assert!(exporter.stop().success());
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_table_that_is_missing_for_a_while_holds_everything_and_loses_nothing() {
    let world = World::new("table", 2);
    let config = world.config(&clickhouse(), SMALL_BLOCKS);
    world.sql(&format!("RENAME TABLE {0}.events TO {0}.away", world.database));
    let mut exporter = world.start("one", &config);
    world.produce(0, 3_000, none_is_bad);
    thread::sleep(Duration::from_secs(3));
    assert!(world.committed().values().all(|(offset, _)| *offset == 0));
    world.sql(&format!("RENAME TABLE {0}.away TO {0}.events", world.database));
    world.wait_until_exported(Duration::from_secs(60));

    world.sql(&format!("RENAME TABLE {0}.events TO {0}.away", world.database));
    world.produce(3_000, 3_000, none_is_bad);
    thread::sleep(Duration::from_secs(3));
    assert!(exporter.logged("ClickHouse refuses") > 0);
    world.sql(&format!("RENAME TABLE {0}.away TO {0}.events", world.database));
    world.wait_until_exported(Duration::from_secs(60));
    world.assert_exactly_once(6_000, none_is_bad);
    assert!(world.dead_letters().is_empty());
    assert!(exporter.stop().success());
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_topic_that_is_recreated_under_a_running_export_is_held() {
    let world = World::new("recreated", 1);
    let config = world.config(&clickhouse(), SMALL_BLOCKS);
    let exporter = world.start("one", &config);
    world.produce(0, 1_000, none_is_bad);
    world.wait_until_exported(Duration::from_secs(60));
    assert!(exporter.readiness().contains("200 OK"));

    world.recreate_topic();
    world.produce(0, 2_000, none_is_bad);
    let begun = Instant::now();
    while exporter.logged("partition held") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it was not held");
        thread::sleep(Duration::from_millis(200));
    }
    thread::sleep(Duration::from_secs(2));
    assert_eq!(world.sql(&format!("SELECT count() FROM {}.events", world.database)).trim(), "1000");
    let readiness = exporter.readiness();
    assert!(readiness.contains("503") && readiness.contains("is held"), "{readiness}");
}

#[test]
#[ignore = "needs Kafka and ClickHouse; make test provides them"]
fn a_backlog_waits_in_kafka_and_not_in_memory() {
    let world = World::new("backlog", 4);
    let proxy = Proxy::to(authority(&clickhouse()));
    let config = world.config(&format!("http://{}", proxy.address), SMALL_BLOCKS);
    let total = 150_000;
    let mut exporter = world.start("one", &config);
    let begun = Instant::now();
    while exporter.logged("partitions assigned") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(30), "nothing was assigned");
        thread::sleep(Duration::from_millis(100));
    }
    proxy.set(Mode::Cut);
    world.produce(0, total, none_is_bad);
    // The topic is looked at every ten seconds, also while its partitions are paused.
    thread::sleep(Duration::from_secs(12));
    // The budget for blocks of this size is 32 MiB; the backlog has about 80.
    let buffered = exporter.metric("penstock_export_buffered_bytes");
    assert!((16e6..40e6).contains(&buffered), "{buffered} bytes are held");
    let resident = exporter.metric("process_resident_memory_bytes");
    assert!(resident < 200e6, "{resident} bytes of memory");
    assert!(exporter.metric("penstock_source_lag_messages") > 100_000.0);
    proxy.set(Mode::Pass);
    world.wait_until_exported(Duration::from_secs(90));
    world.assert_exactly_once(total, none_is_bad);
    assert!(exporter.stop().success());
}
