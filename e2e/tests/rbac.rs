//! The rights that the chart gives to the operator: enough for everything that it does, and none that it could do without.
//!
//! An operator runs with the chart's rules, and then one after another with each rule's verb taken away. It makes the children
//! of a pipeline, changes them, removes what is not wanted, and cleans up after the pipeline. Each time the API server must
//! refuse exactly the right that was taken away, and the operator must say so.

use std::{
    fmt,
    fs::File,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures::{StreamExt, stream};
use k8s_openapi::api::{
    apps::v1::Deployment,
    authentication::v1::TokenRequest,
    authorization::v1::SubjectAccessReview,
    core::v1::{ConfigMap, Namespace, Secret, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{PolicyRule, Role, RoleBinding},
};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use penstock_crds::IngestionPipeline;
use penstock_e2e::{
    cluster::{Cluster, wait_until},
    truth,
    warehouse::quoted,
};
use penstock_platform::layout::Layout;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// Keeps the operator that is installed away from the pipelines of this test.
const CLASS: &str = "rbac-test";
const NAME: &str = "web";
/// Operators at a time, on a machine of two cores.
const AT_A_TIME: usize = 6;
/// What one round may take; it takes some seconds where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(120);

/// One verb on one resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    resource: String,
    verb: String,
}

impl fmt::Display for Right {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.verb, self.resource)
    }
}

impl Right {
    /// What the API server answers when this right is missing, as it stands in a log or a status.
    fn refusal(&self) -> String {
        if self.resource == "ingestionpipelines/finalizers" {
            // Asked for when a child blocks the deletion of its owner, by the admission plugin for owner references.
            return "cannot set blockOwnerDeletion".to_owned();
        }
        format!("cannot {} resource \"{}\"", self.verb, self.resource)
    }
}

/// The rules of the chart, as helm renders them.
fn rules(cluster: &Cluster) -> Result<Vec<PolicyRule>> {
    let chart = Layout::from_env()?.repository().join("charts/penstock");
    let output = Command::new(cluster.info.bin.join("helm"))
        .args(["template", "penstock"])
        .arg(chart)
        .args(["--show-only", "templates/rbac.yaml"])
        .output()
        .context("running helm")?;
    ensure!(output.status.success(), "helm: {}", String::from_utf8_lossy(&output.stderr));
    for document in serde_yaml_ng::Deserializer::from_slice(&output.stdout) {
        let object = <Value as serde::Deserialize>::deserialize(document)?;
        if object["kind"] == "ClusterRole" {
            return Ok(serde_json::from_value(object["rules"].clone())?);
        }
    }
    bail!("the chart has no ClusterRole")
}

/// Every right that the rules give.
fn rights(rules: &[PolicyRule]) -> Vec<Right> {
    let mut rights: Vec<Right> = rules
        .iter()
        .flat_map(|rule| {
            rule.resources.iter().flatten().flat_map(|resource| {
                rule.verbs.iter().map(|verb| Right { resource: resource.clone(), verb: verb.clone() })
            })
        })
        .collect();
    rights.sort();
    rights.dedup();
    rights
}

/// The rules without one right.
fn without(rules: &[PolicyRule], right: &Right) -> Vec<PolicyRule> {
    let mut reduced = Vec::new();
    for rule in rules {
        for resource in rule.resources.iter().flatten() {
            let mut verbs = rule.verbs.clone();
            if *resource == right.resource {
                verbs.retain(|verb| *verb != right.verb);
            }
            if !verbs.is_empty() {
                reduced.push(PolicyRule { resources: Some(vec![resource.clone()]), verbs, ..rule.clone() });
            }
        }
    }
    reduced
}

