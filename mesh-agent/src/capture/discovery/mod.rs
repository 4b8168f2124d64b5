//! Where the sandbox of a Kubernetes pod is on this node: its cgroup and its network namespace, by the Pod's `metadata.uid`. Asked by the
//! enroller; looks at the kernel (the cgroup tree and `/proc`), and at what the container runtime says about its sandboxes. What
//! the runtime says counts only where the kernel shows the same. What the CNI plugin has announced counts until a process is there.
//! Captures nothing, and keeps no namespace open.

mod choose;
mod layout;
mod processes;
mod runtime;
mod status;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use self::choose::{Choice, Process, choose};
use self::layout::PodKey;
use self::processes::Procfs;
pub(super) use self::processes::stat as process_stat;
use self::runtime::Claim;
pub(super) use self::runtime::{Follower, Runtimes};
pub use self::status::{DiscoveryStatus, FoundBy, RuntimeState, SandboxStatus};
use self::tree::{Places, Tree};
use super::announced::{Announcements, Awaited};
use super::cgroup::Cgroup2;
use crate::settings::Discovery as Options;

/// How soon a pod is looked for again that has no sandbox yet.
pub(super) const LOOK: Duration = Duration::from_millis(150);
/// How long a sandbox whose process still runs is believed to be the pod's without another look at all its processes.
const BELIEVED: Duration = Duration::from_secs(5);

/// Where a pod lives.
#[derive(Clone, Debug)]
pub(super) struct Sandbox {
    /// Its cgroup.
    pub(super) cgroup: PathBuf,
    /// Inode of its network namespace.
    pub(super) netns: u64,
    /// Who has told.
    pub(super) by: FoundBy,
    evidence: Evidence,
}

/// What a namespace is opened by.
#[derive(Clone, Debug)]
enum Evidence {
    /// A process of the pod in it.
    Process(Process),
    /// The CNI plugin has handed it over.
    Announced(Arc<File>),
}

impl Sandbox {
    /// Its network namespace, as the kernel names it.
    pub(super) fn netns_name(&self) -> String {
        format!("net:[{}]", self.netns)
    }
}

/// What is known of a pod.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// It lives here.
    Found(Sandbox),
    /// It has no process on this node, yet or any more: there is nothing to capture.
    Absent(String),
    /// It cannot be told yet.
    Pending(String),
    /// It must not be captured, for this reason.
    Refused(String),
}

/// A pod that was found.
#[derive(Debug)]
struct Known {
    sandbox: Sandbox,
    looked: Instant,
    /// What the runtime said then.
    claim: Option<Claim>,
}

/// Finds sandboxes. One per agent, of the enroller's.
#[derive(Debug)]
pub(super) struct Discovery {
    tree: Tree,
    procfs: Procfs,
    cgroup2: Cgroup2,
    host: u64,
    runtimes: Arc<Runtimes>,
    announced: Arc<Announcements>,
    known: BTreeMap<PodKey, Known>,
    /// Those that had no sandbox at the last look.
    absent: BTreeSet<PodKey>,
    /// The runtime's first answer was still to come then.
    asking: bool,
    complained: bool,
}

