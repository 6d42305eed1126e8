//! Closing the ledger: what was sent, whether each component gives out what goes in, and whether the order is kept.

use std::collections::HashMap;

use uuid::Uuid;

use super::{Ledger, Move, Stage, Step};
use crate::audit::{
    account::{Account, Kind, SentCounts, StageCount, TableCount},
    journal::Answer,
};

impl Ledger {
    /// Makes the account. `merged_parts` are parts of the table in which a merge may have folded rows.
    pub fn close(mut self, merged_parts: u64) -> Account {
        self.balance();
        self.order();
        if self.unreadable_captured > self.nameless_letters {
            let (unreadable, letters) = (self.unreadable_captured, self.nameless_letters);
            self.findings.add(Kind::Lost, || {
                format!(
                    "{unreadable} captured messages are no events, but only {letters} dead letters say so"
                )
            });
        }
        let mut stages = vec![Stage::Captured, Stage::Ingested];
        stages.extend(self.rules.transformed.then_some(Stage::Transformed));
        let distinct = |stage: Stage| {
            self.entries.iter().filter(|entry| entry.seen[stage as usize].count > 0).count() as u64
        };
        Account {
            sent: self.rules.journal.then(|| self.sent()),
            stages: stages
                .into_iter()
                .map(|stage| StageCount {
                    name: stage.name(),
                    messages: self.messages[stage as usize],
                    distinct: distinct(stage),
                })
                .collect(),
            dead_letters: self.letters.clone(),
            repeated_letters: self.repeated_letters,
            table: TableCount {
                rows: self.messages[Stage::Rows as usize],
                uuids: distinct(Stage::Rows),
                origins: self.origins.count,
                topic_ids: self.topic_ids.len() as u64,
                merged_parts,
            },
            repeated_by_clients: self
                .entries
                .iter()
                .map(|entry| u64::from(entry.seen[Stage::Captured as usize].count.saturating_sub(1)))
                .sum(),
            others: self.others,
            findings: self.findings,
        }
    }

    fn sent(&self) -> SentCounts {
        let mut counts = SentCounts::default();
        for entry in self.entries.iter().filter(|entry| entry.attempts > 0) {
            counts.events += 1;
            let landed =
                entry.seen[Stage::Captured as usize].count > 0 || entry.dead[Step::Capture as usize] > 0;
            match entry.answer {
                Some(Answer::Acknowledged) => counts.acknowledged += 1,
                Some(Answer::Refused) => counts.refused += 1,
                Some(Answer::TurnedAway) => {
                    counts.turned_away += 1;
                    counts.turned_away_landed += u64::from(landed);
                }
                None => {
                    counts.unanswered += 1;
                    counts.unanswered_landed += u64::from(landed);
                }
            }
        }
        counts
    }

    /// What goes into each component must come out of it: as a message, a row or a dead letter.
    fn balance(&mut self) {
        let stages: &[(Stage, Option<Stage>, Step)] = if self.rules.transformed {
            &[
                (Stage::Captured, None, Step::Capture),
                (Stage::Ingested, Some(Stage::Captured), Step::Consumer),
                (Stage::Transformed, Some(Stage::Ingested), Step::Transformation),
                (Stage::Rows, Some(Stage::Transformed), Step::Export),
            ]
        } else {
            &[
                (Stage::Captured, None, Step::Capture),
                (Stage::Ingested, Some(Stage::Captured), Step::Consumer),
                (Stage::Rows, Some(Stage::Ingested), Step::Export),
            ]
        };
        for (index, entry) in self.entries.iter().enumerate().filter(|(_, entry)| !entry.stranger) {
            let uuid = entry.uuid;
            // What the next component owes: not what an earlier one has doubled.
            let mut owed = u64::MAX;
            for &(stage, source, step) in stages {
                let seen = entry.seen[stage as usize];
                let dead = u64::from(entry.dead[step as usize]);
                let out = u64::from(seen.count) + dead;
                let (least, most, given) = match source {
                    Some(source) => {
                        let count = u64::from(entry.seen[source as usize].count);
                        (count.min(owed), count, format!("{count} in {}", source.name()))
                    }
                    // Without a journal anything may have been sent, and what nobody sent has been named already.
                    None if entry.attempts == 0 => continue,
                    None => {
                        let least = u64::from(entry.answer == Some(Answer::Acknowledged));
                        let given = match entry.answer {
                            Some(Answer::Acknowledged) => "acknowledged",
                            Some(Answer::TurnedAway) => "answered 503",
                            Some(Answer::Refused) => "refused",
                            None => "not answered",
                        };
                        if entry.answer == Some(Answer::Refused) && entry.attempts == 1 && out > 0 {
                            self.findings.add(Kind::RefusedButThere, || {
                                format!("{uuid}: refused, and yet at {} {}", stage.name(), seen.place())
                            });
                        }
                        (least, u64::from(entry.attempts), format!("sent {}×, {given}", entry.attempts))
                    }
                };
                owed = u64::from(seen.count).min(most);
                if out < least {
                    self.findings.add(Kind::Lost, || {
                        let was = source.map(|source| format!(" ({})", entry.seen[source as usize].place()));
                        format!(
                            "{uuid}: {given}{}, {} in {} and {dead} dead letters",
                            was.unwrap_or_default(),
                            seen.count,
                            stage.name()
                        )
                    });
                } else if out > most {
                    self.findings.add(Kind::Doubled, || {
                        let again = self.again.get(&(index as u32, stage));
                        let again = again.map(|place| format!(" and again {place}")).unwrap_or_default();
                        format!(
                            "{uuid}: {given}, {} in {} ({}{again}) and {dead} dead letters",
                            seen.count,
                            stage.name(),
                            seen.place()
                        )
                    });
                }
            }
        }
    }

