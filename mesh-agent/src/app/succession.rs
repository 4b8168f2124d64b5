//! From one agent of a node to the next without a lost connection: what a successor waits for before it relieves its predecessor, and how
//! an agent makes way, takes back what a failed successor leaves, or leaves itself.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use super::live::Live;
use super::view::AgentView;
use super::{Agent, AppError, Office, Signals, end_of};
use crate::admin::AdminSocket;
use crate::capture::Capture;
use crate::handover::{Claim, Departure, Estate, Ledger, Outcome, Predecessor, Visitor};
use crate::settings::Settings;
use crate::telemetry::connections::ConnectionLog;
use crate::telemetry::readiness;

/// How long a successor waits for configuration and certificates before it captures, and for all pods to be captured before it relieves
/// its predecessor. What takes longer would not have been there under the predecessor either.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);
/// How long handshakes that have begun may take to end: those of a client whose packets are lost are repeated after one, three and seven
/// seconds (RFC 6298, 2).
const HALF_OPEN: Duration = Duration::from_secs(8);
/// How often an agent that leaves tells its successor how many connections it has left.
const TOLD_EVERY: Duration = Duration::from_millis(500);
/// How long an agent tries to take back what a failed successor had.
const TAKE_BACK: Duration = Duration::from_secs(10);

/// Asks an agent that runs for this node to yield. `None`: there is none, or it is not to be asked.
pub(super) fn ask(settings: &Settings) -> Result<Option<Predecessor>, AppError> {
    if !settings.take_over {
        return Ok(None);
    }
    let claim = Claim {
        node: settings.node_name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
    };
    let predecessor = Predecessor::ask(&settings.admin_socket, claim)?;
    if let Some(predecessor) = &predecessor {
        let estate = predecessor.estate();
        info!(
            pid = estate.pid,
            version = estate.version,
            "taking over from the agent that runs"
        );
    }
    Ok(predecessor)
}

/// Waits until configuration is in force and every local pod has its certificate: connections may come the moment a pod is captured.
pub(super) async fn certified(view: &AgentView) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let facts = view.readiness_facts();
        if facts.configured && facts.pods.iter().all(|pod| pod.certificate.is_ok()) {
            return;
        }
        // Without a configuration there is nothing to take over with: the predecessor goes on, however long that takes.
        if facts.configured && Instant::now() > deadline {
            warn!("not every pod has a certificate: taking over all the same");
            return;
        }
        sleep(LOOK).await;
    }
}

/// The account that goes on where a predecessor's has stopped.
pub(super) fn ledger(predecessor: Option<&Predecessor>) -> Arc<Ledger> {
    let counts = predecessor.map(|predecessor| predecessor.estate().handovers);
    Arc::new(Ledger::of(counts.unwrap_or_default()))
}

/// A predecessor that has yielded and waits to be relieved.
pub(super) struct Succession {
    predecessor: Option<Predecessor>,
    until: Instant,
    ledger: Arc<Ledger>,
    /// Listens to the predecessor while it leaves.
    _following: Option<AbortOnDropHandle<()>>,
}

impl Succession {
    pub(super) fn of(predecessor: Option<Predecessor>, ledger: Arc<Ledger>) -> Self {
        Self {
            predecessor,
            until: Instant::now() + 2 * PATIENCE,
            ledger,
            _following: None,
        }
    }

    /// Whether the predecessor still waits.
    pub(super) fn is_open(&self) -> bool {
        self.predecessor.is_some()
    }

    /// Relieves the predecessor when this agent is ready. Nothing is lost when it is dropped half-way.
    pub(super) async fn complete(&mut self, view: &AgentView, capture: &Capture) {
        loop {
            let facts = view.readiness_facts();
            let readiness = readiness::decide(&facts);
            if readiness.is_ready() {
                break;
            }
            if facts.configured && Instant::now() > self.until {
                warn!(reasons = ?readiness.reasons, "taking over although not everything is ready");
                break;
            }
            sleep(LOOK).await;
        }
        let Some(predecessor) = self.predecessor.take() else {
            return;
        };
        let pid = predecessor.estate().pid;
        match predecessor.taken() {
            Ok(departure) => {
                info!(pid, "took over: the predecessor drains and leaves");
                let following = tokio::spawn(follow(departure, Arc::clone(&self.ledger)));
                self._following = Some(AbortOnDropHandle::new(following));
            }
            Err(error) => warn!(pid, %error, "took over; the predecessor is gone already"),
        }
        self.ledger.taken_over();
        capture.took_over();
    }
}

async fn follow(departure: Departure, ledger: Arc<Ledger>) {
    if let Err(error) = departure.follow(&ledger).await {
        warn!(%error, "what the predecessor has left cannot be followed");
    }
}

/// Tells a successor how many connections are left here, for as long as it listens.
async fn tell(mut successor: Visitor, log: Arc<ConnectionLog>, drained: CancellationToken) {
    while successor.draining(log.len()).await.is_ok() {
        tokio::select! {
            () = drained.cancelled() => return,
            () = sleep(TOLD_EVERY) => {}
        }
    }
}

