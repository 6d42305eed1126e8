//! Every transition, and every point at which an owner can be lost.

use super::*;
use crate::takeover::{Committed, StartAt};

const TOPIC: &str = "topic-1";
const NOW: i64 = 1000;

fn range(start: i64, end: i64) -> OffsetRange {
    OffsetRange::new(start, end).unwrap()
}

fn origin(topic_id: &str) -> Origin {
    Origin { topic_id: topic_id.into(), first_partitions: 4 }
}

fn plan(start: i64, end: i64) -> Plan {
    Plan { origin: origin(TOPIC), range: range(start, end), made_at_ms: NOW, topology: None }
}

fn settled() -> Metadata {
    settled_in_doubt(None)
}

fn settled_in_doubt(doubt: Option<i64>) -> Metadata {
    Metadata::Settled { origin: origin(TOPIC), doubt }
}

fn planned(start: i64, end: i64) -> Metadata {
    Metadata::Planned { plan: plan(start, end), doubt: None }
}

fn sealed(start: i64, end: i64) -> Input {
    Input::Sealed(Sealed { range: range(start, end), rows: 3 })
}

fn found(present: u32, missing: u32) -> Input {
    Input::ReadBack(Found { present, missing })
}

fn assignment(committed: Option<(i64, Metadata)>) -> Assignment {
    Assignment {
        epoch: Epoch(7),
        partition: 3,
        origin: origin(TOPIC),
        committed: committed.map(|(offset, metadata)| Committed { offset, metadata }),
        log_start: 5,
        log_end: 100,
        start_at: StartAt::LogStart,
    }
}

fn commit_plan(start: i64, end: i64) -> Action {
    Action::Commit { offset: start, metadata: planned(start, end) }
}

fn commit_end(offset: i64) -> Action {
    Action::Commit { offset, metadata: settled() }
}

fn insert(start: i64, end: i64, content: Content, token: Token) -> Action {
    Action::Insert { plan: plan(start, end), content, token }
}

fn read_back(start: i64, end: i64) -> Action {
    Action::ReadBack { plan: plan(start, end), allow_folded: false }
}

/// Feeds inputs one by one and compares the action after each.
fn walk(partition: &mut Partition, steps: impl IntoIterator<Item = (Input, Action)>) {
    for (number, (input, action)) in steps.into_iter().enumerate() {
        let shown = format!("step {number}: {input:?}");
        assert_eq!(partition.on(Epoch(7), input, NOW), action, "{shown}");
    }
}

/// A partition at offset 10 whose first block has been verified and is done: the next blocks are inserted without a
/// read-back.
fn trusted() -> Partition {
    let (mut partition, action) = Partition::assign(assignment(Some((9, settled()))), None);
    assert_eq!(action, Action::Collect);
    walk(
        &mut partition,
        [
            (sealed(9, 10), commit_plan(9, 10)),
            (Input::Committed, read_back(9, 10)),
            (found(0, 3), insert(9, 10, Content::Whole, Token::Block)),
            (Input::Inserted, read_back(9, 10)),
            (found(3, 0), commit_end(10)),
            (Input::Committed, Action::Collect),
        ],
    );
    partition
}

// --- assignment -----------------------------------------------------------------------------------------------------

#[test]
fn nothing_committed_begins_where_the_configuration_says_and_writes_it_down() {
    for (start_at, offset) in [(StartAt::LogStart, 5), (StartAt::LogEnd, 100)] {
        let (mut partition, action) = Partition::assign(Assignment { start_at, ..assignment(None) }, None);
        assert_eq!(action, commit_end(offset));
        assert_eq!(partition.committed(), offset);
        walk(&mut partition, [(Input::Committed, Action::Collect)]);
    }
}

#[test]
fn a_committed_offset_without_a_plan_is_collected_from() {
    for metadata in [settled(), Metadata::Foreign, settled_in_doubt(Some(50))] {
        let (partition, action) = Partition::assign(assignment(Some((10, metadata))), None);
        assert_eq!((partition.committed(), action), (10, Action::Collect));
    }
}

