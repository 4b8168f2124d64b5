//! Asks a running agent over its admin socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use super::document::{ConnectionFilter, ExplainQuery, Failure};
use crate::percent::encoded;

/// Largest answer that is read: some 100,000 connections.
const MAX_ANSWER: usize = 128 << 20;

/// How long to wait for a place in the socket's queue.
const QUEUE_PATIENCE: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nothing is there.
    #[error(
        "no agent runs behind {path}: there is no such socket (start `mesh-agent run`, or name its socket with --socket)"
    )]
    Absent {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is there, the agent is not.
    #[error(
        "no agent runs behind {path}: the socket is left over from an agent that is gone (start `mesh-agent run`)"
    )]
    Gone {
        /// The socket.
        path: PathBuf,
    },
    /// The socket is not ours to open.
    #[error("not allowed to open {path}: only root may (try sudo)")]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed.
    #[error("cannot talk to the agent behind {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// What is behind the socket does not speak our protocol, or went away meanwhile.
    #[error("the agent behind {path} did not answer: {why}")]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// The agent refused.
    #[error("the agent answered {status}: {error}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// In its words.
        error: String,
    },
    /// The answer has another shape.
    #[error("the agent's answer is not understood ({0}): are agent and meshctl of one version?")]
    Shape(#[from] serde_json::Error),
}

/// A client of one agent.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Of the agent behind `path`.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// The bytes of the JSON document at `target`, such as `/status`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, target: &str) -> Result<Bytes, ClientError> {
        self.ask(Method::GET, target, Bytes::new()).await
    }

    /// The bytes of the JSON document that the agent answers to `question`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn post(&self, target: &str, question: &impl Serialize) -> Result<Bytes, ClientError> {
        let question = serde_json::to_vec(question)?;
        self.ask(Method::POST, target, question.into()).await
    }

    /// Connects; waits a little while the socket's queue is full (connect(2), EAGAIN).
    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let patience = Instant::now() + QUEUE_PATIENCE;
        loop {
            match UnixStream::connect(&self.path).await {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < patience => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(source) => return Err(self.connect_error(source)),
            }
        }
    }

    async fn ask(&self, method: Method, target: &str, question: Bytes) -> Result<Bytes, ClientError> {
        let stream = self.connect().await?;
        let protocol = |error: &dyn std::fmt::Display| ClientError::Protocol {
            path: self.path.clone(),
            why: error.to_string(),
        };
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| protocol(&error))?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(target)
            .header(header::HOST, "mesh-agent")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(question))
            .map_err(|error| protocol(&error))?;
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| protocol(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(|error| protocol(&error))?
            .to_bytes();
        connection.abort();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let error = serde_json::from_slice::<Failure>(&body)
            .map(|failure| failure.error)
            .unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned());
        Err(ClientError::Refused { status, error })
    }

    /// The document at `target`.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn document<T: DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        Ok(serde_json::from_slice(&self.get(target).await?)?)
    }

    fn connect_error(&self, source: io::Error) -> ClientError {
        let path = self.path.clone();
        match source.kind() {
            io::ErrorKind::NotFound => ClientError::Absent { path },
            io::ErrorKind::ConnectionRefused => ClientError::Gone { path },
            io::ErrorKind::PermissionDenied => ClientError::Forbidden { path },
            _ => ClientError::Io { path, source },
        }
    }
}

/// The request target for the connections that `filter` asks for.
pub fn connections_target(filter: &ConnectionFilter) -> String {
    filtered("/connections", filter)
}

/// The target of `GET /connections/older` with this filter.
pub fn older_target(filter: &ConnectionFilter) -> String {
    filtered("/connections/older", filter)
}

/// The target of `GET /explain` with this question.
pub fn explain_target(query: &ExplainQuery) -> String {
    format!(
        "/explain?source={}&destination={}",
        encoded(&query.source),
        encoded(&query.destination)
    )
}

fn filtered(path: &str, filter: &ConnectionFilter) -> String {
    let pairs = [("workload", &filter.workload), ("namespace", &filter.namespace)];
    let query: Vec<String> = pairs
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", encoded(value.as_deref()?))))
        .collect();
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", query.join("&"))
    }
}

#[cfg(test)]
mod tests;
