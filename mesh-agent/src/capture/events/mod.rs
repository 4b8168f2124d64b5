//! Kernel events: reads what the BPF programs refused, dropped or lost from their ring buffer, names the workloads, writes log lines, and
//! keeps the latest for `meshctl bpf events`. Never touches a connection; the exact counts are the counters'.

mod book;
mod decode;
mod predecessors;
mod process;

use std::borrow::Cow;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aya::maps::{Map, MapData, RingBuf};
use mesh_common::{Counter, maps};
use mesh_core::model::WorkloadUid;
use nix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

pub(super) use book::Book;
pub use book::{Record, Tallied};
pub use decode::{DecodeError, KernelEvent, advice, decode};
pub(super) use predecessors::Predecessors;

use super::error::{CaptureError, causes};
use super::node::Capture;
use super::sys::async_ring;

/// Events that are read before other work of the runtime has its turn.
const BATCH: usize = 128;
/// How often held lines are looked at.
const TICK: Duration = Duration::from_secs(2);
/// How long events wait for the names of pods, and how often these are looked for.
const NAMES: Duration = Duration::from_secs(5);
const NAMES_LOOK: Duration = Duration::from_millis(20);
/// Lines about events that could not be read, or were not told, at most one in this time.
const COMPLAINT: Duration = Duration::from_secs(10);

/// Reads events until `shutdown`. Without it counters still count, and nothing else changes.
pub async fn run(capture: Arc<Capture>, shutdown: CancellationToken) {
    if let Err(error) = read_all(&capture, shutdown).await {
        error!(%error, "kernel events are no longer read: their counters still count");
    }
}

async fn read_all(capture: &Arc<Capture>, shutdown: CancellationToken) -> Result<(), CaptureError> {
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = pods_are_known(capture) => {}
    }
    let ring = capture.object().map(maps::EVENTS).and_then(open_ring)?;
    let mut ring = async_ring(ring).map_err(CaptureError::io("watching the ring buffer of events"))?;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut reader = Reader::new(capture);
    loop {
        let batch = tokio::select! {
            () = shutdown.cancelled() => break,
            _ = tick.tick() => Batch::default(),
            readable = ring.readable_mut() => {
                let mut readable = readable.map_err(CaptureError::io("waiting for events"))?;
                let batch = Batch::read(readable.get_inner_mut());
                if !batch.is_full() {
                    readable.clear_ready();
                }
                batch
            }
        };
        reader = reader.turn(batch).await?;
    }
    reader.turn(Batch::read(ring.get_mut())).await.map(drop)
}

/// What was told while no agent ran is in the adopted ring buffer: whose it is can be said once the pods are captured.
async fn pods_are_known(capture: &Capture) {
    let deadline = Instant::now() + NAMES;
    while capture.has_unnamed_pods() && Instant::now() < deadline {
        tokio::time::sleep(NAMES_LOOK).await;
    }
}

fn open_ring(fd: OwnedFd) -> Result<RingBuf<MapData>, CaptureError> {
    let refused = |error: &dyn std::error::Error| CaptureError::Load {
        what: format!("to open {}", maps::EVENTS),
        why: causes(error),
    };
    let data = MapData::from_fd(fd).map_err(|error| refused(&error))?;
    RingBuf::try_from(Map::RingBuf(data)).map_err(|error| refused(&error))
}

/// What was read in one go.
#[derive(Debug, Default)]
struct Batch {
    events: Vec<KernelEvent>,
    unread: Option<DecodeError>,
    taken: usize,
}

impl Batch {
    fn read(ring: &mut RingBuf<MapData>) -> Self {
        let mut batch = Self::default();
        while !batch.is_full()
            && let Some(item) = ring.next()
        {
            batch.taken += 1;
            match decode(&item) {
                Ok(event) => batch.events.push(event),
                Err(error) => batch.unread = Some(error),
            }
        }
        batch
    }

    fn is_full(&self) -> bool {
        self.taken >= BATCH
    }
}

/// What the reader remembers from turn to turn.
struct Reader {
    capture: Arc<Capture>,
    suppressed: u64,
    next_tick: Instant,
    next_complaint: Instant,
}

impl Reader {
    fn new(capture: &Arc<Capture>) -> Self {
        Self {
            capture: capture.clone(),
            suppressed: 0,
            next_tick: Instant::now(),
            next_complaint: Instant::now(),
        }
    }

    /// Takes locks that enrolment may hold for some milliseconds: off the async threads.
    async fn turn(mut self, batch: Batch) -> Result<Self, CaptureError> {
        let done = tokio::task::spawn_blocking(move || {
            self.take(batch, Instant::now());
            self
        });
        let gone = |error: tokio::task::JoinError| std::io::Error::other(error);
        done.await
            .map_err(gone)
            .map_err(CaptureError::io("taking up events"))
    }