#[test]
fn what_stands_still_at_the_beginning_takes_nothing() {
    let (partition, action) = Partition::assign(assignment(Some((4, settled()))), None);
    let reason = HoldReason::OutOfRange { offset: 4, log_start: 5, log_end: 100 };
    assert_eq!(action, Action::Hold(reason.clone()));
    assert_eq!(partition.held(), Some(&reason));
    assert!(!partition.takes_blocks());
}

// --- the plain way --------------------------------------------------------------------------------------------------

#[test]
fn a_trusted_partition_plans_inserts_and_moves() {
    let mut partition = trusted();
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
            (Input::Inserted, commit_end(20)),
            (Input::Committed, Action::Collect),
        ],
    );
    assert_eq!(partition.committed(), 20);
    assert!(!partition.is_busy());
}

#[test]
fn the_next_block_is_planned_in_the_commit_that_moves_past_the_last() {
    let mut partition = trusted();
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
            (sealed(20, 30), Action::Nothing),
            (Input::Inserted, commit_plan(20, 30)),
            (Input::Committed, insert(20, 30, Content::Whole, Token::Block)),
        ],
    );
    assert_eq!(partition.committed(), 20);
}

#[test]
fn only_one_block_waits_behind_the_one_under_way() {
    let mut partition = trusted();
    assert!(partition.takes_blocks());
    walk(&mut partition, [(sealed(10, 20), commit_plan(10, 20))]);
    assert!(partition.takes_blocks());
    walk(&mut partition, [(sealed(20, 30), Action::Nothing)]);
    assert!(!partition.takes_blocks());
}

#[test]
fn a_range_without_rows_moves_without_a_plan() {
    let mut partition = trusted();
    let empty = Input::Sealed(Sealed { range: range(10, 20), rows: 0 });
    walk(&mut partition, [(empty, commit_end(20)), (Input::Committed, Action::Collect)]);
}

#[test]
fn a_range_without_rows_behind_a_block_moves_past_both() {
    let mut partition = trusted();
    let empty = Input::Sealed(Sealed { range: range(20, 30), rows: 0 });
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
            (empty, Action::Nothing),
            (Input::Inserted, commit_end(30)),
        ],
    );
}

#[test]
fn an_idle_partition_moves_over_transaction_markers_and_only_forward() {
    let mut partition = trusted();
    walk(
        &mut partition,
        [
            (Input::EndOfPartition { position: 10 }, Action::Nothing),
            (Input::EndOfPartition { position: 9 }, Action::Nothing),
            (Input::EndOfPartition { position: 12 }, commit_end(12)),
            (Input::Committed, Action::Collect),
        ],
    );
}

#[test]
fn the_end_of_the_partition_moves_nothing_while_a_block_is_under_way() {
    let mut partition = trusted();
    let end = || (Input::EndOfPartition { position: 50 }, Action::Nothing);
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            end(),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
            end(),
            (Input::InsertUnclear, Action::Pause { failures: 1 }),
            end(),
            (Input::Elapsed, read_back(10, 20)),
            end(),
        ],
    );
}

// --- failures -------------------------------------------------------------------------------------------------------

#[test]
fn a_failed_commit_is_repeated_as_it_was_and_nothing_is_inserted_before_it_succeeds() {
    let mut partition = trusted();
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::CommitFailed, Action::Pause { failures: 1 }),
            (Input::Elapsed, commit_plan(10, 20)),
            (Input::CommitFailed, Action::Pause { failures: 2 }),
            (Input::Elapsed, commit_plan(10, 20)),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
            (Input::Inserted, commit_end(20)),
            (Input::CommitFailed, Action::Pause { failures: 1 }),
            (Input::Elapsed, commit_end(20)),
            (Input::Committed, Action::Collect),
        ],
    );
}

