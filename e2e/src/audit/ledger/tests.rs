use super::*;
use crate::audit::account::Account;
use crate::audit::journal::Sent;

/// A pipeline with a transformation in which three events of one person have arrived.
struct World {
    ledger: Ledger,
    events: Vec<Reading>,
}

fn place(offset: i64) -> Place {
    Place { partition: 0, offset }
}

fn event(number: u64) -> Reading {
    let content = Content { event: number, distinct_id: 7, properties: number, timestamp: 1 };
    Reading { uuid: Uuid::from_u128(number.into()), content, raw: Some(number), rest: number }
}

impl World {
    fn sent(answer: Option<Answer>) -> Self {
        let rules = Rules { transformed: true, journal: true, others_send: false, partitions_grown: false };
        let mut world = Self { ledger: Ledger::new(rules), events: (1..=3).map(event).collect() };
        for (number, one) in world.events.iter().enumerate() {
            let sent =
                Sent { uuid: one.uuid, number: number as u32 + 1, raw: one.rest, content: one.content };
            world.ledger.journal(Line::Sent(sent));
            if let Some(answer) = answer {
                world.ledger.journal(Line::Answered(one.uuid, answer));
            }
        }
        world
    }

    fn at(&mut self, stage: Stage, events: &[usize]) {
        for (offset, number) in events.iter().enumerate() {
            let mut reading = self.events[*number];
            if stage != Stage::Captured {
                reading.raw = None;
            }
            self.ledger.message(stage, place(offset as i64), b"token:7", &reading);
        }
    }

    /// Rows have no bodies here; what a row says is tested on a real table.
    fn rows(&mut self, events: &[usize]) {
        for (offset, number) in events.iter().enumerate() {
            self.ledger.messages[Stage::Rows as usize] += 1;
            self.ledger.origins.insert(1, place(offset as i64));
            let uuid = self.events[*number].uuid;
            let index = self.ledger.known(Stage::Rows, place(offset as i64), uuid).unwrap();
            self.ledger.see(index, Stage::Rows, place(offset as i64));
        }
    }

    fn letter(&mut self, step: &str, number: usize) {
        let one = self.events[number];
        self.ledger.dead_letter(place(0), (step, "r"), b"k", (Some(one.uuid), one.rest, Some(one.content)));
    }

    fn account(self) -> Account {
        self.ledger.close(0)
    }
}

#[track_caller]
fn only(account: &Account, kind: Kind, count: u64) {
    for other in Kind::ALL {
        let wanted = if other == kind { count } else { 0 };
        assert_eq!(account.findings.count(other), wanted, "{other:?} in\n{account}");
    }
}

#[track_caller]
fn clean(account: &Account) {
    assert!(account.is_clean(), "{account}");
}

const ALL: &[usize] = &[0, 1, 2];

#[test]
fn what_arrived_once_everywhere_is_clean() {
    let mut world = World::sent(Some(Answer::Acknowledged));
    world.at(Stage::Captured, ALL);
    world.at(Stage::Ingested, ALL);
    world.at(Stage::Transformed, ALL);
    world.rows(ALL);
    let account = world.account();
    clean(&account);
    assert_eq!(account.table.origins, 3);
}

#[test]
fn an_acknowledged_event_that_is_in_no_topic_is_lost_and_one_without_an_answer_is_not() {
    for (answer, lost) in [
        (Some(Answer::Acknowledged), 3),
        (Some(Answer::TurnedAway), 0),
        (Some(Answer::Refused), 0),
        (None, 0),
    ] {
        let account = World::sent(answer).account();
        only(&account, Kind::Lost, lost);
        let sent = account.sent.unwrap();
        assert_eq!(sent.acknowledged + sent.turned_away + sent.refused + sent.unanswered, 3);
    }
}

#[test]
fn what_a_component_took_and_did_not_pass_on_is_lost() {
    for stage in [Stage::Ingested, Stage::Transformed, Stage::Rows] {
        let mut world = World::sent(Some(Answer::Acknowledged));
        let short: &[usize] = &[0, 2];
        let of = |at: Stage| if at >= stage { short } else { ALL };
        world.at(Stage::Captured, ALL);
        world.at(Stage::Ingested, of(Stage::Ingested));
        world.at(Stage::Transformed, of(Stage::Transformed));
        world.rows(of(Stage::Rows));
        let account = world.account();
        only(&account, Kind::Lost, 1);
        assert!(account.findings.named(Kind::Lost)[0].starts_with(&event(2).uuid.to_string()), "{account}");
    }
}