    fn take(&mut self, batch: Batch, now: Instant) {
        if !batch.events.is_empty() {
            self.capture.take_events(batch.events, now);
        }
        if let Some(error) = batch.unread
            && now >= self.next_complaint
        {
            warn!(%error, "an event of the BPF programs cannot be read");
            self.next_complaint = now + COMPLAINT;
        }
        if now >= self.next_tick {
            self.capture.sum_up_events(now);
            self.tell_suppressed(now);
            self.next_tick = now + TICK;
        }
    }

    fn tell_suppressed(&mut self, now: Instant) {
        let suppressed = self.capture.counter(Counter::EventsSuppressed);
        if suppressed > self.suppressed && now >= self.next_complaint {
            let more = suppressed - self.suppressed;
            warn!(
                more,
                "events of the BPF programs were only counted, not told one by one: see `meshctl bpf`"
            );
            self.suppressed = suppressed;
            self.next_complaint = now + COMPLAINT;
        }
    }
}

impl Capture {
    /// The latest events, the oldest first.
    pub fn events(&self) -> Vec<Record> {
        self.book().latest().cloned().collect()
    }

    /// How many events were told, by kind and workload. Those over the kernel's budget are not among them.
    pub fn event_tallies(&self) -> Vec<Tallied> {
        self.book().tallies()
    }

    /// How many events were only counted: over the budget of their kind in the kernel.
    pub fn events_suppressed(&self) -> u64 {
        self.counter(Counter::EventsSuppressed) + self.predecessors().count(Counter::EventsSuppressed)
    }

    /// Names, enters and logs events.
    pub(super) fn take_events(&self, events: Vec<KernelEvent>, now: Instant) {
        let pods: HashMap<u64, WorkloadUid> = self
            .each_pod(|pod| (pod.pod.netns, pod.spec.uid.clone()))
            .into_iter()
            .collect();
        let clocks = Clocks::now();
        for event in events {
            let process = event.pid.and_then(process::name);
            let workload = pods.get(&event.netns).cloned();
            let workload = workload.or_else(|| self.workload_of_process(event.pid?));
            let record = clocks.record(event, workload, process);
            if self.book().enter(record.clone(), now) {
                log(&record);
            }
        }
    }

    fn sum_up_events(&self, now: Instant) {
        let summaries = self.book().summaries(now);
        for summary in summaries {
            warn!(
                event = summary.kind.name(),
                workload = summary.workload.as_ref().map(tracing::field::display),
                more = summary.more,
                "… and {} more in {} s",
                summary.more,
                book::WINDOW.as_secs()
            );
        }
        let captured = self.captured();
        self.book().forget(now, |uid| captured.contains_key(uid));
    }

    /// The pod in whose cgroup a process is.
    fn workload_of_process(&self, pid: u32) -> Option<WorkloadUid> {
        let cgroup = self.cgroup2.of_process(pid)?;
        self.each_pod(|pod| (pod.cgroup.holds(&cgroup), pod.spec.uid.clone()))
            .into_iter()
            .find_map(|(holds, uid)| holds.then_some(uid))
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(record: &Record) {
    warn!(
        event = record.kind.name(),
        workload = record.workload.as_ref().map(tracing::field::display),
        netns = record.netns,
        from = record.local.map(tracing::field::display),
        to = %record.remote,
        protocol = %protocol(record.protocol),
        pid = record.pid,
        process = record.process,
        "{}",
        advice(record.kind).unwrap_or("an event of the BPF programs")
    );
}

/// Name of an IP protocol.
pub fn protocol(number: u32) -> Cow<'static, str> {
    match number {
        6 => "tcp".into(),
        17 => "udp".into(),
        132 => "sctp".into(),
        256 => "smc".into(),
        262 => "mptcp".into(),
        other => other.to_string().into(),
    }
}

/// The kernel's clock and the calendar's at one moment.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    monotonic: Duration,
    wall: SystemTime,
}

impl Clocks {
    fn now() -> Self {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC);
        Self {
            monotonic: monotonic.map_or(Duration::ZERO, Duration::from),
            wall: SystemTime::now(),
        }
    }

    /// When the kernel's clock showed this many nanoseconds. Times to come are now.
    fn time(self, nanoseconds: u64) -> SystemTime {
        let ago = self.monotonic.saturating_sub(Duration::from_nanos(nanoseconds));
        self.wall.checked_sub(ago).unwrap_or(self.wall)
    }

    fn record(self, event: KernelEvent, workload: Option<WorkloadUid>, process: Option<String>) -> Record {
        Record {
            at: self.time(event.time),
            kind: event.kind,
            workload,
            netns: event.netns,
            local: event.local,
            remote: event.remote,
            protocol: event.protocol,
            pid: event.pid,
            process,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_time_becomes_the_calendars() {
        let clocks = Clocks {
            monotonic: Duration::from_secs(100),
            wall: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000),
        };
        let at = |ns| {
            clocks
                .time(ns)
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap()
                .as_secs()
        };
        assert_eq!(at(90_000_000_000), 999_990);
        assert_eq!(at(u64::MAX), 1_000_000);
        assert_eq!(at(0), 999_900);
        assert!(Clocks::now().monotonic > Duration::ZERO);
    }
}