#[test]
fn after_an_unclear_insert_the_table_decides() {
    let mut all_there = trusted();
    let unclear = [
        (sealed(10, 20), commit_plan(10, 20)),
        (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
        (Input::InsertUnclear, Action::Pause { failures: 1 }),
        (Input::Elapsed, read_back(10, 20)),
    ];
    walk(&mut all_there, unclear);
    let (mut nothing_there, mut part_there) = (all_there.clone(), all_there.clone());

    walk(&mut all_there, [(found(3, 0), commit_end(20)), (Input::Committed, Action::Collect)]);

    // The same block under the same token: should the first attempt still arrive, the server keeps one of them.
    walk(
        &mut nothing_there,
        [
            (found(0, 3), insert(10, 20, Content::Whole, Token::Block)),
            (Input::Inserted, read_back(10, 20)),
            (found(3, 0), commit_end(20)),
        ],
    );

    walk(
        &mut part_there,
        [
            (found(1, 2), insert(10, 20, Content::Missing, Token::Block)),
            (Input::Inserted, read_back(10, 20)),
            (found(3, 0), commit_end(20)),
        ],
    );
}

#[test]
fn an_acknowledged_token_without_rows_is_repaired_under_another() {
    let mut partition = trusted();
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
            (Input::InsertUnclear, Action::Pause { failures: 1 }),
            (Input::Elapsed, read_back(10, 20)),
            (found(0, 3), insert(10, 20, Content::Whole, Token::Block)),
            (Input::Inserted, read_back(10, 20)),
            (found(0, 3), insert(10, 20, Content::Whole, Token::Repair(1))),
            (Input::Inserted, Action::ReadBack { plan: plan(10, 20), allow_folded: true }),
            (found(0, 3), insert(10, 20, Content::Whole, Token::Repair(2))),
            (Input::InsertUnclear, Action::Pause { failures: 2 }),
            (Input::Elapsed, Action::ReadBack { plan: plan(10, 20), allow_folded: true }),
            (found(1, 2), insert(10, 20, Content::Missing, Token::Repair(2))),
        ],
    );
}

#[test]
fn a_failed_read_back_is_repeated_and_decides_nothing() {
    let mut partition = trusted();
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
            (Input::InsertUnclear, Action::Pause { failures: 1 }),
            (Input::Elapsed, read_back(10, 20)),
            (Input::ReadBackFailed, Action::Pause { failures: 2 }),
            (Input::Elapsed, read_back(10, 20)),
            (Input::ReadBackFailed, Action::Pause { failures: 3 }),
            (Input::Elapsed, read_back(10, 20)),
        ],
    );
}

// --- take-over: an owner lost at each point -------------------------------------------------------------------------

#[test]
fn lost_before_the_plan_was_committed_leaves_nothing_to_settle() {
    // What Kafka has is the offset without a plan; the first block is read back all the same.
    let (mut partition, action) = Partition::assign(assignment(Some((10, settled()))), None);
    assert_eq!(action, Action::Collect);
    walk(
        &mut partition,
        [
            (sealed(10, 15), commit_plan(10, 15)),
            (Input::Committed, read_back(10, 15)),
            (found(0, 3), insert(10, 15, Content::Whole, Token::Block)),
            (Input::Inserted, read_back(10, 15)),
            (found(3, 0), commit_end(15)),
        ],
    );
}

fn taken_over() -> Partition {
    let (partition, action) = Partition::assign(assignment(Some((10, planned(10, 20)))), None);
    assert_eq!(action, Action::CollectExactly(range(10, 20)));
    partition
}

#[test]
fn lost_between_plan_and_insert_is_inserted_once() {
    let mut partition = taken_over();
    walk(
        &mut partition,
        [
            (sealed(10, 20), read_back(10, 20)),
            (found(0, 3), insert(10, 20, Content::Whole, Token::Block)),
            (Input::Inserted, read_back(10, 20)),
            (found(3, 0), commit_end(20)),
        ],
    );
}

