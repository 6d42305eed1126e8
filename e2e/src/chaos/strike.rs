//! Does the harm that a plan says.

use std::{fmt, time::Duration};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt, api::DeleteParams};
use serde_json::{Value, json};

use super::plan::{Component, Fault, Target};
use crate::{faults::Server, pipeline::TestPipeline};

/// Partitions are not added beyond this.
const MOST_PARTITIONS: u64 = 12;

/// What strikes, and what it has made of the spec.
pub struct Striker<'a> {
    pipeline: &'a TestPipeline,
    /// The spec as it is applied now.
    pub spec: Value,
    restarts: u32,
    /// Whether partitions were added.
    pub grown: bool,
}

/// What became of a fault, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Struck {
    /// It has struck.
    Done(String),
    /// What was to be struck was not there, because an earlier fault has just taken it away.
    Missed(String),
}

impl fmt::Display for Struck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Done(what) | Self::Missed(what)) = self;
        f.write_str(what)
    }
}

impl<'a> Striker<'a> {
    /// Begins with this spec, which is applied already.
    pub fn new(pipeline: &'a TestPipeline, spec: Value) -> Self {
        Self { pipeline, spec, restarts: 0, grown: false }
    }

    /// The pipeline that is struck.
    pub fn pipeline(&self) -> &'a TestPipeline {
        self.pipeline
    }

    /// Does it, waits as long as it lasts, and says what was done.
    ///
    /// # Errors
    /// A server does not come back, or the API server refuses a spec.
    pub async fn strike(&mut self, fault: Fault) -> Result<Struck> {
        match fault {
            Fault::Stop(..) | Fault::KillServer(_) | Fault::FreezeServer(..) => {
                self.server(fault).await.map(Struck::Done)
            }
            Fault::Scale(component, replicas) => {
                self.set_replicas(&[component], replicas);
                self.apply().await?;
                Ok(Struck::Done(fault.to_string()))
            }
            Fault::Restart => {
                self.restarts += 1;
                self.spec["defaults"]["podAnnotations"] = json!({"test/restart": self.restarts.to_string()});
                self.apply().await?;
                Ok(Struck::Done(fault.to_string()))
            }
            Fault::Grow => {
                let topics = &mut self.spec["kafka"]["topics"]["defaults"]["partitions"];
                let partitions = topics.as_u64().context("the spec says how many partitions")?;
                if partitions >= MOST_PARTITIONS {
                    return Ok(Struck::Missed(format!("{fault}: there are {partitions} already")));
                }
                *topics = json!(partitions + 1);
                self.grown = true;
                self.apply().await?;
                Ok(Struck::Done(format!("{fault}: {}", partitions + 1)))
            }
            Fault::Kill(target)
            | Fault::Delete(target)
            | Fault::UseUpMemory(target)
            | Fault::Freeze(target, _)
            | Fault::CutOff(target, ..) => {
                let Some(pod) = self.pod(target).await? else {
                    return Ok(Struck::Missed(format!("{fault}: there is no pod")));
                };
                let struck = self.pod_fault(fault, &pod).await;
                Ok(match struck {
                    Ok(()) => Struck::Done(format!("{fault}: {pod}")),
                    Err(error) => Struck::Missed(format!("{fault}: {pod} was not struck: {error:#}")),
                })
            }
        }
    }

    /// Does it as soon as what is to be struck is there.
    ///
    /// # Errors
    /// It is not there for a minute, or as [`Striker::strike`].
    pub async fn surely(&mut self, fault: Fault) -> Result<String> {
        let began = tokio::time::Instant::now();
        loop {
            match self.strike(fault).await? {
                Struck::Done(what) => return Ok(what),
                Struck::Missed(why) if began.elapsed() > Duration::from_secs(60) => {
                    anyhow::bail!("{why}, and not for a minute before either")
                }
                Struck::Missed(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
        }
    }

    /// Strikes several pods at the same time.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn at_once(&self, faults: &[Fault]) -> Result<Vec<String>> {
        futures::future::try_join_all(faults.iter().map(async |fault| match fault {
            Fault::Kill(target)
            | Fault::Delete(target)
            | Fault::UseUpMemory(target)
            | Fault::Freeze(target, _)
            | Fault::CutOff(target, ..) => {
                let pod = self.pod(*target).await?.with_context(|| format!("{target} is not there"))?;
                self.pod_fault(*fault, &pod).await?;
                Ok(format!("{fault}: {pod}"))
            }
            _ => anyhow::bail!("{fault} strikes no pod"),
        }))
        .await
    }

    /// Waits until every component has as many ready pods as it is to have, and the pipeline is ready.
    ///
    /// # Errors
    /// It is not so after two minutes.
    pub async fn all_ready(&self) -> Result<()> {
        self.pipeline.wait_ready(Duration::from_secs(120)).await?;
        Ok(())
    }

    /// The n-th pod of a component, by name, counted round.
    async fn pod(&self, target: Target) -> Result<Option<String>> {
        let pods = self.pipeline.cluster.pods(&self.pipeline.namespace, target.component.label()).await?;
        let mut names: Vec<String> = pods
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .map(ResourceExt::name_any)
            .collect();
        names.sort();
        Ok((!names.is_empty()).then(|| names[target.pod % names.len()].clone()))
    }

    async fn pod_fault(&self, fault: Fault, pod: &str) -> Result<()> {
        let (cluster, namespace) = (&self.pipeline.cluster, self.pipeline.namespace.as_str());
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let at_once = DeleteParams::default().grace_period(0);
        // A container that dies again and again is started later and later: the second time, its pod goes as well.
        let died_before = pods
            .get(pod)
            .await?
            .status
            .and_then(|status| status.container_statuses)
            .is_some_and(|all| all.iter().any(|container| container.restart_count > 0));
        match fault {
            Fault::Delete(_) => {
                pods.delete(pod, &at_once).await?;
            }
            Fault::Kill(_) | Fault::UseUpMemory(_) => {
                if matches!(fault, Fault::Kill(_)) {
                    cluster.kill_process(namespace, pod).await?;
                } else {
                    cluster.use_up_memory(namespace, pod).await?;
                }
                if died_before {
                    pods.delete(pod, &at_once).await?;
                }
            }
            Fault::Freeze(_, seconds) => {
                let frozen = cluster.freeze(namespace, pod).await?;
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                drop(frozen);
            }
            Fault::CutOff(_, server, seconds) => {
                let cut = cluster
                    .cut_network((namespace, pod), (server.namespace_in(cluster), &server.pod()))
                    .await?;
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                drop(cut);
            }
            _ => {}
        }
        Ok(())
    }

    async fn server(&self, fault: Fault) -> Result<String> {
        let cluster = &self.pipeline.cluster;
        let server = match fault {
            Fault::Stop(server, seconds) => {
                let outage = cluster.stop(server).await?;
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                outage.end().await?;
                server
            }
            Fault::KillServer(server) => {
                cluster.kill_process(server.namespace_in(cluster), &server.pod()).await?;
                server
            }
            Fault::FreezeServer(server, seconds) => {
                let frozen = cluster.freeze(server.namespace_in(cluster), &server.pod()).await?;
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                drop(frozen);
                server
            }
            _ => return Ok(fault.to_string()),
        };
        self.replace_if_it_keeps_dying(server).await?;
        cluster.wait_for(server).await?;
        Ok(fault.to_string())
    }

    /// The kubelet waits longer each time before it starts a server that was killed; a new pod starts at once.
    async fn replace_if_it_keeps_dying(&self, server: Server) -> Result<()> {
        let cluster = &self.pipeline.cluster;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), server.namespace_in(cluster));
        let statuses = pods.get(&server.pod()).await?.status.and_then(|status| status.container_statuses);
        if statuses.is_some_and(|all| all.iter().any(|container| container.restart_count > 1)) {
            pods.delete(&server.pod(), &DeleteParams::default()).await?;
        }
        Ok(())
    }

    /// Sets the replicas of these components in the spec, which is not applied yet.
    pub fn set_replicas(&mut self, components: &[Component], replicas: u32) {
        for component in components {
            let workload = match component {
                Component::Capture => &mut self.spec["capture"],
                Component::Consumer => &mut self.spec["consumer"]["lanes"]["main"],
                Component::Transformation => &mut self.spec["transformation"],
                Component::Export => &mut self.spec["exports"][0],
            };
            workload["replicas"] = json!(replicas);
        }
    }

    /// Applies the spec as it is.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn apply(&self) -> Result<()> {
        self.pipeline.apply(&self.spec).await?;
        Ok(())
    }
}
