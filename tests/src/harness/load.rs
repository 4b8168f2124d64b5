//! `mesh-load` in pods: its server and its clients.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::app::binary;
use super::node::Pod;
use super::process::{Proc, wait_for};

/// What a client of `mesh-load` counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadReport {
    /// Connections, questions or handshakes that went as they should.
    pub ok: u64,
    /// Those that did not.
    pub failed: u64,
    /// Where `getpeername` here, or the server's answer, named another end than the true one.
    pub wrong_names: u64,
    /// How often each error was met.
    pub errors: BTreeMap<String, u64>,
    /// Bytes moved, in bulk.
    pub bytes: u64,
    /// How long it all took.
    pub seconds: f64,
    /// How many went well in each second.
    pub per_second: Vec<u64>,
    /// Half of them took no longer, microseconds.
    pub p50_micros: u64,
    /// 99 % of them took no longer, microseconds.
    pub p99_micros: u64,
    /// 99.9 % of them took no longer, microseconds.
    pub p999_micros: u64,
    /// The longest, microseconds.
    pub max_micros: u64,
}

impl LoadReport {
    /// How many went well per second, over all of it.
    pub fn rate(&self) -> f64 {
        self.ok as f64 / self.seconds.max(0.001)
    }

    /// How many went well per second within the first `seconds` seconds, and within the last ones. The last second, which is rarely a
    /// whole one, does not count.
    pub fn first_and_last(&self, seconds: usize) -> (f64, f64) {
        let whole = &self.per_second[..self.per_second.len().saturating_sub(1)];
        let of = |part: &[u64]| part.iter().sum::<u64>() as f64 / part.len().max(1) as f64;
        let n = seconds.min(whole.len());
        (of(&whole[..n]), of(&whole[whole.len() - n..]))
    }

    /// Bits per second, in bulk.
    pub fn bits_per_second(&self) -> f64 {
        self.bytes as f64 * 8.0 / self.seconds.max(0.001)
    }
}

/// When connections began to be served, or refused (`mesh-load until`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turned {
    /// How many it took.
    pub attempts: u64,
    /// When the last of them had its outcome, microseconds since 1970.
    pub at_micros: u64,
}

/// What a server of `mesh-load` counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LoadTally {
    /// Connections accepted.
    pub accepted: u64,
    /// Those that are open now.
    pub open: u64,
    /// Those that ended in order.
    pub ended: u64,
    /// How the others ended.
    pub errors: BTreeMap<String, u64>,
    /// Where `getpeername` named another client than `accept`.
    pub wrong_names: u64,
    /// Bytes received, without first bytes and broken messages.
    pub received: u64,
}

/// A server that runs in a pod; killed on drop.
#[derive(Debug)]
pub struct LoadServer {
    proc: Proc,
}

impl LoadServer {
    /// Starts `mesh-load serve [::]:PORT ARGS…` in `pod` and waits until it listens.
    ///
    /// # Errors
    /// When it does not within seconds.
    pub fn start(pod: &Pod, port: u16, args: &[&str]) -> Result<Self> {
        Self::start_as("serve", pod, port, args)
    }

    /// Starts `mesh-load serve-http [::]:PORT` in `pod` and waits until it listens.
    ///
    /// # Errors
    /// When it does not within seconds.
    pub fn http(pod: &Pod, port: u16) -> Result<Self> {
        Self::start_as("serve-http", pod, port, &[])
    }

    fn start_as(verb: &str, pod: &Pod, port: u16, args: &[&str]) -> Result<Self> {
        let mut command = pod.command(program()?)?;
        let listen = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        command.args([verb, &listen.to_string()]).args(args);
        let name = format!("{}-load-{port}", pod.name());
        let mut server = Self {
            proc: Proc::start(&name, &mut command, pod.log_dir())?,
        };
        wait_for("a load server listens", Duration::from_secs(10), || {
            if let Some(status) = server.proc.ended() {
                bail!("it ended with {status}: {}", server.proc.stderr());
            }
            server.tallies().pop().context("nothing said yet")
        })?;
        Ok(server)
    }

    fn tallies(&self) -> Vec<LoadTally> {
        self.proc
            .stdout()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// What it has counted by now.
    ///
    /// # Errors
    /// When it does not say so within seconds.
    pub fn tally(&mut self) -> Result<LoadTally> {
        let before = self.tallies().len();
        self.proc.signal(Signal::SIGUSR1)?;
        wait_for("a load server's tally", Duration::from_secs(10), || {
            let mut tallies = self.tallies();
            if tallies.len() > before {
                tallies.pop().context("none")
            } else {
                bail!("nothing said yet")
            }
        })
    }
}

/// A client that runs; killed on drop.
#[derive(Debug)]
pub struct Loading {
    proc: Proc,
}

impl Loading {
    /// Waits until a `keep` has all its connections.
    ///
    /// # Errors
    /// When it has not within `limit`.
    pub fn wait_held(&mut self, limit: Duration) -> Result<()> {
        wait_for("all connections stand", limit, || {
            if let Some(status) = self.proc.ended() {
                return Ok(Err(status));
            }
            if self.proc.stdout().contains("\"held\"") {
                Ok(Ok(()))
            } else {
                bail!("not yet")
            }
        })?
        .map_err(|status| anyhow::anyhow!("it ended with {status}: {}", self.proc.stderr()))
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.proc.ended().is_none()
    }

    /// Has a `keep` go on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn go_on(&mut self) -> Result<()> {
        self.proc.signal(Signal::SIGUSR1)
    }

    /// Waits for its end and gives its report.
    ///
    /// # Errors
    /// When it does not end within `limit` or gives no report.
    pub fn report(self, limit: Duration) -> Result<LoadReport> {
        self.last_words(limit)
    }

    /// Waits for the end of an `until`.
    ///
    /// # Errors
    /// When it does not end within `limit`, or it never came to that.
    pub fn turned(self, limit: Duration) -> Result<Turned> {
        self.last_words(limit)
    }

    fn last_words<T: serde::de::DeserializeOwned>(mut self, limit: Duration) -> Result<T> {
        let status = self.proc.wait(limit)?;
        let (stdout, stderr) = (self.proc.stdout(), self.proc.stderr());
        let last = stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("no report: {status} {stdout}{stderr}"))
    }
}

impl Pod {
    /// Runs `mesh-load ARGS…` in this pod to its end.
    ///
    /// # Errors
    /// When it cannot run, does not end within `limit` or gives no report. Connections that fail are a report, not an error.
    pub fn load(&self, limit: Duration, args: &[&str]) -> Result<LoadReport> {
        self.load_in_background(args)?.report(limit)
    }

    /// As [`Pod::load`], but returns at once.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn load_in_background(&self, args: &[&str]) -> Result<Loading> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut command = self.command(program()?)?;
        command.args(args);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-load-{number}", self.name());
        Ok(Loading {
            proc: Proc::start(&name, &mut command, self.log_dir())?,
        })
    }
}

fn program() -> Result<PathBuf> {
    binary("mesh-load", "cargo build -p mesh-tests --bins")
}
