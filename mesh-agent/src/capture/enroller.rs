//! Keeps the captured pods in step with the snapshot: enrols, updates, releases, tries again. Decides in [`steps`], acts in [`run`].

mod addresses;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::model::WorkloadUid;
use mesh_core::plan;
use mesh_core::snapshot::Snapshot;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::addresses::Watcher;
use super::PodServer;
use super::announced::Announcements;
use super::discovery::{self, Discovery, DiscoveryStatus, Follower, Runtimes, Sandbox};
use super::error::EnrolError;
use super::local::Local;
use super::node::{Capture, CaptureState};
use super::pod::{PodSpec, Rules};
use crate::settings;
use crate::state::SnapshotCell;

/// How often captured pods are looked at for namespaces and cgroups that were made anew, and the longest wait for what is missing.
const LOOK: Duration = Duration::from_millis(500);
/// The first wait after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The longest wait after a refusal that is likely to last.
const LONG_RETRY: Duration = Duration::from_secs(10);

/// Runs until `shutdown`. Leaves the pods as they are then: [`Capture::stop`] lets them go.
pub async fn run(
    capture: Arc<Capture>,
    snapshots: Arc<SnapshotCell>,
    server: Arc<dyn PodServer>,
    announced: Arc<Announcements>,
    shutdown: CancellationToken,
) {
    let mut versions = snapshots.watch();
    let settings = capture.options().discovery.clone();
    let runtimes = Arc::<Runtimes>::default();
    let start = || Follower::start(&settings.cri_socket, &runtimes);
    let _follower = settings.on.then(start).flatten();
    let mut enroller = Enroller::new(capture, server);
    if settings.on {
        enroller.discover(&settings, runtimes, announced.clone());
    }
    loop {
        versions.mark_unchanged();
        let snapshot = snapshots.load();
        let pass = move || {
            let now = Instant::now();
            enroller.tell_enrolled(&snapshot);
            let local = Local::of(&snapshot, enroller.discovery.as_mut(), now);
            enroller.pass(&local, now);
            enroller.see_to_what_passes(&snapshot, now);
            enroller
        };
        let Ok(next) = tokio::task::spawn_blocking(pass).await else {
            warn!("a pass over the local pods has panicked: enrolment stops, captured pods stay captured");
            return;
        };
        enroller = next;
        enroller.watch_addresses();
        let until = Instant::now() + enroller.next_wait(Instant::now());
        loop {
            let wait = enroller.next_look(Instant::now(), until);
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = versions.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                () = announced.changed() => break,
                () = tokio::time::sleep(wait) => {}
            }
            if Instant::now() >= until {
                break;
            }
            let look = move || {
                let news = enroller
                    .discovery
                    .as_mut()
                    .is_some_and(|d| d.has_news(Instant::now()));
                (enroller, news)
            };
            let Ok((next, news)) = tokio::task::spawn_blocking(look).await else {
                warn!("a look for sandboxes has panicked: enrolment stops, captured pods stay captured");
                return;
            };
            enroller = next;
            if news {
                break;
            }
        }
    }
}

/// What is to be done with one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// It is not to be captured any more, or its place is gone.
    Release(WorkloadUid),
    /// It is to be captured like this: for the first time, or otherwise than before.
    Enrol(PodSpec),
}

/// The steps from what is captured (with the word whether its place is still there) to what is wanted. Releases come first: their
/// namespaces may be wanted by others.
fn steps(
    wanted: &BTreeMap<WorkloadUid, PodSpec>,
    captured: &BTreeMap<WorkloadUid, (PodSpec, bool)>,
) -> Vec<Step> {
    let gone =
        |(uid, (_, current)): &(&WorkloadUid, &(PodSpec, bool))| !current || !wanted.contains_key(*uid);
    let releases = captured
        .iter()
        .filter(gone)
        .map(|(uid, _)| Step::Release(uid.clone()));
    let new = |(uid, spec): &(&WorkloadUid, &PodSpec)| {
        captured
            .get(*uid)
            .is_none_or(|(present, current)| !current || present != *spec)
    };
    let enrolments = wanted
        .iter()
        .filter(new)
        .map(|(_, spec)| Step::Enrol(spec.clone()));
    releases.chain(enrolments).collect()
}

/// A workload that could not be captured.
#[derive(Debug)]
struct Failure {
    spec: PodSpec,
    state: CaptureState,
    wait: Duration,
    again: Instant,
}

/// Does what the plan says. Synchronous.
struct Enroller {
    capture: Arc<Capture>,
    server: Arc<dyn PodServer>,
    failures: BTreeMap<WorkloadUid, Failure>,
    watchers: BTreeMap<WorkloadUid, Watcher>,
    /// Pins of an earlier run may still be there.
    leftovers: bool,
    /// Version of the snapshot by which connections were judged last.
    judged: u64,
    /// The snapshot whose enrolled addresses the kernel knows.
    told: Option<u64>,
    /// Finds pods that do not say where they live, where that is wanted.
    discovery: Option<Discovery>,
}

