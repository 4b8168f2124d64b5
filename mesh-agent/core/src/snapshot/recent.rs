//! What the last few snapshots have changed, for those who keep something in step with them and must not walk the whole cluster for it.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

/// How many snapshots back a follower may be.
const STEPS: usize = 64;
/// With more changes than this at once, following step by step costs more than looking at everything.
const LARGE: usize = 4096;

/// The addresses whose enrolment has changed, by the version that changed it. A few pointers to copy.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    /// What happened up to this version is not known.
    floor: u64,
    steps: VecDeque<(u64, Arc<[IpAddr]>)>,
}

impl Recent {
    /// These addresses have changed with `version`.
    pub(super) fn push(&mut self, version: u64, addresses: &BTreeSet<IpAddr>) {
        if addresses.len() > LARGE {
            self.steps.clear();
            self.floor = version;
        } else if !addresses.is_empty() {
            self.steps
                .push_back((version, addresses.iter().copied().collect()));
        }
        if self.steps.len() > STEPS
            && let Some((oldest, _)) = self.steps.pop_front()
        {
            self.floor = oldest;
        }
    }

    /// The addresses that have changed after `version`; `None` when that is not known any more.
    pub(super) fn since(&self, version: u64) -> Option<BTreeSet<IpAddr>> {
        let later = self.steps.iter().filter(|(step, _)| *step > version);
        (version >= self.floor).then(|| {
            later
                .flat_map(|(_, addresses)| addresses.iter().copied())
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(range: std::ops::Range<u32>) -> BTreeSet<IpAddr> {
        range.map(|i| IpAddr::V4((0x0a00_0000 + i).into())).collect()
    }

    #[test]
    fn a_follower_is_told_what_it_missed_or_that_nobody_knows() {
        let mut recent = Recent::default();
        assert_eq!(recent.since(0), Some(addresses(0..0)));
        for version in 1..=STEPS as u64 {
            recent.push(version, &addresses(version as u32..version as u32 + 1));
        }
        assert_eq!(recent.since(0), Some(addresses(1..STEPS as u32 + 1)));
        assert_eq!(recent.since(STEPS as u64 - 2).unwrap().len(), 2);
        recent.push(100, &addresses(0..0));
        assert!(recent.since(0).is_some(), "nothing changed, nothing is forgotten");
        recent.push(101, &addresses(7..8));
        assert_eq!(recent.since(0), None);
        assert_eq!(recent.since(1).unwrap().len(), STEPS - 1);
        recent.push(102, &addresses(0..LARGE as u32 + 1));
        assert_eq!(
            (recent.since(101), recent.since(102)),
            (None, Some(addresses(0..0)))
        );
    }
}
