//! What goes wrong between us and an API server, told apart by what helps.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use thiserror::Error;

/// A request, or the reading of its answer, has failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum Trouble {
    /// No answer: the connection, TLS, or a time limit.
    #[error(
        "the API server at {server} cannot be reached: {why}; is it up, and do the network and its policies let this node reach it?"
    )]
    Unreachable {
        /// Where it was looked for.
        server: String,
        /// What the system says.
        why: String,
    },
    /// A credential cannot be had.
    #[error("the credentials for the API server cannot be used: {0}")]
    Credentials(String),
    /// 401.
    #[error(
        "the API server does not accept the agent's credentials (401 {0}): has the token ended, or was the account removed? They are \
         read again with each attempt"
    )]
    Unauthorized(String),
    /// 403.
    #[error("the API server refuses it (403): {0}; grant the agent's account `list` and `watch` on it")]
    Forbidden(String),
    /// 404.
    #[error("the API server does not have it (404): {0}")]
    NotFound(String),
    /// 410, or a continue token that means nothing any more.
    #[error("what was known is too old for the API server to go on from ({0}): listing anew")]
    Expired(String),
    /// The server does not take a request of this kind (400, 405, 406, 422).
    #[error("the API server does not take this request ({status}): {message}")]
    Refused {
        /// Its status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// 429 and 5xx: it helps to wait.
    #[error("the API server asks to wait ({status}): {message}")]
    Busy {
        /// Its status.
        status: u16,
        /// Its words.
        message: String,
        /// For how long, where it says so.
        after: Option<Duration>,
        /// It has not come as far as we have: it was restored, or lags behind.
        behind: bool,
    },
    /// An answer that is none.
    #[error("the API server's answer cannot be read: {0}")]
    Malformed(String),
}

impl Trouble {
    /// For metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Credentials(_) => "credentials",
            Self::Unauthorized(_) => "unauthorized",
            Self::Forbidden(_) => "forbidden",
            Self::NotFound(_) => "not_found",
            Self::Expired(_) => "expired",
            Self::Refused { .. } => "refused",
            Self::Busy { status: 429, .. } => "throttled",
            Self::Busy { .. } => "server_error",
            Self::Malformed(_) => "malformed",
        }
    }

    /// How long the server asks to be left alone.
    pub(super) fn wait(&self) -> Option<Duration> {
        match self {
            Self::Busy { after, .. } => *after,
            _ => None,
        }
    }
}

/// The `Status` object, as far as it counts here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Status {
    message: String,
    reason: String,
    code: u16,
    details: Details,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Details {
    retry_after_seconds: u64,
    causes: Vec<Cause>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Cause {
    reason: String,
}

impl Status {
    /// What an unsuccessful answer means. `retry_after` is the header of that name.
    pub(super) fn of_answer(code: StatusCode, retry_after: Option<u64>, body: &[u8]) -> Trouble {
        let status: Status = serde_json::from_slice(body).unwrap_or_else(|_| Status {
            message: excerpt(body),
            ..Status::default()
        });
        Status {
            code: code.as_u16(),
            details: Details {
                retry_after_seconds: retry_after.unwrap_or(status.details.retry_after_seconds),
                causes: status.details.causes,
            },
            ..status
        }
        .trouble()
    }

    /// What it means, from an answer or from an ERROR event of a watch.
    pub(super) fn trouble(self) -> Trouble {
        let Status {
            message,
            reason,
            code,
            details,
        } = self;
        let gone = matches!(reason.as_str(), "Expired" | "Gone");
        match code {
            401 => Trouble::Unauthorized(message),
            403 => Trouble::Forbidden(message),
            404 => Trouble::NotFound(message),
            _ if code == 410 || gone => Trouble::Expired(message),
            408 | 429 | 500..=599 => Trouble::Busy {
                status: code,
                message,
                after: (details.retry_after_seconds > 0)
                    .then(|| Duration::from_secs(details.retry_after_seconds.min(300))),
                behind: details
                    .causes
                    .iter()
                    .any(|cause| cause.reason == "ResourceVersionTooLarge"),
            },
            400..=499 => Trouble::Refused {
                status: code,
                message,
            },
            _ => Trouble::Malformed(format!("status {code}: {message}")),
        }
    }
}

/// The beginning of what was to be a document.
fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body.get(..200).unwrap_or(body));
    text.trim().to_owned()
}
