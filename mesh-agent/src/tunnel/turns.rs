//! Turns for TLS handshakes with a pod, by client: so many at a time for one address. Clients that begin handshakes and do not finish
//! them then cost the pod's other clients nothing. How many there are in all is the pod's budget's business.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Handshakes under way, by client.
#[derive(Debug)]
pub struct Turns {
    per_client: usize,
    under_way: Mutex<HashMap<IpAddr, usize>>,
}

impl Turns {
    /// At most `per_client` at a time for one address.
    pub fn new(per_client: usize) -> Arc<Self> {
        Arc::new(Self {
            per_client,
            under_way: Mutex::default(),
        })
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn for `client`, held as long as the guard lives; `None` when it has as many as it may have.
    pub fn take(self: &Arc<Self>, client: IpAddr) -> Option<Turn> {
        let mut under_way = self.under_way();
        let of_client = under_way.entry(client).or_default();
        if *of_client >= self.per_client {
            return None;
        }
        *of_client += 1;
        Some(Turn {
            turns: Arc::clone(self),
            client,
        })
    }
}

/// Guard of a handshake under way.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    client: IpAddr,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut under_way = self.turns.under_way();
        if let Some(n) = under_way.get_mut(&self.client) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                under_way.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_takes_no_more_than_its_share() {
        let turns = Turns::new(3);
        let client = |n| IpAddr::from([198, 18, 0, n]);
        let mut held: Vec<_> = (0..3).map(|_| turns.take(client(1)).unwrap()).collect();
        assert!(turns.take(client(1)).is_none());
        held.push(turns.take(client(2)).unwrap());
        held.remove(0);
        held.push(turns.take(client(1)).unwrap());
        held.clear();
        assert!(turns.under_way().is_empty());
    }
}
