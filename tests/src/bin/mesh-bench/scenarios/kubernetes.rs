//! One agent that follows a large cluster: what it keeps in memory, and how long changes at the API server take to have their effect.
//!
//! Times are read from the agent's log, whose lines carry them: nothing is asked of the agent while it works.

mod cluster;

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use k8s_openapi::jiff::Timestamp;
use mesh_tests::apiserver::ApiServer;
use mesh_tests::harness::{
    Agent, Cluster, CniPlugin, KubePod, Layout, LoadServer, Manifests, Node, Pod, PodSpec, Relay, Usage,
    World, cgroup2_mount, cni_arguments, new_uid, resident, wait_for,
};
use serde_json::{Value, json};

use self::cluster::{Size, slice};
use super::MESH_SIDE;
use crate::Extent;
use crate::figures::{Aim, Figure, Sample, figures, sample};
use crate::stage::PORT;

const SHOP: &str = "shop";
const MIB: f64 = (1 << 20) as f64;
/// For a first snapshot of the whole cluster.
const LONG: Duration = Duration::from_secs(300);
/// For a change to have its effect.
const SOON: Duration = Duration::from_secs(20);
/// Longer than what the publisher counts as a quiet time.
const QUIET: Duration = Duration::from_millis(1100);

/// The figures of one cluster after another.
pub(super) fn kubernetes(extent: Extent) -> Result<Vec<Figure>> {
    let sizes = extent.pick(
        [("1,000 pods: ", 1_000)].as_slice(),
        &[("5,000 pods: ", 5_000), ("50,000 pods: ", 50_000)],
    );
    let mut all = Vec::new();
    for &(prefix, pods) in sizes {
        let run = measure(Size { pods }, extent)?;
        all.extend(figures(prefix, MESH_SIDE, None, &[run], &[]));
    }
    Ok(all)
}

fn measure(size: Size, extent: Extent) -> Result<Vec<Sample>> {
    let mut field = Field::set(size)?;
    let mut samples = field.start()?;
    samples.extend(field.endpoints(extent.pick(10, 60))?);
    samples.extend(field.stream(extent.pick(50, 500))?);
    samples.extend(field.policies(extent.pick(3, 20))?);
    samples.extend(field.born(extent.pick(3, 30))?);
    samples.extend(field.found(extent.pick(3, 30))?);
    let peak = field.peak()?;
    samples.push(sample("memory at most", "MiB", peak / MIB));
    Ok(samples)
}

/// A cluster, one agent of it, and two real pods on its node. Fields drop in order.
struct Field {
    agent: Agent,
    began: SystemTime,
    _server: LoadServer,
    client: Pod,
    near: Pod,
    more: Vec<KubePod>,
    cni: CniPlugin,
    _relay: Relay,
    n1: Node,
    cluster: Cluster,
    size: Size,
    /// Slices that were changed.
    turns: usize,
    _world: World,
}

impl Field {
    fn set(size: Size) -> Result<Self> {
        let world = World::new("bench-kubernetes")?;
        let cluster = Cluster::open(&world)?;
        let n1 = world.node("n1")?;
        let (client, near) = (n1.pod(SHOP, "client")?, n1.pod(SHOP, "near")?);
        for kind in ["AuthorizationPolicy", "PeerAuthentication"] {
            cluster.define(kind, &["v1"])?;
        }
        cluster.namespace(SHOP, true)?;
        for pod in [&client, &near] {
            cluster.pod(&pod.spec())?;
        }
        let server = own(&cluster)?;
        server.fill(size.objects())?;
        server.compact();
        let relay = cluster.relay(n1.netns(), SocketAddr::new(n1.address(), 6443))?;
        let kubeconfig = world.dir().join("kubeconfig");
        cluster.kubeconfig(&kubeconfig, relay.address())?;
        let load = LoadServer::start(&near, PORT, &["--ports", "1"])?;
        let unused = Manifests::new(world.dir().join("unused"))?;
        let cni = CniPlugin::prepare(world.dir(), "bench")?;
        let below = n1.cgroup().path().strip_prefix(cgroup2_mount()?)?.to_owned();
        let began = SystemTime::now();
        let agent = Agent::builder(&world, &n1, &unused)
            .without_arg("--config-dir")
            .arg("--kubeconfig", &kubeconfig.to_string_lossy())
            .arg("--kubernetes-pod-placement", "annotations")
            .arg("--pods-cri-socket", "off")
            .arg("--pods-cgroup", &below.to_string_lossy())
            .env("MESH_AGENT_LOG", "info");
        let agent = cni.installed_by(agent).spawn()?;
        Ok(Self {
            agent,
            began,
            _server: load,
            client,
            near,
            more: Vec::new(),
            cni,
            _relay: relay,
            n1,
            cluster,
            size,
            turns: 0,
            _world: world,
        })
    }

