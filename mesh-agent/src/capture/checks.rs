//! Whether this machine can capture, point by point, for `meshctl check` and for the start of the agent. Changes nothing, except that
//! the load test loads the programs for a moment.

use std::path::Path;

use mesh_common::NodeConst;
use serde::Serialize;

use super::bpffs::is_on_bpffs;
use super::cgroup::Cgroup2;
use super::error::{CaptureError, causes};
use super::node::CaptureOptions;
use super::objects::NodeObject;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Works, with a drawback.
    Warn,
    /// The agent cannot run.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it ended.
    pub outcome: Outcome,
    /// What was found.
    pub detail: String,
    /// What to do, where there is something.
    pub hint: Option<String>,
}

impl Check {
    fn new(name: &'static str, outcome: Outcome, detail: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            name,
            outcome,
            detail: detail.into(),
            hint: hint.map(str::to_owned),
        }
    }

    fn of<T>(name: &'static str, result: Result<T, CaptureError>, detail: impl FnOnce(T) -> String) -> Self {
        match result {
            Ok(value) => Self::new(name, Outcome::Ok, detail(value), None),
            Err(error) => Self::new(name, Outcome::Fail, causes(&error), None),
        }
    }
}

/// The lowest kernel that capture works on: netns cookies in sock_ops.
const KERNEL_FLOOR: (u32, u32) = (5, 15);
/// The lowest kernel that is recommended.
const KERNEL_RECOMMENDED: (u32, u32) = (6, 1);

/// Capabilities that capture needs, by number (`linux/capability.h`), with what for.
const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN"), (39, "CAP_BPF")];

/// All checks.
pub fn checks(options: &CaptureOptions) -> Vec<Check> {
    vec![
        kernel(),
        Check::of("capabilities", require_capabilities(), |()| {
            "CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN are there".into()
        }),
        btf(),
        Check::of(
            "cgroup2",
            Cgroup2::find(options.cgroup_root.as_deref()),
            |found| found.mount.display().to_string(),
        ),
        bpffs(&options.bpffs_dir),
        Check::of(
            "programs",
            NodeObject::load(None, NodeConst::default()),
            |object| format!("the kernel accepts all {} programs", object.programs().count()),
        ),
    ]
}

fn kernel() -> Check {
    match (kernel_release(), require_kernel()) {
        (Some((release, version)), Ok(())) if version < KERNEL_RECOMMENDED => Check::new(
            "kernel",
            Outcome::Warn,
            release,
            Some("6.1 or later is recommended"),
        ),
        (Some((release, _)), Ok(())) => Check::new("kernel", Outcome::Ok, release, None),
        (_, Err(error)) => Check::new("kernel", Outcome::Fail, causes(&error), None),
        (None, Ok(())) => Check::new("kernel", Outcome::Warn, "its release cannot be read", None),
    }
}

fn btf() -> Check {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Check::new("btf", Outcome::Ok, "/sys/kernel/btf/vmlinux", None)
    } else {
        let hint = "socket storage needs a kernel built with CONFIG_DEBUG_INFO_BTF on some versions";
        Check::new(
            "btf",
            Outcome::Warn,
            "/sys/kernel/btf/vmlinux is missing",
            Some(hint),
        )
    }
}

fn bpffs(dir: &Path) -> Check {
    if is_on_bpffs(dir) {
        return Check::new("bpffs", Outcome::Ok, dir.display().to_string(), None);
    }
    let hint = "the agent mounts one; without a mount that outlives it, pods go uncaptured when it crashes";
    Check::new(
        "bpffs",
        Outcome::Warn,
        format!("none at {} yet", dir.display()),
        Some(hint),
    )
}

/// What must hold before anything is loaded.
pub(super) fn require_kernel_and_capabilities() -> Result<(), CaptureError> {
    require_kernel()?;
    require_capabilities()
}

fn require_kernel() -> Result<(), CaptureError> {
    match kernel_release() {
        Some((found, version)) if version < KERNEL_FLOOR => Err(CaptureError::Kernel { found }),
        _ => Ok(()),
    }
}

fn kernel_release() -> Option<(String, (u32, u32))> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let release = release.trim().to_owned();
    let version = parse_release(&release)?;
    Some((release, version))
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn require_capabilities() -> Result<(), CaptureError> {
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(CaptureError::io("reading /proc/self/status"))?;
    let missing = missing_capabilities(&status);
    if missing.is_empty() {
        Ok(())
    } else {
        Err(CaptureError::Capabilities { missing })
    }
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    let lacks = |(bit, _): &&(u32, &str)| effective & (1 << bit) == 0;
    CAPABILITIES.iter().filter(lacks).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_distributions_are_understood() {
        assert_eq!(parse_release("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(parse_release("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_release("unknown"), None);
    }

    #[test]
    fn missing_capabilities_are_named() {
        assert!(missing_capabilities("Name:\tx\nCapEff:\t000001fffeffffff\n").is_empty());
        assert_eq!(missing_capabilities("CapEff:\t0000000000201000\n"), ["CAP_BPF"]);
        assert_eq!(missing_capabilities("").len(), 3);
    }
}
