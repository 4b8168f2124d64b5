//! Which endpoint a client of a service with `sessionAffinity: ClientIP` had last. Shared by the workers, since a client's connections
//! come to all of them. Only connections to such services read or write it. Never decides: `plan` honours what is remembered, or not.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_common::mutation::{self, Mechanism};
use mesh_core::model::{ServiceRef, WorkloadUid};
use mesh_core::plan::Session;

/// Parts of the table, each behind a lock of its own.
const PARTS: usize = 16;
/// Sessions at most. A pod has one per service port and address of its own, so this is far away.
const CAPACITY: usize = 65_536;

/// A client as kube-proxy tells them apart, by its address; and which pod it is, so that a pod that comes to the address after another
/// inherits nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// The pod.
    pub pod: WorkloadUid,
    /// Its address on the connection.
    pub address: IpAddr,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    client: Client,
    service: ServiceRef,
    port: u16,
}

#[derive(Clone, Copy, Debug)]
struct Last {
    endpoint: SocketAddr,
    /// Of the last connection: from then on the timeout counts.
    at: Instant,
    timeout: Duration,
}

impl Last {
    fn ended(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= self.timeout
    }

    /// When it ends, as seen from now.
    fn left(&self, now: Instant) -> Duration {
        self.timeout
            .saturating_sub(now.saturating_duration_since(self.at))
    }
}

/// The table of sessions.
#[derive(Debug)]
pub struct Affinity {
    parts: [Mutex<HashMap<Key, Last>>; PARTS],
    per_part: usize,
    hasher: RandomState,
    evicted: AtomicU64,
}

/// How full the table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AffinityStatus {
    /// Sessions that are remembered, ended ones included until they are looked for.
    pub sessions: usize,
    /// Sessions at most.
    pub capacity: usize,
    /// Sessions that were forgotten before their time because the table was full, since the start.
    pub evicted: u64,
}

impl Default for Affinity {
    fn default() -> Self {
        Self::with_capacity(CAPACITY)
    }
}