    /// Events of one key keep their order: from the sender into `captured`, and from partition to partition. When an event
    /// goes to another partition than the one before it, because partitions were added, no order is promised between the two.
    fn order(&mut self) {
        // What was acknowledged was there before the next was sent.
        let mut sent: Vec<Move> = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let seen = entry.seen[Stage::Captured as usize];
            if entry.number > 0
                && entry.key != 0
                && seen.count == 1
                && entry.answer == Some(Answer::Acknowledged)
            {
                sent.push(Move {
                    key: entry.key,
                    from: 0,
                    to: seen.partition,
                    before: i64::from(entry.number),
                    after: seen.offset,
                    index: index as u32,
                });
            }
        }
        self.backwards(sent, "sent", Stage::Captured);
        let last = if self.rules.transformed { Stage::Transformed } else { Stage::Ingested };
        for (source, target) in [(Stage::Captured, Stage::Ingested), (Stage::Ingested, Stage::Transformed)] {
            if target > last {
                break;
            }
            let mut moved: Vec<Move> = Vec::new();
            for (index, entry) in self.entries.iter().enumerate() {
                let (from, to) = (entry.seen[source as usize], entry.seen[target as usize]);
                if entry.key != 0 && from.count == 1 && to.count == 1 {
                    moved.push(Move {
                        key: entry.key,
                        from: from.partition,
                        to: to.partition,
                        before: from.offset,
                        after: to.offset,
                        index: index as u32,
                    });
                }
            }
            self.backwards(moved, source.name(), target);
        }
        if !self.rules.partitions_grown {
            for stage in [Stage::Captured, Stage::Ingested, Stage::Transformed] {
                self.one_partition_for_each_key(stage);
            }
        }
    }

    fn backwards(&mut self, mut moves: Vec<Move>, source: &str, target: Stage) {
        moves.sort_unstable_by_key(|one| (one.key, one.from, one.to, one.before));
        for pair in moves.windows(2) {
            let (one, next) = (pair[0], pair[1]);
            if (one.key, one.from, one.to) == (next.key, next.from, next.to) && next.after < one.after {
                let (first, second) =
                    (&self.entries[one.index as usize].uuid, &self.entries[next.index as usize].uuid);
                self.findings.add(Kind::OutOfOrder, || {
                    format!(
                        "{first} was {source} before {second}, and is in {} after it ({}/{} and {}/{})",
                        target.name(),
                        one.to,
                        one.after,
                        next.to,
                        next.after
                    )
                });
            }
        }
    }

    fn one_partition_for_each_key(&mut self, stage: Stage) {
        let mut homes: HashMap<u64, (u32, Uuid)> = HashMap::new();
        for entry in &self.entries {
            let seen = entry.seen[stage as usize];
            if entry.key == 0 || seen.count == 0 {
                continue;
            }
            let home = *homes.entry(entry.key).or_insert((seen.partition, entry.uuid));
            if home.0 != seen.partition {
                self.findings.add(Kind::SeveralPartitions, || {
                    format!(
                        "{} and {} have one key, and are in partitions {} and {} of {}",
                        home.1,
                        entry.uuid,
                        home.0,
                        seen.partition,
                        stage.name()
                    )
                });
            }
        }
    }
}
