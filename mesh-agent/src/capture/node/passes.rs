//! What passes uncaptured by permission (the kubelet's probes, exclusions), and what passes without one (connections older than capture,
//! which are listed and closed). Carries out what others decide.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use aya::maps::lpm_trie::Key;
use mesh_common::mutation::{self, Mechanism};
use mesh_common::{
    Addr, CIDR_BITS, CIDR_HEAD_BITS, CidrData, FlowKey, KubeletProcess, PortKey, PortUse, maps,
};
use mesh_core::model::{Cidr, Exclusions, WorkloadUid};
use mesh_core::plan::{Refusal, Uncaptured};
use tracing::{info, warn};

use super::Capture;
use crate::capture::diag;
use crate::capture::error::CaptureError;
use crate::capture::flows::flow_key;
use crate::capture::kubelet::{self, KubeletError, Process, Verified};
use crate::capture::netns::Netns;
use crate::capture::objects::NodeObject;
use crate::capture::older::{Look, OlderConnections};
use crate::capture::pod::{CapturedPod, Rules};
use crate::capture::sys::Table;

/// Whether probes of the kubelet pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbePassage {
    /// Those of the processes in this cgroup.
    Of(PathBuf),
    /// Those of this one process: others share its cgroup.
    OfProcess {
        /// Its cgroup.
        cgroup: PathBuf,
        /// Its number in the host's pid namespace.
        pid: u32,
    },
    /// None, and why: they are captured like other connections.
    None(KubeletError),
    /// None: the kernel refused the program.
    Failed(String),
}

/// The maps of what passes, and the kubelet's program.
pub(in crate::capture) struct Passes {
    host_netns: u64,
    pub(in crate::capture) probes: Table<FlowKey, u64>,
    pub(in crate::capture) ports: Table<PortKey, u32>,
    pub(in crate::capture) cidrs: Table<Key<CidrData>, u32>,
    /// Its one element means something only while the programs for a shared cgroup are attached.
    process: Table<u32, KubeletProcess>,
    kubelet: Mutex<Kubelet>,
    closed: AtomicU64,
    /// Why older connections cannot be closed on this kernel.
    cannot_close: Mutex<Option<String>>,
}

#[derive(Default)]
struct Kubelet {
    attached: Option<(Verified, Vec<OwnedFd>)>,
    /// `None` before the first look.
    passage: Option<ProbePassage>,
    search: kubelet::Search,
}

impl Passes {
    pub(super) fn new(object: &NodeObject, host_netns: u64) -> Result<Self, CaptureError> {
        Ok(Self {
            host_netns,
            probes: Table::new(object.map(maps::PROBES)?),
            ports: Table::new(object.map(maps::PORTS)?),
            cidrs: Table::new(object.map(maps::CIDRS)?),
            process: Table::new(object.map(maps::KUBELET)?),
            kubelet: Mutex::default(),
            closed: AtomicU64::new(0),
            cannot_close: Mutex::default(),
        })
    }

    /// Cookie of the host's network namespace.
    pub(super) fn host_netns(&self) -> u64 {
        self.host_netns
    }

    /// Removes all that the maps hold of a pod.
    pub(super) fn sweep(&self, netns: u64) {
        for key in self.ports.keys().unwrap_or_default() {
            if key.netns == netns {
                let _ = self.ports.remove(&key);
            }
        }
        for key in self.cidrs.keys().unwrap_or_default() {
            if key.data().netns == netns {
                let _ = self.cidrs.remove(&key);
            }
        }
    }

    /// From now on no connection passes as a probe. Those that passed live on.
    pub(super) fn detach(&self) {
        let mut kubelet = self.kubelet();
        kubelet.attached = None;
        self.forget_probes();
    }

    /// What the kernel's maps let pass of a pod: nothing, unless an earlier agent has entered it. Entries that mean nothing here are
    /// removed.
    pub(super) fn present(&self, netns: u64) -> Rules {
        let mut rules = Rules::default();
        if mutation::is_off(Mechanism::AdoptedRules) {
            return rules;
        }
        for key in self.ports.keys().unwrap_or_default() {
            if key.netns != netns {
                continue;
            }
            match PortUse::from_number(key.usage) {
                Some(usage) => Entry::Port(usage, key.port).put(&mut rules, true),
                None => drop(self.ports.remove(&key)),
            }
        }
        for key in self.cidrs.keys().unwrap_or_default() {
            if key.data().netns != netns {
                continue;
            }
            match cidr_of(&key) {
                Some(cidr) => Entry::Cidr(cidr).put(&mut rules, true),
                None => drop(self.cidrs.remove(&key)),
            }
        }
        rules
    }

