//! Constructs the agent, runs it until it is told to stop, and takes it down in order. The only file that puts the parts together.
//!
//! Start: the admin socket (one agent per socket), capture (before any socket of the data path), the CA, the configuration, the workers,
//! the servers, and last the enrolment of pods. Stop: not ready any more, enrolment ends, connections drain, the pods are let go, the
//! kernel is left as it was. A start that fails leaves alone what a crashed agent had captured. Handover to a successor: `succession`.

mod belonging;
mod certificates;
mod checks;
mod cni;
mod descriptors;
mod error;
mod live;
mod sandboxes;
mod signals;
mod sources;
mod stop;
mod succession;
mod view;

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tokio::runtime::{Handle, Runtime};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::{AdminServer, AdminSocket};
use crate::affinity::Affinity;
use crate::capture::{self, Beginning, Capture, CaptureOptions, PodServer};
use crate::handover::{Door, Ledger, Predecessor, Visitor};
use crate::identity::{EmbeddedCa, Identities, IdentityOptions};
use crate::sandbox::Registry;
use crate::settings::{Settings, SettingsError};
use crate::sources::Publisher;
use crate::state::SnapshotCell;
use crate::telemetry::connections::ConnectionLog;
use crate::telemetry::http::HttpServer;
use crate::telemetry::labels::Present;
use crate::telemetry::logging::Logging;
use crate::telemetry::metrics::Metrics;
use crate::worker::{DataPath, Legs, Limits, Workers};

use belonging::Belonging;
use cni::Plugin;
use descriptors::Descriptors;
pub use error::AppError;
use error::start_error;
use live::Live;
use signals::Signals;
use view::AgentView;

/// Threads of the runtime that carries everything but connections.
const CONTROL_THREADS: usize = 2;
/// How often label sets of gone workloads and ended sessions are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(60);
/// How long the servers may take to finish their answers when the agent stops.
const SERVERS_END: Duration = Duration::from_secs(1);

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
        discovery: settings.discovery.clone(),
    }
}