impl Discovery {
    /// Under these settings, on the machine with this cgroup2 mount.
    ///
    /// # Errors
    /// When the agent's own network namespace cannot be looked at.
    pub(super) fn new(
        options: &Options,
        cgroup2: Cgroup2,
        runtimes: Arc<Runtimes>,
        announced: Arc<Announcements>,
    ) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let root = match &options.cgroup {
            Some(below) => cgroup2.mount.join(below.strip_prefix("/").unwrap_or(below)),
            None => cgroup2.mount.clone(),
        };
        Ok(Self {
            tree: Tree::new(root),
            procfs: Procfs::at(options.proc_root.clone()),
            host: fs::metadata("/proc/self/ns/net")?.ino(),
            cgroup2,
            runtimes,
            announced,
            known: BTreeMap::new(),
            absent: BTreeSet::new(),
            asking: false,
            complained: false,
        })
    }

    /// Where these pods are, by their uids. Those that are not asked for any more are forgotten.
    pub(super) fn locate<'a>(
        &mut self,
        uids: impl IntoIterator<Item = &'a str>,
        now: Instant,
    ) -> BTreeMap<&'a str, Outcome> {
        let asked: Vec<(&str, Option<PodKey>)> = uids.into_iter().map(|uid| (uid, PodKey::of(uid))).collect();
        let keys: BTreeSet<PodKey> = asked.iter().filter_map(|(_, key)| key.clone()).collect();
        self.known.retain(|key, _| keys.contains(key));
        self.announced
            .expire(|pod| PodKey::of(pod).is_some_and(|key| keys.contains(&key)), now);
        let view = self.runtimes.view();
        let doubtful: BTreeSet<PodKey> = asked
            .iter()
            .filter_map(|(uid, key)| Some((*uid, key.as_ref()?)))
            .filter(|(uid, key)| !self.is_believed(uid, key, view.claim(key), now))
            .map(|(_, key)| key.clone())
            .collect();
        let places = self.places(&doubtful, now);
        let mut outcomes = BTreeMap::new();
        let mut unconfirmed = false;
        self.absent.clear();
        self.asking = view.is_asking();
        for (uid, key) in asked {
            let outcome = match key {
                None => Outcome::Refused(format!(
                    "its metadata.uid {uid:?} is none that a kubelet makes a cgroup of"
                )),
                Some(key) => match self.known.get(&key) {
                    Some(known) if !doubtful.contains(&key) => Outcome::Found(known.sandbox.clone()),
                    _ => {
                        let claim = view.claim(&key);
                        let awaited = self.announced.of(uid);
                        let outcome = self.look(&key, &places, claim, awaited.as_ref());
                        if let Outcome::Found(Sandbox {
                            netns,
                            evidence: Evidence::Process(_),
                            ..
                        }) = &outcome
                        {
                            self.announced.confirm(uid, *netns);
                        }
                        if matches!(outcome, Outcome::Absent(_)) {
                            self.absent.insert(key.clone());
                        }
                        self.remember(key, &outcome, claim, now);
                        outcome
                    }
                },
            };
            unconfirmed |= match &outcome {
                Outcome::Found(sandbox) => sandbox.by == FoundBy::Proc,
                Outcome::Absent(_) => false,
                Outcome::Pending(_) | Outcome::Refused(_) => true,
            };
            outcomes.insert(uid, outcome);
        }
        if unconfirmed {
            self.runtimes.ask();
        }
        outcomes
    }

    /// Whether a sandbox may appear at any moment.
    pub(super) fn is_waiting(&self) -> bool {
        self.asking || !self.absent.is_empty()
    }

    /// Whether one of those that had no sandbox at the last look has one now. Costs little: may be asked often.
    pub(super) fn has_news(&mut self, now: Instant) -> bool {
        if self.asking && !self.runtimes.view().is_asking() {
            return true;
        }
        let absent = std::mem::take(&mut self.absent);
        let places = self.places(&absent, now).unwrap_or_default();
        self.absent = absent;
        let lives = |place: &PathBuf| {
            let processes = self.procfs.of_pod(place, &self.cgroup2);
            processes.is_ok_and(|processes| !processes.is_empty())
        };
        places.values().flatten().any(lives)
    }

    /// How the container runtime stands.
    pub(super) fn runtime(&self) -> RuntimeState {
        self.runtimes.state()
    }

    /// Opens the network namespace of a sandbox that was found.
    ///
    /// # Errors
    /// When it is not that of one of the pod's processes any more: look again.
    pub(super) fn open(&self, sandbox: &Sandbox) -> io::Result<File> {
        match &sandbox.evidence {
            Evidence::Process(process) => self.procfs.open_netns(process, &sandbox.cgroup, &self.cgroup2),
            Evidence::Announced(netns) => netns.try_clone(),
        }
    }

    /// The addresses that the CNI has given to the pod with this uid, where its plugin has told.
    pub(super) fn addresses(&self, uid: &str) -> Vec<IpAddr> {
        self.announced.addresses(uid)
    }

    fn is_believed(&self, uid: &str, key: &PodKey, claim: Option<&Claim>, now: Instant) -> bool {
        let waits = || {
            self.announced
                .of(uid)
                .is_some_and(|awaited| awaited.netns.is_some())
        };
        self.known.get(key).is_some_and(|known| {
            known.claim.as_ref() == claim
                && now.saturating_duration_since(known.looked) < BELIEVED
                && self.is_there(&known.sandbox)
                && !waits()
        })
    }

    /// Whether the process by which it was found still runs there.
    fn is_there(&self, sandbox: &Sandbox) -> bool {
        matches!(&sandbox.evidence, Evidence::Process(process) if self.procfs.still(process))
    }

    fn places(&mut self, wanted: &BTreeSet<PodKey>, now: Instant) -> Result<Places, String> {
        let found = self
            .tree
            .find(wanted, now)
            .map_err(|error| format!("{} cannot be read: {error}", self.tree.root().display()));
        match &found {
            Err(why) if !self.complained => warn!("pods cannot be looked for: {why}"),
            Ok(_) if self.complained => info!("pods can be looked for again"),
            _ => {}
        }
        self.complained = found.is_err();
        found
    }

    /// A look at one pod. One that was found before stays where it was for as long as that cannot be excluded. One that was announced is
    /// where the plugin says until a process of it is there.
    fn look(
        &self,
        key: &PodKey,
        places: &Result<Places, String>,
        claim: Option<&Claim>,
        awaited: Option<&Awaited>,
    ) -> Outcome {
        let known = self.known.get(key).map(|known| &known.sandbox);
        let stay = |otherwise: Outcome| {
            known
                .filter(|sandbox| self.is_there(sandbox))
                .map_or(otherwise, |sandbox| Outcome::Found(sandbox.clone()))
        };
        let awaited = awaited.and_then(|awaited| Some((awaited.inode, awaited.netns.clone()?)));
        let places = match places {
            Ok(places) => places.get(key).map_or(&[][..], Vec::as_slice),
            Err(why) => return stay(Outcome::Pending(why.clone())),
        };
        let cgroup = match self.one_of(places, claim) {
            Ok(Some(cgroup)) => cgroup,
            Ok(None) => return stay(Outcome::Absent(self.no_cgroup(key))),
            Err(why) => return stay(Outcome::Refused(why)),
        };
        let announced = awaited.map(|(netns, file)| Sandbox {
            cgroup: cgroup.to_owned(),
            netns,
            by: FoundBy::Cni,
            evidence: Evidence::Announced(file),
        });
        if self.asking && known.is_none() && announced.is_none() {
            return Outcome::Pending("the container runtime is being asked for its sandboxes".to_owned());
        }
        let processes = match self.procfs.of_pod(cgroup, &self.cgroup2) {
            Ok(processes) => processes,
            Err(_) if announced.is_some() => Vec::new(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Outcome::Absent(self.no_cgroup(key));
            }
            Err(error) => {
                let why = format!(
                    "its processes cannot be looked at ({error}): the agent needs the host's pid namespace (hostPID) and CAP_SYS_PTRACE"
                );
                return stay(Outcome::Pending(why));
            }
        };
        let said = claim.and_then(|claim| claim.among(&processes));
        let choice = choose(&processes, said);
        if let Some(sandbox) = announced
            && !matches!(&choice, Choice::Process(process) if process.netns == sandbox.netns)
        {
            return Outcome::Found(sandbox);
        }
        match choice {
            Choice::Nobody => Outcome::Absent(format!("no process is in its cgroup {}", cgroup.display())),
            Choice::Process(process) if process.netns == self.host => Outcome::Refused(
                "its sandbox is in the node's network namespace (host network), which it shares with others: such pods are never captured"
                    .to_owned(),
            ),
            Choice::Process(process) => Outcome::Found(Sandbox {
                cgroup: cgroup.to_owned(),
                netns: process.netns,
                by: if said == Some(process.pid) { FoundBy::Cri } else { FoundBy::Proc },
                evidence: Evidence::Process(process),
            }),
            Choice::Doubt(why) => {
                // Captured pods stay captured: one of its processes is still where it was.
                let held = known.and_then(|sandbox| {
                    let process = processes.iter().find(|process| process.netns == sandbox.netns)?;
                    Some(Sandbox { evidence: Evidence::Process(process.clone()), ..sandbox.clone() })
                });
                held.map_or(Outcome::Refused(why), Outcome::Found)
            }
        }
    }

    /// The one cgroup of a pod; where several bear its uid, the one that the runtime's process is in.
    fn one_of<'a>(&self, places: &'a [PathBuf], claim: Option<&Claim>) -> Result<Option<&'a Path>, String> {
        let (first, others) = match places {
            [] => return Ok(None),
            [first, others @ ..] => (first, others),
        };
        if others.is_empty() {
            return Ok(Some(first));
        }
        let holds = |place: &&PathBuf| {
            let processes = self.procfs.of_pod(place, &self.cgroup2).unwrap_or_default();
            claim.is_some_and(|claim| claim.among(&processes).is_some())
        };
        let named: Vec<&PathBuf> = places.iter().filter(holds).collect();
        match named.as_slice() {
            [one] => Ok(Some(one)),
            _ => {
                let shown: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
                Err(format!(
                    "several cgroups bear its uid: {}. Name the one that the node's pods are below with --pods-cgroup",
                    shown.join(", ")
                ))
            }
        }
    }

    fn no_cgroup(&self, key: &PodKey) -> String {
        let root = self.tree.root().display();
        let rest = if self.tree.was_cut_short() {
            ", as far as was looked: the tree is too large, narrow it down with --pods-cgroup"
        } else if self.tree.is_empty() {
            ", nor any cgroup of a kubelet (kubepods, kubepods.slice)"
        } else {
            ""
        };
        format!("it has no sandbox on this node: no cgroup of pod {key} is below {root}{rest}")
    }

    fn remember(&mut self, key: PodKey, outcome: &Outcome, claim: Option<&Claim>, now: Instant) {
        match outcome {
            Outcome::Found(sandbox) => {
                let before = self.known.get(&key).map(|known| known.sandbox.netns);
                if before != Some(sandbox.netns) {
                    let pid = match &sandbox.evidence {
                        Evidence::Process(process) => Some(process.pid),
                        Evidence::Announced(_) => None,
                    };
                    info!(
                        pod = %key, by = sandbox.by.as_str(), netns = sandbox.netns, pid,
                        cgroup = %sandbox.cgroup.display(), "found the sandbox of a pod"
                    );
                }
                let known = Known {
                    sandbox: sandbox.clone(),
                    looked: now,
                    claim: claim.cloned(),
                };
                self.known.insert(key, known);
            }
            Outcome::Absent(_) | Outcome::Refused(_) => {
                self.known.remove(&key);
            }
            Outcome::Pending(_) => {}
        }
    }
}

#[cfg(test)]
mod tests;
