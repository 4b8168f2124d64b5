//! Serves HTTP/1 to whoever can reach a socket, within bounds: of time for each connection, and of connections. Knows nothing of what is
//! served.
//!
//! When there are too many, the oldest connection that has not asked anything, of the source that has the most of those, is closed for
//! the newest: a scrape or a probe gets through, whoever holds connections open. A connection is for one request.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

/// How long a client may take for the head of its request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection may last.
const LIFETIME: Duration = Duration::from_secs(60);
/// How long a request under way at the end of that has.
const GRACE: Duration = Duration::from_secs(5);
/// Longest head of a request, bytes.
const HEAD: usize = 16 << 10;
/// Most header fields of a request.
const HEADERS: usize = 64;

/// The agent's servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// `/metrics`.
    Metrics,
    /// `/healthz/…`.
    Readiness,
    /// The admin API.
    Admin,
}

/// Connections cut, by server. One agent per process.
static CUT: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

impl Server {
    /// All of them.
    pub const ALL: [Server; 3] = [Server::Metrics, Server::Readiness, Server::Admin];

    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Server::Metrics => "metrics",
            Server::Readiness => "readiness",
            Server::Admin => "admin",
        }
    }

    /// Most connections at a time.
    pub fn connections(self) -> usize {
        match self {
            Server::Metrics | Server::Admin => 128,
            Server::Readiness => 256,
        }
    }

    /// How many connections were cut: too slow, malformed, or one too many.
    pub fn cut(self) -> u64 {
        self.counter().load(Ordering::Relaxed)
    }

    fn counter(self) -> &'static AtomicU64 {
        match self {
            Server::Metrics => &CUT[0],
            Server::Readiness => &CUT[1],
            Server::Admin => &CUT[2],
        }
    }

    fn count(self) {
        self.counter().fetch_add(1, Ordering::Relaxed);
    }
}

/// An open connection.
struct Held<S> {
    source: S,
    /// Its request has come.
    asked: Arc<AtomicBool>,
    task: AbortHandle,
}

/// The open connections, the oldest first.
struct Open<S>(Vec<Held<S>>);

impl<S: Eq + Hash + Clone> Open<S> {
    /// Takes out the oldest connection of the source that has the most; of those that have not asked anything, if there are any.
    fn surplus(&mut self) -> Option<AbortHandle> {
        let idle: Vec<bool> = self
            .0
            .iter()
            .map(|held| !held.asked.load(Ordering::Relaxed))
            .collect();
        let any_idle = idle.contains(&true);
        let mut counts = HashMap::<&S, usize>::new();
        for (held, idle) in self.0.iter().zip(&idle) {
            *counts.entry(&held.source).or_default() += usize::from(*idle || !any_idle);
        }
        let most = counts.into_iter().max_by_key(|(_, n)| *n)?.0.clone();
        let at = self
            .0
            .iter()
            .zip(&idle)
            .position(|(held, idle)| held.source == most && (*idle || !any_idle))?;
        Some(self.0.remove(at).task)
    }

    fn forget(&mut self, id: tokio::task::Id) {
        self.0.retain(|held| held.task.id() != id);
    }
}

/// Serves `router` until `stop` resolves; requests under way then are finished. `source` says which connections are of one source.
pub async fn serve<L, S>(
    server: Server,
    mut listener: L,
    router: Router,
    source: impl Fn(&L::Addr) -> S,
    stop: impl Future<Output = ()>,
) where
    L: Listener,
    S: Eq + Hash + Clone,
{
    let closing = CancellationToken::new();
    let mut tasks = JoinSet::new();
    let mut open = Open(Vec::new());
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            Some(ended) = tasks.join_next_with_id() => {
                open.forget(ended.map_or_else(|error| error.id(), |(id, ())| id));
            }
            (io, address) = listener.accept() => {
                if open.0.len() >= server.connections() && let Some(oldest) = open.surplus() {
                    oldest.abort();
                    server.count();
                    tracing::debug!(server = server.as_str(), "too many connections: the oldest is closed");
                }
                let asked = Arc::new(AtomicBool::new(false));
                let task = tasks.spawn(one(server, io, router.clone(), Arc::clone(&asked), closing.clone()));
                open.0.push(Held { source: source(&address), asked, task });
            }
        }
    }
    drop(listener);
    closing.cancel();
    while tasks.join_next().await.is_some() {}
}

/// One connection.
async fn one<Io>(server: Server, io: Io, router: Router, asked: Arc<AtomicBool>, closing: CancellationToken)
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let router = TowerToHyperService::new(router);
    let answer = service_fn(move |request| {
        asked.store(true, Ordering::Relaxed);
        router.call(request)
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(io), answer);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        () = closing.cancelled() => None,
        () = tokio::time::sleep(LIFETIME) => None,
    };
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, connection).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            server.count();
            tracing::debug!(server = server.as_str(), %error, "a connection was cut");
        }
        Err(_) => {
            server.count();
            tracing::debug!(
                server = server.as_str(),
                "a connection was cut: it does not read its answer"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_connection_without_a_request_of_whoever_has_the_most_goes_first() {
        let task = || tokio::spawn(std::future::pending::<()>()).abort_handle();
        let tasks: Vec<_> = std::iter::repeat_with(task).take(5).collect();
        let held = [
            ("one", false),
            ("many", true),
            ("many", false),
            ("two", true),
            ("many", false),
        ];
        let held = held.into_iter().zip(&tasks).map(|((source, asked), task)| Held {
            source,
            asked: Arc::new(asked.into()),
            task: task.clone(),
        });
        let mut open = Open(held.collect());
        let mut gone = || open.surplus().map(|task| task.id());
        assert_eq!(gone(), Some(tasks[2].id()));
        gone();
        gone();
        // Only those that have asked are left.
        open.forget(tasks[3].id());
        assert_eq!(open.surplus().map(|task| task.id()), Some(tasks[1].id()));
        assert_eq!(open.0.len(), 0);
    }
}
