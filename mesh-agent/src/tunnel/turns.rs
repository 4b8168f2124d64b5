//! Turns for TLS handshakes with a pod: so many at a time, and so many of them for one client's address. Clients that begin handshakes
//! and do not finish them then cost neither other pods nor other clients of theirs.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Handshakes under way, by client.
#[derive(Debug)]
pub struct Turns {
    most: usize,
    per_client: usize,
    under_way: Mutex<UnderWay>,
}

#[derive(Debug, Default)]
struct UnderWay {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoTurn {
    /// The pod's.
    Pod,
    /// The client's.
    Client,
}

impl Turns {
    /// `most` in all, `per_client` of them for one address.
    pub fn new(most: usize, per_client: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            per_client,
            under_way: Mutex::default(),
        })
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A turn for `client`, held as long as the guard lives.
    ///
    /// # Errors
    /// When as many as may be are under way.
    pub fn take(self: &Arc<Self>, client: IpAddr) -> Result<Turn, NoTurn> {
        let mut under_way = self.under_way();
        if under_way.all >= self.most {
            return Err(NoTurn::Pod);
        }
        let of_client = under_way.by_client.entry(client).or_default();
        if *of_client >= self.per_client {
            return Err(NoTurn::Client);
        }
        *of_client += 1;
        under_way.all += 1;
        Ok(Turn {
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
        under_way.all = under_way.all.saturating_sub(1);
        if let Some(n) = under_way.by_client.get_mut(&self.client) {
            *n = n.saturating_sub(1);
            if *n == 0 {
                under_way.by_client.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_client_takes_no_more_than_its_share_and_all_no_more_than_the_pods() {
        let turns = Turns::new(5, 3);
        let client = |n| IpAddr::from([198, 18, 0, n]);
        let mut held: Vec<_> = (0..3).map(|_| turns.take(client(1)).unwrap()).collect();
        assert_eq!(turns.take(client(1)).unwrap_err(), NoTurn::Client);
        held.push(turns.take(client(2)).unwrap());
        held.push(turns.take(client(3)).unwrap());
        assert_eq!(turns.take(client(4)).unwrap_err(), NoTurn::Pod);
        held.remove(0);
        held.push(turns.take(client(1)).unwrap());
        held.clear();
        let under_way = turns.under_way();
        assert!(
            under_way.all == 0 && under_way.by_client.is_empty(),
            "{under_way:?}"
        );
    }
}