    /// When the first line of the agent's log at or after `from` was written that holds these words.
    fn line(&self, from: SystemTime, words: &[&str], limit: Duration) -> Result<Duration> {
        wait_for(&format!("the agent's log says {words:?}"), limit, || {
            let log = self.agent.log();
            let fits = |line: &&str| words.iter().all(|word| line.contains(word));
            let mut found = log
                .lines()
                .filter(fits)
                .filter_map(written)
                .filter_map(|at| at.duration_since(from).ok());
            found.next().context("not yet")
        })
    }

    /// Until everything is in force; and what that takes in memory.
    fn start(&mut self) -> Result<Vec<Sample>> {
        let first = self.line(self.began, &["configuration in force"], LONG)?;
        for pod in [&self.client, &self.near] {
            self.line(self.began, &[" captured ", pod.name()], SOON)?;
        }
        self.agent.wait_ready()?;
        self.cni.wait_installed("bench")?;
        // What the lists took is given back within seconds.
        std::thread::sleep(Duration::from_secs(10));
        let rest = resident(self.agent.pid())? as f64;
        let peak = self.peak()?;
        Ok(vec![
            sample("from start to first snapshot", "s", first.as_secs_f64()),
            sample("memory at rest", "MiB", rest / MIB).aim(Aim::AtMost(250.0)),
            sample("memory at most while starting", "MiB", peak / MIB),
        ])
    }

    /// Single changes after a quiet time.
    fn endpoints(&mut self, count: usize) -> Result<Vec<Sample>> {
        let mut took = Vec::new();
        for _ in 0..count {
            std::thread::sleep(QUIET);
            let slice = self.next_slice();
            let began = SystemTime::now();
            own(&self.cluster)?.put(slice)?;
            took.push(self.line(began, &["configuration in force"], SOON)?);
        }
        Ok(spread(
            took,
            [
                "endpoint change to snapshot, p50",
                "endpoint change to snapshot, p99",
            ],
            Some(Aim::AtMost(100.0)),
        ))
    }

    /// Fifty changes a second: what each costs.
    fn stream(&mut self, count: usize) -> Result<Vec<Sample>> {
        let used = |agent: &Agent| Usage::of(agent.pid()).map(|usage| usage.cpu_seconds);
        let idle_from = used(&self.agent)?;
        let pause = Duration::from_secs(5);
        std::thread::sleep(pause);
        let (from, began) = (used(&self.agent)?, Instant::now());
        for n in 0..count {
            let slice = self.next_slice();
            own(&self.cluster)?.put(slice)?;
            let due = Duration::from_millis(20) * u32::try_from(n + 1)?;
            std::thread::sleep(due.saturating_sub(began.elapsed()));
        }
        let idle = (from - idle_from) / pause.as_secs_f64();
        let more = used(&self.agent)? - from - idle * began.elapsed().as_secs_f64();
        Ok(vec![
            sample("processor time while nothing changes", "ms/s", idle * 1e3),
            sample(
                "processor time per endpoint change",
                "ms",
                more.max(0.0) * 1e3 / count as f64,
            ),
        ])
    }

    /// A policy that denies is made, while a client opens connection after connection.
    fn policies(&mut self, count: usize) -> Result<Vec<Sample>> {
        let policy = |name: &str| {
            json!({
                "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "turn", "namespace": SHOP},
                "spec": {"action": "DENY", "selector": {"matchLabels": {"app": "near"}},
                    "rules": [{"from": [{"source": {"serviceAccounts": [format!("{SHOP}/{name}")]}}]}]},
            })
        };
        let to = SocketAddr::new(self.near.ip4(), PORT).to_string();
        let turn = |outcome: &str, name: &str| -> Result<Duration> {
            let waiting = self.client.load_in_background(&["until", outcome, &to])?;
            std::thread::sleep(QUIET);
            let began = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
            own(&self.cluster)?.put(policy(name))?;
            let turned = waiting.turned(Duration::from_secs(40))?;
            Ok(Duration::from_micros(turned.at_micros).saturating_sub(began))
        };
        let mut took = Vec::new();
        for _ in 0..count {
            took.push(turn("refused", "client")?);
            turn("served", "nobody")?;
        }
        Ok(spread(
            took,
            ["policy change to enforced, p50", "policy change to enforced, p99"],
            None,
        ))
    }