impl Enroller {
    fn new(capture: Arc<Capture>, server: Arc<dyn PodServer>) -> Self {
        Self {
            capture,
            server,
            failures: BTreeMap::new(),
            watchers: BTreeMap::new(),
            leftovers: true,
            judged: 0,
            told: None,
            discovery: None,
        }
    }

    /// From now on, looks for pods that do not say where they live.
    fn discover(
        &mut self,
        settings: &settings::Discovery,
        runtimes: Arc<Runtimes>,
        announced: Arc<Announcements>,
    ) {
        let cgroup2 = self.capture.cgroup2.clone();
        match Discovery::new(settings, cgroup2, runtimes, announced) {
            Ok(discovery) => self.discovery = Some(discovery),
            Err(error) => {
                warn!(%error, "pods are not looked for: the agent cannot look at its own network namespace")
            }
        }
    }

    /// Before anything is captured, the kernel is to know who else is. Tried again with the next pass when it fails.
    fn tell_enrolled(&mut self, snapshot: &Snapshot) {
        if self.told == Some(snapshot.version()) {
            return;
        }
        let told = self.told.take();
        match self.capture.put_enrolled(snapshot, told) {
            Ok(()) => self.told = Some(snapshot.version()),
            Err(error) => warn!(
                %error,
                "the kernel does not know who is enrolled: sockets bound to other devices are refused all their connections"
            ),
        }
    }

    fn pass(&mut self, local: &Local, now: Instant) {
        for step in steps(&local.placed, &self.capture.captured()) {
            match step {
                Step::Release(uid) => self.capture.release(&uid, &*self.server),
                Step::Enrol(spec) => {
                    let sandbox = local.found.get(&spec.uid);
                    self.try_enrol(spec, sandbox, now);
                }
            }
        }
        self.failures.retain(|uid, _| local.placed.contains_key(uid));
        self.report(local);
        let settled = |f: &Failure| matches!(f.state, CaptureState::Refused(_));
        let may_drop = local.known && self.capture.may_drop_leftovers();
        if self.leftovers && may_drop && !local.is_open() && self.failures.values().all(settled) {
            self.capture.drop_leftovers();
            self.leftovers = false;
        }
    }

    /// The kubelet, what each pod excludes, and what goes around capture.
    fn see_to_what_passes(&mut self, snapshot: &Snapshot, now: Instant) {
        self.capture.check_kubelet();
        let allowed = self.capture.options().allow_exclusions;
        for uid in self.capture.captured().keys() {
            // Gone from the configuration with the next pass: until then nothing new may pass.
            let rules = snapshot
                .workload(uid)
                .map_or_else(Rules::default, |workload| Rules {
                    probe_ports: workload.probe_ports.clone(),
                    exclusions: plan::exclusions(snapshot, workload, allowed).in_force,
                });
            self.capture.set_rules(uid, &rules);
        }
        let changed = self.judged != snapshot.version();
        self.judged = snapshot.version();
        self.capture.look_for_older(now, changed, |uid, connection| {
            plan::uncaptured(snapshot, snapshot.workload(uid)?, connection)
        });
    }

    fn try_enrol(&mut self, spec: PodSpec, sandbox: Option<&Sandbox>, now: Instant) {
        let before = self
            .failures
            .get(&spec.uid)
            .filter(|failure| failure.spec == spec);
        if before.is_some_and(|failure| now < failure.again) {
            return;
        }
        let Err(error) = self.enrol(&spec, sandbox) else {
            self.failures.remove(&spec.uid);
            return;
        };
        let wait = next_retry(before.map(|failure| failure.wait), &error);
        let state = if error.is_pending() {
            CaptureState::Pending(error.to_string())
        } else {
            CaptureState::Refused(error.to_string())
        };
        if before.is_none_or(|failure| failure.state != state) {
            warn!(workload = %spec.uid, %error, "not captured");
        }
        let failure = Failure {
            state,
            wait,
            again: now + wait,
            spec,
        };
        self.failures.insert(failure.spec.uid.clone(), failure);
    }

    /// The namespace of a sandbox is open for as long as this takes, and no longer unless the pod is captured.
    fn enrol(&self, spec: &PodSpec, sandbox: Option<&Sandbox>) -> Result<(), EnrolError> {
        let open = |(sandbox, discovery): (&Sandbox, &Discovery)| {
            discovery.open(sandbox).map_err(|source| EnrolError::Netns {
                path: spec.netns.clone(),
                source,
            })
        };
        let netns = sandbox.zip(self.discovery.as_ref()).map(open).transpose()?;
        self.capture.enrol_in(spec, netns, &*self.server)
    }

    fn report(&self, local: &Local) {
        let captured = self.capture.captured();
        let mut states: BTreeMap<WorkloadUid, CaptureState> = BTreeMap::new();
        for uid in local.placed.keys() {
            let failure = self.failures.get(uid).map(|failure| failure.state.clone());
            let present = captured.contains_key(uid).then_some(CaptureState::Captured);
            let unknown = || CaptureState::Pending("not tried yet".into());
            states.insert(uid.clone(), failure.or(present).unwrap_or_else(unknown));
        }
        states.extend(
            local
                .unplaced
                .iter()
                .map(|(uid, state)| (uid.clone(), state.clone())),
        );
        self.capture.report(states);
        self.capture.report_discovery(DiscoveryStatus {
            on: self.discovery.is_some(),
            runtime: self
                .discovery
                .as_ref()
                .map(Discovery::runtime)
                .unwrap_or_default(),
            sandboxes: local.sandboxes(),
        });
    }

