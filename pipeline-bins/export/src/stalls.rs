//! Whether partitions stand still, and whom to tell.

use std::time::Duration;

/// One partition, as far as its progress is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Partition.
    pub partition: i32,
    /// Messages that wait.
    pub lag: i64,
    /// Time since something of it was exported, or since nothing waited.
    pub still_for: Duration,
    /// Why it stands still until a person has looked at it, if it does.
    pub held: Option<String>,
    /// What the destination said when it refused, if it did and somebody has to act.
    pub refused: Option<String>,
    /// Something is known for which it waits: a request under way, memory, dead letters.
    pub waits_for_something: bool,
}

/// What the checks say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// Liveness: an error is answered with a restart, which helps against what nobody can explain and nothing else.
    pub alive: Result<(), String>,
    /// Readiness: an error is for people.
    pub ready: Result<(), String>,
}

/// What to tell about these partitions. One that stands still for `stall` is told of, however well the others do.
/// `trouble` is what was last seen to go wrong, and did not go right since.
pub fn verdicts(partitions: &[Progress], stall: Duration, trouble: Option<&str>) -> Verdicts {
    let stalled: Vec<&Progress> =
        partitions.iter().filter(|one| one.held.is_none() && one.lag > 0 && one.still_for > stall).collect();
    let unexplained: Vec<&Progress> =
        stalled.iter().copied().filter(|one| !one.waits_for_something).collect();
    let alive = if unexplained.is_empty() || trouble.is_some() {
        Ok(())
    } else {
        Err(format!(
            "{}, none is taken for {stall:?}, and nothing is known to be in the way",
            waiting(&unexplained)
        ))
    };
    let held = partitions
        .iter()
        .find_map(|one| one.held.as_ref().map(|why| format!("partition {} is held: {why}", one.partition)));
    let ready = if let Some(held) = held {
        Err(held)
    } else if let Some(refused) = partitions.iter().find_map(|one| one.refused.as_ref()) {
        Err(refused.clone())
    } else if stalled.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "{} and nothing was exported for {stall:?}; {}",
            waiting(&stalled),
            trouble.unwrap_or("no trouble was reported")
        ))
    };
    Verdicts { alive, ready }
}

/// `12 messages of partitions 3, 5 wait`.
fn waiting(partitions: &[&Progress]) -> String {
    let lag: i64 = partitions.iter().map(|one| one.lag).sum();
    let names: Vec<String> = partitions.iter().map(|one| one.partition.to_string()).collect();
    let plural = if names.len() == 1 { "" } else { "s" };
    format!("{lag} messages of partition{plural} {} wait", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_secs(60);
    const LONG: Duration = Duration::from_secs(61);

    fn moving(partition: i32) -> Progress {
        Progress {
            partition,
            lag: 1000,
            still_for: Duration::ZERO,
            held: None,
            refused: None,
            waits_for_something: false,
        }
    }

    #[test]
    fn a_partition_that_stands_still_is_told_of_while_others_move() {
        let stuck = Progress { still_for: LONG, lag: 7, ..moving(3) };
        let told = verdicts(&[moving(1), stuck, moving(4)], STALL, None);
        let text = told.alive.unwrap_err();
        assert!(text.starts_with("7 messages of partition 3 wait"), "{text}");
        assert!(told.ready.unwrap_err().contains("partition 3"));
    }

    #[test]
    fn a_restart_is_asked_for_only_against_what_nothing_explains() {
        let stuck = Progress { still_for: LONG, ..moving(3) };
        assert!(verdicts(std::slice::from_ref(&stuck), STALL, None).alive.is_err());
        let trouble = verdicts(std::slice::from_ref(&stuck), STALL, Some("ClickHouse: 252"));
        assert_eq!(trouble.alive, Ok(()));
        assert!(trouble.ready.unwrap_err().ends_with("; ClickHouse: 252"));
        let waits = Progress { waits_for_something: true, ..stuck.clone() };
        let told = verdicts(std::slice::from_ref(&waits), STALL, None);
        assert_eq!(told.alive, Ok(()));
        assert!(told.ready.is_err());
        // What explains one partition explains no other.
        assert!(verdicts(&[waits, stuck], STALL, None).alive.unwrap_err().contains("partition 3"));
    }

    #[test]
    fn a_held_partition_is_for_people_and_hides_no_other() {
        let held = Progress { held: Some("why".into()), still_for: LONG, ..moving(3) };
        let told = verdicts(&[held.clone(), moving(4)], STALL, None);
        assert_eq!(told.alive, Ok(()));
        assert_eq!(told.ready, Err("partition 3 is held: why".into()));
        let stuck = Progress { still_for: LONG, ..moving(5) };
        assert!(verdicts(&[held, stuck], STALL, None).alive.is_err());
    }

    #[test]
    fn nothing_that_waits_is_no_stall() {
        let idle = Progress { lag: 0, still_for: LONG, ..moving(3) };
        assert_eq!(verdicts(&[idle], STALL, None), Verdicts { alive: Ok(()), ready: Ok(()) });
        assert_eq!(verdicts(&[], STALL, None), Verdicts { alive: Ok(()), ready: Ok(()) });
    }

    #[test]
    fn a_refusal_is_told_at_once() {
        let why = "ClickHouse: no such table".to_owned();
        let refused = Progress { refused: Some(why.clone()), waits_for_something: true, ..moving(3) };
        // Whatever became of other partitions since.
        for trouble in [None, Some("Kafka: something that passes")] {
            let told = verdicts(std::slice::from_ref(&refused), STALL, trouble);
            assert_eq!((told.alive, told.ready), (Ok(()), Err(why.clone())));
        }
    }
}
