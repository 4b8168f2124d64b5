//! Questions to a container runtime on its Unix socket. Each is bounded in time.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::uri::PathAndQuery;
use serde::Deserialize;
use thiserror::Error;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

use crate::capture::error::causes;

use super::messages::{
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxFilter, PodSandboxState,
    PodSandboxStateValue, PodSandboxStatusRequest, PodSandboxStatusResponse, VersionRequest, VersionResponse,
};

/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// The largest answer: a list of a thousand sandboxes with their annotations.
const LARGEST: usize = 16 << 20;

/// Why a runtime does not answer.
#[derive(Debug, Error)]
pub(super) enum CallError {
    /// Its socket cannot be connected to.
    #[error("{socket}: {why}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the kernel says.
        why: String,
    },
    /// It answers with an error, or not in time.
    #[error("{method} is answered with {status}")]
    Call {
        /// What was asked.
        method: &'static str,
        /// The answer.
        status: String,
    },
}

/// What a runtime says of a sandbox behind `PodSandboxStatus`: JSON of its own making, of which containerd and CRI-O share this much.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Info {
    pid: Option<u32>,
    runtime_spec: Option<RuntimeSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeSpec {
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    path: Option<PathBuf>,
}

/// The details of a sandbox, as far as the runtime tells them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Details {
    /// Its first process.
    pub(super) pid: Option<u32>,
    /// The file that is its network namespace.
    pub(super) netns: Option<PathBuf>,
}

/// A connection to a runtime.
#[derive(Debug)]
pub(super) struct Client {
    grpc: Grpc<Channel>,
}

impl Client {
    /// Connects to the runtime at `socket`.
    pub(super) async fn connect(socket: &Path) -> Result<Self, CallError> {
        let failed = |error: tonic::transport::Error| CallError::Connect {
            socket: socket.to_owned(),
            why: causes(&error),
        };
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).map_err(failed)?;
        let endpoint = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE);
        let channel = endpoint.connect().await.map_err(failed)?;
        Ok(Self {
            grpc: Grpc::new(channel).max_decoding_message_size(LARGEST),
        })
    }

    /// What it calls itself, with its version.
    pub(super) async fn version(&mut self) -> Result<String, CallError> {
        let request = VersionRequest {
            version: "v1".to_owned(),
        };
        let answer: VersionResponse = self.call("Version", request).await?;
        Ok(format!("{} {}", answer.runtime_name, answer.runtime_version))
    }

    /// Its sandboxes that are ready.
    pub(super) async fn ready_sandboxes(&mut self) -> Result<Vec<PodSandbox>, CallError> {
        let ready = PodSandboxState::Ready;
        let request = ListPodSandboxRequest {
            filter: Some(PodSandboxFilter {
                state: Some(PodSandboxStateValue { state: ready.into() }),
            }),
        };
        let answer: ListPodSandboxResponse = self.call("ListPodSandbox", request).await?;
        Ok(answer
            .items
            .into_iter()
            .filter(|item| item.state() == ready)
            .collect())
    }

    /// The details of one of them.
    pub(super) async fn details(&mut self, id: &str) -> Result<Details, CallError> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: id.to_owned(),
            verbose: true,
        };
        let answer: PodSandboxStatusResponse = self.call("PodSandboxStatus", request).await?;
        Ok(answer
            .info
            .get("info")
            .map_or_else(Details::default, |text| read(text)))
    }

    async fn call<Q, A>(&mut self, method: &'static str, request: Q) -> Result<A, CallError>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let failed = |status: String| CallError::Call { method, status };
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let path: PathAndQuery = path.parse().map_err(|_| failed("no path".to_owned()))?;
        let asked = async {
            self.grpc.ready().await.map_err(|error| failed(causes(&error)))?;
            let codec = ProstCodec::<Q, A>::default();
            let answer = self.grpc.unary(tonic::Request::new(request), path, codec).await;
            answer.map_err(|status| failed(format!("{:?}: {}", status.code(), status.message())))
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(failed(format!("nothing within {PATIENCE:?}"))),
        }
    }
}

/// What of the details is understood; nothing, where a runtime writes something else.
fn read(text: &str) -> Details {
    let info: Info = serde_json::from_str(text).unwrap_or_default();
    let namespaces = info
        .runtime_spec
        .and_then(|spec| spec.linux)
        .unwrap_or_default()
        .namespaces;
    let network = namespaces
        .into_iter()
        .find(|namespace| namespace.kind == "network");
    Details {
        pid: info.pid.filter(|pid| *pid > 0),
        netns: network.and_then(|namespace| namespace.path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_and_namespace_are_read_from_what_runtimes_write() {
        let containerd = r#"{"pid":4242,"processStatus":"running","netNamespaceClosed":false,"image":"pause","runtimeSpec":
            {"ociVersion":"1.0.2","process":{"args":["/pause"]},"linux":{"namespaces":[{"type":"pid"},
            {"type":"network","path":"/var/run/netns/cni-1"}],"cgroupsPath":"/kubepods/podx/y"}}}"#;
        let expected = Details {
            pid: Some(4242),
            netns: Some("/var/run/netns/cni-1".into()),
        };
        assert_eq!(read(containerd), expected);
        let crio = r#"{"image":"pause","pid":4242,"runtimeSpec":{"linux":{"namespaces":
            [{"type":"network","path":"/var/run/netns/cni-1"}]}}}"#;
        assert_eq!(read(crio), expected);
    }

    #[test]
    fn what_a_runtime_does_not_say_is_not_made_up() {
        for text in [
            "",
            "null",
            "[]",
            "{}",
            r#"{"pid":-1}"#,
            r#"{"pid":"7"}"#,
            r#"{"runtimeSpec":7}"#,
        ] {
            assert_eq!(read(text), Details::default(), "{text}");
        }
        assert_eq!(read(r#"{"pid":0}"#), Details::default());
        let host = r#"{"pid":7,"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"}]}}}"#;
        assert_eq!(
            read(host),
            Details {
                pid: Some(7),
                netns: None
            }
        );
    }
}