    /// Nobody watches the ends of the connections any more: what they leave must let nobody in.
    pub(super) fn forget_probes(&self) {
        for key in self.probes.keys().unwrap_or_default() {
            let _ = self.probes.remove(&key);
        }
    }

    fn kubelet(&self) -> MutexGuard<'_, Kubelet> {
        self.kubelet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, netns: u64, entry: Entry) -> io::Result<()> {
        match entry {
            Entry::Port(usage, port) => self.ports.insert(&PortKey::new(netns, port, usage), &1),
            Entry::Cidr(cidr) => self.cidrs.insert(&cidr_key(netns, cidr), &1),
        }
    }

    fn remove(&self, netns: u64, entry: Entry) -> io::Result<bool> {
        match entry {
            Entry::Port(usage, port) => self.ports.remove(&PortKey::new(netns, port, usage)),
            Entry::Cidr(cidr) => self.cidrs.remove(&cidr_key(netns, cidr)),
        }
    }
}

fn cidr_key(netns: u64, cidr: Cidr) -> Key<CidrData> {
    let length = u32::from(cidr.prefix());
    let skipped = if cidr.address().is_ipv4() { 96 } else { 0 };
    let bits = (CIDR_HEAD_BITS + skipped + length).min(CIDR_BITS);
    Key::new(bits, CidrData::new(netns, Addr::from_ip(cidr.address())))
}

/// What [`cidr_key`] was made from.
fn cidr_of(key: &Key<CidrData>) -> Option<Cidr> {
    let address = key.data().addr.to_ip();
    let head = if address.is_ipv4() {
        CIDR_HEAD_BITS + 96
    } else {
        CIDR_HEAD_BITS
    };
    let prefix = key.prefix_len().checked_sub(head)?;
    format!("{address}/{prefix}").parse().ok()
}

/// One element of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Entry {
    Port(PortUse, u16),
    Cidr(Cidr),
}

impl Entry {
    fn of(rules: &Rules) -> std::collections::BTreeSet<Entry> {
        let Exclusions {
            outbound_ports,
            outbound_cidrs,
            inbound_ports,
            inbound_when_down,
        } = &rules.exclusions;
        let port = |usage| move |port: &u16| Entry::Port(usage, *port);
        let probes = rules.probe_ports.iter().map(port(PortUse::Probe));
        let outbound = outbound_ports.iter().map(port(PortUse::ExcludedOutbound));
        let inbound = inbound_ports.iter().map(port(PortUse::ExcludedInbound));
        let cidrs = outbound_cidrs.iter().copied().map(Entry::Cidr);
        let when_down = inbound_when_down.then_some(Entry::Port(PortUse::InboundWhenDown, 0));
        probes
            .chain(outbound)
            .chain(inbound)
            .chain(cidrs)
            .chain(when_down)
            .collect()
    }

    fn put(self, rules: &mut Rules, present: bool) {
        fn set<T: Ord>(set: &mut std::collections::BTreeSet<T>, value: T, present: bool) {
            if present {
                set.insert(value);
            } else {
                set.remove(&value);
            }
        }
        match self {
            Entry::Port(PortUse::Probe, port) => set(&mut rules.probe_ports, port, present),
            Entry::Port(PortUse::ExcludedInbound, port) => {
                set(&mut rules.exclusions.inbound_ports, port, present);
            }
            Entry::Port(PortUse::ExcludedOutbound, port) => {
                set(&mut rules.exclusions.outbound_ports, port, present);
            }
            Entry::Port(PortUse::InboundWhenDown, _) => rules.exclusions.inbound_when_down = present,
            Entry::Cidr(cidr) => set(&mut rules.exclusions.outbound_cidrs, cidr, present),
        }
    }

    fn is_exclusion(self) -> bool {
        !matches!(self, Entry::Port(PortUse::Probe, _))
    }
}