    /// One task per captured pod, which follows the addresses of its namespace.
    fn watch_addresses(&mut self) {
        let captured = self.capture.captured();
        self.watchers.retain(|uid, _| captured.contains_key(uid));
        for uid in captured.into_keys() {
            let Some(changes) = self.capture.address_changes(&uid) else {
                continue;
            };
            let known = self
                .watchers
                .get(&uid)
                .is_some_and(|watcher| watcher.follows(&changes));
            if !known {
                let watcher = Watcher::start(Arc::clone(&self.capture), uid.clone(), changes);
                self.watchers.insert(uid, watcher);
            }
        }
    }

    /// How long until the next look for sandboxes that are waited for, or until the pass that is due at `until`.
    fn next_look(&self, now: Instant, until: Instant) -> Duration {
        let left = until.saturating_duration_since(now);
        let is_waiting = self.discovery.as_ref().is_some_and(Discovery::is_waiting);
        if is_waiting {
            left.min(discovery::LOOK)
        } else {
            left
        }
    }

    fn next_wait(&self, now: Instant) -> Duration {
        let soonest = self.failures.values().map(|failure| failure.again).min();
        let until = soonest.map_or(LOOK, |again| again.saturating_duration_since(now));
        until.clamp(Duration::from_millis(1), LOOK)
    }
}

/// What is missing may appear any moment; what was refused is likely to stay refused.
fn next_retry(last: Option<Duration>, error: &EnrolError) -> Duration {
    let longest = if error.is_pending() { LOOK } else { LONG_RETRY };
    last.map_or(FIRST_RETRY, |wait| wait * 2).min(longest)
}

/// The enroller without its task, for tests that bring their own clock.
#[cfg(test)]
pub(super) struct Trial(Enroller);

#[cfg(test)]
impl Trial {
    pub(super) fn new(capture: &Arc<Capture>, server: Arc<dyn PodServer>) -> Self {
        Self(Enroller::new(Arc::clone(capture), server))
    }

    pub(super) fn pass(&mut self, local: &Local, now: Instant) {
        self.0.pass(local, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, address: &str) -> PodSpec {
        PodSpec {
            uid: WorkloadUid::new("shop", name, ""),
            identity: "spiffe://cluster.local/ns/shop/sa/order".parse().unwrap(),
            addresses: vec![address.parse().unwrap()],
            netns: format!("/run/netns/{name}"),
            cgroup: name.into(),
        }
    }

    fn wanted(specs: &[PodSpec]) -> BTreeMap<WorkloadUid, PodSpec> {
        specs.iter().map(|s| (s.uid.clone(), s.clone())).collect()
    }

    fn captured(specs: &[(PodSpec, bool)]) -> BTreeMap<WorkloadUid, (PodSpec, bool)> {
        specs.iter().map(|s| (s.0.uid.clone(), s.clone())).collect()
    }

    #[test]
    fn what_is_as_wanted_stays_untouched() {
        let a = spec("a", "198.18.0.1");
        assert_eq!(
            steps(&wanted(std::slice::from_ref(&a)), &captured(&[(a, true)])),
            []
        );
    }

    #[test]
    fn a_change_leads_to_one_enrolment_and_no_release() {
        let (before, after) = (spec("a", "198.18.0.1"), spec("a", "198.18.0.2"));
        let steps = steps(
            &wanted(std::slice::from_ref(&after)),
            &captured(&[(before, true)]),
        );
        assert_eq!(steps, [Step::Enrol(after)]);
    }

    #[test]
    fn a_place_that_was_made_anew_is_released_before_it_is_enrolled_again() {
        let (a, b) = (spec("a", "198.18.0.1"), spec("b", "198.18.0.2"));
        let steps = steps(
            &wanted(&[a.clone(), b.clone()]),
            &captured(&[(a.clone(), false), (spec("z", "198.18.0.9"), true)]),
        );
        assert_eq!(
            steps,
            [
                Step::Release(a.uid.clone()),
                Step::Release(WorkloadUid::new("shop", "z", "")),
                Step::Enrol(a),
                Step::Enrol(b),
            ]
        );
    }

    #[test]
    fn what_is_missing_is_looked_for_within_a_second_and_a_refusal_waits_longer() {
        let missing = EnrolError::NoAddress;
        let refused = EnrolError::HostNetns;
        let mut waits = (None, None);
        for _ in 0..20 {
            waits = (
                Some(next_retry(waits.0, &missing)),
                Some(next_retry(waits.1, &refused)),
            );
        }
        assert!(waits.0.unwrap() < Duration::from_secs(1));
        assert_eq!(waits.1.unwrap(), LONG_RETRY);
    }
}
