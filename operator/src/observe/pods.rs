//! Why pods do not run, for people. Read only while a component is not ready.

use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{Api, Client, ResourceExt, api::ListParams};

use super::readiness;
use crate::{
    build::{ADMIN_PORT, COMPONENT_LABEL, INSTANCE_LABEL, MANAGED_BY, MANAGED_BY_LABEL},
    validate::Owner,
};

/// Longest excerpt of what a container said at its end.
const MAX_LAST_WORDS: usize = 300;

/// The first trouble of each component's pods. Nothing when the pods cannot be listed: the report does without.
pub async fn troubles(client: &Client, owner: &Owner) -> BTreeMap<String, String> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &owner.namespace);
    let selector = format!("{MANAGED_BY_LABEL}={MANAGED_BY},{INSTANCE_LABEL}={}", owner.name);
    match api.list(&ListParams::default().labels(&selector)).await {
        Ok(pods) => {
            let mut troubles = by_component(&pods.items);
            for (component, name, address) in silent(&pods.items, &troubles) {
                if let Some(why) = readiness::ask(address, ADMIN_PORT).await {
                    troubles.insert(component, format!("pod {name}: is not ready: {why}"));
                }
            }
            troubles
        }
        Err(error) => {
            tracing::debug!(%error, "cannot list the pods");
            BTreeMap::new()
        }
    }
}

/// One trouble per component: that of the pod that is first by name.
fn by_component(pods: &[Pod]) -> BTreeMap<String, String> {
    let mut pods: Vec<&Pod> = pods.iter().collect();
    pods.sort_by_key(|pod| pod.name_any());
    let mut troubles = BTreeMap::new();
    for pod in pods {
        let Some(component) = pod.labels().get(COMPONENT_LABEL) else { continue };
        if let Some(why) = trouble(pod) {
            troubles.entry(component.clone()).or_insert_with(|| format!("pod {}: {why}", pod.name_any()));
        }
    }
    troubles
}

/// Of each component without a known trouble the first pod, by name, that runs and is not ready: it can be asked.
fn silent(pods: &[Pod], troubles: &BTreeMap<String, String>) -> Vec<(String, String, IpAddr)> {
    let mut found: BTreeMap<&str, (String, IpAddr)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let Some(component) = pod.labels().get(COMPONENT_LABEL) else { continue };
        let Some(status) = &pod.status else { continue };
        let runs_unready = status.container_statuses.iter().flatten().any(|container| {
            !container.ready && container.state.as_ref().is_some_and(|state| state.running.is_some())
        });
        let address = status.pod_ip.as_deref().and_then(|address| address.parse().ok());
        if let (true, false, Some(address)) = (runs_unready, troubles.contains_key(component), address) {
            let name = pod.name_any();
            match found.get(component.as_str()) {
                Some((first, _)) if *first <= name => {}
                _ => drop(found.insert(component, (name, address))),
            }
        }
    }
    found.into_iter().map(|(component, (name, address))| (component.to_owned(), name, address)).collect()
}

/// Worded so that it stays the same while nothing changes: neither pauses nor counts are in it.
fn trouble(pod: &Pod) -> Option<String> {
    if pod.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let status = pod.status.as_ref()?;
    if let Some(why) = status.container_statuses.iter().flatten().find_map(container_trouble) {
        return Some(why);
    }
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    Some(format!("cannot be scheduled: {}", unscheduled.message.as_deref().unwrap_or("no reason given")))
}