/// Runs the agent until SIGTERM or SIGINT, or until a successor has taken over. On SIGHUP, what can change is taken from what `reload`
/// says then.
///
/// # Errors
/// When it cannot start; see [`AppError`].
pub fn run(
    settings: &Settings,
    reload: impl Fn() -> Result<Settings, SettingsError>,
    logging: &Logging,
) -> Result<(), AppError> {
    let live = &Live::new(settings, &reload, logging);
    let descriptors = Descriptors::prepare(settings.workers, settings.budget.connections);
    if settings.config_dir.is_none() && settings.kubernetes.is_none() {
        return Err(AppError::NoConfiguration);
    }
    let runtime = control_runtime()?;
    let signals = {
        let _entered = runtime.enter();
        Signals::new().map_err(start_error("signal handling"))?
    };
    // Whatever fails from here on, a predecessor takes back what it has given up.
    let predecessor = succession::ask(settings)?;
    let beginning = predecessor
        .as_ref()
        .map_or(Beginning::Alone, |predecessor| Beginning::Beside {
            agent_cgroup: predecessor.estate().agent_cgroup,
        });
    let socket = AdminSocket::bind(&settings.admin_socket)?;
    let capture = Arc::new(Capture::load(capture_options(settings), beginning)?);
    let handovers = succession::ledger(predecessor.as_ref());
    let served = match Agent::start(
        settings,
        descriptors,
        runtime.handle(),
        capture.clone(),
        handovers,
    ) {
        Ok(agent) => runtime.block_on(agent.run(settings, socket, predecessor, signals, live)),
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
fn limits(settings: &Settings, descriptors: Descriptors) -> Limits {
    Limits {
        connections_per_pod: descriptors.connections,
        streams_per_pod: settings.budget.streams,
        buffered_per_pod: settings.budget.buffered_bytes,
        // Checked to be no more than 16 MiB.
        stream_window: u32::try_from(settings.stream_window).unwrap_or(1 << 20),
        ..Limits::default()
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
    descriptors: Descriptors,
    sandboxes: Registry,
    handovers: Arc<Ledger>,
    plugin: Plugin,
    belonging: Belonging,
    /// Cancelled when the agent begins to stop.
    stopping: CancellationToken,
    /// Cancelled when connections have drained: what they need goes on until then.
    drained: CancellationToken,
}

impl Agent {
    fn start(
        settings: &Settings,
        descriptors: Descriptors,
        control: &Handle,
        capture: Arc<Capture>,
        handovers: Arc<Ledger>,
    ) -> Result<Self, AppError> {
        let ca = match &settings.ca_secret_dir {
            Some(dir) => EmbeddedCa::given(dir, &settings.trust_domain)?,
            None => EmbeddedCa::open(&settings.ca_dir, &settings.trust_domain)?,
        };
        let options = IdentityOptions {
            lifetime: settings.certificate_lifetime,
            trust_domain: settings.trust_domain.clone(),
            aliases: settings.trust_domain_aliases.clone(),
        };
        let identities = Arc::new(Identities::new(Arc::new(ca), options)?);
        let sandboxes = sandboxes::open(settings)?;
        let publisher = Publisher::start(settings.mesh(), sources::of(settings, sandboxes.dir(), control))?;
        let log = Arc::new(ConnectionLog::default());
        let affinity = Arc::<Affinity>::default();
        let path = DataPath {
            snapshots: publisher.cell().clone(),
            affinity: affinity.clone(),
            flows: capture.flows(),
            identities: identities.clone(),
            log: log.clone(),
            limits: limits(settings, descriptors),
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
            descriptors,
            sandboxes,
            handovers,
            plugin: Plugin::of(settings),
            belonging: Belonging::default(),
            stopping: CancellationToken::new(),
            drained: CancellationToken::new(),
        })
    }

    /// Runs to the end. An error means that it has not begun: no pod was captured, or a predecessor takes them back.
    async fn run(
        self,
        settings: &Settings,
        socket: AdminSocket,
        predecessor: Option<Predecessor>,
        mut signals: Signals,
        live: &Live<'_>,
    ) -> Result<(), AppError> {
        let view = Arc::new(self.view(settings)?);
        let mut background = self.background();
        background.spawn(
            self.belonging
                .clone()
                .watch(settings.clone(), self.drained.clone()),
        );
        let mut succession = succession::Succession::of(predecessor, self.handovers.clone());
        let mut office = self
            .take_office(settings, socket, &view, succession.is_open())
            .await?;
        info!(
            node = settings.node_name,
            trust_domain = %settings.trust_domain,
            workers = settings.workers,
            admin = %settings.admin_socket.display(),
            "mesh-agent {} runs", env!("CARGO_PKG_VERSION")
        );
        loop {
            match self
                .serve(&office, &view, &mut succession, &mut signals, live)
                .await
            {
                Next::Stop(signal) => {
                    info!(signal, drain = ?live.drain(), connections = self.log.len(), "stopping");
                    break;
                }
                Next::MakeWay(mut visitor) => {
                    match self
                        .make_way(office, &mut visitor, settings, &view, &mut signals, live)
                        .await
                    {
                        Ok(back) => office = back,
                        Err(told) => {
                            self.leave(visitor, settings, told, &mut signals, live, &mut background)
                                .await;
                            return Ok(());
                        }
                    }
                }
            }
        }
        self.stopping.cancel();
        // Enrolment must not capture a pod behind the back of what follows.
        office.end_tasks().await;
        if succession.is_open() {
            warn!("stopped before the predecessor was relieved: it takes back its pods");
            self.capture.abandon();
            return Ok(());
        }
        let again = signals.stop(|| live.on_hangup(&self.publisher));
        self.drain(live, again).await;
        self.drained.cancel();
        office.end_servers().await;
        end_of(&mut background).await;
        self.end_capture(settings).await;
        Ok(())
    }

    /// Does what only one agent of a node can do, until there is something else to do.
    async fn serve(
        &self,
        office: &Office,
        view: &Arc<AgentView>,
        succession: &mut succession::Succession,
        signals: &mut Signals,
        live: &Live<'_>,
    ) -> Next {
        loop {
            tokio::select! {
                signal = signals.stop(|| live.on_hangup(&self.publisher)) => return Next::Stop(signal),
                () = succession.complete(view, &self.capture), if succession.is_open() => {}
                visitor = office.door.knock() => {
                    if let Some(why) = self.unwilling(&visitor, view, succession) {
                        warn!(pid = visitor.claim().pid, why, "another agent wants to take over: refused");
                        self.handovers.refused();
                        visitor.refuse(&why).await;
                    } else {
                        return Next::MakeWay(visitor);
                    }
                }
            }
        }
    }

    fn view(&self, settings: &Settings) -> Result<AgentView, AppError> {
        Ok(AgentView {
            started: self.started,
            snapshots: self.publisher.cell().clone(),
            sources: self.publisher.status().clone(),
            objects: self.publisher.objects(),
            identities: self.identities.clone(),
            capture: self.capture.clone(),
            workers: self.workers.clone(),
            affinity: self.affinity.clone(),
            log: self.log.clone(),
            descriptors: self.descriptors,
            handovers: self.handovers.clone(),
            plugin: self.plugin.clone(),
            sandbox: sandboxes::host(settings, self.capture.cgroup_root())
                .map_err(start_error("the look at its own network namespace"))?,
            stopping: self.stopping.clone(),
        })
    }

    /// Takes what only one agent of a node can have: addresses, sockets, and the say over which pods are captured.
    async fn take_office(
        &self,
        settings: &Settings,
        socket: AdminSocket,
        view: &Arc<AgentView>,
        wait: bool,
    ) -> Result<Office, AppError> {
        let (stop_servers, stop_tasks) = (CancellationToken::new(), CancellationToken::new());
        let door = Door::open(&settings.admin_socket)?;
        let servers = self.servers(settings, socket, view, &stop_servers).await?;
        let desk = self.plugin.open(settings)?;
        let mut tasks = self.tasks(view, wait, &stop_tasks);
        self.serve_plugin(desk, &mut tasks, &stop_tasks);
        Ok(Office {
            door,
            servers,
            tasks,
            stop_servers,
            stop_tasks,
        })
    }

    /// The servers for people and machines. They answer until connections have drained.
    async fn servers(
        &self,
        settings: &Settings,
        socket: AdminSocket,
        view: &Arc<AgentView>,
        stop: &CancellationToken,
    ) -> Result<JoinSet<()>, AppError> {
        let (readings, facts) = (view.clone(), view.clone());
        let metrics = Metrics::new(self.log.clone(), Arc::new(move || readings.readings()))?;
        let metrics = HttpServer::metrics(settings.metrics_address, Arc::new(metrics)).await?;
        let facts = Arc::new(move || facts.readiness_facts());
        let readiness = HttpServer::readiness(settings.readiness_address, facts).await?;
        let admin = AdminServer::new(socket, view.clone());
        let ending = || stop.clone().cancelled_owned();
        let mut servers = JoinSet::new();
        servers.spawn(metrics.serve(ending()));
        servers.spawn(readiness.serve(ending()));
        servers.spawn(logged(admin.serve(ending())));
        servers.spawn(capture::events::run(self.capture.clone(), stop.clone()));
        Ok(servers)
    }

    /// What goes on for as long as this agent has the say over the node's pods.
    fn tasks(&self, view: &Arc<AgentView>, wait: bool, stop: &CancellationToken) -> JoinSet<()> {
        let mut tasks = JoinSet::new();
        tasks.spawn(sandboxes::sweep(self.sandboxes.clone(), stop.clone()));
        let (view, stop) = (view.clone(), stop.clone());
        let capture = self.capture.clone();
        let snapshots = self.publisher.cell().clone();
        let workers = self.workers.clone() as Arc<dyn PodServer>;
        let announced = self.plugin.announced.clone();
        tasks.spawn(async move {
            if wait {
                tokio::select! {
                    () = succession::certified(&view) => {}
                    () = stop.cancelled() => return,
                }
            }
            capture::enroller::run(capture, snapshots, workers, announced, stop).await;
        });
        tasks
    }

    /// What goes on for as long as there are connections.
    fn background(&self) -> JoinSet<()> {
        let snapshots = self.publisher.cell();
        let mut tasks = JoinSet::new();
        let (identities, drained) = (self.identities.clone(), self.drained.clone());
        tasks.spawn(async move { identities.run(drained).await });
        tasks.spawn(certificates::keep(
            self.identities.clone(),
            snapshots.clone(),
            self.drained.clone(),
        ));
        tasks.spawn(housekeeping(
            self.log.clone(),
            self.affinity.clone(),
            snapshots.clone(),
            self.drained.clone(),
        ));
        tasks
    }
}

/// What an agent has to do next.
enum Next {
    /// Stop: this signal came.
    Stop(&'static str),
    /// Let another agent take over.
    MakeWay(Visitor),
}

/// What only one agent of a node has at a time.
struct Office {
    door: Door,
    servers: JoinSet<()>,
    tasks: JoinSet<()>,
    stop_servers: CancellationToken,
    stop_tasks: CancellationToken,
}

impl Office {
    /// No pod is enrolled or released any more.
    async fn end_tasks(&mut self) {
        self.stop_tasks.cancel();
        while self.tasks.join_next().await.is_some() {}
    }

    /// Addresses and sockets are free.
    async fn end_servers(mut self) {
        self.stop_servers.cancel();
        end_of(&mut self.servers).await;
        self.servers.shutdown().await;
    }
}

/// Waits for tasks that have been told to end, and ends those that do not.
async fn end_of(tasks: &mut JoinSet<()>) {
    let _ = tokio::time::timeout(SERVERS_END, async { while tasks.join_next().await.is_some() {} }).await;
    tasks.shutdown().await;
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
