//! Requests to an API server, each bounded in time and size, and what its answers mean.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use tokio::time::timeout;

use super::access::{self, Access};
use super::lines::Lines;
use super::trouble::{Status, Trouble};
use crate::percent::encoded;

/// How long the server may take until it begins to answer. It may hold a request back for a minute when it has much to do.
const ANSWER: Duration = Duration::from_secs(75);
/// How long it may be silent within an answer. A watch has a bookmark every minute or so.
pub(super) const SILENCE: Duration = Duration::from_secs(100);
/// Largest page.
const MAX_PAGE: usize = 512 << 20;
/// Of an unsuccessful answer, that much is read.
const MAX_STATUS: usize = 64 << 10;

/// Asks an API server.
#[derive(Clone)]
pub(super) struct Requests {
    access: Arc<Access>,
}

impl Requests {
    pub(super) fn new(access: Arc<Access>) -> Self {
        Self { access }
    }

    /// Where the server is.
    pub(super) fn server(&self) -> String {
        self.access.server()
    }

    /// The answer to `GET path`, whole.
    pub(super) async fn get(&self, path: &str) -> Result<Bytes, Trouble> {
        let answer = self.send(Method::GET, path, Bytes::new()).await?;
        self.whole(answer).await
    }

    /// `POST` of a JSON document; returns what was made of it.
    pub(super) async fn post(&self, path: &str, document: Bytes) -> Result<Bytes, Trouble> {
        let answer = self.send(Method::POST, path, document).await?;
        self.whole(answer).await
    }

    /// `PUT` of a JSON document; returns what was made of it.
    pub(super) async fn put(&self, path: &str, document: Bytes) -> Result<Bytes, Trouble> {
        let answer = self.send(Method::PUT, path, document).await?;
        self.whole(answer).await
    }

    /// `PATCH` by a JSON merge patch (RFC 7386); returns what was made of it.
    pub(super) async fn merge_patch(&self, path: &str, patch: Bytes) -> Result<Bytes, Trouble> {
        let answer = self.send(Method::PATCH, path, patch).await?;
        self.whole(answer).await
    }

    /// The lines of the answer to `GET path`, as they come.
    pub(super) async fn stream(&self, path: &str) -> Result<Stream, Trouble> {
        let answer = self.send(Method::GET, path, Bytes::new()).await?;
        Ok(Stream {
            body: answer.into_body(),
            lines: Lines::default(),
            server: self.access.server(),
        })
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> Result<Response<Body>, Trouble> {
        let (client, generation) = self.access.client();
        let content = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(ACCEPT, "application/json");
        if !body.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, content);
        }
        let request = request
            .body(Body::from(body))
            .map_err(|error| Trouble::Malformed(error.to_string()))?;
        let answer = match timeout(ANSWER, client.send(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                self.access.renew(generation);
                return Err(match access::is_credential(&error) {
                    true => Trouble::Credentials(access::chain(&error)),
                    false => self.unreachable(access::chain(&error)),
                });
            }
            Err(_) => {
                self.access.renew(generation);
                return Err(self.unreachable(format!("no answer within {} s", ANSWER.as_secs())));
            }
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.access.renew(generation);
        }
        Err(status(answer).await)
    }

    async fn whole(&self, answer: Response<Body>) -> Result<Bytes, Trouble> {
        let mut body = answer.into_body();
        let mut bytes = BytesMut::new();
        loop {
            match timeout(SILENCE, body.frame()).await {
                Ok(None) => return Ok(bytes.freeze()),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        bytes.extend_from_slice(&data);
                    }
                }
                Ok(Some(Err(error))) => return Err(self.unreachable(access::chain(&error))),
                Err(_) => return Err(self.unreachable("its answer has stopped half-way".to_owned())),
            }
            if bytes.len() > MAX_PAGE {
                return Err(Trouble::Malformed(format!(
                    "it has more than {} MiB",
                    MAX_PAGE >> 20
                )));
            }
        }
    }

    fn unreachable(&self, why: String) -> Trouble {
        Trouble::Unreachable {
            server: self.access.server(),
            why,
        }
    }
}

/// What an unsuccessful answer means.
async fn status(answer: Response<Body>) -> Trouble {
    let code = answer.status();
    let after = answer
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok());
    let after = after.and_then(|text| text.trim().parse::<u64>().ok());
    let mut body = answer.into_body();
    let mut bytes = BytesMut::new();
    while bytes.len() < MAX_STATUS
        && let Ok(Some(Ok(frame))) = timeout(Duration::from_secs(5), body.frame()).await
    {
        if let Ok(data) = frame.into_data() {
            bytes.extend_from_slice(&data);
        }
    }
    Status::of_answer(code, after, &bytes)
}

/// The lines of an answer that goes on.
pub(super) struct Stream {
    body: Body,
    lines: Lines,
    server: String,
}

impl Stream {
    /// The next line; `None` at the end that the server has given it.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        let broken = |server: &str, why: String| Trouble::Unreachable {
            server: server.to_owned(),
            why,
        };
        loop {
            if let Some(line) = self.lines.pop() {
                return Ok(Some(line));
            }
            match timeout(SILENCE, self.body.frame()).await {
                Ok(None) if self.lines.is_torn() => {
                    return Err(broken(
                        &self.server,
                        "a watch has broken off within an event".to_owned(),
                    ));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        self.lines.push(data).map_err(Trouble::Malformed)?;
                    }
                }
                Ok(Some(Err(error))) => return Err(broken(&self.server, access::chain(&error))),
                Err(_) => {
                    let why = format!("nothing was heard for {} s", SILENCE.as_secs());
                    return Err(broken(&self.server, why));
                }
            }
        }
    }
}

/// `path` with a query of these pairs.
pub(super) fn with_query(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut whole = path.to_owned();
    for (i, (key, value)) in pairs.iter().enumerate() {
        whole.push(if i == 0 { '?' } else { '&' });
        whole.push_str(key);
        whole.push('=');
        whole.extend(encoded(value));
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_token_holds_stays_one_value() {
        assert_eq!(
            with_query("/api/v1/pods", &[("limit", "500"), ("continue", "a+b/c=&é")]),
            "/api/v1/pods?limit=500&continue=a%2Bb%2Fc%3D%26%C3%A9"
        );
        assert_eq!(with_query("/api/v1/pods", &[]), "/api/v1/pods");
    }
}