    /// A pod is bound to the node; its runtime calls the CNI plugin at once, and may start its first process when that has answered.
    /// What the runtime needs to make a namespace and a cgroup is not counted: both are there.
    fn born(&mut self, count: usize) -> Result<Vec<Sample>> {
        let (mut took, mut plugin) = (Vec::new(), Vec::new());
        for n in 0..count {
            let mut pod = self.sandbox(&format!("born{n}"))?;
            std::thread::sleep(QUIET);
            let made = Instant::now();
            own(&self.cluster)?.put(unborn(&pod).document())?;
            let called = Instant::now();
            let arguments = cni_arguments(SHOP, pod.pod.name(), &pod.uid);
            let answer = self.cni.add(&arguments, &pod.pod, &json!({}))?;
            took.push(made.elapsed());
            plugin.push(called.elapsed());
            ensure!(answer.ok, "the plugin refused: {answer:?}");
            let line = self.line(self.began, &[" captured ", pod.pod.name()], Duration::ZERO);
            line.context("the plugin answered before the pod was captured")?;
            pod.pause = Some(pod.first_process("pause")?);
            self.more.push(pod);
        }
        let mut all = spread(
            took,
            [
                "pod bound to captured by the CNI plugin, p50",
                "pod bound to captured by the CNI plugin, p99",
            ],
            None,
        );
        all.extend(spread(
            plugin,
            ["call of the CNI plugin, p50", "call of the CNI plugin, p99"],
            None,
        ));
        Ok(all)
    }

    /// Without the plugin: from a sandbox's first process to its capture.
    fn found(&mut self, count: usize) -> Result<Vec<Sample>> {
        let mut took = Vec::new();
        for n in 0..count {
            let mut pod = self.sandbox(&format!("found{n}"))?;
            own(&self.cluster)?.put(unborn(&pod).document())?;
            std::thread::sleep(QUIET);
            let began = SystemTime::now();
            pod.pause = Some(pod.first_process("pause")?);
            took.push(self.line(began, &[" captured ", pod.pod.name()], SOON)?);
            self.more.push(pod);
        }
        Ok(spread(
            took,
            [
                "first process to captured without the plugin, p50",
                "first process to captured without the plugin, p99",
            ],
            None,
        ))
    }

    /// A pod's network and cgroup, as its runtime makes them.
    fn sandbox(&self, name: &str) -> Result<KubePod> {
        KubePod::new(&self.n1, self.n1.pod(SHOP, name)?, Layout::Burstable, &new_uid())
    }

    /// A slice whose first endpoint is not as it was.
    fn next_slice(&mut self) -> Value {
        let services = self.size.services();
        let (round, turn) = (self.turns / services, self.turns % services);
        self.turns += 1;
        // Far apart, and each once a round.
        slice(self.size, turn * 7919 % services, round % 2 == 1)
    }

    /// The most that the agent has had resident, bytes.
    fn peak(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.agent.pid());
        let status = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line
            .and_then(|text| text.trim().strip_suffix(" kB"))
            .context("no VmHWM")?;
        Ok(kilobytes.trim().parse::<f64>()? * 1024.0)
    }
}

/// A pod's document before its kubelet knows an address.
fn unborn(pod: &KubePod) -> PodSpec {
    PodSpec {
        addresses: Vec::new(),
        ..pod.spec()
    }
}

fn own(cluster: &Cluster) -> Result<&ApiServer> {
    cluster
        .own()
        .context("this scenario fills an API server of its own: unset KUBECONFIG")
}

/// When a line of the log was written.
fn written(line: &str) -> Option<SystemTime> {
    let at: Timestamp = line.split_whitespace().next()?.parse().ok()?;
    Some(SystemTime::from(at))
}

/// The middle and the 99th of a hundred, in milliseconds.
fn spread(mut took: Vec<Duration>, [middle, late]: [&'static str; 2], aim: Option<Aim>) -> Vec<Sample> {
    took.sort();
    let at = |part: f64| {
        let place = ((took.len() as f64 * part).ceil() as usize).clamp(1, took.len().max(1)) - 1;
        took.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    let aimed = |sample: Sample| match aim {
        Some(aim) => sample.aim(aim),
        None => sample,
    };
    vec![
        aimed(sample(middle, "ms", at(0.5))),
        aimed(sample(late, "ms", at(0.99))),
    ]
}
