//! The ordinary programs that run in pods: `mesh-testapp` as server and as client, and what it reports.
//! It knows nothing of the mesh.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::node::Pod;
use super::process::{Output, Proc, run, wait_for};

/// What a client says about its connections, as one line of JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// `connect()` succeeded (for a run of many: the first).
    pub connected: bool,
    /// The first error, in words; `connect: ECONNREFUSED` for instance.
    pub error: Option<String>,
    /// `getsockname()`.
    pub local: Option<SocketAddr>,
    /// `getpeername()`.
    pub peer: Option<SocketAddr>,
    /// What was received, where it is text.
    pub text: String,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
    /// How the receiving side ended: `eof`, `reset`, `timeout`.
    pub end: String,
    /// Connections or requests that did what they should.
    pub ok: u64,
    /// Connections or requests that did not.
    pub failed: u64,
    /// How often each error was met.
    pub errors: BTreeMap<String, u64>,
    /// Milliseconds it all took.
    pub millis: u64,
    /// The longest time without one answer in a run of many, milliseconds.
    pub longest_gap_millis: u64,
}

/// What a server says, a line of JSON each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AppEvent {
    /// `listening`, `accepted`, `closed`.
    pub event: String,
    /// Number of the connection, from 1.
    pub connection: u64,
    /// The peer as `accept()` gave it.
    pub peer: Option<SocketAddr>,
    /// The peer as `getpeername()` gives it.
    pub peer_name: Option<SocketAddr>,
    /// `getsockname()`.
    pub local: Option<SocketAddr>,
    /// Bytes received.
    pub received: u64,
    /// How it ended: `eof`, `reset`, or an error.
    pub end: String,
}

/// A server running in a pod; killed on drop.
#[derive(Debug)]
pub struct App {
    proc: Proc,
}

impl App {
    /// Starts `mesh-testapp serve MODE --listen [::]:PORT ARGS…` in `pod` and waits until it listens.
    ///
    /// # Errors
    /// When it does not listen within seconds.
    pub fn serve(pod: &Pod, mode: &str, port: u16, args: &[&str]) -> Result<Self> {
        Self::serve_with(pod, pod.command(testapp()?)?, mode, port, args)
    }

    /// Like [`App::serve`], with a command prepared by the caller (for another cgroup).
    ///
    /// # Errors
    /// When it does not listen within seconds.
    pub fn serve_with(pod: &Pod, mut command: Command, mode: &str, port: u16, args: &[&str]) -> Result<Self> {
        command
            .args(["serve", mode, "--listen", &format!("[::]:{port}")])
            .args(args);
        let mut app = Self {
            proc: Proc::start(
                &format!("{}-{mode}-{port}", pod.name()),
                &mut command,
                pod.log_dir(),
            )?,
        };
        wait_for("a test server listens", Duration::from_secs(5), || {
            if let Some(status) = app.proc.ended() {
                bail!("it ended with {status}: {}", app.proc.stderr());
            }
            if app.events().is_empty() {
                bail!("nothing said yet")
            } else {
                Ok(())
            }
        })?;
        Ok(app)
    }

    /// What it said so far.
    pub fn events(&self) -> Vec<AppEvent> {
        self.proc
            .stdout()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Its events of this kind.
    pub fn events_of(&self, event: &str) -> Vec<AppEvent> {
        self.events()
            .into_iter()
            .filter(|one| one.event == event)
            .collect()
    }

    /// Waits until it has said `event` `count` times.
    ///
    /// # Errors
    /// When it has not within five seconds.
    pub fn wait_events(&self, event: &str, count: usize) -> Result<Vec<AppEvent>> {
        wait_for(&format!("{count} events {event}"), Duration::from_secs(5), || {
            let found = self.events_of(event);
            if found.len() >= count {
                Ok(found)
            } else {
                bail!("only {:?}", self.events())
            }
        })
    }

    /// Its process.
    pub fn proc(&mut self) -> &mut Proc {
        &mut self.proc
    }
}

impl Pod {
    /// Whether an echo server at this address answers this pod's clients. One that does not must refuse, not stay silent.
    ///
    /// # Errors
    /// When the client cannot run, or was refused without a clear end.
    pub fn reaches(&self, ip: IpAddr, port: u16) -> Result<bool> {
        let report = self.connect(ip, port, "exchange", &["--timeout", "3000"])?;
        if report.text == "ping\n" {
            return Ok(true);
        }
        if report.error.is_none() && report.end != "reset" {
            bail!("refused without a clear end: {report:?}");
        }
        Ok(false)
    }

    /// Runs `mesh-testapp connect ADDRESS:PORT MODE ARGS…` in this pod to its end.
    ///
    /// # Errors
    /// When it cannot run, does not end in time or gives no report. A connection that fails is a report, not an error.
    pub fn connect(&self, ip: IpAddr, port: u16, mode: &str, args: &[&str]) -> Result<Report> {
        self.connect_within(Duration::from_secs(30), ip, port, mode, args)
    }

    /// Like [`Pod::connect`], bounded by `limit`.
    ///
    /// # Errors
    /// As [`Pod::connect`].
    pub fn connect_within(
        &self,
        limit: Duration,
        ip: IpAddr,
        port: u16,
        mode: &str,
        args: &[&str],
    ) -> Result<Report> {
        let mut command = self.command(testapp()?)?;
        command
            .args(["connect", &SocketAddr::new(ip, port).to_string(), mode])
            .args(args);
        let output = run(&mut command, limit)?;
        report(&output)
    }

    /// Like [`Pod::connect`], but returns at once: the report is had with [`Running::report`].
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn connect_in_background(&self, ip: IpAddr, port: u16, mode: &str, args: &[&str]) -> Result<Running> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mut command = self.command(testapp()?)?;
        command
            .args(["connect", &SocketAddr::new(ip, port).to_string(), mode])
            .args(args);
        let name = format!("{}-{mode}-{}", self.name(), COUNT.fetch_add(1, Ordering::Relaxed));
        Ok(Running {
            proc: Proc::start(&name, &mut command, self.log_dir())?,
        })
    }
}

/// A client that runs; killed on drop.
#[derive(Debug)]
pub struct Running {
    proc: Proc,
}

impl Running {
    /// Its process.
    pub fn proc(&mut self) -> &mut Proc {
        &mut self.proc
    }

    /// Waits for its end and gives its report.
    ///
    /// # Errors
    /// When it does not end within `limit` or gives no report.
    pub fn report(mut self, limit: Duration) -> Result<Report> {
        let status = self.proc.wait(limit)?;
        report(&Output {
            status,
            stdout: self.proc.stdout(),
            stderr: self.proc.stderr(),
        })
    }
}

fn report(output: &Output) -> Result<Report> {
    serde_json::from_str(output.stdout.trim())
        .with_context(|| format!("no report: {} {}{}", output.status, output.stdout, output.stderr))
}

/// The path of `mesh-testapp`.
///
/// # Errors
/// When it is not built.
pub fn testapp() -> Result<PathBuf> {
    binary("mesh-testapp", "cargo build -p mesh-tests --bins")
}

/// A binary built into the same target directory as this executable.
pub(super) fn binary(name: &str, build: &str) -> Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find this executable")?;
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("no {name} beside {}: {build}", me.display()))
}