#[test]
fn a_dead_letter_stands_for_what_did_not_come_out() {
    for (step, stage) in [
        ("capture", Stage::Captured),
        ("consumer-main", Stage::Ingested),
        ("transformation", Stage::Transformed),
        ("export-warehouse", Stage::Rows),
    ] {
        for dead in [false, true] {
            let mut world = World::sent(Some(Answer::Acknowledged));
            let of = |at: Stage| if at >= stage { &[0, 1][..] } else { ALL };
            world.at(Stage::Captured, of(Stage::Captured));
            if dead {
                world.letter(step, 2);
            }
            world.at(Stage::Ingested, of(Stage::Ingested));
            world.at(Stage::Transformed, of(Stage::Transformed));
            world.rows(of(Stage::Rows));
            only(&world.account(), Kind::Lost, u64::from(!dead));
        }
    }
}

#[test]
fn a_row_and_a_dead_letter_of_one_event_are_one_too_many() {
    for step in ["capture", "consumer-main", "transformation", "export-warehouse"] {
        let mut world = World::sent(Some(Answer::Acknowledged));
        world.at(Stage::Captured, ALL);
        world.letter(step, 1);
        world.at(Stage::Ingested, ALL);
        world.at(Stage::Transformed, ALL);
        world.rows(ALL);
        only(&world.account(), Kind::Doubled, 1);
    }
}

#[test]
fn dead_letters_of_exports_count_once_for_each_key() {
    let mut world = World::sent(Some(Answer::Acknowledged));
    world.at(Stage::Captured, ALL);
    world.letter("export-warehouse", 2);
    world.letter("export-warehouse", 2);
    world.at(Stage::Ingested, ALL);
    world.at(Stage::Transformed, ALL);
    world.rows(&[0, 1]);
    let account = world.account();
    clean(&account);
    assert_eq!((account.dead(), account.repeated_letters), (1, 1));
}

#[test]
fn what_is_more_often_in_one_place_than_before_is_doubled() {
    for stage in [Stage::Captured, Stage::Ingested, Stage::Transformed, Stage::Rows] {
        let mut world = World::sent(Some(Answer::Acknowledged));
        let long: &[usize] = &[0, 1, 2, 1];
        let of = |at: Stage| if at >= stage { long } else { ALL };
        world.at(Stage::Captured, of(Stage::Captured));
        world.at(Stage::Ingested, of(Stage::Ingested));
        world.at(Stage::Transformed, of(Stage::Transformed));
        world.rows(of(Stage::Rows));
        let account = world.account();
        only(&account, Kind::Doubled, 1);
        let named = &account.findings.named(Kind::Doubled)[0];
        assert!(named.contains("0/1") && named.contains("0/3"), "both places: {named}");
    }
}

#[test]
fn what_a_client_sent_twice_may_be_there_twice() {
    let mut world = World::sent(None);
    let again = world.events[1];
    let sent = Sent { uuid: again.uuid, number: 0, raw: again.rest, content: again.content };
    world.ledger.journal(Line::Sent(sent));
    world.ledger.journal(Line::Answered(again.uuid, Answer::Acknowledged));
    let twice: &[usize] = &[0, 1, 2, 1];
    world.at(Stage::Captured, twice);
    world.at(Stage::Ingested, twice);
    world.at(Stage::Transformed, twice);
    world.rows(twice);
    let account = world.account();
    clean(&account);
    assert_eq!(account.repeated_by_clients, 1);
}

#[test]
fn a_changed_digest_says_which_part_is_altered_and_where() {
    type Change = fn(&mut Reading);
    let changes: [(Change, &str); 5] = [
        (|one| one.content.event = 99, "event"),
        (|one| one.content.distinct_id = 99, "distinct_id"),
        (|one| one.content.properties = 99, "properties"),
        (|one| one.content.timestamp = 99, "timestamp"),
        (|one| one.raw = Some(99), "not as it was sent"),
    ];
    for (change, named) in changes {
        let mut world = World::sent(Some(Answer::Acknowledged));
        let original = world.events[1];
        change(&mut world.events[1]);
        world.at(Stage::Captured, ALL);
        world.events[1] = original;
        world.at(Stage::Ingested, ALL);
        world.at(Stage::Transformed, ALL);
        world.rows(ALL);
        let account = world.account();
        only(&account, Kind::Altered, 1);
        let found = &account.findings.named(Kind::Altered)[0];
        assert!(found.contains(named) && found.contains("captured 0/1"), "{found}");
    }
}

