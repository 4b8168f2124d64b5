//! Debug lines of the BPF programs, by aya-log: owns the switch in the kernel's map and the thread that passes lines on to the agent's log
//! while it is on. The switch holds the time when it ends, so that it goes off by itself, whatever becomes of the agent.

use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aya_log::EbpfLogger;
use mesh_common::{LogSwitch, Outcome};
use mesh_core::model::WorkloadUid;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::time::{ClockId, clock_gettime};
use thiserror::Error;
use tracing::{error, info};

use super::node::Capture;
use super::sys::Table;
use crate::BPF_LOG_TARGET;

/// The longest time that it can be on.
pub const LONGEST: Duration = Duration::from_secs(3600);
/// How often the thread looks whether it is still on.
const LOOK: u16 = 250;

/// Why the debug log cannot be switched.
#[derive(Debug, Error)]
pub enum DebugLogError {
    /// The time is out of bounds.
    #[error("the debug log can be on for 1 to {} seconds: it goes off by itself", LONGEST.as_secs())]
    Time,
    /// There is no such pod here.
    #[error("no pod {0} is captured on this node: `meshctl bpf` lists those that are")]
    NoPod(String),
    /// The kernel or the system refused.
    #[error("the debug log cannot be switched: {0}")]
    Io(#[from] std::io::Error),
    /// Its reader has failed.
    #[error("the reader of the debug log has failed before: restart the agent to use it again")]
    Failed,
}

/// Whether the debug log is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebugLogStatus {
    /// For how much longer.
    pub remaining: Duration,
    /// Only for this pod.
    pub pod: Option<WorkloadUid>,
}

/// The debug log of one run.
pub(super) struct DebugLog {
    switch: Table<u32, LogSwitch>,
    shared: Arc<Shared>,
}

struct Shared(Mutex<State>);

struct State {
    on: Option<On>,
    /// The reader, while no thread has it.
    idle: Option<EbpfLogger<Forward>>,
    has_thread: bool,
}

#[derive(Clone)]
struct On {
    until: Instant,
    pod: Option<WorkloadUid>,
}

impl DebugLog {
    /// Over the switch and the reader of the loaded programs' lines.
    pub(super) fn new(switch: Table<u32, LogSwitch>, reader: EbpfLogger<Forward>) -> Self {
        let state = State {
            on: None,
            idle: Some(reader),
            has_thread: false,
        };
        Self {
            switch,
            shared: Arc::new(Shared(Mutex::new(state))),
        }
    }

    fn on(&self, time: Duration, pod: Option<(u64, WorkloadUid)>) -> Result<(), DebugLogError> {
        let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(std::io::Error::from)?);
        let (netns, pod) = pod.unzip();
        let value = LogSwitch {
            until: u64::try_from((now + time).as_nanos()).unwrap_or(u64::MAX),
            netns: netns.unwrap_or(0),
        };
        let mut state = self.shared.state();
        if !state.has_thread {
            let reader = state.idle.take().ok_or(DebugLogError::Failed)?;
            let shared = self.shared.clone();
            let thread = std::thread::Builder::new().name("bpf-log".into());
            state.has_thread = true;
            if let Err(error) = thread.spawn(move || pass_on(reader, &shared)) {
                // The reader went with the thread that is not there.
                state.has_thread = false;
                return Err(error.into());
            }
        }
        self.switch.insert(&0, &value)?;
        state.on = Some(On {
            until: Instant::now() + time,
            pod,
        });
        Ok(())
    }

    pub(super) fn off(&self) -> Result<(), DebugLogError> {
        self.switch.insert(&0, &LogSwitch::default())?;
        self.shared.state().on = None;
        Ok(())
    }

    fn status(&self, now: Instant) -> Option<DebugLogStatus> {
        let on = self.shared.state().on.clone()?;
        let remaining = on.until.checked_duration_since(now)?;
        Some(DebugLogStatus {
            remaining,
            pod: on.pod,
        })
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the reader back when the debug log is off.
    fn take_back(&self, reader: EbpfLogger<Forward>) -> Option<EbpfLogger<Forward>> {
        let mut state = self.state();
        if state.on.as_ref().is_some_and(|on| Instant::now() < on.until) {
            return Some(reader);
        }
        if state.on.take().is_some() {
            info!("the debug log of the BPF programs went off by itself");
        }
        state.idle = Some(reader);
        state.has_thread = false;
        None
    }

    fn failed(&self) {
        let mut state = self.state();
        state.on = None;
        state.has_thread = false;
    }
}