/// An operator that runs on this machine as a service account of a namespace.
struct Operator {
    process: Child,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Operator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Operator {
    async fn start(cluster: &Cluster, namespace: &str, rules: &[PolicyRule]) -> Result<Self> {
        let create = PostParams::default();
        let client = || cluster.client.clone();
        let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "operator"}}))?;
        let accounts = Api::<ServiceAccount>::namespaced(client(), namespace);
        accounts.create(&create, &account).await?;
        let role: Role = serde_json::from_value(json!({"metadata": {"name": "operator"}, "rules": rules}))?;
        Api::<Role>::namespaced(client(), namespace).create(&create, &role).await?;
        let binding: RoleBinding = serde_json::from_value(json!({
            "metadata": {"name": "operator"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "operator"},
            "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": namespace}],
        }))?;
        Api::<RoleBinding>::namespaced(client(), namespace).create(&create, &binding).await?;
        let token = accounts
            .create_token_request("operator", &create, &TokenRequest::default())
            .await?
            .status
            .and_then(|status| status.token)
            .context("the API gave no token")?;

        // A new role is in force once the API server has seen it. An operator that is refused everything at first pauses for long.
        let (resource, verb) = rules
            .iter()
            .find_map(|rule| Some((rule.resources.as_ref()?.first()?, rule.verbs.first()?)))
            .context("no rule is left")?;
        let group = rules[0].api_groups.as_ref().and_then(|groups| groups.first()).cloned();
        let review: SubjectAccessReview = serde_json::from_value(json!({"spec": {
            "user": format!("system:serviceaccount:{namespace}:operator"),
            "resourceAttributes": {
                "namespace": namespace,
                "group": group,
                "resource": resource.split('/').next(),
                "subresource": resource.split('/').nth(1),
                "verb": verb,
            },
        }}))?;
        let reviews: Api<SubjectAccessReview> = Api::all(client());
        wait_until("the role is in force", PATIENCE, async || {
            Ok(reviews.create(&create, &review).await?.status.is_some_and(|status| status.allowed))
        })
        .await?;

        let dir = tempfile::tempdir()?;
        let mut kubeconfig: Value = serde_yaml_ng::from_slice(&std::fs::read(&cluster.info.kubeconfig)?)?;
        kubeconfig["users"][0]["user"] = json!({"token": token});
        std::fs::write(dir.path().join("kubeconfig"), serde_json::to_vec(&kubeconfig)?)?;
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
            || Layout::from_env().map(|layout| layout.repository().join("target")),
            |dir| Ok(PathBuf::from(dir)),
        )?;
        let log = dir.path().join("log");
        let output = File::create(&log)?;
        let process = Command::new(target.join("release/penstock-operator"))
            .env("KUBECONFIG", dir.path().join("kubeconfig"))
            .env("PENSTOCK_WATCH_NAMESPACE", namespace)
            .env("PENSTOCK_OPERATOR_CLASS", CLASS)
            .env("PENSTOCK_ADMIN_LISTEN", "127.0.0.1:0")
            .env("PENSTOCK_RESYNC_SECONDS", "1")
            // What the pods do is not looked at here, and they cost nothing as long as they have no image.
            .env("PENSTOCK_PIPELINE_IMAGE", "localhost/penstock/none")
            .env("PENSTOCK_PIPELINE_IMAGE_PULL_POLICY", "Never")
            .env("RUST_LOG", "info")
            .stdout(Stdio::from(output.try_clone()?))
            .stderr(Stdio::from(output))
            .spawn()
            .context("starting target/release/penstock-operator: build the binaries first")?;
        Ok(Self { process, log, _dir: dir })
    }

    fn said(&self) -> String {
        // Quotes within JSON are escaped.
        std::fs::read_to_string(&self.log).unwrap_or_default().replace('\\', "")
    }
}

/// A pipeline in a namespace of its own, and the operator that looks after it with less than its rights.
struct Round {
    cluster: Cluster,
    namespace: String,
    operator: Operator,
    missing: Option<Right>,
}

/// How a part of a round ended.
enum End {
    /// It went through.
    Done,
    /// The API server refused the right that was taken away, and the operator said so.
    Refused,
}

