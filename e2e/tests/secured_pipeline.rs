//! Whole pipelines over encrypted connections, as somebody who may do exactly what the list of ACLs says: every event is
//! there once, also while passwords and certificates are renewed and rights come and go; what is wrong is named in the
//! status; and nothing secret is shown.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::{
    api::{core::v1::Pod, events::v1::Event},
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use penstock_e2e::{
    acls::{ACLS, Acl, Identity, Name, Operation, Resource},
    audit::account::Account,
    chaos::{
        ordeal::{self, Size},
        strike::Striker,
    },
    cluster::wait_until,
    load::Pace,
    pipeline::TestPipeline,
    secrecy,
    secured::{self, CLICKHOUSE_DATA, Identities, KAFKA_ADMIN, KAFKA_DATA, Proof},
    truth,
};
use penstock_platform::pki;
use serde_json::json;

/// What a change needs to be seen by the operator and told by the pods, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Port of Kafka for who has a password.
const SASL: u16 = 9095;
/// Port of /metrics in a pod.
const ADMIN: u16 = 9090;
const COMPONENTS: [&str; 4] = ["capture", "consumer-main", "transformation", "export-warehouse"];

fn size(events: u64) -> Size {
    Size { events, rate: 500, patience: Duration::from_secs(240) }
}

/// A pipeline with identities of this kind under load, while `trouble` is made. In the end nothing is lost or doubled,
/// nothing secret was shown, and the pipeline takes its topics and its table away by its own rights.
async fn secured_by(
    purpose: &str,
    proof: Proof,
    events: u64,
    trouble: impl AsyncFnOnce(&TestPipeline, &Identities<'_>, &mut Striker<'_>, &Pace) -> Result<()>,
) -> Result<()> {
    let began = Timestamp::now();
    TestPipeline::with(purpose, async |pipeline| {
        Identities::with(pipeline, proof, async |identities| {
            let trouble = async |striker: &mut Striker<'_>, pace: &Pace| {
                secrecy::root_is_read_only(pipeline).await?;
                trouble(pipeline, identities, striker, pace).await
            };
            let judge = async |_: &TestPipeline, account: &Account| {
                let sent = account.sent.context("there is a journal")?;
                ensure!(sent.acknowledged >= events && sent.refused == 0, "the load was another one");
                Ok(())
            };
            // Once is enough.
            let each_right = proof == Proof::AccountToken;
            if each_right {
                wait_to_make_topics(pipeline, identities).await?;
            }
            ordeal::on(pipeline, identities.spec(), size(events), trouble, judge).await?;
            let mut secrets = identities.written();
            if proof == Proof::AccountToken {
                secrets.extend(secrecy::account_tokens(pipeline).await?);
            }
            secrecy::nothing_is_shown(pipeline, &secrets, began).await?;
            if each_right {
                wait_to_delete_topics(pipeline, identities).await?;
            }
            delete(pipeline).await
        })
        .await
    })
    .await
}

/// A line of the list that is the operator's.
fn line(operation: Operation, resource: Resource) -> Result<&'static Acl> {
    let found =
        |acl: &&Acl| (acl.identity, acl.operation, acl.resource) == (Identity::Admin, operation, resource);
    ACLS.iter().find(found).with_context(|| format!("the list has no {operation:?} of a {resource:?}"))
}

/// Applies the pipeline while the operator may not make its topics.
async fn wait_to_make_topics(pipeline: &TestPipeline, identities: &Identities<'_>) -> Result<()> {
    let create = line(Operation::Create, Resource::Topic)?;
    identities.take_back(create)?;
    pipeline.apply(&identities.spec()).await?;
    condition_says(pipeline, "KafkaReady", "NotAuthorized", &["lacks the ACL Create on that topic"]).await?;
    identities.allow(create)
}