fn container_trouble(container: &ContainerStatus) -> Option<String> {
    let state = container.state.as_ref()?;
    let ended = state
        .terminated
        .as_ref()
        .or_else(|| container.last_state.as_ref().and_then(|last| last.terminated.as_ref()));
    let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref());
    match waiting {
        Some("ErrImagePull" | "ImagePullBackOff") => {
            return Some(format!("the image {} cannot be pulled", container.image));
        }
        Some("CrashLoopBackOff") | None => {}
        Some("ContainerCreating" | "PodInitializing") => return None,
        Some(reason) => {
            let message = state.waiting.as_ref().and_then(|waiting| waiting.message.as_deref());
            return Some(format!("{reason}: {}", message.unwrap_or("no message")));
        }
    }
    if container.ready {
        return None;
    }
    let ended = ended?;
    let words = ended.message.as_deref().unwrap_or_default().trim();
    let last = words.lines().last().unwrap_or_default();
    let excerpt: String = last.chars().take(MAX_LAST_WORDS).collect();
    Some(format!(
        "its container ended with {} (exit code {}){}{excerpt}",
        ended.reason.as_deref().unwrap_or("Error"),
        ended.exit_code,
        if excerpt.is_empty() { "" } else { ": " },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: &str) -> Pod {
        serde_yaml_ng::from_str(&format!(
            "{{metadata: {{name: web-capture-x, labels: {{app.kubernetes.io/component: capture}}}}, status: {status}}}"
        ))
        .unwrap()
    }

    fn container(state: &str) -> Pod {
        pod(&format!(
            "{{containerStatuses: [{{name: capture, image: 'r/p:1', imageID: '', ready: false, restartCount: 3, {state}}}]}}"
        ))
    }

    #[test]
    fn the_two_words_for_one_missing_image_are_one_trouble() {
        let texts: Vec<Option<String>> = ["ErrImagePull", "ImagePullBackOff"]
            .map(|reason| {
                trouble(&container(&format!("state: {{waiting: {{reason: {reason}, message: m}}}}")))
            })
            .to_vec();
        assert_eq!(texts[0].as_deref(), Some("the image r/p:1 cannot be pulled"));
        assert_eq!(texts[0], texts[1]);
    }

    #[test]
    fn a_crash_is_told_with_its_last_words() {
        let crashed = container(
            "state: {waiting: {reason: CrashLoopBackOff, message: 'back-off 10s'}}, \
             lastState: {terminated: {exitCode: 2, reason: Error, message: \"first\\nno such topic\\n\"}}",
        );
        assert_eq!(
            trouble(&crashed).as_deref(),
            Some("its container ended with Error (exit code 2): no such topic")
        );
    }

    #[test]
    fn a_pod_that_finds_no_node_says_why() {
        let pending =
            pod("{conditions: [{type: PodScheduled, status: 'False', message: '0/3 nodes are available'}]}");
        assert_eq!(trouble(&pending).as_deref(), Some("cannot be scheduled: 0/3 nodes are available"));
    }

    #[test]
    fn a_pod_that_starts_is_no_trouble() {
        assert_eq!(trouble(&container("state: {waiting: {reason: ContainerCreating}}")), None);
        assert_eq!(trouble(&container("state: {running: {}}")), None);
    }

    #[test]
    fn a_pod_that_runs_and_is_not_ready_is_asked_once_per_component() {
        let running = |name: &str, ready: bool| {
            let mut pod = pod(&format!(
                "{{podIP: 192.0.2.7, containerStatuses: [{{name: capture, image: i, imageID: '', ready: {ready}, \
                 restartCount: 0, state: {{running: {{}}}}}}]}}"
            ));
            pod.metadata.name = Some(name.to_owned());
            pod
        };
        let pods = [running("c", false), running("b", false), running("a", true)];
        let address: IpAddr = "192.0.2.7".parse().unwrap();
        assert_eq!(silent(&pods, &BTreeMap::new()), [("capture".to_owned(), "b".to_owned(), address)]);
        let known = BTreeMap::from([("capture".to_owned(), "it crashes".to_owned())]);
        assert_eq!(silent(&pods, &known), []);
        assert_eq!(
            silent(&[container("state: {waiting: {reason: CrashLoopBackOff}}")], &BTreeMap::new()),
            []
        );
    }

    #[test]
    fn components_are_told_apart() {
        let crashed = container("state: {terminated: {exitCode: 137, reason: OOMKilled}}");
        assert_eq!(
            by_component(&[crashed]),
            BTreeMap::from([(
                "capture".to_owned(),
                "pod web-capture-x: its container ended with OOMKilled (exit code 137)".to_owned()
            )])
        );
    }
}
