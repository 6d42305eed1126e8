//! How the inserts of a block are told apart, by the server and by whoever takes over.

use crate::committed::Plan;

/// Which of the inserts of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// The whole block.
    Block,
    /// What the table lacks of it, for the nth time; from 1.
    Repair(u32),
}

/// One table, as far as tokens are concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenScope {
    /// Consumer group.
    pub group: String,
    /// What tells this table from every other one, also from one of the same name on another server or made anew.
    pub table: String,
    /// Fingerprint of the servers among which rows are divided; `None`: there is one.
    pub topology: Option<String>,
}

impl TokenScope {
    /// The `insert_deduplication_token` of an insert of `plan`: equal for every attempt, unlike for anything else. Where
    /// rows are divided among other servers, the same range means other rows.
    pub fn deduplication_token(&self, partition: i32, plan: &Plan, token: Token) -> String {
        let mut text = self.block_name(partition, plan);
        if let Some(topology) = &self.topology {
            text = format!("{text}:{topology}");
        }
        match token {
            Token::Block => text,
            Token::Repair(1) => format!("{text}:repair"),
            Token::Repair(n) => format!("{text}:repair:{n}"),
        }
    }

    /// The `query_id` of every insert and read-back of `plan`: the server refuses to run two queries of one id at the same
    /// time, so that an attempt that still runs there excludes its repetition, and the question whether it was successful.
    pub fn query_id(&self, partition: i32, plan: &Plan) -> String {
        format!("penstock:{}", self.block_name(partition, plan))
    }

    fn block_name(&self, partition: i32, plan: &Plan) -> String {
        format!("{}:{}:{}:{partition}:{}", self.group, self.table, plan.origin.topic_id, plan.range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::committed::{OffsetRange, Origin};

    fn plan() -> Plan {
        Plan {
            origin: Origin { topic_id: "b8tRS7h4TJ2Vt43Dp85v2A".into(), first_partitions: 12 },
            range: OffsetRange::new(10, 25).unwrap(),
            made_at_ms: 1_764_000_000_000,
            topology: None,
        }
    }

    fn scope(topology: Option<&str>) -> TokenScope {
        TokenScope {
            group: "shop.web.export-warehouse".into(),
            table: "t-1".into(),
            topology: topology.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn tokens_name_group_table_topic_partition_and_range() {
        assert_eq!(
            scope(None).deduplication_token(3, &plan(), Token::Block),
            "shop.web.export-warehouse:t-1:b8tRS7h4TJ2Vt43Dp85v2A:3:10..25"
        );
        assert!(scope(None).deduplication_token(3, &plan(), Token::Repair(1)).ends_with(":3:10..25:repair"));
        assert!(scope(None).deduplication_token(3, &plan(), Token::Repair(2)).ends_with(":repair:2"));
        let later = Plan { made_at_ms: 0, ..plan() };
        assert_eq!(
            scope(None).deduplication_token(3, &plan(), Token::Block),
            scope(None).deduplication_token(3, &later, Token::Block),
            "the time of a plan is not part of the token"
        );
    }

    #[test]
    fn another_topology_gives_other_tokens_and_the_same_query_id() {
        let (one, other) = (scope(Some("a")), scope(Some("b")));
        for token in [Token::Block, Token::Repair(1)] {
            assert_ne!(
                one.deduplication_token(3, &plan(), token),
                other.deduplication_token(3, &plan(), token)
            );
        }
        // An attempt that still runs under the old topology excludes those under the new one.
        assert_eq!(one.query_id(3, &plan()), other.query_id(3, &plan()));
    }
}