impl Capture {
    /// Looks for the kubelet's cgroup and verifies it anew; attaches to it, or detaches.
    pub(in crate::capture) fn check_kubelet(&self) {
        let mut foreign = self.each_pod(|pod| pod.cgroup.path().to_owned());
        foreign.extend(std::fs::canonicalize(self.agent_cgroup.path()));
        let mut kubelet = self.passes.kubelet();
        let found = kubelet::find(
            &self.options.kubelet_cgroup,
            &self.cgroup2,
            &foreign,
            &mut kubelet.search,
        );
        let passage = match found {
            Ok(found) => {
                let present = kubelet.attached.as_ref();
                if present.is_some_and(|(attached, _)| attached.is_same(&found)) {
                    return;
                }
                // What a predecessor has noted and still watches is under way.
                let inherited = kubelet.passage.is_none() && self.beginning.is_beside();
                kubelet.attached = None;
                if !inherited {
                    self.passes.forget_probes();
                }
                match self.attach_kubelet(&found) {
                    Ok(links) => {
                        let cgroup = found.path.clone();
                        let passage = match found.process {
                            None => ProbePassage::Of(cgroup),
                            Some(Process { pid, .. }) => ProbePassage::OfProcess { cgroup, pid },
                        };
                        kubelet.attached = Some((found, links));
                        passage
                    }
                    Err(error) => ProbePassage::Failed(error.to_string()),
                }
            }
            Err(error) => {
                if kubelet.attached.take().is_some() {
                    self.passes.forget_probes();
                }
                ProbePassage::None(error)
            }
        };
        if kubelet.passage.as_ref() == Some(&passage) {
            return;
        }
        match &passage {
            ProbePassage::Of(cgroup) => info!(cgroup = %cgroup.display(), "probes of the kubelet pass"),
            ProbePassage::OfProcess { cgroup, pid } => info!(
                cgroup = %cgroup.display(),
                pid,
                "probes of the kubelet pass, of this process alone: it shares its cgroup with others"
            ),
            ProbePassage::None(why @ (KubeletError::Off | KubeletError::NotFound)) => {
                info!(%why, "no probes pass uncaptured");
            }
            ProbePassage::None(why) => warn!(%why, "no probes pass uncaptured"),
            ProbePassage::Failed(why) => warn!(why, "no probes pass uncaptured"),
        }
        kubelet.passage = Some(passage);
    }

    fn attach_kubelet(&self, found: &Verified) -> Result<Vec<OwnedFd>, CaptureError> {
        let Some(process) = found.process else {
            return self.object().attach_kubelet(&found.dir);
        };
        let entry = KubeletProcess {
            cgroup: found.id,
            tgid: process.pid,
            pad: 0,
        };
        let written = self.passes.process.insert(&0, &entry);
        written.map_err(CaptureError::io(
            "telling the programs which process is the kubelet",
        ))?;
        self.object().attach_shared_kubelet(&found.dir)
    }

    /// Whether probes of the kubelet pass; `None` before the first look.
    pub fn probe_passage(&self) -> Option<ProbePassage> {
        self.passes.kubelet().passage.clone()
    }

    /// Brings what passes of a pod in line with `rules`. What the kernel refuses stays captured, or, where it refuses a removal, is tried
    /// again with the next call.
    pub(in crate::capture) fn set_rules(&self, uid: &WorkloadUid, rules: &Rules) {
        let mut state = self.state();
        let Some(pod) = state.pods.get_mut(uid) else {
            return;
        };
        if pod.rules == *rules {
            return;
        }
        let netns = pod.netns.cookie();
        let (present, wanted) = (Entry::of(&pod.rules), Entry::of(rules));
        let mut failed = None;
        for entry in present.difference(&wanted) {
            match self.passes.remove(netns, *entry) {
                Ok(_) => {
                    entry.put(&mut pod.rules, false);
                    if entry.is_exclusion() {
                        pod.older.forget_listing();
                    }
                }
                Err(error) => failed = Some((*entry, error)),
            }
        }
        for entry in wanted.difference(&present) {
            match self.passes.enter(netns, *entry) {
                Ok(()) => entry.put(&mut pod.rules, true),
                Err(error) => failed = Some((*entry, error)),
            }
        }
        match failed {
            None => info!(workload = %uid, rules = ?pod.rules, "what passes uncaptured has changed"),
            Some((entry, error)) => {
                warn!(workload = %uid, ?entry, %error, "what passes uncaptured cannot be changed")
            }
        }
    }

