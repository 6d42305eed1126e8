//! What a person would want to be told, once. Derived from what changed between two statuses, so that a restart of the
//! operator tells nothing twice.

use std::sync::atomic::{AtomicU32, Ordering};

use k8s_openapi::{
    api::events::v1::Event,
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, Resource, ResourceExt, api::PostParams, runtime::events::EventType};
use penstock_crds::{FIELD_MANAGER, IngestionPipeline, IngestionPipelineStatus};

/// Longest note that the API takes.
const MAX_NOTE_BYTES: usize = 1_024;

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Normal or Warning.
    pub type_: EventType,
    /// One word in PascalCase.
    pub reason: String,
    /// What was being done: `Apply`, `Validate`, `Observe`, `CleanUp`.
    pub action: &'static str,
    /// For people.
    pub note: String,
}

impl Notice {
    /// Something went its way.
    pub fn normal(reason: impl Into<String>, action: &'static str, note: impl Into<String>) -> Self {
        Self { type_: EventType::Normal, reason: reason.into(), action, note: note.into() }
    }

    /// Somebody should look.
    pub fn warning(reason: impl Into<String>, action: &'static str, note: impl Into<String>) -> Self {
        Self { type_: EventType::Warning, reason: reason.into(), action, note: note.into() }
    }

    /// The note, short enough for the API.
    fn short_note(&self) -> String {
        let mut note = self.note.clone();
        if note.len() > MAX_NOTE_BYTES {
            let mut end = MAX_NOTE_BYTES - "…".len();
            while !note.is_char_boundary(end) {
                end -= 1;
            }
            note.truncate(end);
            note.push('…');
        }
        note
    }
}

/// Tells people, by Events.
///
/// The recorder of the client library counts Events of one reason together and keeps the words of the first, so that of
/// four topics created one would be named.
pub struct Publisher {
    client: Client,
    instance: String,
    told: AtomicU32,
}

impl Publisher {
    /// `instance` is the name of the operator's pod.
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance, told: AtomicU32::new(0) }
    }

    /// Publishes each. An Event that cannot be written is logged and nothing else: what it tells is in the status, too.
    pub async fn publish_all(&self, object: &IngestionPipeline, notices: &[Notice]) {
        let namespace = object.namespace().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        for notice in notices {
            let event = self.event(object, &namespace, notice);
            if let Err(error) = api.create(&PostParams::default(), &event).await {
                tracing::warn!(%error, reason = notice.reason, note = notice.note, "cannot publish an Event");
            }
        }
    }

    fn event(&self, object: &IngestionPipeline, namespace: &str, notice: &Notice) -> Event {
        let now = Timestamp::now();
        let nth = self.told.fetch_add(1, Ordering::Relaxed);
        let type_ = match notice.type_ {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        };
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:x}{:04x}", object.name_any(), now.as_microsecond(), nth & 0xffff)),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(FIELD_MANAGER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            action: Some(notice.action.to_owned()),
            reason: Some(notice.reason.clone()),
            note: Some(notice.short_note()),
            type_: Some(type_.to_owned()),
            regarding: Some(object.object_ref(&())),
            ..Event::default()
        }
    }
}

fn find<'a>(status: &'a IngestionPipelineStatus, type_: &str) -> Option<&'a Condition> {
    status.conditions.iter().find(|condition| condition.type_ == type_)
}

fn is(condition: Option<&Condition>, status: &str) -> bool {
    condition.is_some_and(|condition| condition.status == status)
}

/// What is new in `new`.
pub fn transitions(old: &IngestionPipelineStatus, new: &IngestionPipelineStatus) -> Vec<Notice> {
    let mut notices = Vec::new();
    let (before, after) = (find(old, "Stalled"), find(new, "Stalled"));
    if let Some(after) = after.filter(|after| after.status == "True") {
        let told = before.is_some_and(|before| before.status == "True" && before.message == after.message);
        if !told {
            notices.push(Notice::warning(&after.reason, "Validate", &after.message));
        }
    }
    for type_ in ["KafkaReady", "ClickHouseReady"] {
        let (before, after) = (find(old, type_), find(new, type_));
        let Some(after) = after else { continue };
        let name = type_.trim_end_matches("Ready");
        // What stalls the pipeline has been told above.
        let stalls = find(new, "Stalled")
            .is_some_and(|stalled| stalled.status == "True" && stalled.reason == after.reason);
        if after.status == "False" && !is(before, "False") && !stalls {
            notices.push(Notice::warning(format!("{name}{}", after.reason), "Observe", &after.message));
        } else if after.status == "True" && is(before, "False") {
            notices.push(Notice::normal(type_, "Observe", &after.message));
        }
    }
    if let Some(after) = find(new, "Ready").filter(|after| after.status == "True")
        && !is(find(old, "Ready"), "True")
    {
        notices.push(Notice::normal("Ready", "Apply", &after.message));
    }
    notices
}

#[cfg(test)]
mod tests {
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    use super::*;

    fn status(conditions: &[(&str, &str, &str, &str)]) -> IngestionPipelineStatus {
        IngestionPipelineStatus {
            conditions: conditions
                .iter()
                .map(|(type_, status, reason, message)| Condition {
                    type_: (*type_).to_owned(),
                    status: (*status).to_owned(),
                    reason: (*reason).to_owned(),
                    message: (*message).to_owned(),
                    observed_generation: None,
                    last_transition_time: Time(Timestamp::UNIX_EPOCH),
                })
                .collect(),
            ..IngestionPipelineStatus::default()
        }
    }

    fn reasons(old: &IngestionPipelineStatus, new: &IngestionPipelineStatus) -> Vec<String> {
        transitions(old, new).into_iter().map(|notice| notice.reason).collect()
    }

    #[test]
    fn what_has_been_told_is_not_told_again() {
        let stalled = status(&[("Stalled", "True", "InvalidSpec", "a")]);
        let otherwise = status(&[("Stalled", "True", "InvalidSpec", "b")]);
        assert_eq!(reasons(&status(&[]), &stalled), ["InvalidSpec"]);
        assert_eq!(reasons(&stalled, &stalled), Vec::<String>::new());
        assert_eq!(reasons(&stalled, &otherwise), ["InvalidSpec"]);
    }

    #[test]
    fn a_dependency_that_goes_and_comes_back_is_told_twice() {
        let up = status(&[("KafkaReady", "True", "AsSpecified", "")]);
        let down = status(&[("KafkaReady", "False", "Unreachable", "no answer")]);
        assert_eq!(reasons(&up, &down), ["KafkaUnreachable"]);
        assert_eq!(reasons(&down, &down), Vec::<String>::new());
        assert_eq!(reasons(&down, &up), ["KafkaReady"]);
        assert_eq!(reasons(&status(&[]), &up), Vec::<String>::new());
    }

    #[test]
    fn a_refusal_is_told_once_not_as_two_conditions() {
        let refused = status(&[
            ("Stalled", "True", "PartitionDecreaseRefused", "m"),
            ("KafkaReady", "False", "PartitionDecreaseRefused", "m"),
        ]);
        assert_eq!(reasons(&status(&[]), &refused), ["PartitionDecreaseRefused"]);
    }

    #[test]
    fn a_long_note_is_cut_at_a_character() {
        assert!(Notice::normal("R", "A", "ä".repeat(2_000)).short_note().len() <= MAX_NOTE_BYTES);
    }
}