/// Deletes the pipeline while the operator may not delete its topics, which an Event says.
async fn wait_to_delete_topics(pipeline: &TestPipeline, identities: &Identities<'_>) -> Result<()> {
    let delete = line(Operation::Delete, Resource::Topic)?;
    identities.take_back(delete)?;
    pipeline.api.delete(&pipeline.name, &DeleteParams::default()).await?;
    let events: Api<Event> = Api::namespaced(pipeline.cluster.client.clone(), &pipeline.namespace);
    wait_until("an Event tells that the topics cannot be deleted", PATIENCE, async || {
        Ok(events.list(&ListParams::default()).await?.iter().any(|event| {
            event.reason.as_deref() == Some("CleanupFailed")
                && event.note.as_deref().is_some_and(|note| note.contains("lacks the ACL Delete"))
        }))
    })
    .await?;
    identities.allow(delete)
}

/// Deletes the pipeline, and its topics and its table with it.
async fn delete(pipeline: &TestPipeline) -> Result<()> {
    let object = pipeline.api.get_opt(&pipeline.name).await?;
    if object.is_some_and(|object| object.metadata.deletion_timestamp.is_none()) {
        pipeline.api.delete(&pipeline.name, &DeleteParams::default()).await?;
    }
    wait_until("the pipeline is gone", PATIENCE, async || {
        Ok(pipeline.api.get_opt(&pipeline.name).await?.is_none())
    })
    .await?;
    let (servers, topic) = (pipeline.cluster.kafka(), pipeline.topic("captured"));
    let partitions = tokio::task::spawn_blocking(move || truth::partitions(&servers, &topic)).await??;
    ensure!(partitions == 0, "the topic is there still");
    let tables = format!("SELECT count() FROM system.tables WHERE database = '{}'", pipeline.database);
    ensure!(pipeline.cluster.warehouse.number(&tables).await? == 0, "the table is there still");
    Ok(())
}

/// Waits until the message of a component has all of this.
async fn component_says(pipeline: &TestPipeline, component: &str, says: &[&str]) -> Result<()> {
    wait_until(&format!("{component} says {says:?}"), PATIENCE, async || {
        let status = pipeline.get().await?.status.unwrap_or_default();
        let found = status.components.into_iter().find(|one| one.name == component);
        let message = found.and_then(|one| one.message).unwrap_or_default();
        Ok(says.iter().all(|part| message.contains(part)))
    })
    .await
}

/// Waits until a condition has this reason and its message all of this.
async fn condition_says(pipeline: &TestPipeline, type_: &str, reason: &str, says: &[&str]) -> Result<()> {
    wait_until(&format!("{type_} is {reason} and says {says:?}"), PATIENCE, async || {
        let condition = pipeline.condition(type_).await?;
        Ok(condition.is_some_and(|condition| {
            condition.reason == reason && says.iter().all(|part| condition.message.contains(part))
        }))
    })
    .await
    .with_context(|| format!("pipeline {}/{}", pipeline.namespace, pipeline.name))
}

async fn pods_of(pipeline: &TestPipeline, component: &str) -> Result<Vec<String>> {
    let pods = pipeline.cluster.pods(&pipeline.namespace, component).await?;
    let live = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let names: Vec<String> = live.map(ResourceExt::name_any).collect();
    ensure!(!names.is_empty(), "{component} has no pod");
    Ok(names)
}

/// Makes the kubelet look at the pods of a component now. It brings what is new in a Secret at its next look at a pod, which
/// would be within a minute and a half.
async fn nudge(pipeline: &TestPipeline, component: &str) -> Result<()> {
    let api: Api<Pod> = Api::namespaced(pipeline.cluster.client.clone(), &pipeline.namespace);
    let look = json!({"metadata": {"annotations": {"test/look": Timestamp::now().to_string()}}});
    for pod in pods_of(pipeline, component).await? {
        api.patch(&pod, &PatchParams::default(), &Patch::Merge(&look)).await?;
    }
    Ok(())
}

