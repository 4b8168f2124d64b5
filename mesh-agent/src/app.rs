//! Constructs the agent, runs it until it is told to stop, and takes it down in order. The only file that puts the parts together.
//!
//! Start: the admin socket (one agent per socket), capture (before any socket of the data path), the CA, the configuration, the workers,
//! the servers, and last the enrolment of pods. Stop: not ready any more, enrolment ends, connections drain, the pods are let go, the
//! kernel is left as it was. A start that fails leaves alone what a crashed agent had captured.

mod certificates;
mod checks;
mod descriptors;
mod sandboxes;
mod view;

use std::collections::HashSet;
use std::future::Future;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{AdminServer, AdminSocket, SocketError};
use crate::affinity::Affinity;
use crate::capture::{self, Capture, CaptureError, CaptureOptions, PodServer};
use crate::identity::{CaError, EmbeddedCa, Identities, IdentitiesError, IdentityOptions};
use crate::sandbox::{Registry, SandboxError};
use crate::settings::Settings;
use crate::sources::{ConfigurationSource, FileSource, Publisher, SourceError};
use crate::state::SnapshotCell;
use crate::telemetry::connections::ConnectionLog;
use crate::telemetry::http::{HttpError, HttpServer};
use crate::telemetry::labels::Present;
use crate::telemetry::logging::Logging;
use crate::telemetry::metrics::{Metrics, MetricsError};
use crate::worker::{DataPath, Legs, Limits, Workers};

use view::AgentView;

/// Threads of the runtime that carries everything but connections.
const CONTROL_THREADS: usize = 2;
/// How often label sets of gone workloads and ended sessions are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// How long the servers may take to finish their answers when the agent stops.
const SERVERS_END: Duration = Duration::from_secs(1);

/// Why the agent could not start or had to end.
#[derive(Debug, Error)]
pub enum AppError {
    /// Nothing says where the configuration comes from.
    #[error(
        "no configuration: give --config-dir DIR, MESH_AGENT_CONFIG_DIR or configDir in the settings file"
    )]
    NoConfiguration,
    /// The configuration cannot be watched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The host or the kernel lacks something, or another agent has the node.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The CA cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Identities(#[from] IdentitiesError),
    /// The directory of sandboxes cannot be used.
    #[error(transparent)]
    Sandboxes(#[from] SandboxError),
    /// The admin socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An address cannot be had.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The metrics do not fit together.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Threads cannot be started, or signals not be received.
    #[error("cannot start {what}: {source}; are limits of threads, descriptors or memory reached?")]
    Start {
        /// What was to be started.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

fn start_error(what: &'static str) -> impl FnOnce(io::Error) -> AppError {
    move |source| AppError::Start { what, source }
}

/// How to capture under these settings. Each node has a directory of its own below the bpffs directory.
pub fn capture_options(settings: &Settings) -> CaptureOptions {
    let usual = capture::default_dir(&settings.node_name);
    CaptureOptions {
        node_name: settings.node_name.clone(),
        bpffs_dir: match usual.file_name() {
            Some(node) => settings.bpffs_dir.join(node),
            None => settings.bpffs_dir.clone(),
        },
        cgroup_root: settings.cgroup_root.clone(),
        workers: settings.workers,
        kubelet_cgroup: settings.kubelet_cgroup.clone(),
        allow_exclusions: settings.allow_exclusions,
    }
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start; see [`AppError`].
pub fn run(settings: &Settings, logging: &Logging) -> Result<(), AppError> {
    descriptors::prepare();
    let socket = AdminSocket::bind(&settings.admin_socket)?;
    let config_dir = settings.config_dir.as_deref().ok_or(AppError::NoConfiguration)?;
    let runtime = control_runtime()?;
    let signals = {
        let _entered = runtime.enter();
        Signals::new().map_err(start_error("signal handling"))?
    };
    let capture = Arc::new(Capture::load(capture_options(settings))?);
    let served = match Agent::start(settings, config_dir, capture.clone()) {
        Ok(agent) => runtime.block_on(agent.run(settings, socket, signals, logging)),
        Err(error) => Err(error),
    };
    if served.is_err() {
        capture.abandon();
    }
    // Not by drop, which would wait for whatever still blocks a thread.
    runtime.shutdown_timeout(SERVERS_END);
    served
}

fn control_runtime() -> Result<Runtime, AppError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .map_err(start_error("the control threads"))
}

/// The budgets of the data path under these settings.
fn limits(settings: &Settings) -> Limits {
    Limits {
        connections_per_pod: settings.budget.connections,
        streams_per_pod: settings.budget.streams,
        buffered_per_pod: settings.budget.buffered_bytes,
        // Checked to be no more than 16 MiB.
        stream_window: u32::try_from(settings.stream_window).unwrap_or(1 << 20),
        ..Limits::default()
    }
}

/// The signals that the agent knows.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves with the name of the signal that ends the agent.
    async fn stop(&mut self, mut on_hangup: impl FnMut()) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => on_hangup(),
            }
        }
    }
}

