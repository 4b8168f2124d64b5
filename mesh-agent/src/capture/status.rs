//! What of ours is in the kernel, for `meshctl bpf` and the metrics. Reads only.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use aya::maps::{MapData, PerCpuArray};
use mesh_common::{
    Counter, LISTENERS, MAX_CIDRS, MAX_ENROLLED, MAX_FLOWS, MAX_OWN, MAX_PODS, MAX_PORTS, MAX_PROBES,
    is_agent_port, maps,
};
use mesh_core::model::WorkloadUid;
use serde::Serialize;

use super::foreign::{self, ForeignProgram};
use super::node::Capture;
use super::objects::NodeObject;
use super::pod::CapturedPod;

/// What is in the kernel.
#[derive(Clone, Debug, Serialize)]
pub struct CaptureStatus {
    /// The node's name.
    pub node: String,
    /// Where the pins are.
    pub bpffs: PathBuf,
    /// The directory below that with the maps and links in use.
    pub run: String,
    /// Whether an earlier agent began it.
    pub adopted: bool,
    /// The cgroup2 mount.
    pub cgroup2: PathBuf,
    /// The agent's own cgroup.
    pub agent_cgroup: PathBuf,
    /// The node's programs. Each pod has one more, its `sk_lookup`.
    pub programs: Vec<ProgramStatus>,
    /// The maps.
    pub maps: Vec<MapStatus>,
    /// The counters of the programs, over all CPUs and pods.
    pub counters: BTreeMap<&'static str, u64>,
    /// The captured pods.
    pub pods: Vec<PodStatus>,
}

/// A loaded program.
#[derive(Clone, Debug, Serialize)]
pub struct ProgramStatus {
    /// Its name.
    pub name: String,
    /// The kernel's id.
    pub id: u32,
}

/// A map and its fill.
#[derive(Clone, Debug, Serialize)]
pub struct MapStatus {
    /// Its name.
    pub name: &'static str,
    /// Elements in it.
    pub entries: usize,
    /// Elements that fit.
    pub max_entries: usize,
}

/// A captured pod.
#[derive(Clone, Debug, Serialize)]
pub struct PodStatus {
    /// Which workload.
    pub workload: WorkloadUid,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Its place among the listeners.
    pub slot: u32,
    /// Which bank of its listeners is in use.
    pub bank: u32,
    /// All addresses of its namespace.
    pub own: BTreeSet<IpAddr>,
    /// Its links.
    pub links: Vec<LinkStatus>,
    /// Agent ports on which something in the pod listens: never reached from off the pod.
    pub shadowed_ports: BTreeSet<u16>,
    /// Whether its listeners take data of TCP Fast Open without a cookie: somebody has changed the setting since it was captured.
    pub believes_first_packets: bool,
    /// Programs of others that see its sockets.
    pub foreign: Vec<ForeignProgram>,
}

/// A link.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// Name of its pin.
    pub hook: &'static str,
    /// The kernel's id.
    pub id: u32,
    /// The kernel's id of its program.
    pub program: u32,
}

impl Capture {
    /// What is in the kernel now. Walks the maps: not for the data path.
    pub fn status(&self) -> CaptureStatus {
        // The lock is taken again below: let it go first.
        let programs = programs(&self.object());
        let ours: BTreeSet<u32> = programs.iter().map(|program| program.id).collect();
        CaptureStatus {
            node: self.options.node_name.clone(),
            bpffs: self.options.bpffs_dir.clone(),
            run: self.run.name(),
            adopted: self.is_adopted(),
            cgroup2: self.cgroup2.mount.clone(),
            agent_cgroup: self.agent_cgroup.path().to_owned(),
            programs,
            maps: self.map_fill(),
            counters: self.counters(),
            pods: self.each_pod(|pod| describe(pod, &ours)),
        }
    }

    /// The fill of each map that can run full. Maps that cannot be read are left out.
    pub fn map_fill(&self) -> Vec<MapStatus> {
        let flows = &self.flows;
        let fill = |name, entries: std::io::Result<usize>, max: u32| {
            Some(MapStatus {
                name,
                entries: entries.ok()?,
                max_entries: max as usize,
            })
        };
        [
            fill(maps::PODS, self.pods.keys().map(|k| k.len()), MAX_PODS),
            fill(maps::OWN, self.own.keys().map(|k| k.len()), MAX_OWN),
            fill(
                maps::ENROLLED,
                self.enrolled.keys().map(|k| k.len()),
                MAX_ENROLLED,
            ),
            fill(maps::HANDOFF, flows.handoff.keys().map(|k| k.len()), MAX_FLOWS),
            fill(
                maps::DELIVERIES,
                flows.deliveries.keys().map(|k| k.len()),
                MAX_FLOWS,
            ),
            fill(
                maps::PROBES,
                self.passes.probes.keys().map(|k| k.len()),
                MAX_PROBES,
            ),
            fill(maps::PORTS, self.passes.ports.keys().map(|k| k.len()), MAX_PORTS),
            fill(maps::CIDRS, self.passes.cidrs.keys().map(|k| k.len()), MAX_CIDRS),
            fill(maps::LISTENERS, self.listeners.keys().map(|k| k.len()), LISTENERS),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// The counters of the programs by name, over all CPUs and pods, and over runs of the agent that ended without releasing their pods.
    /// Zero where they cannot be read.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        let object = self.object();
        let array = counters(&object);
        let predecessors = self.predecessors();
        Counter::ALL
            .into_iter()
            .map(|(counter, name)| (name, total(array.as_ref(), counter) + predecessors.count(counter)))
            .collect()
    }

    /// One counter of this run.
    pub(super) fn counter(&self, counter: Counter) -> u64 {
        total(counters(&self.object()).as_ref(), counter)
    }
}

fn counters(object: &NodeObject) -> Option<PerCpuArray<&MapData, u64>> {
    PerCpuArray::try_from(object.view(maps::COUNTERS)?).ok()
}

fn total(array: Option<&PerCpuArray<&MapData, u64>>, counter: Counter) -> u64 {
    let values = array.map(|array| array.get(&(counter as u32), 0));
    values
        .and_then(Result::ok)
        .map_or(0, |values| values.iter().sum())
}

fn programs(object: &NodeObject) -> Vec<ProgramStatus> {
    let describe = |(name, program): (&str, &aya::programs::Program)| {
        Some(ProgramStatus {
            name: name.to_owned(),
            id: program.info().ok()?.id(),
        })
    };
    let mut programs: Vec<_> = object.programs().filter_map(describe).collect();
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    programs
}

fn describe(pod: &CapturedPod, ours: &BTreeSet<u32>) -> PodStatus {
    let link = |(hook, id, program)| LinkStatus { hook, id, program };
    let mut shadowed = pod.netns.listening_ports().unwrap_or_default();
    shadowed.retain(|port| is_agent_port(*port));
    PodStatus {
        workload: pod.spec.uid.clone(),
        netns: pod.netns.cookie(),
        slot: pod.pod.slot,
        bank: pod.bank,
        own: pod.own.keys().copied().collect(),
        links: pod.links.describe().into_iter().map(link).collect(),
        shadowed_ports: shadowed,
        believes_first_packets: pod.netns.believes_first_packets().unwrap_or(false),
        foreign: foreign::of(pod, ours),
    }
}