#[test]
fn without_a_journal_what_was_captured_is_what_the_rest_is_held_against() {
    let rules = Rules { transformed: true, journal: false, others_send: false, partitions_grown: false };
    for change in [false, true] {
        let mut world = World { ledger: Ledger::new(rules), events: (1..=3).map(event).collect() };
        world.at(Stage::Captured, ALL);
        if change {
            world.events[1].content.properties = 99;
        }
        world.at(Stage::Ingested, ALL);
        world.events[1] = event(2);
        world.at(Stage::Transformed, ALL);
        world.rows(ALL);
        let account = world.account();
        only(&account, Kind::Altered, u64::from(change));
        assert_eq!(account.sent, None);
    }
}

#[test]
fn events_of_one_key_that_changed_places_are_out_of_order() {
    let mut world = World::sent(Some(Answer::Acknowledged));
    world.at(Stage::Captured, &[0, 2, 1]);
    world.at(Stage::Ingested, &[0, 2, 1]);
    world.at(Stage::Transformed, &[0, 2, 1]);
    world.rows(&[0, 2, 1]);
    only(&world.account(), Kind::OutOfOrder, 1);

    let mut world = World::sent(Some(Answer::Acknowledged));
    world.at(Stage::Captured, ALL);
    world.at(Stage::Ingested, &[1, 0, 2]);
    world.at(Stage::Transformed, &[1, 0, 2]);
    world.rows(&[1, 0, 2]);
    only(&world.account(), Kind::OutOfOrder, 1);
}

#[test]
fn what_was_not_acknowledged_may_land_late() {
    let mut world = World::sent(None);
    let order: &[usize] = &[2, 0, 1];
    world.at(Stage::Captured, order);
    world.at(Stage::Ingested, order);
    world.at(Stage::Transformed, order);
    world.rows(order);
    clean(&world.account());
}

#[test]
fn a_key_in_two_partitions_is_found_unless_partitions_were_added() {
    for grown in [false, true] {
        let mut world = World::sent(Some(Answer::Acknowledged));
        world.ledger.rules.partitions_grown = grown;
        world.at(Stage::Captured, ALL);
        world.at(Stage::Ingested, &[0, 1]);
        let elsewhere = Place { partition: 1, offset: 0 };
        let mut last = world.events[2];
        last.raw = None;
        world.ledger.message(Stage::Ingested, elsewhere, b"token:7", &last);
        world.at(Stage::Transformed, ALL);
        world.rows(ALL);
        only(&world.account(), Kind::SeveralPartitions, u64::from(!grown));
    }
}

#[test]
fn what_was_refused_or_sent_by_nobody_may_not_be_there() {
    let mut world = World::sent(Some(Answer::Refused));
    world.at(Stage::Captured, ALL);
    world.at(Stage::Ingested, ALL);
    world.at(Stage::Transformed, ALL);
    world.rows(ALL);
    only(&world.account(), Kind::RefusedButThere, 3);

    let stranger = event(77);
    for others in [false, true] {
        let mut world = World::sent(None);
        world.ledger.rules.others_send = others;
        world.ledger.message(Stage::Captured, place(0), b"token:7", &stranger);
        let account = world.account();
        // Named once; that it went nowhere is lost all the same.
        assert_eq!(account.findings.count(Kind::Unknown), u64::from(!others), "{account}");
        assert_eq!(account.others, u64::from(others));
        assert_eq!(account.is_clean(), others);
    }
}

#[test]
fn a_captured_message_that_is_no_event_needs_a_dead_letter() {
    for letter in [false, true] {
        let mut world = World::sent(None);
        world.ledger.unreadable(Stage::Captured, place(0), "not JSON");
        if letter {
            world.ledger.dead_letter(place(0), ("consumer-main", "malformed"), b"", (None, 1, None));
        }
        only(&world.account(), Kind::Lost, u64::from(!letter));
    }
    let mut world = World::sent(None);
    world.ledger.unreadable(Stage::Ingested, place(0), "not JSON");
    only(&world.account(), Kind::Unreadable, 1);
}

#[test]
fn origins_are_counted_once_each() {
    let mut origins = Origins::default();
    for (topic, partition, offset) in
        [(1, 0, 0), (1, 0, 0), (1, 0, 65_535), (1, 0, 65_536), (1, 1, 0), (2, 0, 0), (1, 0, 65_536)]
    {
        origins.insert(topic, Place { partition, offset });
    }
    assert_eq!(origins.count, 5);
}
