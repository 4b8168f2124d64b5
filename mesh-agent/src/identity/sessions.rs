//! The TLS sessions that one identity may resume, as client and as server. They are forgotten whole when the identity's own
//! certificate or the trust bundle changes, so no session outlives what it was proven with.
//!
//! The server side is a bounded store, not encrypted tickets: tickets could not be revoked, their key would be one more
//! long-lived secret, and with the client's certificate inside they weigh a kilobyte. Each entry serves once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use mesh_common::mutation::{self, Mechanism};
use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions};

/// Servers remembered per identity; each holds up to eight tickets.
const CLIENT_SERVERS: usize = 256;
/// Sessions remembered per identity as server; each weighs about a kilobyte.
const SERVER_SESSIONS: usize = 1024;

/// The sessions of one identity.
pub(super) struct Sessions {
    epoch: AtomicU64,
    client: ArcSwap<ClientSessionMemoryCache>,
    server: ArcSwap<Arc<ServerSessionMemoryCache>>,
}

impl Sessions {
    pub(super) fn new() -> Self {
        Self {
            epoch: AtomicU64::new(0),
            client: ArcSwap::from_pointee(ClientSessionMemoryCache::new(CLIENT_SERVERS)),
            server: ArcSwap::from_pointee(ServerSessionMemoryCache::new(SERVER_SESSIONS)),
        }
    }

    /// Counts how often everything was forgotten. Part of the name under which client sessions are filed.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Forgets all sessions. Live connections do not notice.
    pub(super) fn forget_all(&self) {
        if mutation::is_off(Mechanism::ForgetSessions) {
            return;
        }
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.client
            .store(Arc::new(ClientSessionMemoryCache::new(CLIENT_SERVERS)));
        self.server
            .store(Arc::new(ServerSessionMemoryCache::new(SERVER_SESSIONS)));
    }

    /// Forgets the sessions with one server.
    pub(super) fn forget(&self, server: &ServerName<'static>) {
        let client = self.client.load();
        while client.take_tls13_ticket(server).is_some() {}
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions")
            .field("epoch", &self.epoch())
            .finish_non_exhaustive()
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, server_name: ServerName<'static>, group: NamedGroup) {
        self.client.load().set_kx_hint(server_name, group);
    }

    fn kx_hint(&self, server_name: &ServerName<'_>) -> Option<NamedGroup> {
        self.client.load().kx_hint(server_name)
    }

    // TLS 1.2 is not spoken: nothing to keep.
    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server_name: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.client.load().insert_tls13_ticket(server_name, value);
    }

    fn take_tls13_ticket(&self, server_name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.client.load().take_tls13_ticket(server_name)
    }
}

impl StoresServerSessions for Sessions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        self.server.load().put(key, value)
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.server.load().get(key)
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.server.load().take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}