/// Waits until the pods of these components tell by a metric that they have read credentials again.
async fn taken_up(pipeline: &TestPipeline, components: &[&str], metric: &str) -> Result<()> {
    for component in components {
        nudge(pipeline, component).await?;
    }
    for component in components {
        for pod in pods_of(pipeline, component).await? {
            let forward = pipeline.cluster.forward_to_pod(&pipeline.namespace, &pod, ADMIN).await?;
            wait_until(&format!("{pod} has taken up what is new"), PATIENCE, async || {
                let metrics = reqwest::get(format!("{}/metrics", forward.url())).await?.text().await?;
                let mut counts = metrics.lines().filter(|line| line.starts_with(metric));
                Ok(counts.any(|line| line.rsplit(' ').next().is_some_and(|count| count != "0")))
            })
            .await?;
        }
    }
    Ok(())
}

/// Closes the connections of all pods to Kafka, so that new ones are made.
async fn hang_up(pipeline: &TestPipeline) -> Result<()> {
    for component in COMPONENTS {
        for pod in pods_of(pipeline, component).await? {
            let closed = pipeline.cluster.container(&pipeline.namespace, &pod).await?.hang_up(SASL)?;
            ensure!(closed > 0, "{pod} had no connection to Kafka");
        }
    }
    Ok(())
}

/// Waits until more events have come into the table: every component works.
async fn flows(pipeline: &TestPipeline, pace: &Pace, what: &str) -> Result<()> {
    // Those that are acknowledged from now on.
    let wanted = pace.acknowledged() + 1_000;
    wait_until(&format!("events flow with {what}"), PATIENCE, async || Ok(pace.acknowledged() > wanted))
        .await?;
    let rows = pipeline.rows().await?;
    pipeline.wait_rows(rows + 1_000, PATIENCE).await.with_context(|| format!("with {what}"))?;
    println!("{}: {what}, {} events so far", pipeline.namespace, pace.acknowledged());
    Ok(())
}

