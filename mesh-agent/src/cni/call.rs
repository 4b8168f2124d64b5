//! One call of the plugin: what the runtime says in the environment and on standard input, and how it is answered (CNI specification 1.1.0,
//! sections 1 to 4). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::talk::PodName;

/// The versions of the protocol that this plugin speaks. Chained plugins came with 0.3.0.
pub(super) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What goes back to the runtime when a call fails (section 5, *Error*).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) code: u32,
    pub(super) message: String,
}

impl Fault {
    /// Invalid environment variables.
    pub(super) const ENVIRONMENT: u32 = 4;
    /// Something could not be read.
    pub(super) const IO: u32 = 5;
    /// What came on standard input is no network configuration.
    pub(super) const DECODE: u32 = 6;
    /// It is one that cannot be right.
    pub(super) const CONFIGURATION: u32 = 7;
    /// Try again later.
    pub(super) const LATER: u32 = 11;
    /// The agent refuses to capture the pod (100 and above are the plugin's own).
    pub(super) const REFUSED: u32 = 100;

    pub(super) fn new(code: u32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// As the runtime reads it.
    pub(super) fn document(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code, "msg": self.message })
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Check,
    Delete,
    Collect,
    Status,
    Version,
}

impl Command {
    pub(super) fn parse(text: &str) -> Result<Self, Fault> {
        match text {
            "ADD" => Ok(Self::Add),
            "CHECK" => Ok(Self::Check),
            "DEL" => Ok(Self::Delete),
            "GC" => Ok(Self::Collect),
            "STATUS" => Ok(Self::Status),
            "VERSION" => Ok(Self::Version),
            other => Err(Fault::new(
                Fault::ENVIRONMENT,
                format!("CNI_COMMAND is {other:?}: expected ADD, CHECK, DEL, GC, STATUS or VERSION"),
            )),
        }
    }
}

/// The plugin's own settings, as its entry in a network configuration has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    /// [`PLUGIN`](super::PLUGIN).
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Where the agent listens.
    pub(super) socket: PathBuf,
    /// How to ask the API server when the agent is away; `None`: it is not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// The agent's table of namespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) table: Option<PathBuf>,
    /// Pods of these namespaces always pass.
    #[serde(default)]
    pub(super) exclude_namespaces: BTreeSet<String>,
    /// How long a pod may wait, milliseconds.
    #[serde(default = "usual_wait")]
    pub(super) wait_ms: u64,
}

fn usual_wait() -> u64 {
    30_000
}

impl Entry {
    /// How long a pod may wait.
    pub(super) fn wait(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }
}

/// What came on standard input.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Configuration {
    /// The version that the runtime speaks.
    #[serde(default = "oldest")]
    pub(super) cni_version: String,
    #[serde(flatten)]
    pub(super) entry: Entry,
    /// The result of the plugins before.
    #[serde(default)]
    pub(super) prev_result: Option<Value>,
    /// With GC: what exists.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub(super) valid: Option<Vec<Attachment>>,
}

fn oldest() -> String {
    "0.1.0".to_owned()
}

/// A sandbox's connection to a network, with GC.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
}

impl Configuration {
    /// Reads it.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let read: Self = serde_json::from_slice(bytes).map_err(|error| {
            Fault::new(
                Fault::DECODE,
                format!("the network configuration on standard input cannot be read: {error}"),
            )
        })?;
        if !VERSIONS.contains(&read.cni_version.as_str()) {
            return Err(Fault::new(
                1,
                format!(
                    "the network configuration speaks version {:?} of CNI: this plugin speaks {}",
                    read.cni_version,
                    VERSIONS.join(", ")
                ),
            ));
        }
        Ok(read)
    }

    /// The containers that exist, with GC.
    pub(super) fn containers(&self) -> Option<BTreeSet<String>> {
        let attachments = self.valid.as_ref()?;
        Some(attachments.iter().map(|one| one.container_id.clone()).collect())
    }

    /// The addresses that the plugins before have given the sandbox (`ips[].address`, without their prefixes' lengths). Those of other
    /// namespaces (interfaces without a sandbox) are the node's.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let Some(result) = &self.prev_result else {
            return Vec::new();
        };
        let interfaces = result.get("interfaces").and_then(Value::as_array);
        let is_pods = |ip: &&Value| {
            let interface = ip.get("interface").and_then(Value::as_u64);
            let named = interface
                .and_then(|index| interfaces?.get(usize::try_from(index).ok()?))
                .and_then(|interface| interface.get("sandbox"));
            named.is_none_or(|sandbox| sandbox.as_str().is_none_or(|path| !path.is_empty()))
        };
        let ips = result.get("ips").and_then(Value::as_array);
        let address = |ip: &Value| {
            let text = ip.get("address")?.as_str()?;
            let bare = text.split_once('/').map_or(text, |(bare, _)| bare);
            Some(bare.parse::<IpAddr>().ok()?.to_canonical())
        };
        ips.into_iter()
            .flatten()
            .filter(is_pods)
            .filter_map(address)
            .collect()
    }
}

