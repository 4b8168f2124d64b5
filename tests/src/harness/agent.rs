//! Real agents: the built `mesh-agent`, one per node, in the node's namespace and a cgroup of its own; and `meshctl` against it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::app::binary;
use super::cgroup::Cgroup;
use super::manifests::Manifests;
use super::netns::Netns;
use super::node::Node;
use super::process::{JoinExt, Output, Proc, patient, run, tail, wait_for};
use super::world::World;

/// Where agents serve metrics and readiness, in their node's namespace.
const METRICS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15020);
const READINESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15021);

/// How an agent is to be started.
#[derive(Clone, Debug)]
pub struct AgentBuilder {
    name: String,
    /// Behind the names of its cgroup and of its log: agents of one node may run beside each other.
    instance: String,
    args: Vec<String>,
    /// The program that becomes the agent, with its arguments; none as a rule.
    by: Vec<String>,
    env: Vec<(String, String)>,
    netns: PathBuf,
    node_cgroup: PathBuf,
    log_dir: PathBuf,
    admin_socket: PathBuf,
    ca_dir: PathBuf,
}

impl AgentBuilder {
    /// Adds an argument and its value, in place of one of that name.
    #[must_use]
    pub fn arg(self, name: &str, value: &str) -> Self {
        let mut this = self.without_arg(name);
        this.args.extend([name.to_owned(), value.to_owned()]);
        this
    }

    /// Leaves an argument and its value out.
    #[must_use]
    pub fn without_arg(mut self, name: &str) -> Self {
        if let Some(at) = self.args.iter().position(|arg| arg == name) {
            self.args.drain(at..(at + 2).min(self.args.len()));
        }
        self
    }

    /// Has `words` (a program that executes what is named behind its arguments, such as setpriv) become the agent.
    #[must_use]
    pub fn by(mut self, words: &[&str]) -> Self {
        self.by = words.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Leaves an environment variable unset that agents of tests have otherwise.
    #[must_use]
    pub fn without_env(mut self, name: &str) -> Self {
        self.env.retain(|(key, _)| key != name);
        self
    }

    /// Where the CA's files are, shared by the agents of a world.
    pub fn ca_dir(&self) -> &Path {
        &self.ca_dir
    }

    fn command(&self) -> Result<(Command, Cgroup)> {
        let cgroup = Cgroup::create(self.node_cgroup.join(format!("agent{}", self.instance)))?;
        let mut words = self.by.iter();
        let mut command = match words.next() {
            Some(program) => Command::new(program),
            None => Command::new(agent_binary()?),
        };
        if !self.by.is_empty() {
            command.args(words).arg(agent_binary()?);
        }
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)));
        command.in_cgroup(&cgroup)?;
        command.in_netns(&Netns::at(&self.netns))?;
        Ok((command, cgroup))
    }

    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// When it is not ready within seconds; with the end of its log.
    pub fn start(self) -> Result<Agent> {
        let mut agent = self.spawn()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts it without waiting.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(self) -> Result<Agent> {
        self.spawn_with(|_| {})
    }

    /// As [`spawn`](Self::spawn), with a changed command (limits, say).
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn_with(self, adapt: impl FnOnce(&mut Command)) -> Result<Agent> {
        let (mut command, cgroup) = self.command()?;
        adapt(&mut command);
        let proc = Proc::start(
            &format!("agent-{}{}", self.name, self.instance),
            &mut command,
            &self.log_dir,
        )?;
        Ok(Agent {
            proc,
            cgroup,
            builder: self,
        })
    }

    /// Runs it to its end: for agents that must refuse to start. `adapt` may change the command (drop privileges, say).
    ///
    /// # Errors
    /// When it cannot be started or goes on running.
    pub fn run_to_end(&self, adapt: impl FnOnce(&mut Command)) -> Result<Output> {
        self.run_to_end_within(Duration::from_secs(15), adapt)
    }

    /// As [`run_to_end`](Self::run_to_end), for agents that take `limit`.
    ///
    /// # Errors
    /// When it cannot be started or goes on running.
    pub fn run_to_end_within(&self, limit: Duration, adapt: impl FnOnce(&mut Command)) -> Result<Output> {
        let (mut command, _cgroup) = self.command()?;
        adapt(&mut command);
        run(&mut command, limit)
    }
}