    /// What passes of a captured pod, as it is in the kernel.
    pub fn rules(&self, uid: &WorkloadUid) -> Option<Rules> {
        self.state().pods.get(uid).map(|pod| pod.rules.clone())
    }

    /// Lists the connections that go around capture, of the pods for which that is due, and closes those that `refuse` names a reason for.
    pub(in crate::capture) fn look_for_older(
        &self,
        now: Instant,
        changed: bool,
        refuse: impl Fn(&WorkloadUid, &Uncaptured) -> Option<Refusal>,
    ) {
        let due = |(uid, pod): (&WorkloadUid, &CapturedPod)| {
            let due = pod.older.is_due(now, changed);
            due.then(|| (uid.clone(), Arc::clone(&pod.netns)))
        };
        let due: Vec<_> = self.state().pods.iter().filter_map(due).collect();
        for (uid, netns) in due {
            // Without the lock: a pod may have very many sockets.
            let listed = diag::list(&netns).and_then(|sockets| Ok((sockets, netns.ephemeral_ports()?)));
            let found = {
                let mut state = self.state();
                let Some(pod) = state.pods.get_mut(&uid) else {
                    continue;
                };
                match listed {
                    Ok((sockets, ephemeral)) => self.take_older(pod, sockets, ephemeral, now),
                    Err(error) => {
                        pod.older
                            .fail(format!("its sockets cannot be listed: {error}"), now);
                        continue;
                    }
                }
            };
            for (socket, connection) in found {
                if let Some(refusal) = refuse(&uid, &connection) {
                    self.close(&netns, &socket, &refusal);
                }
            }
        }
    }

    fn take_older(
        &self,
        pod: &mut CapturedPod,
        sockets: Vec<diag::Socket>,
        ephemeral: (u16, u16),
        now: Instant,
    ) -> Vec<(diag::Socket, Uncaptured)> {
        let look = Look {
            agent_cgroups: &self.agent_cgroups(),
            own: &pod.own,
            excluded: &pod.rules.exclusions,
            ephemeral,
        };
        let is_probe = |socket: &diag::Socket| {
            let key = flow_key(self.passes.host_netns, socket.remote, socket.local);
            matches!(self.passes.probes.get(&key), Ok(Some(_)))
        };
        pod.older.take(sockets, &look, is_probe, now)
    }

    fn close(&self, netns: &Netns, socket: &diag::Socket, refusal: &Refusal) {
        match diag::destroy(netns, socket) {
            Ok(()) => {
                self.passes.closed.fetch_add(1, Ordering::Relaxed);
                info!(why = %refusal, "closed a connection that went around capture");
            }
            Err(error) => {
                let why = match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP) => {
                        "this kernel cannot close other processes' sockets (it is built without CONFIG_INET_DIAG_DESTROY)".to_owned()
                    }
                    _ => format!("the kernel refuses to close connections: {error}"),
                };
                let mut cannot = self
                    .passes
                    .cannot_close
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                if cannot.as_ref() != Some(&why) {
                    warn!(why, "connections that STRICT forbids go on: restart their pods");
                }
                *cannot = Some(why);
            }
        }
    }

    /// The connections that go around capture, of pods that have such.
    pub fn older(&self) -> Vec<OlderConnections> {
        let cannot_close = self.cannot_close();
        let mut all = self.each_pod(|pod| OlderConnections {
            workload: pod.spec.uid.clone(),
            connections: pod.older.connections(),
            error: pod.older.error().cloned(),
        });
        all.retain(|of| !of.connections.is_empty() || of.error.is_some());
        for of in &mut all {
            of.error = of.error.take().or_else(|| cannot_close.clone());
        }
        all
    }

    /// How many were closed since the start.
    pub fn older_closed(&self) -> u64 {
        self.passes.closed.load(Ordering::Relaxed)
    }

    /// Why connections cannot be closed, once that was seen.
    pub fn cannot_close(&self) -> Option<String> {
        self.passes
            .cannot_close
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
