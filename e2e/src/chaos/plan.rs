//! Which fault strikes when: a pure function of a seed, so that a run can be repeated.

use std::{fmt, time::Duration};

use crate::faults::Server;

/// A component of the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The HTTP API.
    Capture,
    /// The main lane.
    Consumer,
    /// The transformation.
    Transformation,
    /// The export to ClickHouse.
    Export,
}

impl Component {
    /// All, in the order of the pipeline.
    pub const ALL: [Self; 4] = [Self::Capture, Self::Consumer, Self::Transformation, Self::Export];

    /// Its label `app.kubernetes.io/component`.
    pub fn label(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::Consumer => "consumer-main",
            Self::Transformation => "transformation",
            Self::Export => "export-warehouse",
        }
    }
}

/// A pod of a component: the n-th by name, counted round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whose.
    pub component: Component,
    /// Which.
    pub pod: usize,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pod {})", self.component.label(), self.pod)
    }
}

/// Harm that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed with SIGKILL; the pod stays.
    Kill(Target),
    /// The pod is deleted without any grace.
    Delete(Target),
    /// The kernel kills the process because its memory is used up.
    UseUpMemory(Target),
    /// The process stands still for so many seconds.
    Freeze(Target, u64),
    /// The pod does not reach a server for so many seconds.
    CutOff(Target, Server, u64),
    /// A server is stopped in good order, is away for so many seconds, and is started again.
    Stop(Server, u64),
    /// The process of a server is killed with SIGKILL.
    KillServer(Server),
    /// A server stands still for so many seconds.
    FreezeServer(Server, u64),
    /// A component gets so many pods.
    Scale(Component, u32),
    /// All pods of all components are replaced, as when the configuration changes.
    Restart,
    /// The stage topics get one partition more, up to the bound.
    Grow,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(target) => write!(f, "kill {target}"),
            Self::Delete(target) => write!(f, "delete {target}"),
            Self::UseUpMemory(target) => write!(f, "use up the memory of {target}"),
            Self::Freeze(target, seconds) => write!(f, "freeze {target} for {seconds} s"),
            Self::CutOff(target, server, seconds) => {
                write!(f, "cut {target} off from {} for {seconds} s", server.name())
            }
            Self::Stop(server, seconds) => write!(f, "stop {} for {seconds} s", server.name()),
            Self::KillServer(server) => write!(f, "kill {}", server.name()),
            Self::FreezeServer(server, seconds) => write!(f, "freeze {} for {seconds} s", server.name()),
            Self::Scale(component, replicas) => write!(f, "scale {} to {replicas}", component.label()),
            Self::Restart => f.write_str("restart everything, pod by pod"),
            Self::Grow => f.write_str("add partitions"),
        }
    }
}

/// SplitMix64: the same numbers for the same seed in every version of every library.
#[derive(Debug)]
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }
}

/// The faults of a run in their order, each with the pause before it.
///
/// A pod is left alone for a while between kills: the kubelet waits longer and longer before it starts a container
/// again that keeps dying, and a run would then test the kubelet.
pub fn plan(seed: u64, length: Duration) -> Vec<(Duration, Fault)> {
    let mut numbers = Numbers(seed);
    let mut faults = Vec::new();
    let mut at = Duration::ZERO;
    while at < length {
        let pause = Duration::from_millis(numbers.between(500, 6_000));
        let target = Target {
            component: Component::ALL[numbers.between(0, 3) as usize],
            pod: numbers.between(0, 3) as usize,
        };
        let server = if numbers.between(0, 1) == 0 { Server::Kafka } else { Server::ClickHouse };
        // Time-outs of the pipeline are 10 s: some pauses are shorter, some longer.
        let seconds = numbers.between(3, 18);
        let fault = match numbers.between(0, 99) {
            0..=21 => Fault::Kill(target),
            22..=39 => Fault::Delete(target),
            40..=45 => Fault::UseUpMemory(target),
            46..=57 => Fault::Freeze(target, seconds),
            58..=69 => Fault::CutOff(target, server, seconds),
            70..=73 => Fault::Stop(server, seconds / 2),
            74..=78 => Fault::KillServer(server),
            79..=82 => Fault::FreezeServer(server, seconds),
            83..=94 => Fault::Scale(target.component, numbers.between(1, 4) as u32),
            95..=97 => Fault::Restart,
            _ => Fault::Grow,
        };
        at += pause + expected(fault);
        faults.push((pause, fault));
    }
    faults
}

/// How long a fault takes about, with what the pipeline needs to be itself again.
fn expected(fault: Fault) -> Duration {
    Duration::from_secs(match fault {
        Fault::Kill(_) | Fault::Delete(_) | Fault::UseUpMemory(_) | Fault::Grow => 1,
        Fault::Scale(..) => 3,
        Fault::Freeze(_, seconds) | Fault::CutOff(_, _, seconds) | Fault::FreezeServer(_, seconds) => seconds,
        Fault::Stop(_, seconds) => seconds + 12,
        Fault::KillServer(_) => 10,
        Fault::Restart => 20,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeSet, HashMap, HashSet},
        mem::{Discriminant, discriminant},
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(20 * 60);

    #[test]
    fn one_seed_gives_one_plan_and_another_another() {
        assert_eq!(plan(7, LONG), plan(7, LONG));
        assert_ne!(plan(7, LONG), plan(8, LONG));
        let short = plan(7, Duration::from_secs(60));
        assert_eq!(short[..], plan(7, LONG)[..short.len()], "a shorter run begins like a longer one");
    }

    #[test]
    fn the_numbers_never_change() {
        let mut numbers = Numbers(0);
        assert_eq!([numbers.next(), numbers.next()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn twenty_minutes_have_most_kinds_of_faults_and_some_runs_have_every_one_in_every_component() {
        let mut of_all: HashMap<Discriminant<Fault>, BTreeSet<Component>> = HashMap::new();
        for seed in 0..20 {
            let plan = plan(seed, LONG);
            let kinds: HashSet<_> = plan.iter().map(|(_, fault)| discriminant(fault)).collect();
            for (_, fault) in &plan {
                let components = of_all.entry(discriminant(fault)).or_default();
                components.extend(match fault {
                    Fault::Kill(target)
                    | Fault::Delete(target)
                    | Fault::UseUpMemory(target)
                    | Fault::Freeze(target, _)
                    | Fault::CutOff(target, ..) => vec![target.component],
                    Fault::Scale(component, _) => vec![*component],
                    // They concern everybody.
                    Fault::Stop(..)
                    | Fault::KillServer(_)
                    | Fault::FreezeServer(..)
                    | Fault::Restart
                    | Fault::Grow => Component::ALL.to_vec(),
                });
            }
            assert!(kinds.len() >= 9, "seed {seed}: {} kinds", kinds.len());
            assert!((80..=400).contains(&plan.len()), "seed {seed}: {} faults", plan.len());
        }
        assert_eq!(of_all.len(), 11, "kinds");
        assert!(of_all.values().all(|components| components.len() == 4), "{of_all:?}");
    }
}