/// The agent to test: `MESH_AGENT_BIN`, or the one built beside these tests.
///
/// # Errors
/// When there is none.
pub fn agent_binary() -> Result<PathBuf> {
    match std::env::var_os("MESH_AGENT_BIN") {
        Some(path) => Ok(path.into()),
        None => binary("mesh-agent", "cargo xtask build"),
    }
}

/// A running agent; killed on drop.
#[derive(Debug)]
pub struct Agent {
    proc: Proc,
    cgroup: Cgroup,
    builder: AgentBuilder,
}

impl Agent {
    /// An agent for `node`, which reads `manifests`. All agents of a world share one CA.
    pub fn builder(world: &World, node: &Node, manifests: &Manifests) -> AgentBuilder {
        let dir = world.dir();
        let name = node.name();
        let state = dir.join(format!("state-{name}"));
        let admin_socket = dir.join(format!("admin-{name}.sock"));
        let ca_dir = dir.join("ca");
        let bpffs = world.bpffs().join(name);
        AgentBuilder {
            name: name.to_owned(),
            instance: String::new(),
            args: vec!["run".to_owned()],
            by: Vec::new(),
            env: vec![("MESH_AGENT_LOG".to_owned(), "info,mesh_agent=debug".to_owned())],
            netns: node.netns().path().to_owned(),
            node_cgroup: node.cgroup().path().to_owned(),
            log_dir: world.log_dir(),
            admin_socket: admin_socket.clone(),
            ca_dir: ca_dir.clone(),
        }
        .arg("--config-dir", &manifests.dir().to_string_lossy())
        .arg("--node-name", name)
        .arg("--state-dir", &state.to_string_lossy())
        .arg("--ca-dir", &ca_dir.to_string_lossy())
        .arg("--admin-socket", &admin_socket.to_string_lossy())
        .arg("--bpffs-dir", &bpffs.to_string_lossy())
        .arg("--metrics-address", &METRICS.to_string())
        .arg("--readiness-address", &READINESS.to_string())
        .arg("--workers", "2")
    }

    /// Waits until its readiness says yes.
    ///
    /// # Errors
    /// When it has ended, or has not said so within 15 seconds; with the end of its log.
    pub fn wait_ready(&mut self) -> Result<()> {
        wait_for(
            &format!("agent {} is ready", self.builder.name),
            Duration::from_secs(15),
            || {
                if let Some(status) = self.proc.ended() {
                    return Ok(Err(status));
                }
                let (code, body) = self
                    .get(READINESS, "/healthz/ready")
                    .with_context(|| format!("no answer; its log: {}", tail(&self.log())))?;
                if code != 200 {
                    bail!("{code}: {body}; its log: {}", tail(&self.log()));
                }
                // The one that has answered may be the predecessor.
                if !self.builder.instance.is_empty() {
                    let said = self.meshctl(&["ready"])?;
                    if said["pid"] != self.pid() || said["ready"] != true {
                        bail!("{said}; its log: {}", tail(&self.log()));
                    }
                }
                Ok(Ok(()))
            },
        )?
        .map_err(|status: ExitStatus| anyhow::anyhow!("it ended with {status}: {}", tail(&self.log())))
    }

    fn get(&self, address: SocketAddr, path: &str) -> Result<(u16, String)> {
        Netns::at(&self.builder.netns).enter(|| http_get(address, path))
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When it does not answer with the text format.
    pub fn metrics(&self) -> Result<Metrics> {
        let (code, body) = self.get(METRICS, "/metrics")?;
        if code != 200 {
            bail!("/metrics answered {code}: {body}");
        }
        Ok(Metrics::parse(&body))
    }

    /// Whether it is ready, and what it says about it.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn ready(&self) -> Result<(bool, String)> {
        self.get(READINESS, "/healthz/ready")
            .map(|(code, body)| (code == 200, body))
    }

    /// `meshctl ARGS… -o json`.
    ///
    /// # Errors
    /// When it fails or answers with something else than JSON.
    pub fn meshctl(&self, args: &[&str]) -> Result<serde_json::Value> {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let said = self.meshctl_text(&all)?;
        // What is not ready is an answer, too.
        let text = if args.first() == Some(&"ready") && said.status.code() == Some(8) {
            said.stdout
        } else {
            said.success()?
        };
        serde_json::from_str(&text).with_context(|| format!("meshctl {}: no JSON: {text}", args.join(" ")))
    }

