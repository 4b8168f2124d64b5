//! What came of it, second by second: counts, errors, times. One per run, shared by its tasks (which are all on one thread).

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh_tests::harness::LoadReport;

use crate::wire;

/// Collects; clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Pulse {
    inner: Rc<RefCell<Inner>>,
    start: Instant,
}

#[derive(Debug, Default)]
struct Inner {
    report: LoadReport,
    micros: Vec<u32>,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self {
            inner: Rc::default(),
            start: Instant::now(),
        }
    }

    /// Since the beginning.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Counts one outcome of something called `what` that began at `began`.
    pub(crate) fn count(&self, what: &str, began: Instant, outcome: &io::Result<()>) {
        let mut inner = self.inner.borrow_mut();
        let second = usize::try_from(self.start.elapsed().as_secs()).unwrap_or(usize::MAX);
        match outcome {
            Ok(()) => {
                inner.report.ok += 1;
                let took = u32::try_from(began.elapsed().as_micros()).unwrap_or(u32::MAX);
                inner.micros.push(took);
                if inner.report.per_second.len() <= second {
                    inner.report.per_second.resize(second + 1, 0);
                }
                inner.report.per_second[second] += 1;
            }
            Err(error) => {
                inner.report.failed += 1;
                let name = format!("{what}: {}", wire::name(error));
                *inner.report.errors.entry(name).or_default() += 1;
            }
        }
    }

    /// Counts a name that was not true.
    pub(crate) fn wrong_name(&self) {
        self.inner.borrow_mut().report.wrong_names += 1;
    }

    /// The report.
    pub(crate) fn finish(&self) -> LoadReport {
        let mut inner = self.inner.borrow_mut();
        let mut micros = std::mem::take(&mut inner.micros);
        micros.sort_unstable();
        let mut report = std::mem::take(&mut inner.report);
        report.seconds = self.start.elapsed().as_secs_f64();
        report.p50_micros = per_mille(&micros, 500);
        report.p99_micros = per_mille(&micros, 990);
        report.p999_micros = per_mille(&micros, 999);
        report.max_micros = micros.last().copied().map_or(0, u64::from);
        report
    }
}

/// The value that `p` of a thousand of the sorted values do not exceed; 0 of none.
fn per_mille(sorted: &[u32], p: usize) -> u64 {
    let rank = (sorted.len() * p).div_ceil(1000).saturating_sub(1);
    sorted.get(rank).copied().map_or(0, u64::from)
}

#[cfg(test)]
mod tests {
    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<u32> = (1..=200).collect();
        assert_eq!(super::per_mille(&values, 500), 100);
        assert_eq!(super::per_mille(&values, 990), 198);
        assert_eq!(super::per_mille(&values, 999), 200);
        assert_eq!(super::per_mille(&values[..1], 990), 1);
        assert_eq!(super::per_mille(&[], 990), 0);
    }
}
