//! What the privileged tests run in: a pod (namespace, cgroup, application), a peer behind a veth pair, an agent. Everything is named
//! after the test and goes by Drop.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_common::Role;
use mesh_core::model::WorkloadUid;

use crate::capture::cgroup::Cgroup2;
use crate::capture::netns::Netns;
use crate::capture::{Beginning, Capture, CaptureOptions, EnrolError, Listener, Pod, PodServer, PodSpec};

/// One test at a time: the agent's cgroup is the process's.
static TURN: Mutex<()> = Mutex::new(());

const WORKERS: usize = 2;

/// The application: runs what it is told.
const APP: &str = r"
import ctypes, os, socket, struct, sys
libc = ctypes.CDLL(None)
home = os.open('/proc/self/ns/net', os.O_RDONLY)
try:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262); mptcp = True
except OSError:
    mptcp = False
scope = globals()
for line in sys.stdin:
    kind, code = line[0], eval(line[1:])
    try:
        answer = repr(eval(code, scope)) if kind == '=' else exec(code, scope)
    except Exception as e:
        answer = 'FAILED ' + repr(e)
    print(answer, flush=True)
";

/// The world of one test; `None`, with a word, where tests may not touch the kernel.
pub(super) fn privileged(name: &str) -> Option<World> {
    if std::env::var_os("MESH_PRIVILEGED").is_none_or(|value| value != "1") {
        eprintln!("NOT RUN: needs root, the BPF objects, and MESH_PRIVILEGED=1 (`cargo xtask test` sets it)");
        return None;
    }
    Some(World::new(name))
}

