//! Counts by key: what befell handshakes, tunnels, streams and connections. The keys are few and fixed.

use std::collections::HashMap;
use std::hash::Hash;

use super::connections::{HandshakeRole, Reporter, ResponseFlag};

/// How often each key was counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally<K: Eq + Hash>(HashMap<K, u64>);

impl<K: Eq + Hash> Default for Tally<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Copy + Eq + Hash> Tally<K> {
    pub(super) fn count(&mut self, key: K) {
        *self.0.entry(key).or_default() += 1;
    }

    /// Adds what another one has counted.
    pub(super) fn add(&mut self, other: &Self) {
        for (key, n) in &other.0 {
            *self.0.entry(*key).or_default() += n;
        }
    }

    /// The counts, in no order.
    pub fn counts(&self) -> Vec<(K, u64)> {
        self.0.iter().map(|(key, n)| (*key, *n)).collect()
    }
}

/// Failed connections by reporter, flag and reason.
pub type Failures = Tally<(Reporter, ResponseFlag, &'static str)>;

/// TLS handshakes by role and reason of failure (`None`: succeeded).
pub type Handshakes = Tally<(HandshakeRole, Option<&'static str>)>;

/// Tunnel connections that ended other than in order, by role and reason.
pub type TunnelEnds = Tally<(HandshakeRole, &'static str)>;

/// Streams that were tried again on another tunnel connection, by reason.
pub type Retries = Tally<&'static str>;

/// The tallies of one thread.
#[derive(Debug, Default)]
pub(super) struct Tallies {
    pub(super) failures: Failures,
    pub(super) handshakes: Handshakes,
    pub(super) tunnel_ends: TunnelEnds,
    pub(super) retries: Retries,
}