#[test]
fn lost_between_insert_and_commit_is_not_inserted_again() {
    let mut partition = taken_over();
    walk(
        &mut partition,
        [
            (sealed(10, 20), read_back(10, 20)),
            (found(3, 0), commit_end(20)),
            (Input::Committed, Action::Collect),
        ],
    );
}

#[test]
fn lost_in_the_middle_of_an_insert_is_completed() {
    let mut partition = taken_over();
    walk(
        &mut partition,
        [
            (sealed(10, 20), read_back(10, 20)),
            (found(2, 1), insert(10, 20, Content::Missing, Token::Block)),
            (Input::Inserted, read_back(10, 20)),
            (found(3, 0), commit_end(20)),
        ],
    );
}

#[test]
fn a_taken_over_plan_is_never_given_another_range() {
    let mut partition = taken_over();
    let before = partition.clone();
    walk(&mut partition, [(Input::EndOfPartition { position: 50 }, Action::Nothing)]);
    assert_eq!(partition, before);
    // A block of another range waits: it is not taken for the plan.
    walk(&mut partition, [(sealed(10, 19), Action::Nothing)]);
    assert!(!partition.takes_blocks());
}

#[test]
fn a_taken_over_plan_without_rows_is_passed() {
    let mut partition = taken_over();
    let empty = Input::Sealed(Sealed { range: range(10, 20), rows: 0 });
    walk(&mut partition, [(empty, commit_end(20))]);
}

/// The commit of a plan with a doubt that ends at `doubt`.
fn commit_plan_in_doubt(start: i64, end: i64, doubt: i64) -> Action {
    let metadata = Metadata::Planned { plan: plan(start, end), doubt: Some(doubt) };
    Action::Commit { offset: start, metadata }
}

fn commit_end_in_doubt(offset: i64, doubt: i64) -> Action {
    Action::Commit { offset, metadata: settled_in_doubt(Some(doubt)) }
}

/// Plans a block, reads it back, inserts what is missing and moves on to the next.
fn verified(start: i64, end: i64, doubt: i64, present: u32) -> Vec<(Input, Action)> {
    let mut steps = vec![
        (sealed(start, end), commit_plan_in_doubt(start, end, doubt)),
        (Input::Committed, read_back(start, end)),
    ];
    if present < 3 {
        let content = if present == 0 { Content::Whole } else { Content::Missing };
        steps.push((found(present, 3 - present), insert(start, end, content, Token::Block)));
        steps.push((Input::Inserted, read_back(start, end)));
    }
    let advance = if end < doubt { commit_end_in_doubt(end, doubt) } else { commit_end(end) };
    steps.push((found(3, 0), advance));
    steps.push((Input::Committed, Action::Collect));
    steps
}

#[test]
fn an_offset_set_by_hand_trusts_nothing_that_was_in_the_log() {
    // 10..20, and of 20..30 and of 40..50 a part, are in the table, though Kafka says 10 and nothing of a plan.
    let (mut partition, _) = Partition::assign(assignment(Some((10, Metadata::Foreign))), None);
    walk(&mut partition, verified(10, 20, 100, 3));
    walk(&mut partition, verified(20, 30, 100, 1));
    walk(&mut partition, verified(30, 40, 100, 0));
    walk(&mut partition, verified(40, 50, 100, 2));
    walk(&mut partition, verified(50, 99, 100, 0));
    walk(&mut partition, verified(99, 120, 100, 0));
    // Nothing behind the end of the log at the take-over was inserted by anybody else.
    walk(
        &mut partition,
        [
            (sealed(120, 130), commit_plan(120, 130)),
            (Input::Committed, insert(120, 130, Content::Whole, Token::Block)),
            (Input::Inserted, commit_end(130)),
        ],
    );
}