/// The parts of a running agent.
struct Agent {
    started: (SystemTime, Instant),
    capture: Arc<Capture>,
    publisher: Publisher,
    identities: Arc<Identities>,
    workers: Arc<Workers>,
    affinity: Arc<Affinity>,
    log: Arc<ConnectionLog>,
    sandboxes: Registry,
    /// Cancelled when the agent begins to stop.
    stopping: CancellationToken,
    /// Cancelled when connections have drained: what they need goes on until then.
    drained: CancellationToken,
}

impl Agent {
    fn start(settings: &Settings, config_dir: &Path, capture: Arc<Capture>) -> Result<Self, AppError> {
        let ca = EmbeddedCa::open(&settings.ca_dir, &settings.trust_domain)?;
        let options = IdentityOptions {
            lifetime: settings.certificate_lifetime,
            trust_domain: settings.trust_domain.clone(),
            aliases: settings.trust_domain_aliases.clone(),
        };
        let identities = Arc::new(Identities::new(Arc::new(ca), options)?);
        let sandboxes = sandboxes::open(settings)?;
        let sources: Vec<Box<dyn ConfigurationSource>> = vec![
            Box::new(FileSource::new(config_dir)),
            Box::new(FileSource::new(sandboxes.dir())),
        ];
        let publisher = Publisher::start(settings.mesh(), sources)?;
        let log = Arc::new(ConnectionLog::default());
        let affinity = Arc::<Affinity>::default();
        let path = DataPath {
            snapshots: publisher.cell().clone(),
            affinity: affinity.clone(),
            flows: capture.flows(),
            identities: identities.clone(),
            log: log.clone(),
            limits: limits(settings),
            legs: Legs {
                keepalive: settings.keepalive,
                idle: settings.idle_timeout,
            },
        };
        let workers = Workers::start(settings.workers, path).map_err(start_error("the workers"))?;
        Ok(Self {
            started: (SystemTime::now(), Instant::now()),
            capture,
            publisher,
            identities,
            workers,
            affinity,
            log,
            sandboxes,
            stopping: CancellationToken::new(),
            drained: CancellationToken::new(),
        })
    }

    /// Runs to the end. An error means that it has not begun: no pod was captured.
    async fn run(
        self,
        settings: &Settings,
        socket: AdminSocket,
        mut signals: Signals,
        logging: &Logging,
    ) -> Result<(), AppError> {
        let view = Arc::new(self.view(settings)?);
        let mut servers = self.servers(settings, socket, &view).await?;
        let mut tasks = self.tasks();
        info!(
            node = settings.node_name,
            trust_domain = %settings.trust_domain,
            workers = settings.workers,
            admin = %settings.admin_socket.display(),
            "mesh-agent {} runs", env!("CARGO_PKG_VERSION")
        );
        let signal = signals.stop(|| on_hangup(logging)).await;
        info!(signal, drain = ?settings.drain, connections = self.log.len(), "stopping");
        self.stopping.cancel();
        // Enrolment must not capture a pod behind the back of what follows.
        while tasks.join_next().await.is_some() {}
        tokio::select! {
            () = self.workers.shutdown(settings.drain) => {}
            signal = signals.stop(|| on_hangup(logging)) => {
                warn!(signal, connections = self.log.len(), "stopping at once");
            }
        }
        self.drained.cancel();
        let _ = tokio::time::timeout(SERVERS_END, async {
            while servers.join_next().await.is_some() {}
        })
        .await;
        servers.shutdown().await;
        self.release().await;
        Ok(())
    }

