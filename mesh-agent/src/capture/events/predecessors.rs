//! What earlier runs of the agent have left in their pinned maps: counts and events of the time in which no agent ran, above all. Reads;
//! removes nothing.

use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use mesh_common::{COUNTERS, Counter, maps};
use tracing::warn;

use super::super::bpffs::Run;
use super::{Batch, KernelEvent};

/// The maps of earlier runs, and what ended runs had counted.
#[derive(Default)]
pub(in crate::capture) struct Predecessors {
    runs: Vec<Predecessor>,
    ended: [u64; COUNTERS as usize],
}

struct Predecessor {
    maps: PathBuf,
    counters: Option<PerCpuArray<MapData, u64>>,
    events: Option<RingBuf<MapData>>,
}

impl Predecessors {
    /// Opens what `runs` have left.
    pub(in crate::capture) fn open(runs: &[Run]) -> Self {
        Self {
            runs: runs.iter().map(|run| Predecessor::open(run.maps())).collect(),
            ..Self::default()
        }
    }

    /// What they have counted until now, those that ended included.
    pub(in crate::capture) fn count(&self, counter: Counter) -> u64 {
        let ended = self.ended.get(counter as usize).copied().unwrap_or(0);
        ended + self.runs.iter().map(|run| run.count(counter)).sum::<u64>()
    }

    /// The run is removed: keeps its counts, and hands out the events that nobody has read.
    pub(in crate::capture) fn end(&mut self, run: &Run) -> Vec<KernelEvent> {
        let maps = run.maps();
        let Some(at) = self.runs.iter().position(|run| run.maps == maps) else {
            return Vec::new();
        };
        let mut run = self.runs.swap_remove(at);
        for (counter, _) in Counter::ALL {
            if let Some(total) = self.ended.get_mut(counter as usize) {
                *total += run.count(counter);
            }
        }
        run.unread()
    }
}

impl Predecessor {
    fn open(maps: PathBuf) -> Self {
        Self {
            counters: pinned(&maps, maps::COUNTERS)
                .and_then(|data| PerCpuArray::try_from(Map::PerCpuArray(data)).ok()),
            events: pinned(&maps, maps::EVENTS).and_then(|data| RingBuf::try_from(Map::RingBuf(data)).ok()),
            maps,
        }
    }

    /// Zero where it cannot be read, or the run's programs did not have that counter.
    fn count(&self, counter: Counter) -> u64 {
        let values = self
            .counters
            .as_ref()
            .map(|array| array.get(&(counter as u32), 0));
        values
            .and_then(Result::ok)
            .map_or(0, |values| values.iter().sum())
    }

    fn unread(&mut self) -> Vec<KernelEvent> {
        let mut events = Vec::new();
        while let Some(ring) = &mut self.events {
            let mut batch = Batch::read(ring);
            events.append(&mut batch.events);
            if !batch.is_full() {
                break;
            }
        }
        events
    }
}

fn pinned(dir: &Path, name: &str) -> Option<MapData> {
    let path = dir.join(name);
    let opened = MapData::from_pin(&path);
    opened
        .inspect_err(|error| warn!(path = %path.display(), %error, "what an earlier run has counted there is not known"))
        .ok()
}