pub(super) struct World {
    name: String,
    cgroup: PathBuf,
    bpffs: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    fn new(name: &str) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let name = format!("mcap-{name}");
        let cgroup2 = Cgroup2::find(None).unwrap();
        let world = Self {
            cgroup: cgroup2.mount.join(&name),
            bpffs: std::env::temp_dir().join(&name),
            name,
            _turn: turn,
        };
        world.tear_down();
        fs::create_dir(&world.cgroup).unwrap();
        let (pod, peer) = (world.pod_name(), world.peer_name());
        ip(&["netns", "add", &pod]);
        ip(&["netns", "add", &peer]);
        ip(&[
            "-n", &pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &peer,
        ]);
        for (netns, host) in [(&pod, 1), (&peer, 2)] {
            ip(&["-n", netns, "link", "set", "lo", "up"]);
            ip(&["-n", netns, "link", "set", "eth0", "up"]);
            ip(&[
                "-n",
                netns,
                "addr",
                "add",
                &format!("198.18.77.{host}/24"),
                "dev",
                "eth0",
            ]);
            ip(&[
                "-n",
                netns,
                "addr",
                "add",
                &format!("2001:db8:77::{host}/64"),
                "dev",
                "eth0",
                "nodad",
            ]);
        }
        ip(&["-n", &pod, "route", "add", "default", "via", "198.18.77.2"]);
        ip(&["-n", &pod, "route", "add", "default", "via", "2001:db8:77::2"]);
        world
    }

    fn pod_name(&self) -> String {
        format!("{}-pod", self.name)
    }

    fn peer_name(&self) -> String {
        format!("{}-peer", self.name)
    }

    pub(super) fn peer_path(&self) -> String {
        format!("/run/netns/{}", self.peer_name())
    }

    pub(super) fn late_path(&self) -> String {
        std::env::temp_dir()
            .join(format!("{}-late", self.name))
            .display()
            .to_string()
    }

    pub(super) fn link_late(&self) {
        std::os::unix::fs::symlink(format!("/run/netns/{}", self.pod_name()), self.late_path()).unwrap();
    }

    pub(super) fn unlink_late(&self) {
        fs::remove_file(self.late_path()).unwrap();
    }

    pub(super) fn spec(&self) -> PodSpec {
        PodSpec {
            uid: WorkloadUid::new("test", &self.name, ""),
            identity: "spiffe://cluster.local/ns/test/sa/app".parse().unwrap(),
            addresses: vec!["198.18.77.1".parse().unwrap(), "2001:db8:77::1".parse().unwrap()],
            netns: format!("/run/netns/{}", self.pod_name()),
            cgroup: self.cgroup.display().to_string(),
        }
    }

    pub(super) fn agent(&self) -> Agent {
        self.agent_that_begins(Beginning::Alone)
    }

    /// An agent that takes over from `other`, which has yielded.
    pub(super) fn agent_beside(&self, other: &Agent) -> Agent {
        other.capture.give_up();
        self.agent_that_begins(Beginning::Beside {
            agent_cgroup: other.capture.agent_cgroup_id(),
        })
    }

    /// The pins of the node, as paths below its directory.
    pub(super) fn pins(&self) -> Vec<String> {
        fn below(dir: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    true => below(&entry.path(), root, found),
                    false => found.push(entry.path().strip_prefix(root).unwrap().display().to_string()),
                }
            }
        }
        let mut found = Vec::new();
        below(&self.bpffs, &self.bpffs, &mut found);
        // The kernel has files of its own at the root of a bpffs.
        found.retain(|pin| pin.starts_with("run-"));
        found.sort();
        found
    }

    /// Where the pins are.
    pub(super) fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    fn agent_that_begins(&self, beginning: Beginning) -> Agent {
        let mut options = CaptureOptions::new(&self.name, WORKERS);
        options.bpffs_dir.clone_from(&self.bpffs);
        Agent {
            capture: Arc::new(Capture::load(options, beginning).unwrap()),
            server: Arc::default(),
        }
    }

    /// The pod as it is when its cgroup was made anew under another name. The old cgroup stays.
    pub(super) fn spec_in_new_cgroup(&self) -> PodSpec {
        let cgroup = self.second_cgroup();
        fs::create_dir(&cgroup).unwrap();
        PodSpec {
            cgroup: cgroup.display().to_string(),
            ..self.spec()
        }
    }

    fn second_cgroup(&self) -> PathBuf {
        self.cgroup.with_file_name(format!("{}-2", self.name))
    }

    /// Starts an application in the pod.
    pub(super) fn app(&self) -> App {
        self.app_in(&self.cgroup.display().to_string())
    }

    /// Starts an application in the pod's namespace and this cgroup.
    pub(super) fn app_in(&self, cgroup: &str) -> App {
        let script = format!("echo $$ > {cgroup}/cgroup.procs && exec \"$@\"");
        let netns = format!("--net=/run/netns/{}", self.pod_name());
        let mut child = Command::new("sh")
            .args(["-c", &script, "sh", "nsenter", &netns, "python3", "-u", "-c", APP])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        App {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// Connects from the peer's namespace.
    pub(super) fn peer_connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        let peer = Netns::open(Path::new(&self.peer_path()))?;
        peer.within(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?
    }

    /// Runs `ip` in the pod's namespace.
    pub(super) fn pod_ip(&self, args: &[&str]) {
        let pod = self.pod_name();
        ip(&[&["-n", &pod], args].concat());
    }

    /// What bpftool shows attached to the pod's cgroup and namespace: an observer that is not us.
    pub(super) fn links(&self) -> Vec<String> {
        let shown = |args: &[&str]| {
            let output = Command::new("bpftool").args(args).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        let cgroup = shown(&["cgroup", "show", &self.cgroup.display().to_string()]);
        let on_cgroup = cgroup.lines().filter(|line| !line.starts_with("ID"));
        let inode = {
            use std::os::unix::fs::MetadataExt;
            fs::metadata(format!("/run/netns/{}", self.pod_name())).map_or(0, |meta| meta.ino())
        };
        let links = shown(&["link", "show"]);
        let on_netns = links
            .lines()
            .filter(|line| line.contains(&format!("netns_ino {inode} ")));
        on_cgroup
            .chain(on_netns)
            .map(|line| line.trim().to_owned())
            .collect()
    }

    fn tear_down(&self) {
        let _ = fs::remove_file(self.late_path());
        for netns in [self.pod_name(), self.peer_name()] {
            let _ = Command::new("ip")
                .args(["netns", "del", &netns])
                .stderr(Stdio::null())
                .status();
        }
        let mut options = CaptureOptions::new(&self.name, WORKERS);
        options.bpffs_dir.clone_from(&self.bpffs);
        let _ = super::super::unload(&options);
        let _ = fs::remove_dir(&self.cgroup);
        let _ = fs::remove_dir(self.second_cgroup());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A crashed agent is played by dropping it: bring the process home by hand.
        let cgroup2 = Cgroup2::find(None).unwrap();
        let _ = fs::write(cgroup2.mount.join("cgroup.procs"), std::process::id().to_string());
        self.tear_down();
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().unwrap();
    assert!(
        output.status.success(),
        "ip {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An application in the pod.
pub(super) struct App {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl App {
    /// Runs statements; they must not fail.
    pub(super) fn run(&mut self, code: &str) {
        let answer = self.ask('!', code);
        assert_eq!(answer, "None", "{code}");
    }

    /// Runs statements; `None` where they went well.
    pub(super) fn attempt(&mut self, code: &str) -> String {
        self.ask('!', code)
    }

    /// The value of an expression, as Python writes it.
    pub(super) fn eval(&mut self, code: &str) -> String {
        self.ask('=', code)
    }

    fn ask(&mut self, kind: char, code: &str) -> String {
        // A Rust string literal of such plain text is a Python one.
        writeln!(self.input, "{kind}{code:?}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The agent under test.
pub(super) struct Agent {
    pub(super) capture: Arc<Capture>,
    pub(super) server: Arc<Server>,
}

impl Agent {
    pub(super) fn enrol(&self, world: &World) -> Result<(), EnrolError> {
        self.capture.enrol(&world.spec(), &*self.server)
    }

    pub(super) fn counter(&self, name: &str) -> u64 {
        self.capture.counters()[name]
    }

    /// The flow maps run empty, within the time that sockets need to close.
    pub(super) fn expect_empty_maps(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let fill = self.capture.map_fill();
            let flows = fill
                .iter()
                .filter(|map| matches!(map.name, "HANDOFF" | "DELIVERIES"));
            let left: usize = flows.map(|map| map.entries).sum();
            if left == 0 {
                return;
            }
            assert!(Instant::now() < deadline, "{fill:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops the agent and looks for what it leaves.
    pub(super) fn stop_clean(self, world: &World) {
        self.capture.stop(&*self.server);
        assert_eq!(world.links(), Vec::<String>::new());
        assert!(!world.bpffs.exists(), "{} stays", world.bpffs.display());
        let own = self.capture.status().agent_cgroup;
        assert!(
            !own.ends_with(format!("mesh-agent-{}", world.name)) || !own.exists(),
            "{} stays",
            own.display()
        );
    }
}

/// Plays the workers: accepts when asked.
#[derive(Default)]
pub(super) struct Server(Mutex<Served>);

#[derive(Default)]
struct Served {
    pod: Option<Arc<Pod>>,
    listeners: Vec<Listener>,
}

impl PodServer for Server {
    fn workers(&self) -> usize {
        WORKERS
    }

    fn serve(&self, pod: Arc<Pod>, listeners: Vec<Listener>) {
        let mut served = self.served();
        served.pod = Some(pod);
        served.listeners = listeners;
    }

    fn retire(&self, _pod: &WorkloadUid) {
        self.served().listeners.clear();
    }
}

impl Server {
    pub(super) fn pod(&self) -> Arc<Pod> {
        Arc::clone(self.served().pod.as_ref().unwrap())
    }

    pub(super) fn accept(&self, role: Role) -> (SocketAddr, TcpStream) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while Instant::now() < deadline {
            if let Some(accepted) = self.try_accept(role) {
                return accepted;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("no connection for {role:?}");
    }

    pub(super) fn try_accept(&self, role: Role) -> Option<(SocketAddr, TcpStream)> {
        let served = self.served();
        let mut listeners = served.listeners.iter().filter(|listener| listener.role == role);
        listeners.find_map(|listener| {
            let (stream, client) = listener.socket.accept().ok()?;
            Some((client, stream))
        })
    }

    pub(super) fn each_listener(&self, look: impl FnMut(&Listener)) {
        self.served().listeners.iter().for_each(look);
    }

    pub(super) fn ports(&self) -> Vec<u16> {
        let port = |listener: &Listener| -> u16 {
            assert!(listener.socket.as_raw_fd() >= 0);
            TcpListener::local_addr(&listener.socket).unwrap().port()
        };
        self.served().listeners.iter().map(port).collect()
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
