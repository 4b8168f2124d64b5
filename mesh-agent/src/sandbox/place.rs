//! Where a sandbox lives: its network namespace with a link to the host's bridge, and its cgroup. Made and removed as a record says;
//! removing works on what is there, in whatever state.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::net::if_::if_nametoindex;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::error::SandboxError;
use super::registry::Record;
use crate::settings::SandboxRanges;

/// The bridge of all sandboxes in the host's network namespace.
const BRIDGE: &str = "mesh-sandbox";
/// How long processes may take to die of SIGKILL.
const DEATH: Duration = Duration::from_secs(5);

/// The file that is the sandbox's network namespace.
pub(super) fn netns_path(record: &Record) -> PathBuf {
    Path::new("/run/netns").join(&record.netns)
}

/// Makes the bridge where it is missing, the namespace, the link and the cgroup.
pub(super) fn make(record: &Record, ranges: &SandboxRanges) -> Result<(), SandboxError> {
    if if_nametoindex(BRIDGE).is_err() {
        ip(&[
            "link",
            "add",
            BRIDGE,
            "type",
            "bridge",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
        ])?;
        for address in ranges.host() {
            add_address(&[], BRIDGE, address, ranges)?;
        }
        ip(&["link", "set", BRIDGE, "up"])?;
    }
    let netns = record.netns.as_str();
    ip(&["netns", "add", netns])?;
    let link = record.link.as_str();
    ip(&[
        "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", netns,
    ])?;
    ip(&["link", "set", link, "master", BRIDGE, "up"])?;
    let within = ["-n", netns];
    ip(&[&within[..], &["link", "set", "lo", "up"]].concat())?;
    for address in &record.addresses {
        add_address(&within, "eth0", *address, ranges)?;
    }
    ip(&[&within[..], &["link", "set", "eth0", "up"]].concat())?;
    for host in ranges.host() {
        let host = host.to_string();
        ip(&[&within[..], &["route", "add", "default", "via", &host]].concat())?;
    }
    fs::create_dir_all(&record.cgroup).map_err(SandboxError::io("make the cgroup", &record.cgroup))
}

fn add_address(
    within: &[&str],
    device: &str,
    address: IpAddr,
    ranges: &SandboxRanges,
) -> Result<(), SandboxError> {
    let text = format!("{address}/{}", ranges.prefix_len(address));
    let mut all = [within, &["address", "add", &text, "dev", device]].concat();
    if address.is_ipv6() {
        all.push("nodad");
    }
    ip(&all)
}

/// Ends what runs in the sandbox, and removes its cgroup, link and namespace. What cannot be removed is said and left.
pub(super) fn remove(record: &Record) {
    if let Err(error) = remove_cgroup(&record.cgroup) {
        tracing::warn!(cgroup = %record.cgroup.display(), %error, "a sandbox's cgroup stays");
    } else if let Some(parent) = record.cgroup.parent() {
        // Stays while other sandboxes are in it.
        let _ = fs::remove_dir(parent);
    }
    if if_nametoindex(record.link.as_str()).is_ok() {
        said(ip(&["link", "delete", &record.link]));
    }
    if netns_path(record).exists() {
        said(ip(&["netns", "delete", &record.netns]));
    }
}

/// Removes the bridge.
pub(super) fn remove_bridge() {
    if if_nametoindex(BRIDGE).is_ok() {
        said(ip(&["link", "delete", BRIDGE]));
    }
}

fn said(done: Result<(), SandboxError>) {
    if let Err(error) = done {
        tracing::warn!(%error, "something of a sandbox stays");
    }
}

/// Kills what is in the cgroup and below, and removes it.
fn remove_cgroup(path: &Path) -> io::Result<()> {
    let children = match fs::read_dir(path) {
        Ok(entries) => entries.flatten(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // cgroup.kill is of Linux 5.14.
    let at_once = fs::write(path.join("cgroup.kill"), "1").is_ok();
    for child in children.map(|entry| entry.path()).filter(|path| path.is_dir()) {
        remove_cgroup(&child)?;
    }
    let end = Instant::now() + DEATH;
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < end => {
                if !at_once {
                    kill_each(path);
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(()),
        }
    }
}

fn kill_each(cgroup: &Path) {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|line| line.parse::<i32>().ok()) {
        // 0 stands for a process that this namespace does not show.
        if pid > 1 && pid.unsigned_abs() != std::process::id() {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// ip(8).
fn ip(arguments: &[&str]) -> Result<(), SandboxError> {
    let output = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(SandboxError::NoIp)?;
    if output.status.success() {
        return Ok(());
    }
    Err(SandboxError::Ip {
        arguments: arguments.join(" "),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
