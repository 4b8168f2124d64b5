//! Runs `ways.py`, and reads what agents count.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{Agent, Cgroup, JoinExt, Netns, Pod, Proc, Scene, run, wait_for};
use serde_json::Value;

fn python() -> std::ffi::OsString {
    std::env::var_os("MESH_PEER_PYTHON").unwrap_or_else(|| "python3".into())
}

fn arguments(command: &mut Command, args: &[&str]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("suites/evasion/ways.py");
    command.arg("-B").arg(script).args(args);
}

/// Runs a verb of the script in `pod` to its end; what it says.
pub(crate) fn ways(pod: &Pod, args: &[&str]) -> Result<Value> {
    finish(pod.command(python())?, args)
}

/// The same in any network namespace and cgroup.
pub(crate) fn ways_at(netns: &Netns, cgroup: &Cgroup, args: &[&str]) -> Result<Value> {
    let mut command = Command::new(python());
    command.in_cgroup(cgroup)?.in_netns(netns)?;
    finish(command, args)
}

fn finish(mut command: Command, args: &[&str]) -> Result<Value> {
    arguments(&mut command, args);
    let text = run(&mut command, Duration::from_secs(60))?.success()?;
    serde_json::from_str(text.trim()).with_context(|| format!("{}: no JSON: {text}", args.join(" ")))
}

/// A verb of the script that goes on until it is dropped.
pub(crate) struct Script {
    proc: Proc,
}

impl Script {
    /// Starts it in `pod`.
    pub(crate) fn start(pod: &Pod, args: &[&str]) -> Result<Self> {
        Self::spawn(pod.command(python())?, pod.log_dir(), args)
    }

    /// Starts it in any network namespace and cgroup.
    pub(crate) fn start_at(scene: &Scene, netns: &Netns, cgroup: &Cgroup, args: &[&str]) -> Result<Self> {
        let mut command = Command::new(python());
        command.in_cgroup(cgroup)?.in_netns(netns)?;
        Self::spawn(command, &scene.world.log_dir(), args)
    }

    fn spawn(mut command: Command, logs: &Path, args: &[&str]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        arguments(&mut command, args);
        let name = format!("ways-{}-{}", args[0], COUNT.fetch_add(1, Ordering::Relaxed));
        Ok(Self {
            proc: Proc::start(&name, &mut command, logs)?,
        })
    }

    /// What it has said of one kind.
    pub(crate) fn events(&self, event: &str) -> Vec<Value> {
        let text = self.proc.stdout();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["event"] == event).collect()
    }

    /// Waits until it has said `event` `count` times.
    pub(crate) fn wait(&mut self, event: &str, count: usize) -> Result<Vec<Value>> {
        wait_for(&format!("{count} × {event}"), Duration::from_secs(20), || {
            let found = self.events(event);
            if found.len() >= count {
                return Ok(found);
            }
            bail!(
                "it said {} {} ({:?})",
                self.proc.stdout(),
                self.proc.stderr(),
                self.proc.ended()
            )
        })
    }

    /// Waits for its end and reads its one answer.
    pub(crate) fn answer(mut self) -> Result<Value> {
        let status = self.proc.wait(Duration::from_secs(30))?;
        let text = self.proc.stdout();
        serde_json::from_str(text.trim()).with_context(|| format!("{status}: {text}{}", self.proc.stderr()))
    }
}

/// How often the BPF programs of an agent have counted `event`.
pub(crate) fn counted(agent: &Agent, event: &str) -> Result<f64> {
    Ok(agent
        .metrics()?
        .sum("mesh_agent_bpf_events_total", &[("event", event)]))
}

/// Checks that an exchange of the script went well.
#[track_caller]
pub(crate) fn assert_carried(report: &Value, what: &str) {
    assert!(
        report["error"].is_null() && report["text"] == "ping" && report["end"] == "eof",
        "{what}: {report}"
    );
}

/// Checks that `connect()` failed with EPERM.
#[track_caller]
pub(crate) fn assert_refused(report: &Value, what: &str) {
    assert!(
        report["error"] == "EPERM" && report["text"] == "",
        "{what}: {report}"
    );
}

/// Checks that not a byte came back.
#[track_caller]
pub(crate) fn assert_nothing(report: &Value, what: &str) {
    assert!(
        report["text"] == "" && (!report["error"].is_null() || report["end"] == "eof"),
        "{what}: {report}"
    );
}

/// The hardware address of a device.
pub(crate) fn mac(netns: &Netns, device: &str) -> Result<String> {
    let shown = ip_json(netns, &["link", "show", "dev", device])?;
    let mac = shown[0]["address"].as_str();
    Ok(mac.context("a device without an address")?.to_owned())
}

/// The link-local address of a device.
pub(crate) fn link_local(netns: &Netns, device: &str) -> Result<String> {
    wait_for("a link-local address", Duration::from_secs(5), || {
        let shown = ip_json(netns, &["-6", "address", "show", "dev", device, "scope", "link"])?;
        let all = shown[0]["addr_info"].as_array().into_iter().flatten();
        let address = all.filter_map(|one| one["local"].as_str()).next();
        Ok(address
            .with_context(|| format!("none on {device}: {shown}"))?
            .to_owned())
    })
}

fn ip_json(netns: &Netns, args: &[&str]) -> Result<Value> {
    let mut command = Command::new("ip");
    command.args(["-j", "-n", netns.name()]).args(args);
    Ok(serde_json::from_str(
        &run(&mut command, Duration::from_secs(10))?.success()?,
    )?)
}
