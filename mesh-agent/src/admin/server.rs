//! Serves the documents. What stands in them comes from a [`View`]; this file only carries them.

use std::future::Future;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Serialize;

use super::document::{
    Analysis, Bpf, BpfEvents, BpfLog, BpfLogWanted, Certificates, Checks, Config, ConnectionFilter,
    Connections, ExplainQuery, Explanation, Failure, MtlsReadiness, OlderConnections, Policies, Refusals,
    SandboxHost, Services, Status, Workloads,
};
use super::socket::{AdminSocket, SocketError};
use crate::telemetry::serve::{self, Server};

/// What the agent shows of itself. Called off the data path, on a thread that may block.
pub trait View: Send + Sync + 'static {
    /// `GET /status`.
    fn status(&self) -> Status;
    /// `GET /workloads`.
    fn workloads(&self) -> Workloads;
    /// `GET /connections`.
    fn connections(&self, filter: &ConnectionFilter) -> Connections;
    /// `GET /connections/older`.
    fn older_connections(&self, filter: &ConnectionFilter) -> OlderConnections;
    /// `GET /policies`.
    fn policies(&self) -> Policies;
    /// `GET /refusals`.
    fn refusals(&self) -> Refusals;
    /// `GET /explain`.
    ///
    /// # Errors
    /// Says which name means nothing, and what is expected.
    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, String>;
    /// `GET /services`.
    fn services(&self) -> Services;
    /// `GET /mtls/readiness`.
    fn mtls_readiness(&self) -> MtlsReadiness;
    /// `GET /certs`.
    fn certificates(&self) -> Certificates;
    /// `GET /bpf`.
    fn bpf(&self) -> Bpf;
    /// `GET /bpf/events`.
    fn bpf_events(&self) -> BpfEvents;
    /// `POST /bpf/log`.
    ///
    /// # Errors
    /// Says why it cannot be.
    fn set_bpf_log(&self, wanted: &BpfLogWanted) -> Result<BpfLog, String>;
    /// `GET /check`.
    fn checks(&self) -> Checks;
    /// `GET /config`.
    fn config(&self) -> Config;
    /// `GET /analyze`.
    ///
    /// # Errors
    /// Says why there is nothing to look at yet.
    fn analyze(&self) -> Result<Analysis, String>;
    /// `GET /sandbox`.
    fn sandbox(&self) -> SandboxHost;
}

/// A server on a socket that is bound already.
pub struct AdminServer {
    socket: AdminSocket,
    view: Arc<dyn View>,
}

impl AdminServer {
    /// Will serve what `view` shows on `socket`.
    pub fn new(socket: AdminSocket, view: Arc<dyn View>) -> Self {
        Self { socket, view }
    }

    /// Serves until `stop` resolves, then removes the socket.
    ///
    /// # Errors
    /// When the runtime cannot take the socket.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), SocketError> {
        let listener = self.socket.listener()?;
        // Only root comes this far: one source.
        serve::serve(Server::Admin, listener, router(self.view), |_| (), stop).await;
        Ok(())
    }
}

/// The API's routes.
pub fn router(view: Arc<dyn View>) -> Router {
    Router::new()
        .route(
            "/status",
            get(async |State(v): Shared| answer(move || v.status()).await),
        )
        .route(
            "/workloads",
            get(async |State(v): Shared| answer(move || v.workloads()).await),
        )
        .route(
            "/connections",
            get(async |State(v): Shared, Query(filter): Query<ConnectionFilter>| {
                answer(move || v.connections(&filter)).await
            }),
        )
        .route(
            "/connections/older",
            get(async |State(v): Shared, Query(filter): Query<ConnectionFilter>| {
                answer(move || v.older_connections(&filter)).await
            }),
        )
        .route(
            "/policies",
            get(async |State(v): Shared| answer(move || v.policies()).await),
        )
        .route(
            "/refusals",
            get(async |State(v): Shared| answer(move || v.refusals()).await),
        )
        .route(
            "/explain",
            get(async |State(v): Shared, Query(query): Query<ExplainQuery>| {
                answer_or_refuse(move || v.explain(&query)).await
            }),
        )
        .route(
            "/services",
            get(async |State(v): Shared| answer(move || v.services()).await),
        )
        .route(
            "/mtls/readiness",
            get(async |State(v): Shared| answer(move || v.mtls_readiness()).await),
        )
        .route(
            "/certs",
            get(async |State(v): Shared| answer(move || v.certificates()).await),
        )
        .route(
            "/bpf",
            get(async |State(v): Shared| answer(move || v.bpf()).await),
        )
        .route(
            "/bpf/events",
            get(async |State(v): Shared| answer(move || v.bpf_events()).await),
        )
        .route(
            "/bpf/log",
            post(async |State(v): Shared, Json(wanted): Json<BpfLogWanted>| {
                answer_or_refuse(move || v.set_bpf_log(&wanted)).await
            }),
        )
        .route(
            "/check",
            get(async |State(v): Shared| answer(move || v.checks()).await),
        )
        .route(
            "/config",
            get(async |State(v): Shared| answer(move || v.config()).await),
        )
        .route(
            "/analyze",
            get(async |State(v): Shared| answer_or_refuse(move || v.analyze()).await),
        )
        .route(
            "/sandbox",
            get(async |State(v): Shared| answer(move || v.sandbox()).await),
        )
        .fallback(unknown)
        .with_state(view)
}

type Shared = State<Arc<dyn View>>;

async fn answer<T: Serialize + Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Response {
    answer_or_refuse(move || Ok(make())).await
}

async fn answer_or_refuse<T: Serialize + Send + 'static>(
    make: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(make).await {
        Ok(Ok(document)) => Json(document).into_response(),
        Ok(Err(why)) => failure(StatusCode::UNPROCESSABLE_ENTITY, why),
        Err(error) => failure(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("the agent failed to answer ({error}): see its log"),
        ),
    }
}

async fn unknown(uri: Uri) -> Response {
    failure(
        StatusCode::NOT_FOUND,
        format!(
            "the agent does not know {}: are agent and meshctl of one version?",
            uri.path()
        ),
    )
}

fn failure(status: StatusCode, error: String) -> Response {
    (status, Json(Failure { error })).into_response()
}
