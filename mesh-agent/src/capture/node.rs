//! Capture on this node: the loaded programs, the maps and the captured pods. Owns everything of ours that is in the kernel.
//! Whatever is pinned outlives a crash, so a pod whose agent died refuses connections; it never goes on in plaintext.

mod entries;
mod options;
mod passes;
mod reports;
mod started;
mod succession;
mod unload;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use mesh_common::mutation::{self, Mechanism};
use mesh_common::{ABI_VERSION, Addr, NodeConst, OwnKey, PodConst, PodEntry, maps};
use mesh_core::model::WorkloadUid;
use tracing::{info, warn};

use super::bpffs::{NodeDir, Run};
use super::cgroup::{AgentCgroup, Cgroup2, PodCgroup};
use super::debug_log::DebugLog;
use super::discovery::DiscoveryStatus;
use super::error::{CaptureError, EnrolError};
use super::events::{Book, Predecessors};
use super::flows::KernelFlows;
use super::links::{PodLinks, Target};
use super::netns::Netns;
use super::objects::NodeObject;
use super::older::Older;
use super::pod::{CapturedPod, Place, PodSpec, data_path_pod, make_listeners};
use super::residents::Residents;
use super::sys::{LinkTarget, Table};
use super::{FlowTable, PodServer, checks};
use entries::{Seat, Undo};
pub use options::{CaptureOptions, CaptureState};
use passes::Passes;
pub use passes::ProbePassage;
use started::Started;
pub use succession::Beginning;
pub use unload::unload;

/// Capture on this node. Dropped without [`stop`](Capture::stop) it leaves its pods captured, as a crash does.
pub struct Capture {
    pub(super) options: CaptureOptions,
    pub(super) cgroup2: Cgroup2,
    pub(super) agent_cgroup: AgentCgroup,
    pub(super) dir: NodeDir,
    pub(super) run: Run,
    pub(super) object: Mutex<NodeObject>,
    pub(super) flows: Arc<KernelFlows>,
    pub(super) pods: Table<u64, PodEntry>,
    pub(super) own: Table<OwnKey, u32>,
    pub(super) enrolled: Table<Addr, u32>,
    pub(super) listeners: Table<u32, u32>,
    pub(super) passes: Passes,
    pub(super) book: Mutex<Book>,
    pub(super) debug_log: DebugLog,
    predecessors: Mutex<Predecessors>,
    delivery: Mutex<Option<OwnedFd>>,
    state: Mutex<State>,
    discovery: Mutex<DiscoveryStatus>,
    /// How the agent began.
    beginning: Beginning,
    /// No other agent of this node carries new connections.
    alone: AtomicBool,
    /// The run is an earlier agent's.
    adopted: bool,
}

/// What changes while the agent runs.
#[derive(Default)]
struct State {
    pods: BTreeMap<WorkloadUid, CapturedPod>,
    reported: BTreeMap<WorkloadUid, CaptureState>,
}

