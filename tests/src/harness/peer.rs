//! The independent HBONE peer: Python, PyPI's `h2` and `ssl`; it shares no code with the agent. See `tests/peer`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::certs::Leaf;
use super::node::{Node, Pod};
use super::process::{JoinExt, Proc, run, wait_for};

/// The interpreter of the peer's virtual environment.
fn python() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("MESH_PEER_PYTHON") {
        return Ok(path.into());
    }
    let python = target_dir()?.join("peer-venv/bin/python");
    if !python.is_file() {
        bail!(
            "the independent HBONE peer needs a Python environment at {}: cargo xtask setup, or\n  python3 -m venv {} && {} -m pip install -r {}",
            python.display(),
            python
                .ancestors()
                .nth(2)
                .unwrap_or(Path::new("target/peer-venv"))
                .display(),
            python.display(),
            peer_dir().join("requirements.txt").display(),
        );
    }
    Ok(python)
}

/// The target directory that this executable was built into.
fn target_dir() -> Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find this executable")?;
    let marked = me.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    marked
        .map(Path::to_owned)
        .with_context(|| format!("{} is not in a target directory", me.display()))
}

fn peer_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peer")
}

fn command(pod: &Pod, script: &str, leaf: Option<&Leaf>) -> Result<Command> {
    with_leaf(pod.command(python()?)?, script, leaf)
}

fn with_leaf(mut command: Command, script: &str, leaf: Option<&Leaf>) -> Result<Command> {
    command.arg("-B").arg(peer_dir().join(script));
    if let Some(leaf) = leaf {
        command
            .arg("--cert")
            .arg(&leaf.cert)
            .arg("--key")
            .arg(&leaf.key)
            .arg("--roots")
            .arg(&leaf.roots);
    }
    Ok(command)
}

/// Runs the client in `pod` against `to` (`ADDRESS:15008`) and gives its report. Run it in a pod that is not enrolled: otherwise its
/// own agent would carry it.
///
/// # Errors
/// When it cannot run or gives no report. A refused handshake or stream is a report.
pub fn peer_client(pod: &Pod, leaf: Option<&Leaf>, to: &str, args: &[&str]) -> Result<Value> {
    let mut command = command(pod, "client.py", leaf)?;
    command.args(["--to", to]).args(args);
    let output = run(&mut command, Duration::from_secs(60))?;
    serde_json::from_str(output.stdout.trim()).with_context(|| {
        format!(
            "no report from the peer: {} {}{}",
            output.status, output.stdout, output.stderr
        )
    })
}

/// Where a hostile client runs.
#[derive(Clone, Copy, Debug)]
pub enum Place<'a> {
    /// In a pod. In one that is enrolled, capture sees it.
    Pod(&'a Pod),
    /// In a node's namespace.
    Node(&'a Node),
}

/// Runs the hostile client's `attack` on `to` (`ADDRESS:PORT` or the path of a Unix socket) and gives its report.
///
/// # Errors
/// When it cannot run, does not end within a minute, or gives no report. Being cut is a report.
pub fn hostile_client(
    place: Place<'_>,
    leaf: Option<&Leaf>,
    attack: &str,
    to: &str,
    args: &[&str],
) -> Result<Value> {
    let base = match place {
        Place::Pod(pod) => pod.command(python()?)?,
        Place::Node(node) => {
            let mut command = Command::new(python()?);
            command.in_netns(node.netns())?;
            command
        }
    };
    let mut command = with_leaf(base, "hostile.py", leaf)?;
    command.arg(attack).args(["--to", to]).args(args);
    let output = run(&mut command, Duration::from_secs(60))?;
    serde_json::from_str(output.stdout.trim()).with_context(|| {
        format!(
            "no report of {attack}: {} {}{}",
            output.status, output.stdout, output.stderr
        )
    })
}

/// The server running in a pod; killed on drop.
#[derive(Debug)]
pub struct PeerServer {
    proc: Proc,
}

impl PeerServer {
    /// Starts the server on port 15008 of `pod`, which is not captured by an agent, and waits until it listens.
    ///
    /// # Errors
    /// When it does not listen within seconds.
    pub fn start(pod: &Pod, leaf: &Leaf, args: &[&str]) -> Result<Self> {
        Self::of("server.py", pod, leaf, args)
    }

    /// Like [`PeerServer::start`], with the hostile server, which does `attack` to each connection.
    ///
    /// # Errors
    /// When it does not listen within seconds.
    pub fn hostile(pod: &Pod, leaf: &Leaf, attack: &str) -> Result<Self> {
        Self::of("hostile_server.py", pod, leaf, &["--attack", attack])
    }

    fn of(script: &str, pod: &Pod, leaf: &Leaf, args: &[&str]) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut command = command(pod, script, Some(leaf))?;
        command.args(args);
        let name = format!("{}-peer-{}", pod.name(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut server = Self {
            proc: Proc::start(&name, &mut command, pod.log_dir())?,
        };
        wait_for("the peer listens", Duration::from_secs(10), || {
            match server.proc.ended() {
                Some(status) => bail!("it ended with {status}: {}", server.proc.stderr()),
                None if server.events("listening").is_empty() => {
                    bail!("nothing said yet: {}", server.proc.stderr())
                }
                None => Ok(()),
            }
        })?;
        Ok(server)
    }

    /// Its events of one kind: `listening`, `handshake`, `stream`, `closed`.
    pub fn events(&self, event: &str) -> Vec<Value> {
        self.proc
            .stdout()
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|value| value["event"] == event)
            .collect()
    }

    /// Waits until it has said `event` `count` times.
    ///
    /// # Errors
    /// When it has not within five seconds.
    pub fn wait_events(&self, event: &str, count: usize) -> Result<Vec<Value>> {
        wait_for(
            &format!("{count} events {event} of the peer"),
            Duration::from_secs(5),
            || {
                let found = self.events(event);
                if found.len() >= count {
                    Ok(found)
                } else {
                    bail!("it said {}{}", self.proc.stdout(), self.proc.stderr())
                }
            },
        )
    }
}
