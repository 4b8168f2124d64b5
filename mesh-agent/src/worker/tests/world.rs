//! Pods, certificates and a flow table for whole ways through the workers: real TLS, real sockets, no BPF. All pods share the network
//! namespace of the test's process, which has their addresses on `lo`.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_common::{HBONE_PORT, Role};
use mesh_core::model::WorkloadUid;
use mesh_core::snapshot::{Diagnostics, MeshSettings, Snapshot};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::affinity::Affinity;
use crate::capture::{Family, FlowError, FlowTable, Listener, Pod, PodServer, SocketSource};
use crate::identity::{EmbeddedCa, Identities, IdentityOptions};
use crate::state::SnapshotCell;
use crate::telemetry::connections::ConnectionLog;
use crate::worker::{DataPath, Legs, Limits, Workers};

const INSIDE: &str = "MESH_TEST_INSIDE_NAMESPACE";

/// Runs `body` in a process with a network namespace of its own: this test binary again, with only the test `name`.
///
/// Where namespaces cannot be made it says that it did not run; with `MESH_PRIVILEGED=1`, as `cargo xtask test` sets it, it fails.
pub(super) fn in_namespace<F: Future<Output = ()>>(name: &str, body: impl FnOnce() -> F) {
    if std::env::var_os(INSIDE).is_some() {
        addresses();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(60), body())
                .await
                .expect("the test hung for 60 s");
        });
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args([
            &format!("worker::tests::{name}"),
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(INSIDE, "1")
        .env("RUST_BACKTRACE", "0");
    // SAFETY: between fork and exec only system calls are made, no allocation, no lock.
    unsafe {
        child.pre_exec(|| Ok(unshare(CloneFlags::CLONE_NEWNET)?));
    }
    match child.output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
        }
        Err(error) if std::env::var_os("MESH_PRIVILEGED").is_some_and(|value| value == "1") => {
            panic!("no network namespace could be made, and MESH_PRIVILEGED=1 says that it must: {error}")
        }
        Err(error) => eprintln!("NOT RUN: {name}: no network namespace could be made: {error}"),
    }
}

/// Addresses of the pods `order`, `payment` and `visitor`.
const PODS: [(&str, &str, &str); 3] = [
    ("order", "198.18.0.1", "2001:db8::1"),
    ("payment", "198.18.0.2", "2001:db8::2"),
    ("visitor", "198.18.0.3", "2001:db8::3"),
];

fn addresses() {
    let ip = |args: &[&str]| {
        let status = Command::new("ip")
            .args(args)
            .status()
            .expect("iproute2 is installed");
        assert!(status.success(), "ip {args:?}");
    };
    ip(&["link", "set", "lo", "up"]);
    for (_, v4, v6) in PODS {
        ip(&["addr", "add", &format!("{v4}/32"), "dev", "lo"]);
        ip(&["addr", "add", &format!("{v6}/128"), "dev", "lo", "nodad"]);
    }
}

/// What captured connections asked for, and whom deliveries were announced for.
#[derive(Default)]
pub(super) struct MemoryFlows {
    asked: Mutex<HashMap<SocketAddr, SocketAddr>>,
    pub(super) announced: Mutex<Vec<SocketAddr>>,
    /// Makes the look-up of this client panic.
    pub(super) cursed: Mutex<Option<SocketAddr>>,
}

impl FlowTable for MemoryFlows {
    fn take_destination(
        &self,
        _pod: &Pod,
        client: SocketAddr,
        _local: SocketAddr,
    ) -> Result<Option<SocketAddr>, FlowError> {
        let cursed = *self.cursed.lock().unwrap();
        assert!(cursed != Some(client), "a panic made on purpose");
        Ok(self.asked.lock().unwrap().remove(&client))
    }

    fn announce_delivery(&self, _socket: BorrowedFd<'_>, client: SocketAddr) -> Result<(), FlowError> {
        self.announced.lock().unwrap().push(client);
        Ok(())
    }
}

struct PlainSockets;

impl SocketSource for PlainSockets {
    fn stream(&self, family: Family) -> io::Result<Socket> {
        let domain = if family == Family::V4 {
            Domain::IPV4
        } else {
            Domain::IPV6
        };
        let socket = Socket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
        socket.set_reuse_address(true)?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    }
}

/// An agent with its pods.
pub(super) struct World {
    pub(super) workers: Arc<Workers>,
    pub(super) flows: Arc<MemoryFlows>,
    pub(super) snapshots: Arc<SnapshotCell>,
    pub(super) identities: Arc<Identities>,
    pub(super) log: Arc<ConnectionLog>,
    outbound: Mutex<HashMap<(String, bool), SocketAddr>>,
    _state: tempfile::TempDir,
}

pub(super) fn settings() -> MeshSettings {
    MeshSettings {
        node_name: "node".to_owned(),
        ..MeshSettings::default()
    }
}

/// The documents of a world; `uid` is payment's, `account` its service account, `extra` more documents.
pub(super) fn documents(uid: &str, account: &str, extra: &str) -> Snapshot {
    version_of(1, uid, account, extra)
}

/// As [`documents`], as snapshot `version`.
pub(super) fn version_of(version: u64, uid: &str, account: &str, extra: &str) -> Snapshot {
    let mut yaml = String::new();
    for (name, v4, v6) in PODS {
        let (uid, account) = if name == "payment" {
            (uid, account)
        } else {
            (name, name)
        };
        let dataplane = if name == "visitor" { "disabled" } else { "enabled" };
        yaml += &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, uid: '{uid}', \
             labels: {{mesh-agent.io/dataplane: {dataplane}}}}}\n\
             spec: {{nodeName: node, serviceAccountName: {account}, containers: [{{name: c, image: i}}]}}\n\
             status: {{podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}\n---\n"
        );
    }
    let contents = mesh_core::manifest::parse("-", (yaml + extra).as_bytes());
    let diagnostics = Diagnostics {
        rejections: contents.rejections,
        notices: contents.notices,
    };
    let snapshot = Snapshot::build(settings(), version, &contents.accepted, diagnostics);
    let rejections = &snapshot.diagnostics().rejections;
    assert!(rejections.is_empty(), "{rejections:?}");
    snapshot
}