impl std::fmt::Debug for Capture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Capture")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Capture {
    /// Loads the programs and attaches what belongs to the node itself. To be called before any socket of the data path is made: the
    /// process may move into a cgroup of its own. What an earlier agent has pinned is adopted where it is of the same ABI.
    ///
    /// # Errors
    /// Names what is missing. The agent must not run then.
    pub fn load(options: CaptureOptions, beginning: Beginning) -> Result<Self, CaptureError> {
        if !NodeObject::is_embedded() {
            return Err(CaptureError::NotBuilt);
        }
        checks::require_kernel_and_capabilities()?;
        let cgroup2 = Cgroup2::find(options.cgroup_root.as_deref())?;
        let dir = NodeDir::open(&options.bpffs_dir)?;
        let agent_cgroup = AgentCgroup::settle(&cgroup2, &options.node_name)?;
        let adoptable = succession::adoptable(&dir);
        let adopted = adoptable.is_some();
        let run = adoptable.map_or_else(|| dir.start_run(), Ok)?;
        let started = Started {
            cgroup2,
            agent_cgroup,
            dir,
            run,
            adopted,
        };
        Self::load_into(options, started, beginning)
    }

    fn load_into(
        options: CaptureOptions,
        started: Started,
        beginning: Beginning,
    ) -> Result<Self, CaptureError> {
        let host_netns = Netns::home_cookie();
        let host_netns = host_netns.map_err(CaptureError::io(
            "reading the cookie of the host's network namespace",
        ))?;
        let loaded =
            NodeObject::load(Some(&started.run.maps()), NodeConst { host_netns }).and_then(|mut object| {
                let delivery = object.attach_agent(started.agent_cgroup.file())?;
                started
                    .run
                    .seal(ABI_VERSION)
                    .map_err(CaptureError::io("marking the maps as whole"))?;
                Ok((delivery, object.debug_lines()?, object))
            });
        let (delivery, debug_lines, object) = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                started.undo();
                return Err(error);
            }
        };
        let Started {
            cgroup2,
            agent_cgroup,
            dir,
            run,
            adopted,
        } = started;
        let leftovers = dir.leftovers(&run);
        let capture = Self {
            flows: Arc::new(KernelFlows {
                handoff: Table::new(object.map(maps::HANDOFF)?),
                deliveries: Table::new(object.map(maps::DELIVERIES)?),
                sockets: Table::new(object.map(maps::SOCKETS)?),
            }),
            pods: Table::new(object.map(maps::PODS)?),
            own: Table::new(object.map(maps::OWN)?),
            enrolled: Table::new(object.map(maps::ENROLLED)?),
            listeners: Table::new(object.map(maps::LISTENERS)?),
            passes: Passes::new(&object, host_netns)?,
            debug_log: DebugLog::new(Table::new(object.map(maps::LOG_SWITCH)?), debug_lines),
            object: Mutex::new(object),
            book: Mutex::default(),
            predecessors: Mutex::new(Predecessors::open(&leftovers)),
            delivery: Mutex::new(Some(delivery)),
            state: Mutex::default(),
            discovery: Mutex::default(),
            options,
            cgroup2,
            agent_cgroup,
            dir,
            run,
            alone: AtomicBool::new(!beginning.is_beside()),
            beginning,
            adopted,
        };
        capture.begin();
        let left: usize = leftovers.iter().map(|run| run.pods().len()).sum();
        info!(
            dir = %capture.dir.path().display(),
            run = capture.run.name(),
            adopted,
            pods = capture.run.pods().len(),
            cgroup2 = %capture.cgroup2.mount.display(),
            leftovers = left,
            "the BPF programs are loaded"
        );
        Ok(capture)
    }

    /// The cgroup2 mount.
    pub fn cgroup_root(&self) -> &Path {
        &self.cgroup2.mount
    }

    /// What it was loaded with.
    pub fn options(&self) -> &CaptureOptions {
        &self.options
    }

    /// The flow table, for the data path.
    pub fn flows(&self) -> Arc<dyn FlowTable> {
        Arc::clone(&self.flows) as Arc<dyn FlowTable>
    }

    /// Captures a pod, or brings a captured one in line with a changed spec. Its workers accept before the first connection can
    /// reach them. Blocks for some milliseconds: not for the data path.
    ///
    /// # Errors
    /// The pod is left as it was; see [`EnrolError::is_pending`].
    pub fn enrol(&self, spec: &PodSpec, server: &dyn PodServer) -> Result<(), EnrolError> {
        self.enrol_in(spec, None, server)
    }

    /// As [`enrol`](Self::enrol), for a pod whose network namespace was found and opened, and has no path.
    pub(super) fn enrol_in(
        &self,
        spec: &PodSpec,
        netns: Option<File>,
        server: &dyn PodServer,
    ) -> Result<(), EnrolError> {
        let open_cgroup = |path: &str| self.cgroup2.open_pod(path, self.agent_cgroup.path());
        let place = Place::find(spec, netns, open_cgroup)?;
        self.refuse_strays(&place)?;
        let mut state = self.state();
        if let Some(present) = state.pods.get(&spec.uid) {
            if present.spec == *spec && present.is_current() {
                return Ok(());
            }
            if present.spec.same_place(spec) && present.is_current() {
                return self.update(&mut state, spec, place, server);
            }
            if let Some(before) = state.pods.remove(&spec.uid) {
                self.let_go(before, server);
            }
        }
        let cookie = place.netns.cookie();
        if let Some(other) = state.pods.values().find(|pod| pod.netns.cookie() == cookie) {
            return Err(EnrolError::NetnsTaken(other.spec.uid.to_string()));
        }
        let captured = self.capture(&state, spec, place, server)?;
        state.pods.insert(spec.uid.clone(), captured);
        Ok(())
    }

    /// The hooks are on the cgroup: processes that are elsewhere would go around them.
    fn refuse_strays(&self, place: &Place) -> Result<(), EnrolError> {
        let home = place.cgroup.path();
        let inode = place
            .netns
            .inode()
            .map_err(EnrolError::kernel("looking at its network namespace"))?;
        let residents = Residents::of(&self.options.discovery.proc_root, inode, home, &self.cgroup2);
        let residents = residents.map_err(EnrolError::kernel("looking for its processes in /proc"))?;
        match residents.stray() {
            None => Ok(()),
            Some((pid, found)) => Err(EnrolError::Astray {
                pid,
                found,
                expected: home.to_owned(),
            }),
        }
    }

    /// The order matters: see the design of enrolment in ARCHITECTURE.md. Listeners, entries, workers, `sk_lookup`, `sock_ops`,
    /// `getpeername`, and `connect` at the very last. Where an earlier agent has captured the pod, everything is in force already: the
    /// listeners go into the bank that is idle, and the entry that makes it the one in use is written at the very last.
    fn capture(
        &self,
        state: &State,
        spec: &PodSpec,
        place: Place,
        server: &dyn PodServer,
    ) -> Result<CapturedPod, EnrolError> {
        let Place {
            netns,
            cgroup,
            interfaces,
            changes,
        } = place;
        let cookie = netns.cookie();
        let seat = self.seat(state, cookie)?;
        let listeners = make_listeners(&netns, server.workers())?;
        let undo = Undo {
            capture: self,
            cookie,
            seat,
        };
        self.list(seat, &listeners)?;
        self.put_own(cookie, &self.own_of(cookie), &interfaces.addresses)?;
        if !seat.inherited {
            self.put_entry(spec, cookie, seat, server.workers())?;
        }
        let dir = self
            .run
            .make_pod(cookie)
            .map_err(EnrolError::kernel("making the directory of its pins"))?;
        let rules = self.passes.present(cookie);
        let pod = data_path_pod(spec, &netns, seat.slot);
        server.serve(Arc::clone(&pod), listeners);
        let mut links = self.attach(&netns, &cgroup, &dir).inspect_err(|_| {
            server.retire(&spec.uid);
        })?;
        if seat.inherited && !mutation::is_off(Mechanism::BankFlip) {
            self.put_entry(spec, cookie, seat, server.workers())
                .inspect_err(|_| {
                    server.retire(&spec.uid);
                    links.detach_new();
                })?;
        }
        std::mem::forget(undo);
        self.replace_leftovers(cookie);
        info!(workload = %spec.uid, netns = cookie, slot = seat.slot, bank = seat.bank, adopted = links.adopted(), "captured");
        Ok(CapturedPod {
            spec: spec.clone(),
            pod,
            netns,
            cgroup,
            own: interfaces.addresses,
            links,
            bank: seat.bank,
            changes: Arc::new(changes),
            rules,
            older: Older::default(),
        })
    }

    fn attach(&self, netns: &Netns, cgroup: &PodCgroup, dir: &Path) -> Result<PodLinks, EnrolError> {
        let consts = PodConst {
            netns: netns.cookie(),
            host_netns: self.passes.host_netns(),
        };
        let inode = netns
            .inode()
            .map_err(EnrolError::kernel("looking at its network namespace"))?;
        let of_netns = Target {
            file: netns.file().as_fd(),
            is: LinkTarget::Netns(inode),
        };
        let of_cgroup = Target {
            file: cgroup.file().as_fd(),
            is: LinkTarget::Cgroup(cgroup.id()),
        };
        let attached = self.object().attach_pod(consts, of_netns, of_cgroup, dir);
        attached.map_err(|(what, why)| EnrolError::Kernel { what, why })
    }

    /// Another spec at the same place: the links stay, the listeners are exchanged. Between the two, connections are refused.
    fn update(
        &self,
        state: &mut State,
        spec: &PodSpec,
        place: Place,
        server: &dyn PodServer,
    ) -> Result<(), EnrolError> {
        let seat = self.free_seat(state)?;
        let Some(present) = state.pods.get_mut(&spec.uid) else {
            return Ok(());
        };
        let cookie = present.netns.cookie();
        let listeners = make_listeners(&present.netns, server.workers())?;
        self.list(seat, &listeners)?;
        server.retire(&spec.uid);
        let pod = data_path_pod(spec, &present.netns, seat.slot);
        server.serve(Arc::clone(&pod), listeners);
        self.put_own(cookie, &present.own, &place.interfaces.addresses)?;
        present.own = place.interfaces.addresses;
        self.put_entry(spec, cookie, seat, server.workers())?;
        self.unlist(present.pod.slot);
        present.pod = pod;
        present.bank = seat.bank;
        present.spec = spec.clone();
        info!(workload = %spec.uid, netns = cookie, slot = seat.slot, "captured anew after a change");
        Ok(())
    }

    /// Lets a pod go: from now on its connections are its own. Nothing happens when it is not captured.
    pub fn release(&self, uid: &WorkloadUid, server: &dyn PodServer) {
        let mut state = self.state();
        if let Some(pod) = state.pods.remove(uid) {
            self.let_go(pod, server);
        }
    }

    /// `connect` first, so that nothing new comes; then what steers; then the listeners.
    fn let_go(&self, mut captured: CapturedPod, server: &dyn PodServer) {
        let cookie = captured.netns.cookie();
        captured.links.detach();
        if let Err(error) = self.run.remove_pod(cookie) {
            warn!(workload = %captured.spec.uid, %error, "a pin of a released pod stays");
        }
        server.retire(&captured.spec.uid);
        self.unlist(captured.pod.slot);
        self.forget(cookie);
        info!(workload = %captured.spec.uid, netns = cookie, "released");
    }

    /// The specs of the captured pods, and whether namespace and cgroup are still the ones that their paths lead to.
    pub(super) fn captured(&self) -> BTreeMap<WorkloadUid, (PodSpec, bool)> {
        let state = self.state();
        let entry =
            |(uid, pod): (&WorkloadUid, &CapturedPod)| (uid.clone(), (pod.spec.clone(), pod.is_current()));
        state.pods.iter().map(entry).collect()
    }

    /// For [`status`](Capture::status).
    pub(super) fn each_pod<T>(&self, describe: impl FnMut(&CapturedPod) -> T) -> Vec<T> {
        self.state().pods.values().map(describe).collect()
    }

    /// Removes the pins of earlier runs for pods that this run does not capture. To be called once every pod that should be captured
    /// is.
    pub fn drop_leftovers(&self) {
        self.drop_unwanted();
        for run in self.dir.leftovers(&self.run) {
            match run.remove() {
                Ok(pins) => {
                    info!(pins, "removed what an earlier run had left");
                    let unread = self.predecessors().end(&run);
                    self.take_events(unread, Instant::now());
                }
                Err(error) => warn!(%error, "what an earlier run has left cannot be removed"),
            }
        }
    }

    pub(super) fn object(&self) -> MutexGuard<'_, NodeObject> {
        self.object.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn predecessors(&self) -> MutexGuard<'_, Predecessors> {
        self.predecessors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