/// Every pod of the pipeline, with how often it was started.
async fn starts(pipeline: &TestPipeline) -> Result<Vec<(String, i32)>> {
    let mut starts = Vec::new();
    for component in COMPONENTS {
        for pod in pipeline.cluster.pods(&pipeline.namespace, component).await? {
            let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
            starts.push((pod.name_any(), containers.map(|container| container.restart_count).sum()));
        }
    }
    starts.sort();
    Ok(starts)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn passwords_are_renewed_under_load_without_a_restart() -> Result<()> {
    secured_by("secured-password", Proof::Password, 10_000, async |pipeline, identities, _, pace| {
        let before = starts(pipeline).await?;
        // The components' password: in Kafka first, in the Secret next.
        let password = identities.set_password(Identity::Data)?;
        identities.put_password(Identity::Data, &password).await?;
        taken_up(pipeline, &COMPONENTS, "penstock_kafka_credentials_reloads_total").await?;
        hang_up(pipeline).await?;
        flows(pipeline, pace, "a new password of the components in Kafka").await?;

        // The operator's: in the Secret first, which is told; then in Kafka.
        let unknown = "seen-nowhere-and-known-to-nobody";
        identities.put_password(Identity::Admin, unknown).await?;
        let keys = format!("keys \"username\" and \"password\" of Secret \"{KAFKA_ADMIN}\"");
        let field = "spec.kafka.auth.admin.scramSha512";
        condition_says(pipeline, "KafkaReady", "AuthenticationFailed", &[&keys, field]).await?;
        let password = identities.set_password(Identity::Admin)?;
        identities.put_password(Identity::Admin, &password).await?;
        condition_says(pipeline, "KafkaReady", "AsSpecified", &[]).await?;

        // The export's user: one that may not write, a password that is wrong, and then another user that may.
        let user = format!("key \"username\" of Secret \"{CLICKHOUSE_DATA}\"");
        let password = format!("key \"password\" of Secret \"{CLICKHOUSE_DATA}\"");
        identities.put_user(CLICKHOUSE_DATA, secured::READER).await?;
        taken_up(
            pipeline,
            &["export-warehouse"],
            "penstock_live_file_reloads_total{file=\"clickhouse_password\"",
        )
        .await?;
        component_says(pipeline, "export-warehouse", &[&user, "lacks the grant INSERT"]).await?;
        identities.put_user(CLICKHOUSE_DATA, (secured::DATA.0, unknown)).await?;
        nudge(pipeline, "export-warehouse").await?;
        component_says(pipeline, "export-warehouse", &["does not take", &user, &password]).await?;
        identities.put_user(CLICKHOUSE_DATA, secured::OTHER_DATA).await?;
        nudge(pipeline, "export-warehouse").await?;
        flows(pipeline, pace, "another user of the export in ClickHouse").await?;

        ensure!(starts(pipeline).await? == before, "a new password has started pods anew");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn certificates_are_renewed_under_load_and_a_wrong_one_stops_nothing() -> Result<()> {
    secured_by("secured-certificate", Proof::Certificate, 10_000, async |pipeline, identities, _, pace| {
        let (began, before) = (Timestamp::now(), starts(pipeline).await?);
        identities.give_strange_certificate(Identity::Data).await?;
        identities.give_strange_certificate(Identity::Admin).await?;
        let certificate = format!("key \"tls.crt\" of Secret \"{KAFKA_DATA}\"");
        for component in COMPONENTS {
            component_says(pipeline, component, &["does not take the certificate of", &certificate]).await?;
        }
        let keys = format!("keys \"tls.crt\" and \"tls.key\" of Secret \"{KAFKA_ADMIN}\"");
        condition_says(pipeline, "KafkaReady", "ClientCertificateRefused", &[&keys]).await?;
        flows(pipeline, pace, "a certificate in the Secret that Kafka does not trust").await?;
        // While there are pods that have met it: they are gone at the end.
        secrecy::nothing_is_shown(pipeline, &identities.written(), began).await?;

        // Authorities that did not sign what the servers show.
        let (stranger, _) = pki::stranger("nobody")?;
        identities.give_certificate(Identity::Data).await?;
        identities.give_certificate(Identity::Admin).await?;
        identities.trust(&[&stranger]).await?;
        let of_kafka = "trusted are the authorities of key \"ca.crt\" of Secret \"kafka-ca\"";
        let of_clickhouse = "trusted are the authorities of key \"bundle.pem\" of ConfigMap \"company-ca\"";
        // An export looks for its table first.
        for component in COMPONENTS {
            let says = if component == "export-warehouse" { of_clickhouse } else { of_kafka };
            component_says(pipeline, component, &[says]).await?;
        }
        condition_says(pipeline, "KafkaReady", "CertificateNotTrusted", &["Secret \"kafka-ca\""]).await?;
        condition_says(pipeline, "ClickHouseReady", "CertificateNotTrusted", &["ConfigMap \"company-ca\""])
            .await?;
        flows(pipeline, pace, "authorities that did not sign the servers' certificates").await?;

        // As an authority is renewed: both are trusted for a while.
        identities.trust(&[&stranger, &secured::services_authority()?]).await?;
        condition_says(pipeline, "KafkaReady", "AsSpecified", &[]).await?;
        condition_says(pipeline, "ClickHouseReady", "AsSpecified", &[]).await?;
        wait_until("all pods are others than before", PATIENCE, async || {
            let now = starts(pipeline).await?;
            Ok(!now.iter().any(|(pod, _)| before.iter().any(|(old, _)| pod == old)))
        })
        .await?;
        pipeline.wait_ready(PATIENCE).await?;
        flows(pipeline, pace, "a new certificate, and two authorities").await
    })
    .await
}

/// What a component that lacks this is told to need.
fn wanted(pipeline: &TestPipeline, acl: &Acl) -> String {
    let (Name::Literal(name) | Name::Prefixed(name)) = acl.name;
    format!("{:?} on {:?} {}", acl.operation, acl.resource, pipeline.topic(name))
}

/// Takes the components' rights back, one of each component at a time; what is missing must be told.
async fn each_right_of_the_components(pipeline: &TestPipeline, identities: &Identities<'_>) -> Result<()> {
    // Of capture later, so that messages wait while the operator may not look at them.
    let lists = COMPONENTS.map(|component| {
        let of_component: Vec<&Acl> = ACLS.iter().filter(|acl| acl.component == component).collect();
        (component, if component == "capture" { 3 } else { 0 }, of_component)
    });
    let read = line(Operation::Read, Resource::Topic)?;
    let mut tried = 0;
    for round in 0.. {
        let taken: Vec<(&str, &Acl)> = lists
            .iter()
            .filter_map(|(component, later, list)| {
                Some((*component, *list.get(usize::checked_sub(round, *later)?)?))
            })
            .collect();
        if taken.is_empty() {
            break;
        }
        for (_, acl) in &taken {
            identities.take_back(acl)?;
        }
        if round == 0 {
            identities.take_back(read)?;
        }
        for (component, acl) in &taken {
            component_says(pipeline, component, &[&wanted(pipeline, acl)]).await?;
            println!("{}: {component} says that it lacks {acl}", pipeline.namespace);
        }
        if round == 0 {
            condition_says(pipeline, "KafkaReady", "NotAuthorized", &["lacks the ACL Read on that topic"])
                .await?;
            identities.allow(read)?;
        }
        for (_, acl) in &taken {
            identities.allow(acl)?;
        }
        tried += taken.len();
    }
    let all = ACLS.iter().filter(|acl| acl.identity == Identity::Data).count();
    ensure!(tried == all, "{tried} rights of {all} were tried");
    Ok(())
}

/// The same of what the operator needs to change and to look at.
async fn rights_of_the_operator(
    pipeline: &TestPipeline,
    identities: &Identities<'_>,
    striker: &mut Striker<'_>,
) -> Result<()> {
    let says =
        async |message: &str| condition_says(pipeline, "KafkaReady", "NotAuthorized", &[message]).await;
    let alter = line(Operation::Alter, Resource::Topic)?;
    identities.take_back(alter)?;
    striker.spec["kafka"]["topics"]["dead-letter"]["partitions"] = json!(2);
    striker.apply().await?;
    says("lacks the ACL Alter on that topic").await?;
    identities.allow(alter)?;

    let configs = line(Operation::AlterConfigs, Resource::Topic)?;
    identities.take_back(configs)?;
    says("Configs on that topic").await?;
    identities.allow(configs)?;

    let describe = line(Operation::Describe, Resource::Group)?;
    identities.take_back(describe)?;
    says("lacks the ACL Describe on that group").await?;
    identities.allow(describe)?;
    condition_says(pipeline, "KafkaReady", "AsSpecified", &[]).await?;

    // A token that is for somebody else, and the next one.
    identities.give_admin_token("somebody-else").await?;
    let key = format!("key \"token\" of Secret \"{KAFKA_ADMIN}\"");
    condition_says(pipeline, "KafkaReady", "AuthenticationFailed", &[&key]).await?;
    identities.give_admin_token("kafka").await?;
    condition_says(pipeline, "KafkaReady", "AsSpecified", &[]).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn account_tokens_give_each_component_its_own_rights_and_a_missing_one_is_named() -> Result<()> {
    secured_by("secured-token", Proof::AccountToken, 10_000, async |pipeline, identities, striker, pace| {
        rights_of_the_operator(pipeline, identities, striker).await?;
        each_right_of_the_components(pipeline, identities).await?;
        pipeline.wait_ready(PATIENCE).await?;
        flows(pipeline, pace, "all rights given back").await
    })
    .await
}
