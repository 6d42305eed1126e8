//! Which of the rights that a component needs in Kafka are missing, by name.
//!
//! The client's errors come late or never: a consumer whose group may not be joined waits without a word, one that may not
//! fetch believes in the end that it saw last, and capture hears of a missing right when a client's events are on their
//! way. So the brokers are asked what is allowed, at the start and then every few seconds. Without an authorizer, everything
//! is. Transactional ids cannot be asked for; what is refused there is told at once.

use std::{
    collections::BTreeMap,
    fmt,
    time::{Duration, Instant},
};

use rdkafka::client::{Client, ClientContext};

use super::{
    admin::{self, AdminError, Allowed, Operation},
    failure::Resource,
};

/// How often to ask while nothing is missing.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// How often to ask while something is.
pub const INTERVAL_WHILE_DENIED: Duration = Duration::from_secs(2);

/// How long a group is not asked for after a question that nobody answered.
const GROUP_SILENCE: Duration = Duration::from_secs(60);

/// What a component does with topics and a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    topics: Vec<(String, Operation)>,
    group: Option<String>,
}

/// A right that a component needs and has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What it may not do.
    pub operation: Operation,
    /// With what kind of thing.
    pub resource: Resource,
    /// With which one.
    pub name: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} on {} {}", self.operation, self.resource.name(), self.name)
    }
}

impl Needs {
    /// Reads a topic.
    pub fn read(mut self, topic: impl Into<String>) -> Self {
        self.topics.push((topic.into(), Operation::Read));
        self
    }

    /// Writes to a topic.
    pub fn write(mut self, topic: impl Into<String>) -> Self {
        self.topics.push((topic.into(), Operation::Write));
        self
    }

    /// Is a member of a group, and commits its offsets.
    pub fn group(mut self, group: impl Into<String>) -> Self {
        self.group = Some(group.into());
        self
    }

    /// One who asks for it.
    pub fn asker(self) -> Asker {
        Asker { needs: self, group_from: None }
    }

    fn lacking(&self, topics: &BTreeMap<String, Allowed>, group: &Allowed) -> Vec<Missing> {
        let of_topics = self.topics.iter().filter_map(|(topic, operation)| {
            let denied = topics.get(topic).is_some_and(|allowed| allowed.denies(*operation));
            denied.then(|| Missing { operation: *operation, resource: Resource::Topic, name: topic.clone() })
        });
        let of_group = self.group.iter().filter(|_| group.denies(Operation::Read)).map(|group| Missing {
            operation: Operation::Read,
            resource: Resource::Group,
            name: group.clone(),
        });
        of_topics.chain(of_group).collect()
    }
}

/// Asks the brokers what of some needs is not allowed.
#[derive(Clone, Debug)]
pub struct Asker {
    needs: Needs,
    /// When the group is worth another question.
    group_from: Option<Instant>,
}

impl Asker {
    /// Asks. Blocks for at most twice `timeout` and some seconds.
    ///
    /// Of a group whose coordinator does not answer nothing is known, and it is not asked for a while: librdkafka 2.12
    /// remembers the coordinator of a group as a broker that it has given up meanwhile, and then no question about that group
    /// is ever answered to this client. Seen after a restart of a single broker.
    ///
    /// # Errors
    /// Nobody answers about the topics.
    pub fn missing<C: ClientContext>(
        &mut self,
        client: &Client<C>,
        timeout: Duration,
    ) -> Result<Vec<Missing>, AdminError> {
        let mut names: Vec<&str> = self.needs.topics.iter().map(|(topic, _)| topic.as_str()).collect();
        // One that is read and written is asked for once.
        names.sort_unstable();
        names.dedup();
        let topics = admin::allowed_on_topics(client, &names, timeout)?;
        let now = Instant::now();
        let group = match &self.needs.group {
            Some(group) if self.group_from.is_none_or(|from| from <= now) => {
                let answer = admin::allowed_on_group(client, group, timeout);
                self.group_from = answer.is_err().then(|| now + GROUP_SILENCE);
                answer.unwrap_or(Allowed::Unknown)
            }
            _ => Allowed::Unknown,
        };
        Ok(self.needs.lacking(&topics, &group))
    }
}

/// Words for people. `None`: nothing is missing.
pub fn told(missing: &[Missing]) -> Option<String> {
    if missing.is_empty() {
        return None;
    }
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    Some(format!("Kafka does not allow {}; add the ACL", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_by_operation_and_resource() {
        let needs =
            Needs::default().read("p.captured").write("p.ingested").write("p.dead-letter").group("p.main");
        let (read, write) = (Allowed::These(vec![3, 8]), Allowed::These(vec![4, 8]));
        let topics = |sink: Allowed| {
            BTreeMap::from([
                ("p.captured".to_owned(), read.clone()),
                ("p.ingested".to_owned(), sink),
                ("p.dead-letter".to_owned(), write.clone()),
            ])
        };
        assert_eq!(told(&needs.lacking(&topics(write.clone()), &read)), None);
        assert_eq!(
            told(&needs.lacking(&topics(read.clone()), &Allowed::Nothing)).as_deref(),
            Some("Kafka does not allow Write on Topic p.ingested, Read on Group p.main; add the ACL")
        );
        // A broker that does not say, or that has no authorizer.
        assert_eq!(told(&needs.lacking(&BTreeMap::new(), &Allowed::Unknown)), None);
    }
}