impl World {
    /// An agent with one worker and the pods `order` and `payment` enrolled.
    pub(super) async fn new() -> Self {
        let world = Self::with(Limits::default(), "").await;
        world.enrol("order");
        world.enrol("payment");
        world
    }

    pub(super) async fn with(limits: Limits, extra: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let trust_domain = settings().trust_domain;
        let ca = EmbeddedCa::open(&state.path().join("ca"), &trust_domain).unwrap();
        let options = IdentityOptions {
            lifetime: Duration::from_secs(3600),
            trust_domain,
            aliases: Vec::new(),
        };
        let identities = Arc::new(Identities::new(Arc::new(ca), options).unwrap());
        let snapshots = Arc::new(SnapshotCell::new(documents("payment", "payment", extra)));
        for (name, ..) in PODS {
            identities.ensure(&identity(name)).await.unwrap();
        }
        let flows = Arc::<MemoryFlows>::default();
        let log = Arc::<ConnectionLog>::default();
        let path = DataPath {
            snapshots: Arc::clone(&snapshots),
            affinity: Arc::<Affinity>::default(),
            flows: Arc::clone(&flows) as _,
            identities: Arc::clone(&identities),
            log: Arc::clone(&log),
            limits,
            legs: Legs::default(),
        };
        let workers = Workers::start(1, path).unwrap();
        Self {
            workers,
            flows,
            snapshots,
            identities,
            log,
            outbound: Mutex::default(),
            _state: state,
        }
    }

    /// Starts to serve a pod, as its node's agent would.
    pub(super) fn enrol(&self, name: &str) {
        let addresses = [ip(name, false), ip(name, true)];
        let pod = Arc::new(Pod {
            uid: uid(name),
            identity: identity(name),
            addresses: addresses.to_vec(),
            netns: 1,
            slot: 0,
            sockets: Arc::new(PlainSockets),
        });
        let mut listeners = Vec::new();
        for address in addresses {
            for (role, port) in [(Role::Outbound, 0), (Role::Tunnel, HBONE_PORT)] {
                let socket = std_listener(SocketAddr::new(address, port));
                if role == Role::Outbound {
                    let at = (name.to_owned(), address.is_ipv6());
                    self.outbound
                        .lock()
                        .unwrap()
                        .insert(at, socket.local_addr().unwrap());
                }
                listeners.push(Listener {
                    role,
                    worker: 0,
                    socket,
                });
            }
        }
        self.workers.serve(pod, listeners);
    }

    /// A client in pod `name` that was captured on its way to `destination`.
    pub(super) async fn connect(&self, name: &str, destination: SocketAddr) -> TcpStream {
        self.try_connect(name, Some(destination)).await.unwrap()
    }

    /// As [`World::connect`]; without a destination it comes uncaptured. A reset may be seen by `connect` already.
    pub(super) async fn try_connect(
        &self,
        name: &str,
        destination: Option<SocketAddr>,
    ) -> io::Result<TcpStream> {
        let v6 = destination.is_some_and(|d| d.is_ipv6());
        let socket = if v6 {
            TcpSocket::new_v6()
        } else {
            TcpSocket::new_v4()
        }
        .unwrap();
        socket.bind(SocketAddr::new(ip(name, v6), 0)).unwrap();
        if let Some(destination) = destination {
            self.flows
                .asked
                .lock()
                .unwrap()
                .insert(socket.local_addr().unwrap(), destination);
        }
        let listener = self.outbound.lock().unwrap()[&(name.to_owned(), v6)];
        socket.connect(listener).await
    }

    /// Gives the worker a plaintext connection that was accepted for pod `name`.
    pub(super) fn take_plaintext(&self, name: &str, accepted: std::net::TcpStream) {
        let worker = &self.workers.workers[0];
        let context = Arc::clone(&worker.pods()[&uid(name)]);
        worker
            .tasks
            .spawn_on(&worker.runtime, context.stop.clone(), async move {
                let tcp = TcpStream::from_std(accepted).unwrap();
                crate::inbound::plaintext::handle(context, tcp).await;
            });
    }

    /// Tunnel connections and streams on them, over all workers.
    pub(super) fn pooled(&self) -> (usize, usize) {
        self.workers
            .status()
            .iter()
            .fold((0, 0), |sum, s| (sum.0 + s.tunnels, sum.1 + s.streams))
    }
}

pub(super) fn identity(name: &str) -> mesh_core::model::SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{name}")
        .parse()
        .unwrap()
}

pub(super) fn uid(name: &str) -> WorkloadUid {
    WorkloadUid::new("shop", name, name)
}

pub(super) fn ip(name: &str, v6: bool) -> IpAddr {
    let (_, four, six) = PODS.iter().find(|(n, ..)| *n == name).unwrap();
    if v6 { six } else { four }.parse().unwrap()
}

fn std_listener(address: SocketAddr) -> std::net::TcpListener {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(1024).unwrap();
    socket.into()
}

/// An application that listens in pod `name`, and its address.
pub(super) async fn application(name: &str, v6: bool) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(SocketAddr::new(ip(name, v6), 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}