/// The thread: lines come as fast as connections do, so they are not read where others wait.
fn pass_on(mut reader: EbpfLogger<Forward>, shared: &Shared) {
    loop {
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::from(LOOK));
        // aya-log panics on a record that it cannot read.
        if catch_unwind(AssertUnwindSafe(|| reader.flush())).is_err() {
            error!("a debug line of the BPF programs cannot be read: are agent and programs of one version?");
            shared.failed();
            return;
        }
        match shared.take_back(reader) {
            Some(still) => reader = still,
            None => return,
        }
    }
}

/// Where aya-log's records go.
#[derive(Debug)]
pub(super) struct Forward;

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = readable(&record.args().to_string());
        tracing::debug!(target: BPF_LOG_TARGET, hook = record.target(), "{line}");
    }

    fn flush(&self) {}
}

/// A line of the programs as people read it: the name for the number at its end, IPv4 addresses as such.
fn readable(line: &str) -> String {
    let mut text = match line.rsplit_once(" #") {
        Some((what, number)) => match number.parse().ok().and_then(Outcome::name) {
            Some(name) => format!("{what}: {name}"),
            None => line.to_owned(),
        },
        None => line.to_owned(),
    };
    while let Some((before, rest)) = text.split_once("[::ffff:") {
        let Some((address, after)) = rest.split_once(']') else {
            break;
        };
        text = format!("{before}{address}{after}");
    }
    text
}

impl Capture {
    /// Switches the debug lines of the BPF programs on for `time`, for all pods or for the captured pod `namespace/name`.
    ///
    /// # Errors
    /// When the time is out of bounds, or the pod is not captured here.
    pub fn debug_log_on(&self, time: Duration, pod: Option<&str>) -> Result<DebugLogStatus, DebugLogError> {
        if time < Duration::from_secs(1) || time > LONGEST {
            return Err(DebugLogError::Time);
        }
        let pod = pod.map(|name| {
            let pods = self.each_pod(|pod| (pod.pod.netns, pod.spec.uid.clone()));
            let mut named = pods.into_iter().filter(|(_, uid)| is_named(uid, name));
            named.next().ok_or_else(|| DebugLogError::NoPod(name.to_owned()))
        });
        let pod = pod.transpose()?;
        let status = DebugLogStatus {
            remaining: time,
            pod: pod.as_ref().map(|(_, uid)| uid.clone()),
        };
        self.debug_log.on(time, pod)?;
        info!(
            seconds = time.as_secs(),
            pod = status.pod.as_ref().map(tracing::field::display),
            "the debug log of the BPF programs is on"
        );
        Ok(status)
    }

    /// Switches the debug lines off.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn debug_log_off(&self) -> Result<(), DebugLogError> {
        self.debug_log.off()?;
        info!("the debug log of the BPF programs is off");
        Ok(())
    }

    /// Whether debug lines are written; `None` where they are off.
    pub fn debug_log(&self) -> Option<DebugLogStatus> {
        self.debug_log.status(Instant::now())
    }
}

/// Whether `uid` is that of the pod `namespace/name`.
fn is_named(uid: &WorkloadUid, name: &str) -> bool {
    let rest = uid.as_str().strip_prefix(name);
    name.contains('/') && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_get_names_for_numbers_and_plain_ipv4_addresses() {
        assert_eq!(
            readable("netns 7 [::ffff:198.18.0.1]:40000 -> [2001:db8::1]:80 #100"),
            "netns 7 198.18.0.1:40000 -> [2001:db8::1]:80: handed_over"
        );
        assert_eq!(
            readable("netns 7 [::]:0 #15"),
            "netns 7 [::]:0: connect_refused_protocol"
        );
        for odd in ["", "#", " #", "x #4294967295", "[::ffff:1.2.3.4"] {
            assert_eq!(readable(odd), odd);
        }
    }

    #[test]
    fn a_pod_is_named_by_namespace_and_name_whatever_its_uid() {
        let uid = WorkloadUid::new("shop", "web", "4711");
        assert!(is_named(&uid, "shop/web"));
        assert!(is_named(&WorkloadUid::new("shop", "web", ""), "shop/web"));
        for other in ["shop", "shop/we", "web", "", "shop/web2"] {
            assert!(!is_named(&uid, other), "{other}");
        }
    }
}
