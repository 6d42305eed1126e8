//! The ACLs that a pipeline needs in Kafka: the one list that the documentation shows and the tests run with.
//!
//! Kafka allows Describe to whoever may Read, Write, Alter or Delete a topic, and DescribeConfigs to whoever may AlterConfigs: what
//! follows from another line is not in the list.

use std::fmt;

/// Who needs the right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// `kafka.auth.data`: what the pods are. With tokens of service accounts each component is a principal of its own.
    Data,
    /// `kafka.auth.admin`: what the operator is.
    Admin,
}

/// Kind of resource, in Kafka's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
    /// A transactional id.
    TransactionalId,
}

/// What is done with it, in Kafka's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "Kafka's own names")]
pub enum Operation {
    Read,
    Write,
    Create,
    Alter,
    AlterConfigs,
    Describe,
    Delete,
}

/// Which resources of a kind. The name follows the pipeline's `topicPrefix`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// The one of this name.
    Literal(&'static str),
    /// All whose names begin so.
    Prefixed(&'static str),
}

/// One ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acl {
    /// Who.
    pub identity: Identity,
    /// The component that needs it: the end of the name of its workload and ServiceAccount. Empty for the operator.
    pub component: &'static str,
    /// Which kind of resource.
    pub resource: Resource,
    /// Which resources.
    pub name: Name,
    /// What is done.
    pub operation: Operation,
    /// What for.
    pub purpose: &'static str,
}

impl fmt::Display for Acl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Name::Literal(name) | Name::Prefixed(name)) = self.name;
        let star = if matches!(self.name, Name::Prefixed(_)) { "*" } else { "" };
        write!(formatter, "{:?} on {:?} <prefix>{name}{star}", self.operation, self.resource)
    }
}

const fn acl(
    component: &'static str,
    operation: Operation,
    resource: Resource,
    name: Name,
    purpose: &'static str,
) -> Acl {
    let identity = if component.is_empty() { Identity::Admin } else { Identity::Data };
    Acl { identity, component, resource, name, operation, purpose }
}

use Name::{Literal, Prefixed};
use Operation::{Alter, AlterConfigs, Create, Delete, Describe, Read, Write};
use Resource::{Group, Topic, TransactionalId};

/// Those of a pipeline with a transformation and one export that is named `warehouse`; a further export needs the lines of
/// `export-warehouse` with its own name. Without a transformation its lines fall away, and exports read `ingested`.
pub const ACLS: &[Acl] = &[
    acl("capture", Write, Topic, Literal("captured"), "what clients send"),
    acl("capture", Write, Topic, Literal("dead-letter"), "events that can never succeed"),
    acl("consumer-main", Read, Topic, Literal("captured"), "its input"),
    acl(
        "consumer-main",
        Read,
        Group,
        Literal("consumer-main"),
        "membership, and offsets in its transactions",
    ),
    acl(
        "consumer-main",
        Write,
        TransactionalId,
        Prefixed("consumer-main."),
        "its transactions, one id a pod",
    ),
    acl("consumer-main", Write, Topic, Literal("ingested"), "its output"),
    acl("consumer-main", Write, Topic, Literal("dead-letter"), "events that can never succeed"),
    acl("transformation", Read, Topic, Literal("ingested"), "its input"),
    acl(
        "transformation",
        Read,
        Group,
        Literal("transformation"),
        "membership, and offsets in its transactions",
    ),
    acl(
        "transformation",
        Write,
        TransactionalId,
        Prefixed("transformation."),
        "its transactions, one id a pod",
    ),
    acl("transformation", Write, Topic, Literal("transformed"), "its output"),
    acl("transformation", Write, Topic, Literal("dead-letter"), "events that a program refuses"),
    acl("export-warehouse", Read, Topic, Literal("transformed"), "its input"),
    acl("export-warehouse", Read, Group, Literal("export-warehouse"), "membership, plans and offsets"),
    acl("export-warehouse", Write, Topic, Literal("dead-letter"), "rows that the destination refuses"),
    acl("", Create, Topic, Prefixed(""), "makes the topics"),
    acl("", Alter, Topic, Prefixed(""), "adds partitions"),
    acl("", AlterConfigs, Topic, Prefixed(""), "retention and the like; reads them as well"),
    acl("", Read, Topic, Prefixed(""), "tells how old the oldest waiting message is"),
    acl("", Describe, Group, Prefixed(""), "how far each group is: lag"),
    acl("", Delete, Topic, Prefixed(""), "only with `deletionPolicy.topics: Delete`"),
];

/// The list as the table of the documentation.
pub fn table() -> String {
    let mut text = String::from(
        "| who | component | operation | resource | name | pattern | what for |\n|---|---|---|---|---|---|---|\n",
    );
    for acl in ACLS {
        let (who, component) = match acl.identity {
            Identity::Data => ("`data`", acl.component),
            Identity::Admin => ("`admin`", "the operator"),
        };
        let (name, pattern) = match acl.name {
            Literal(name) => (name, "literal"),
            Prefixed(name) => (name, "prefixed"),
        };
        text.push_str(&format!(
            "| {who} | {component} | {:?} | {:?} | `<prefix>{name}` | {pattern} | {} |\n",
            acl.operation, acl.resource, acl.purpose
        ));
    }
    text
}

/// The same as commands, for a pipeline `web` in the namespace `shop` whose components are the user `web` and whose operator is
/// `web-admin`. Lines about one resource of one user are one command.
pub fn commands() -> String {
    let mut commands: Vec<(String, Vec<String>)> = Vec::new();
    for acl in ACLS {
        let user = match acl.identity {
            Identity::Data => "web",
            Identity::Admin => "web-admin",
        };
        let kind = match acl.resource {
            Resource::Topic => "topic",
            Resource::Group => "group",
            Resource::TransactionalId => "transactional-id",
        };
        let (name, pattern) = match acl.name {
            Literal(name) => (name, ""),
            Prefixed(name) => (name, " --resource-pattern-type prefixed"),
        };
        let resource = format!("--{kind} shop.web.{name}{pattern}");
        let operation = format!("--operation {:?}", acl.operation);
        let beginning = format!("allow {user} ");
        match commands.iter_mut().find(|(of, _)| *of == format!("{beginning}{resource}")) {
            Some((_, operations)) if operations.contains(&operation) => {}
            Some((_, operations)) => operations.push(operation),
            None => commands.push((format!("{beginning}{resource}"), vec![operation])),
        }
    }
    let lines =
        commands.iter().map(|(resource, operations)| format!("{resource} {}\n", operations.join(" ")));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_shows_the_list_that_the_tests_run_with() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/kafka-acls.md");
        let text = std::fs::read_to_string(page).expect("the page is there");
        for part in [table(), commands()] {
            assert!(text.contains(&part), "put this into docs/reference/kafka-acls.md:\n{part}");
        }
    }

    #[test]
    fn no_line_is_there_twice() {
        for (index, acl) in ACLS.iter().enumerate() {
            let same = |other: &&Acl| {
                (other.component, other.resource, other.name, other.operation)
                    == (acl.component, acl.resource, acl.name, acl.operation)
            };
            assert_eq!(ACLS[index + 1..].iter().find(same), None, "{acl}");
        }
    }
}