impl Agent {
    /// Why this agent does not make way for `visitor`.
    pub(super) fn unwilling(
        &self,
        visitor: &Visitor,
        view: &AgentView,
        succession: &Succession,
    ) -> Option<String> {
        let node = &view.snapshots.load().settings().node_name.clone();
        let claim = visitor.claim();
        if &claim.node != node {
            return Some(format!(
                "it is the agent of node {node}, not of {}: give each agent an --admin-socket of its own",
                claim.node
            ));
        }
        succession
            .is_open()
            .then(|| "it is taking over itself: try again in some seconds".to_owned())
    }

    /// Gives up what only one agent can have, and waits for what becomes of the successor. Meanwhile it goes on accepting. Returns the
    /// office when that one has failed, else with what signal this agent was told to stop, if it was: it is to leave.
    pub(super) async fn make_way(
        &self,
        mut office: Office,
        visitor: &mut Visitor,
        settings: &Settings,
        view: &Arc<AgentView>,
        signals: &mut Signals,
        live: &Live<'_>,
    ) -> Result<Office, Option<&'static str>> {
        let claim = visitor.claim().clone();
        info!(
            pid = claim.pid,
            version = claim.version,
            "another agent takes over: making way"
        );
        office.end_tasks().await;
        office.end_servers().await;
        self.capture.give_up();
        let estate = Estate {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            agent_cgroup: self.capture.agent_cgroup_id(),
            handovers: self.handovers.counts(),
        };
        let mut told = None;
        let outcome = tokio::select! {
            outcome = visitor.yielded(estate) => outcome,
            signal = signals.stop(|| live.on_hangup(&self.publisher)) => {
                warn!(signal, "told to stop before the other agent has taken over: leaving the pods to it");
                told = Some(signal);
                Outcome::Taken
            }
        };
        if outcome == Outcome::Taken {
            return Err(told);
        }
        self.handovers.failed();
        warn!(
            pid = claim.pid,
            "the other agent has failed to take over: going on"
        );
        match timeout(TAKE_BACK, self.take_back(settings, view)).await {
            Ok(office) => Ok(office),
            Err(_) => {
                error!("the node cannot be taken back: yet another agent has it");
                Err(told)
            }
        }
    }

    /// Tries until it succeeds.
    async fn take_back(&self, settings: &Settings, view: &Arc<AgentView>) -> Office {
        loop {
            match self.try_take_back(settings, view).await {
                Ok(office) => {
                    info!("took the node back");
                    return office;
                }
                Err(error) => info!(%error, "not taken back yet"),
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    async fn try_take_back(&self, settings: &Settings, view: &Arc<AgentView>) -> Result<Office, AppError> {
        let socket = AdminSocket::bind(&settings.admin_socket)?;
        let capture = self.capture.clone();
        match tokio::task::spawn_blocking(move || capture.take_back()).await {
            Ok(taken) => taken?,
            Err(panic) => {
                let source = std::io::Error::other(panic);
                return Err(AppError::Start {
                    what: "capture again",
                    source,
                });
            }
        }
        self.take_office(settings, socket, view, false).await
    }

    /// A successor serves every new connection: what is in accept queues and half open is still served, peers are told to go away, what
    /// stands may end within the drain time. The pods stay captured: they are the successor's. `told` is the signal by which this agent was
    /// told to stop already.
    pub(super) async fn leave(
        &self,
        successor: Visitor,
        settings: &Settings,
        mut told: Option<&'static str>,
        signals: &mut Signals,
        live: &Live<'_>,
        background: &mut JoinSet<()>,
    ) {
        background.spawn(tell(successor, self.log.clone(), self.drained.clone()));
        info!(connections = self.log.len(), drain = ?live.drain(), "relieved: draining");
        self.capture.stop_sending();
        tokio::select! {
            () = sleep(HALF_OPEN) => {}
            signal = self.hurried(signals, live, &mut told) => info!(signal, "not waiting for handshakes that have begun"),
        }
        self.stopping.cancel();
        self.drain(live, self.hurried(signals, live, &mut told)).await;
        self.drained.cancel();
        end_of(background).await;
        info!("left: the pods are the successor's");
        if settings.linger && told.is_none() {
            info!("staying until told to stop: a supervisor would start what ends");
            signals.stop(|| live.on_hangup(&self.publisher)).await;
        }
    }

    /// Resolves with the second signal to stop: the first is that of a supervisor who knows that the successor is there, and an agent that
    /// leaves is doing what it asks for.
    async fn hurried(
        &self,
        signals: &mut Signals,
        live: &Live<'_>,
        told: &mut Option<&'static str>,
    ) -> &'static str {
        loop {
            let signal = signals.stop(|| live.on_hangup(&self.publisher)).await;
            if told.replace(signal).is_some() {
                return signal;
            }
            info!(
                signal,
                "leaving already: what stands may end within the drain time, or until a second signal"
            );
        }
    }
}