impl Round {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client.clone(), &self.namespace)
    }

    fn database(&self) -> String {
        self.namespace.replace('-', "_")
    }

    /// Waits until the question is answered with yes, or the missing right was refused.
    async fn until(&self, what: &str, question: impl AsyncFn() -> Result<bool>) -> Result<End> {
        let start = Instant::now();
        loop {
            let said = self.operator.said();
            if let Some(missing) = &self.missing {
                let status =
                    self.api::<IngestionPipeline>().get_opt(NAME).await?.and_then(|object| object.status);
                if said.contains(&missing.refusal())
                    || serde_json::to_string(&status)?.replace('\\', "").contains(&missing.refusal())
                {
                    return Ok(End::Refused);
                }
            } else if let Some(line) = said.lines().find(|line| line.contains("forbidden")) {
                bail!("the chart's rules are not enough: {line}");
            }
            if question().await? {
                return Ok(End::Done);
            }
            if start.elapsed() > PATIENCE {
                let last: Vec<&str> = said.lines().rev().take(5).collect();
                let status =
                    self.api::<IngestionPipeline>().get_opt(NAME).await?.and_then(|object| object.status);
                bail!(
                    "it is still not so that {what}; the operator's last words, latest first:\n{}\nand the status:\n{}",
                    last.join("\n"),
                    serde_json::to_string(&status)?
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn pipeline(&self, memory: &str) -> Value {
        json!({
            "apiVersion": "penstock.dev/v1alpha1",
            "kind": "IngestionPipeline",
            "metadata": {
                "name": NAME,
                "namespace": self.namespace,
                "labels": {"penstock.dev/operator-class": CLASS},
            },
            "spec": {
                "projects": [{"id": 1, "name": "web", "token": "phc_test_token_of_the_rights"}],
                "defaults": {"resources": {"requests": {"cpu": "1m", "memory": memory}, "limits": {"memory": "128Mi"}}},
                "kafka": {
                    // The operator runs on this machine.
                    "bootstrapServers": self.cluster.kafka(),
                    "topics": {"defaults": {"partitions": 1}, "dead-letter": {"partitions": 1}},
                },
                "exports": [{
                    "name": "warehouse",
                    "clickhouse": {
                        "url": self.cluster.info.clickhouse_on_host(),
                        "database": self.database(),
                    },
                }],
                "deletionPolicy": {"topics": "Delete", "tables": "Delete"},
            },
        })
    }

    async fn apply(&self, memory: &str) -> Result<IngestionPipeline> {
        let parameters = PatchParams::apply("penstock-tests").force();
        let object = self.pipeline(memory);
        Ok(self.api::<IngestionPipeline>().patch(NAME, &parameters, &Patch::Apply(&object)).await?)
    }

    async fn has<K>(&self, name: &str) -> Result<bool>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + fmt::Debug,
    {
        Ok(self.api::<K>().get_opt(name).await?.is_some())
    }

    /// A child of the pipeline that no spec asks for, as an earlier version may have left it.
    async fn plant<K>(&self, owner: &IngestionPipeline, more: Value) -> Result<()>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Serialize
            + fmt::Debug,
    {
        let mut object = json!({
            "metadata": {
                "name": "web-left-over",
                "labels": {
                    "app.kubernetes.io/managed-by": "penstock-operator",
                    "app.kubernetes.io/instance": NAME,
                    "penstock.dev/revision": "left-over",
                    "app.kubernetes.io/component": "left-over",
                },
                "ownerReferences": [{
                    "apiVersion": "penstock.dev/v1alpha1",
                    "kind": "IngestionPipeline",
                    "name": NAME,
                    "uid": owner.uid().context("the pipeline has no uid")?,
                    "controller": true,
                }],
            },
        });
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
        }
        self.api::<K>().create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    async fn plant_all(&self, owner: &IngestionPipeline) -> Result<()> {
        let selector = json!({"matchLabels": {"app": "left-over"}});
        self.plant::<Deployment>(
            owner,
            json!({"spec": {"replicas": 0, "selector": selector, "template": {
                "metadata": {"labels": {"app": "left-over"}},
                "spec": {"containers": [{"name": "none", "image": "localhost/penstock/none"}]},
            }}}),
        )
        .await?;
        self.plant::<Service>(owner, json!({"spec": {"ports": [{"port": 80}]}})).await?;
        self.plant::<ServiceAccount>(owner, json!({})).await?;
        self.plant::<ConfigMap>(owner, json!({})).await?;
        self.plant::<Secret>(owner, json!({})).await?;
        self.plant::<PodDisruptionBudget>(
            owner,
            json!({"spec": {"maxUnavailable": 1, "selector": selector}}),
        )
        .await?;
        self.plant::<NetworkPolicy>(owner, json!({"spec": {"podSelector": selector}})).await
    }

    async fn left_overs_are_gone(&self) -> Result<bool> {
        let name = "web-left-over";
        Ok(!self.has::<Deployment>(name).await?
            && !self.has::<Service>(name).await?
            && !self.has::<ServiceAccount>(name).await?
            && !self.has::<ConfigMap>(name).await?
            && !self.has::<Secret>(name).await?
            && !self.has::<PodDisruptionBudget>(name).await?
            && !self.has::<NetworkPolicy>(name).await?)
    }

    /// Everything that an operator does in Kubernetes, up to the first refusal.
    async fn play(&self) -> Result<End> {
        let owner = self.apply("16Mi").await?;
        let export = "web-export-warehouse";
        let made = self.until("all children are made", async || {
            Ok(self.has::<Deployment>(export).await?
                && self.has::<PodDisruptionBudget>(export).await?
                && self.has::<NetworkPolicy>(export).await?
                && self.has::<Service>("web-capture").await?
                && self.api::<IngestionPipeline>().get(NAME).await?.status.is_some())
        });
        if let End::Refused = made.await? {
            return Ok(End::Refused);
        }

        self.plant_all(&owner).await?;
        self.apply("24Mi").await?;
        let changed = self.until("the children follow the spec, and what is left over is gone", async || {
            let deployment = serde_json::to_value(self.api::<Deployment>().get(export).await?)?;
            let memory =
                &deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]["memory"];
            Ok(*memory == "24Mi" && self.left_overs_are_gone().await?)
        });
        if let End::Refused = changed.await? {
            return Ok(End::Refused);
        }

        self.api::<IngestionPipeline>().delete(NAME, &DeleteParams::default()).await?;
        self.until("the pipeline is gone", async || Ok(!self.has::<IngestionPipeline>(NAME).await?)).await
    }

    async fn run(cluster: &Cluster, rules: &[PolicyRule], missing: Option<Right>) -> Result<End> {
        let namespace = cluster.fresh_namespace("rbac").await?;
        let rules = missing.as_ref().map_or_else(|| rules.to_vec(), |right| without(rules, right));
        let operator = Operator::start(cluster, &namespace, &rules).await?;
        let mut round = Self { cluster: cluster.clone(), namespace, operator, missing };
        let end = round.play().await;
        let removed = round.remove().await;
        let end = end.with_context(|| match &round.missing {
            Some(right) => format!("without the right to {right}"),
            None => "with all rights of the chart".to_owned(),
        })?;
        removed.map(|()| end)
    }

    async fn remove(&mut self) -> Result<()> {
        // What it would still do, it would do behind our back.
        self.operator.process.kill()?;
        self.operator.process.wait()?;
        // An operator that may not take its finalizer away cannot clean up.
        let pipelines = self.api::<IngestionPipeline>();
        if pipelines.get_opt(NAME).await?.is_some() {
            let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
            let _ = pipelines.patch(NAME, &PatchParams::default(), &patch).await;
            let _ = pipelines.delete(NAME, &DeleteParams::default()).await;
        }
        Api::<Namespace>::all(self.cluster.client.clone())
            .delete(&self.namespace, &DeleteParams::default())
            .await?;
        let drop = format!("DROP DATABASE IF EXISTS {}", quoted(&self.database()));
        self.cluster.warehouse.text(&drop).await?;
        let (servers, prefix) = (self.cluster.kafka(), format!("{}.", self.namespace));
        tokio::task::spawn_blocking(move || truth::delete_topics(&servers, &prefix)).await?
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the platform; make test starts it"]
async fn the_operator_needs_every_right_that_the_chart_gives_it_and_no_other() -> Result<()> {
    let cluster = Cluster::connect().await?;
    let rules = rules(&cluster)?;
    let rights = rights(&rules);
    ensure!(rights.len() > 20, "the chart gives {} rights, which cannot be all", rights.len());
    Round::run(&cluster, &rules, None).await?;

    let start = Instant::now();
    let ends: Vec<(Right, Result<End>)> = stream::iter(rights.clone())
        .map(|right| {
            let (cluster, rules) = (cluster.clone(), rules.clone());
            async move {
                let end = Round::run(&cluster, &rules, Some(right.clone())).await;
                (right, end)
            }
        })
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await;
    let mut wrong = Vec::new();
    for (right, end) in ends {
        match end {
            Ok(End::Refused) => {}
            Ok(End::Done) => {
                wrong.push(format!("nothing needs the right to {right}: take it out of the chart"))
            }
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    println!("{} rights, each taken away once, in {:.0} s", rights.len(), start.elapsed().as_secs_f64());
    ensure!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    Ok(())
}