impl Affinity {
    /// A table for `capacity` sessions, rounded up to a multiple of its parts.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            parts: Default::default(),
            per_part: capacity.div_ceil(PARTS).max(1),
            hasher: RandomState::new(),
            evicted: AtomicU64::new(0),
        }
    }

    /// Lets `decide` choose an endpoint, given the one that `client` had last in `session`, and remembers its choice. Nobody else decides for
    /// the same session meanwhile, so that connections that come at once go to one endpoint. A decision that fails changes nothing.
    ///
    /// # Errors
    /// Those of `decide`, whose answer it returns.
    pub fn decide<T, E>(
        &self,
        session: Session,
        client: Client,
        now: Instant,
        decide: impl FnOnce(Option<SocketAddr>) -> Result<(SocketAddr, T), E>,
    ) -> Result<T, E> {
        let key = Key {
            client,
            service: session.service,
            port: session.port,
        };
        let mut part = self.part(&key);
        // The timeout is that of today's document, not of the one that was in force then.
        let lasting = |last: &&Last| {
            now.saturating_duration_since(last.at) < session.timeout
                && !mutation::is_off(Mechanism::SessionAffinity)
        };
        let previous = part.get(&key).filter(lasting).map(|last| last.endpoint);
        let (endpoint, answer) = decide(previous)?;
        if part.len() >= self.per_part && !part.contains_key(&key) {
            self.make_room(&mut part, now);
        }
        part.insert(
            key,
            Last {
                endpoint,
                at: now,
                timeout: session.timeout,
            },
        );
        Ok(answer)
    }

    fn part(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, Last>> {
        let hash = usize::try_from(self.hasher.hash_one(key) % PARTS as u64).unwrap_or_default();
        lock(self.parts.get(hash).unwrap_or(&self.parts[0]))
    }

    /// Drops what has ended; where nothing has, the session that would end first.
    fn make_room(&self, part: &mut HashMap<Key, Last>, now: Instant) {
        part.retain(|_, last| !last.ended(now));
        if part.len() < self.per_part {
            return;
        }
        let first = part.iter().min_by_key(|(_, last)| last.left(now));
        if let Some(key) = first.map(|(key, _)| key.clone()) {
            part.remove(&key);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets the sessions of a pod that is gone.
    pub fn forget(&self, pod: &WorkloadUid) {
        for part in &self.parts {
            lock(part).retain(|key, _| key.client.pod != *pod);
        }
    }

    /// Forgets the sessions that have ended. Without it they would be forgotten only when room is wanted.
    pub fn forget_ended(&self, now: Instant) {
        for part in &self.parts {
            lock(part).retain(|_, last| !last.ended(now));
        }
    }

    /// How full it is.
    pub fn status(&self) -> AffinityStatus {
        AffinityStatus {
            sessions: self.parts.iter().map(|part| lock(part).len()).sum(),
            capacity: self.per_part * PARTS,
            evicted: self.evicted.load(Ordering::Relaxed),
        }
    }
}

/// A panic while it is held leaves the map whole: every change is a single call.
fn lock(part: &Mutex<HashMap<Key, Last>>) -> MutexGuard<'_, HashMap<Key, Last>> {
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn session(service: &str, port: u16, timeout: Duration) -> Session {
        Session {
            service: ServiceRef {
                namespace: "shop".into(),
                name: service.into(),
            },
            port,
            timeout,
        }
    }

    fn client(pod: &str, address: &str) -> Client {
        Client {
            pod: WorkloadUid::new("shop", pod, ""),
            address: address.parse().unwrap(),
        }
    }

    fn endpoint(last: u8) -> SocketAddr {
        SocketAddr::from(([198, 18, 0, last], 80))
    }

    /// Connects: what was remembered; `fresh` is chosen where that is nothing.
    fn connect(
        table: &Affinity,
        session: Session,
        client: Client,
        now: Instant,
        fresh: u8,
    ) -> Option<SocketAddr> {
        let decided = table.decide(session, client, now, |previous| {
            Ok::<_, Infallible>((previous.unwrap_or(endpoint(fresh)), previous))
        });
        decided.unwrap()
    }

    #[test]
    fn a_session_is_of_one_pod_address_service_and_port() {
        let (table, now) = (Affinity::default(), Instant::now());
        let mine = || session("s", 80, HOUR);
        let a = || client("a", "198.18.1.1");
        assert_eq!(connect(&table, mine(), a(), now, 1), None);
        assert_eq!(connect(&table, mine(), a(), now, 2), Some(endpoint(1)));
        for (session, client) in [
            (session("t", 80, HOUR), a()),
            (session("s", 81, HOUR), a()),
            (mine(), client("b", "198.18.1.1")),
            (mine(), client("a", "2001:db8::1")),
        ] {
            assert_eq!(
                connect(&table, session.clone(), client.clone(), now, 3),
                None,
                "{session:?} {client:?}"
            );
        }
        assert_eq!(table.status().sessions, 5);
    }

    #[test]
    fn the_timeout_counts_from_the_last_connection_and_is_todays() {
        let (table, start) = (Affinity::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let go = |seconds, timeout, fresh| {
            let session = session("s", 80, Duration::from_secs(timeout));
            connect(&table, session, client("a", "198.18.1.1"), at(seconds), fresh)
        };
        assert_eq!(go(0, 10, 1), None);
        assert_eq!(go(9, 10, 2), Some(endpoint(1)));
        assert_eq!(
            go(18, 10, 2),
            Some(endpoint(1)),
            "9 s after the last one, 18 s after the first"
        );
        assert_eq!(go(28, 10, 3), None, "10 s after the last one");
        assert_eq!(go(33, 5, 4), None, "the document says 5 s by now");
        assert_eq!(go(42, 10, 5), Some(endpoint(4)), "and 10 s again");
    }

    #[test]
    fn a_refused_connection_changes_nothing() {
        let (table, now) = (Affinity::default(), Instant::now());
        let a = || client("a", "198.18.1.1");
        connect(&table, session("s", 80, HOUR), a(), now, 1);
        let later = now + HOUR / 2;
        let refused: Result<(), ()> = table.decide(session("s", 80, HOUR), a(), later, |_| Err(()));
        assert!(refused.is_err());
        let then = now + HOUR;
        assert_eq!(
            connect(&table, session("s", 80, HOUR), a(), then, 2),
            None,
            "its time was not prolonged"
        );
    }

    #[test]
    fn the_table_is_bounded_and_counts_whom_it_forgets_early() {
        let (table, now) = (Affinity::with_capacity(64), Instant::now());
        for i in 0..1000u16 {
            connect(&table, session("s", i, HOUR), client("a", "198.18.1.1"), now, 1);
        }
        let full = table.status();
        assert!(full.sessions <= full.capacity && full.capacity == 64, "{full:?}");
        assert_eq!(full.evicted, 1000 - full.sessions as u64);
        // Sessions that have ended make room at no cost.
        let later = now + HOUR;
        for i in 0..4u16 {
            connect(&table, session("t", i, HOUR), client("a", "198.18.1.1"), later, 1);
        }
        assert_eq!(table.status().evicted, full.evicted);
    }

    #[test]
    fn the_session_that_would_end_first_makes_room() {
        let (table, now) = (Affinity::with_capacity(1), Instant::now());
        let a = || client("a", "198.18.1.1");
        // Ports in the same part of the table.
        let part = |port: u16| {
            let key = Key {
                client: a(),
                service: session("s", port, HOUR).service,
                port,
            };
            table.hasher.hash_one(&key) % PARTS as u64
        };
        let together: Vec<u16> = (1..).filter(|port| part(*port) == 0).take(3).collect();
        let table = Affinity { per_part: 2, ..table };
        connect(&table, session("s", together[0], HOUR), a(), now, 1);
        connect(&table, session("s", together[1], HOUR / 2), a(), now, 2);
        connect(&table, session("s", together[2], HOUR), a(), now, 3);
        assert_eq!(
            connect(&table, session("s", together[0], HOUR), a(), now, 9),
            Some(endpoint(1))
        );
        assert_eq!(table.status().evicted, 1);
    }

    #[test]
    fn what_has_ended_and_who_is_gone_is_forgotten() {
        let (table, now) = (Affinity::default(), Instant::now());
        connect(&table, session("s", 80, HOUR), client("a", "198.18.1.1"), now, 1);
        connect(
            &table,
            session("s", 80, HOUR * 2),
            client("b", "198.18.1.2"),
            now,
            2,
        );
        table.forget_ended(now + HOUR);
        assert_eq!(table.status().sessions, 1);
        table.forget(&WorkloadUid::new("shop", "b", ""));
        assert_eq!(table.status().sessions, 0);
        assert_eq!(table.status().evicted, 0);
    }

    #[test]
    fn connections_that_come_at_once_share_one_endpoint() {
        let (table, now) = (Affinity::default(), Instant::now());
        let chosen: Vec<SocketAddr> = std::thread::scope(|scope| {
            let one = |fresh: u8| {
                let table = &table;
                scope.spawn(move || {
                    let decided = table.decide(
                        session("s", 80, HOUR),
                        client("a", "198.18.1.1"),
                        now,
                        |previous| {
                            std::thread::yield_now();
                            let endpoint = previous.unwrap_or(endpoint(fresh));
                            Ok::<_, Infallible>((endpoint, endpoint))
                        },
                    );
                    decided.unwrap()
                })
            };
            let threads: Vec<_> = (0..32).map(one).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(chosen.iter().all(|one| *one == chosen[0]), "{chosen:?}");
    }
}