    fn view(&self, settings: &Settings) -> Result<AgentView, AppError> {
        Ok(AgentView {
            started: self.started,
            snapshots: self.publisher.cell().clone(),
            sources: self.publisher.status().clone(),
            identities: self.identities.clone(),
            capture: self.capture.clone(),
            workers: self.workers.clone(),
            affinity: self.affinity.clone(),
            log: self.log.clone(),
            sandbox: sandboxes::host(settings, self.capture.cgroup_root())
                .map_err(start_error("the look at its own network namespace"))?,
            stopping: self.stopping.clone(),
        })
    }

    /// The servers for people and machines. They answer until connections have drained.
    async fn servers(
        &self,
        settings: &Settings,
        socket: AdminSocket,
        view: &Arc<AgentView>,
    ) -> Result<JoinSet<()>, AppError> {
        let (readings, facts) = (view.clone(), view.clone());
        let metrics = Metrics::new(self.log.clone(), Arc::new(move || readings.readings()))?;
        let metrics = HttpServer::metrics(settings.metrics_address, Arc::new(metrics)).await?;
        let facts = Arc::new(move || facts.readiness_facts());
        let readiness = HttpServer::readiness(settings.readiness_address, facts).await?;
        let admin = AdminServer::new(socket, view.clone());
        let stop = || self.drained.clone().cancelled_owned();
        let mut servers = JoinSet::new();
        servers.spawn(metrics.serve(stop()));
        servers.spawn(readiness.serve(stop()));
        servers.spawn(logged(admin.serve(stop())));
        servers.spawn(capture::events::run(self.capture.clone(), self.drained.clone()));
        let (identities, drained) = (self.identities.clone(), self.drained.clone());
        servers.spawn(async move { identities.run(drained).await });
        Ok(servers)
    }

    /// What goes on until the agent begins to stop.
    fn tasks(&self) -> JoinSet<()> {
        let snapshots = self.publisher.cell();
        let mut tasks = JoinSet::new();
        tasks.spawn(certificates::keep(
            self.identities.clone(),
            snapshots.clone(),
            self.stopping.clone(),
        ));
        tasks.spawn(capture::enroller::run(
            self.capture.clone(),
            snapshots.clone(),
            self.workers.clone() as Arc<dyn PodServer>,
            self.stopping.clone(),
        ));
        tasks.spawn(sandboxes::sweep(self.sandboxes.clone(), self.stopping.clone()));
        tasks.spawn(housekeeping(
            self.log.clone(),
            self.affinity.clone(),
            snapshots.clone(),
            self.stopping.clone(),
        ));
        tasks
    }

    /// Lets the pods go and leaves the kernel as it was.
    async fn release(self) {
        let (capture, workers) = (self.capture.clone(), self.workers.clone());
        let stopped = tokio::task::spawn_blocking(move || capture.stop(&*workers)).await;
        match stopped {
            Ok(()) => info!("stopped: nothing of ours is left in the kernel"),
            Err(error) => error!(%error, "capture did not stop cleanly: run `mesh-agent unload`"),
        }
    }
}

fn on_hangup(logging: &Logging) {
    match logging.reopen() {
        Ok(()) => {
            info!("SIGHUP: opened the access log anew; the configuration directory is watched all the time")
        }
        Err(error) => warn!(%error, "SIGHUP: the access log goes on in the old file"),
    }
}

/// A server that ends by itself is logged; the agent goes on without it.
async fn logged<E: std::fmt::Display>(serve: impl Future<Output = Result<(), E>>) {
    if let Err(error) = serve.await {
        error!(%error, "a server ended");
    }
}

/// Forgets label sets of gone workloads, and sessions that have ended.
async fn housekeeping(
    log: Arc<ConnectionLog>,
    affinity: Arc<Affinity>,
    snapshots: Arc<SnapshotCell>,
    stopping: CancellationToken,
) {
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(HOUSEKEEPING) => {}
        }
        let snapshot = snapshots.load();
        log.forget_gone(&Present::of(&snapshot), Instant::now());
        let policies: HashSet<_> = snapshot
            .authorization_policies()
            .iter()
            .map(|policy| policy.object())
            .collect();
        log.policies()
            .expire(|policy| policies.contains(policy), Instant::now());
        let local = |uid: &mesh_core::model::WorkloadUid| snapshot.workload(uid).is_some();
        log.policies().plaintext().expire(local);
        affinity.forget_ended(Instant::now());
    }
}