#[test]
fn a_doubt_outlives_its_owner() {
    let in_doubt = settled_in_doubt(Some(40));
    let (mut partition, _) = Partition::assign(assignment(Some((20, in_doubt))), None);
    walk(&mut partition, verified(20, 30, 40, 0));
    let planned_in_doubt = Metadata::Planned { plan: plan(30, 35), doubt: Some(40) };
    let (mut partition, action) = Partition::assign(assignment(Some((30, planned_in_doubt))), None);
    assert_eq!(action, Action::CollectExactly(range(30, 35)));
    walk(
        &mut partition,
        [
            (sealed(30, 35), read_back(30, 35)),
            (found(3, 0), commit_end_in_doubt(35, 40)),
            (Input::Committed, Action::Collect),
        ],
    );
    walk(&mut partition, verified(35, 45, 40, 0));
}

#[test]
fn a_first_block_that_is_there_already_puts_the_whole_log_in_doubt() {
    // Set back with its metadata, by a stalled former owner.
    let (mut partition, _) = Partition::assign(assignment(Some((10, settled()))), None);
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, read_back(10, 20)),
            (found(3, 0), commit_end_in_doubt(20, 100)),
            (Input::Committed, Action::Collect),
        ],
    );
    walk(&mut partition, verified(20, 30, 100, 0));
    walk(&mut partition, verified(30, 40, 100, 1));
}

#[test]
fn what_the_first_block_says_is_learnt_from_the_answer_that_comes_after_a_failure_too() {
    let (mut partition, _) = Partition::assign(assignment(Some((10, settled()))), None);
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, read_back(10, 20)),
            (Input::ReadBackFailed, Action::Pause { failures: 1 }),
            (Input::Elapsed, read_back(10, 20)),
            (found(3, 0), commit_end_in_doubt(20, 100)),
            (Input::Committed, Action::Collect),
        ],
    );
    // Nothing of this one is there, and those behind it are not trusted to be absent all the same.
    walk(&mut partition, verified(20, 30, 100, 0));
    walk(&mut partition, verified(30, 40, 100, 0));
}

#[test]
fn a_first_block_that_is_absent_ends_the_doubt() {
    let mut partition = trusted();
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
        ],
    );
}

#[test]
fn plans_say_among_which_servers_their_rows_are_divided() {
    let topology = Some("a1".to_owned());
    let divided = Plan { topology: topology.clone(), ..plan(10, 20) };
    let (mut partition, _) = Partition::assign(assignment(Some((10, settled()))), topology);
    let commit =
        Action::Commit { offset: 10, metadata: Metadata::Planned { plan: divided.clone(), doubt: None } };
    walk(&mut partition, [(sealed(10, 20), commit)]);
}

#[test]
fn a_plan_of_another_topology_is_settled_by_reading_back_and_never_believed() {
    let before = Plan { topology: Some("before".into()), ..plan(10, 20) };
    let metadata = Metadata::Planned { plan: before.clone(), doubt: None };
    let (mut partition, action) = Partition::assign(assignment(Some((10, metadata))), Some("after".into()));
    assert_eq!(action, Action::CollectExactly(range(10, 20)));
    let ask = || Action::ReadBack { plan: before.clone(), allow_folded: false };
    let send = |content, token| Action::Insert { plan: before.clone(), content, token };
    walk(
        &mut partition,
        [
            (sealed(10, 20), ask()),
            (found(1, 2), send(Content::Missing, Token::Block)),
            (Input::Inserted, ask()),
            (found(3, 0), commit_end(20)),
        ],
    );
}

// --- epochs and holds -----------------------------------------------------------------------------------------------

#[test]
fn answers_of_another_epoch_change_nothing() {
    let mut partition = trusted();
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
        ],
    );
    let before = partition.clone();
    for input in [Input::Inserted, Input::InsertUnclear, Input::Committed, found(0, 3), Input::Elapsed] {
        for epoch in [Epoch(6), Epoch(8)] {
            assert_eq!(partition.on(epoch, input.clone(), NOW), Action::Nothing);
            assert_eq!(partition, before);
        }
    }
}