/// The pod that CNI_ARGS names (`K8S_POD_NAMESPACE=…;K8S_POD_NAME=…;K8S_POD_UID=…`); `None`: the call is for no pod of Kubernetes.
pub(super) fn pod(arguments: &str) -> Option<PodName> {
    let pairs: BTreeMap<&str, &str> = arguments
        .split(';')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let given = |key: &str| {
        pairs
            .get(key)
            .filter(|value| !value.is_empty())
            .map(|value| (*value).to_owned())
    };
    Some(PodName {
        namespace: given("K8S_POD_NAMESPACE")?,
        name: given("K8S_POD_NAME")?,
        uid: given("K8S_POD_UID"),
    })
}

/// The answer to VERSION.
pub(super) fn versions(asked: &str) -> Value {
    json!({ "cniVersion": asked, "supportedVersions": VERSIONS })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(more: Value) -> Result<Configuration, Fault> {
        let mut document =
            json!({ "cniVersion": "1.0.0", "name": "net", "type": "mesh-agent-cni", "socket": "/run/s" });
        document
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        Configuration::read(&serde_json::to_vec(&document).unwrap())
    }

    #[test]
    fn arguments_name_the_pod_or_there_is_none() {
        let text = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=order-1;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u-1";
        let named = pod(text).unwrap();
        assert_eq!(
            (named.namespace.as_str(), named.name.as_str()),
            ("shop", "order-1")
        );
        assert_eq!(named.uid.as_deref(), Some("u-1"));
        assert_eq!(
            pod("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a;K8S_POD_UID=")
                .unwrap()
                .uid,
            None
        );
        for none in [
            "",
            "IgnoreUnknown=1",
            "K8S_POD_NAMESPACE=shop",
            "K8S_POD_NAMESPACE=;K8S_POD_NAME=a",
            ";;=;",
        ] {
            assert_eq!(pod(none), None, "{none:?}");
        }
    }

    #[test]
    fn the_addresses_of_the_sandbox_are_taken_from_the_result_before() {
        let result = json!({
            "interfaces": [{ "name": "cni0" }, { "name": "veth1", "sandbox": "" }, { "name": "eth0", "sandbox": "/run/netns/x" }],
            "ips": [
                { "interface": 2, "address": "10.1.0.9/24" },
                { "interface": 1, "address": "192.0.2.1/24" },
                { "address": "2001:db8::9/64" },
                { "interface": 9, "address": "nonsense" },
                {}
            ],
        });
        let got = configuration(json!({ "prevResult": result }))
            .unwrap()
            .addresses();
        let expected: Vec<IpAddr> = ["10.1.0.9", "2001:db8::9"]
            .iter()
            .map(|ip| ip.parse().unwrap())
            .collect();
        assert_eq!(got, expected);
        assert_eq!(
            configuration(json!({})).unwrap().addresses(),
            Vec::<IpAddr>::new()
        );
    }

    #[test]
    fn configurations_that_cannot_be_used_are_told_with_the_codes_of_the_specification() {
        assert_eq!(Configuration::read(b"{").unwrap_err().code, Fault::DECODE);
        assert_eq!(
            Configuration::read(b"{\"cniVersion\":\"1.0.0\"}")
                .unwrap_err()
                .code,
            Fault::DECODE
        );
        assert_eq!(
            configuration(json!({ "cniVersion": "0.2.0" })).unwrap_err().code,
            1
        );
        assert_eq!(Command::parse("add").unwrap_err().code, Fault::ENVIRONMENT);
        let usual = configuration(json!({})).unwrap();
        assert_eq!(usual.entry.wait(), Duration::from_secs(30));
        assert_eq!(usual.containers(), None);
    }

    #[test]
    fn what_exists_comes_with_garbage_collection() {
        let got =
            configuration(json!({ "cni.dev/valid-attachments": [{ "containerID": "a", "ifname": "eth0" }] }));
        assert_eq!(got.unwrap().containers(), Some(BTreeSet::from(["a".to_owned()])));
    }
}
