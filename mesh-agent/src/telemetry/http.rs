//! The HTTP servers for machines: `/metrics`, and readiness and liveness. They never answer anything that is not meant for the network.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use thiserror::Error;
use tokio::net::TcpListener;

use super::metrics::{CONTENT_TYPE, Metrics};
use super::readiness::{self, FactsSource};
use super::serve::{self, Server};

/// Why a server could not start.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The address cannot be had.
    #[error("cannot listen on {address} for {what}: {source} (does another agent run? see the settings)")]
    Bind {
        /// What was to be served.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// A server that listens already and is not serving yet.
#[derive(Debug)]
pub struct HttpServer {
    server: Server,
    listener: TcpListener,
    router: Router,
}

impl HttpServer {
    /// Serves `GET /metrics`.
    ///
    /// # Errors
    /// When `address` cannot be had.
    pub async fn metrics(address: SocketAddr, metrics: Arc<Metrics>) -> Result<Self, HttpError> {
        let router = Router::new().route("/metrics", get(scrape)).with_state(metrics);
        Self::bind(Server::Metrics, address, router).await
    }

    /// Serves `GET /healthz/ready` (or `/ready`) and `/healthz/live` (or `/live`).
    ///
    /// # Errors
    /// When `address` cannot be had.
    pub async fn readiness(address: SocketAddr, facts: FactsSource) -> Result<Self, HttpError> {
        let router = Router::new()
            .route("/healthz/ready", get(ready))
            .route("/ready", get(ready))
            .route("/healthz/live", get(live))
            .route("/live", get(live))
            .with_state(facts);
        Self::bind(Server::Readiness, address, router).await
    }

    async fn bind(server: Server, address: SocketAddr, router: Router) -> Result<Self, HttpError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| HttpError::Bind {
                what: server.as_str(),
                address,
                source,
            })?;
        Ok(Self {
            server,
            listener,
            router,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop` resolves.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) {
        serve::serve(self.server, self.listener, self.router, SocketAddr::ip, stop).await
    }
}

/// Reads BPF maps and `/proc`: off the async threads.
async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    match tokio::task::spawn_blocking(move || metrics.render()).await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Ok(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

async fn ready(State(facts): State<FactsSource>) -> Response {
    let readiness = readiness::decide(&facts());
    if readiness.is_ready() {
        return (StatusCode::OK, "ready\n").into_response();
    }
    let body = format!("not ready:\n- {}\n", readiness.reasons.join("\n- "));
    (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
}

async fn live() -> &'static str {
    "live\n"
}

#[cfg(test)]
mod tests;