#[test]
fn answers_to_questions_that_were_not_asked_change_nothing() {
    let answers = [
        Input::Committed,
        Input::CommitFailed,
        Input::Inserted,
        Input::InsertUnclear,
        found(0, 3),
        found(3, 0),
        Input::ReadBackFailed,
        Input::Elapsed,
    ];
    let idle = trusted();
    for input in &answers {
        let mut partition = idle.clone();
        assert_eq!(partition.on(Epoch(7), input.clone(), NOW), Action::Nothing, "{input:?}");
        assert_eq!(partition, idle, "{input:?}");
    }
    let mut inserting = trusted();
    walk(
        &mut inserting,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
        ],
    );
    for input in [Input::Committed, Input::CommitFailed, found(3, 0), Input::ReadBackFailed, Input::Elapsed] {
        let mut partition = inserting.clone();
        assert_eq!(partition.on(Epoch(7), input.clone(), NOW), Action::Nothing, "{input:?}");
        assert_eq!(partition, inserting, "{input:?}");
    }
}

#[test]
fn a_recreated_topic_holds_at_once_and_for_good() {
    let mut partition = trusted();
    walk(
        &mut partition,
        [
            (Input::TopicId(TOPIC.into()), Action::Nothing),
            (sealed(10, 20), commit_plan(10, 20)),
            (
                Input::TopicId("topic-2".into()),
                Action::Hold(HoldReason::TopicRecreated {
                    committed: TOPIC.into(),
                    current: "topic-2".into(),
                }),
            ),
            (Input::Committed, Action::Nothing),
            (sealed(20, 30), Action::Nothing),
            (Input::TopicId(TOPIC.into()), Action::Nothing),
        ],
    );
    assert!(!partition.takes_blocks());
    assert!(!partition.is_busy());
}

#[test]
fn an_offset_that_the_broker_no_longer_has_holds() {
    let mut partition = trusted();
    let reason = HoldReason::OutOfRange { offset: 10, log_start: 50, log_end: 100 };
    walk(
        &mut partition,
        [(Input::OutOfRange { offset: 10, log_start: 50, log_end: 100 }, Action::Hold(reason))],
    );
}

// --- giving away ----------------------------------------------------------------------------------------------------

#[test]
fn what_is_in_the_table_for_certain_is_committed_before_the_partition_goes() {
    let mut partition = trusted();
    assert_eq!(partition.unsettled_advance(), None);
    walk(&mut partition, [(sealed(10, 20), commit_plan(10, 20))]);
    assert_eq!(partition.unsettled_advance(), None, "a plan that is not committed needs nothing");
    walk(&mut partition, [(Input::Committed, insert(10, 20, Content::Whole, Token::Block))]);
    assert_eq!(partition.unsettled_advance(), None, "an insert under way stays planned");
    let mut with_next = partition.clone();
    walk(&mut partition, [(Input::Inserted, commit_end(20))]);
    assert_eq!(partition.unsettled_advance(), Some((20, settled())));
    walk(&mut partition, [(Input::CommitFailed, Action::Pause { failures: 1 })]);
    assert_eq!(partition.unsettled_advance(), Some((20, settled())));

    walk(&mut with_next, [(sealed(20, 30), Action::Nothing), (Input::Inserted, commit_plan(20, 30))]);
    assert_eq!(with_next.unsettled_advance(), Some((20, settled())), "the move without the next plan");
    walk(&mut with_next, [(Input::Committed, insert(20, 30, Content::Whole, Token::Block))]);
    assert_eq!(with_next.unsettled_advance(), None);
}

#[test]
fn a_block_that_waits_is_forgotten_when_the_partition_goes() {
    let mut partition = trusted();
    walk(
        &mut partition,
        [
            (sealed(10, 20), commit_plan(10, 20)),
            (Input::Committed, insert(10, 20, Content::Whole, Token::Block)),
            (sealed(20, 30), Action::Nothing),
        ],
    );
    partition.forget_ready();
    walk(&mut partition, [(Input::Inserted, commit_end(20)), (Input::Committed, Action::Collect)]);
    assert!(!partition.is_busy());
}