    /// `meshctl ARGS…` as a person would run it.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn meshctl_text(&self, args: &[&str]) -> Result<Output> {
        let path = agent_binary()?.with_file_name("meshctl");
        let mut command = Command::new(path);
        command
            .args(args)
            .env("MESH_AGENT_ADMIN_SOCKET", &self.builder.admin_socket);
        run(&mut command, Duration::from_secs(10))
    }

    /// Everything it logged so far.
    pub fn log(&self) -> String {
        self.proc.stdout() + &self.proc.stderr()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.proc.pid()
    }

    /// Its process.
    pub fn proc(&mut self) -> &mut Proc {
        &mut self.proc
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its admin socket.
    pub fn admin_socket(&self) -> &Path {
        &self.builder.admin_socket
    }

    /// The arguments it was started with, for `mesh-agent unload` and the like.
    pub fn args(&self) -> &[String] {
        &self.builder.args
    }

    /// Another agent of the same node with the same settings: it takes over from this one.
    pub fn successor(&self) -> AgentBuilder {
        let mut builder = self.builder.clone();
        builder.instance.push_str("-next");
        builder
    }

    /// SIGTERM; checks that it ends well.
    ///
    /// # Errors
    /// When it does not end within ten seconds, or not with success.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.proc.terminate(Duration::from_secs(20))?;
        if !status.success() {
            bail!("the agent ended with {status}: {}", tail(&self.log()));
        }
        Ok(())
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.proc.kill();
    }

    /// Starts the same agent again, after a stop or a kill.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn restart(self) -> Result<Agent> {
        let Agent {
            mut proc,
            builder,
            cgroup,
        } = self;
        proc.kill();
        drop(cgroup);
        builder.start()
    }
}

/// `GET path`, by hand, so that the observer shares nothing with what it observes. Call it in the right namespace.
fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let limit = patient(Duration::from_secs(3));
    let mut stream =
        TcpStream::connect_timeout(&address, limit).with_context(|| format!("cannot reach {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").context("no HTTP answer")?;
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .context("no status code")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((code, if chunked { dechunk(body) } else { body.to_owned() }))
}

fn dechunk(mut body: &str) -> String {
    let mut all = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..size).filter(|_| size > 0) else {
            break;
        };
        all.push_str(chunk);
        body = rest.get(size + 2..).unwrap_or_default();
    }
    all
}

/// A scrape: each sample's name and labels, and its value.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    samples: Vec<(String, BTreeMap<String, String>, f64)>,
}

impl Metrics {
    /// Parses the text format (no escapes in label values, which the agent does not need).
    pub fn parse(text: &str) -> Self {
        let samples = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(sample)
            .collect();
        Self { samples }
    }

    /// The sum of all samples called `name` that carry these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.samples
            .iter()
            .filter(|(n, have, _)| {
                n == name && labels.iter().all(|(k, v)| have.get(*k).is_some_and(|h| h == v))
            })
            .map(|(_, _, value)| value)
            .sum()
    }

    /// Whether there is a sample called `name`.
    pub fn has(&self, name: &str) -> bool {
        self.samples.iter().any(|(n, _, _)| n == name)
    }

    /// The samples whose name begins so, as text, for messages.
    pub fn show(&self, prefix: &str) -> String {
        let shown: Vec<String> = self
            .samples
            .iter()
            .filter(|(name, _, _)| name.starts_with(prefix))
            .map(|(name, labels, value)| format!("{name}{labels:?} {value}"))
            .collect();
        shown.join("\n")
    }
}

fn sample(line: &str) -> Option<(String, BTreeMap<String, String>, f64)> {
    let (head, value) = line.rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let Some((name, rest)) = head.split_once('{') else {
        return Some((head.to_owned(), BTreeMap::new(), value));
    };
    let labels = rest
        .trim_end_matches('}')
        .split("\",")
        .filter_map(|pair| pair.split_once("=\""))
        .map(|(key, value)| (key.trim().to_owned(), value.trim_end_matches('"').to_owned()))
        .collect();
    Some((name.to_owned(), labels, value))
}
