//! The agent's CNI plugin, called as libcni calls it: for tests and measurements without a container runtime.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::agent::AgentBuilder;
use super::node::Pod;
use super::process::wait_for;

/// The file that the agent keeps beside the cluster's own.
const OWN: &str = "10-test-mesh-agent.conflist";

/// A node's CNI directories, with a list of plugins that the agent's own is chained to.
#[derive(Debug)]
pub struct CniPlugin {
    /// Lists of plugins.
    pub conf: PathBuf,
    /// The plugins.
    pub bin: PathBuf,
    input: PathBuf,
}

/// What the plugin answered.
#[derive(Debug)]
pub struct CniAnswer {
    /// Whether it ended well.
    pub ok: bool,
    /// What it printed, a result or an error.
    pub document: Value,
}

impl CniPlugin {
    /// Makes the directories below `dir`, and the cluster's list in them, of this name.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn prepare(dir: &Path, name: &str) -> Result<Self> {
        let (conf, bin) = (dir.join("net.d"), dir.join("bin"));
        std::fs::create_dir_all(&conf)?;
        std::fs::create_dir_all(&bin)?;
        std::fs::write(conf.join("10-test.conflist"), cni_list(name).to_string())?;
        let input = dir.join("stdin.json");
        Ok(Self { conf, bin, input })
    }

    /// Has an agent keep the plugin there.
    pub fn installed_by(&self, agent: AgentBuilder) -> AgentBuilder {
        agent
            .env("MESH_AGENT_CNI", "true")
            .arg("--cni-conf-dir", &self.conf.to_string_lossy())
            .arg("--cni-bin-dir", &self.bin.to_string_lossy())
    }

    /// The agent's file.
    pub fn own_list(&self) -> PathBuf {
        self.conf.join(OWN)
    }

    /// Waits until the agent's file is there and made of the cluster's list `name`.
    ///
    /// # Errors
    /// When it does not come within ten seconds.
    pub fn wait_installed(&self, name: &str) -> Result<Value> {
        wait_for("the plugin is installed", Duration::from_secs(10), || {
            let list: Value = serde_json::from_slice(&std::fs::read(self.own_list())?)?;
            if list["name"] == name {
                Ok(list)
            } else {
                bail!("{list:#}")
            }
        })
    }

    /// What the plugin is given on standard input, as libcni makes it of the list.
    ///
    /// # Errors
    /// When there is no such list.
    pub fn configuration(&self, more: &Value) -> Result<Value> {
        let list: Value = serde_json::from_slice(&std::fs::read(self.own_list())?)?;
        let plugins = list["plugins"].as_array().context("no plugins")?;
        let mut entry = plugins.last().context("no plugin")?.clone();
        entry["cniVersion"] = list["cniVersion"].clone();
        entry["name"] = list["name"].clone();
        if let (Some(entry), Some(more)) = (entry.as_object_mut(), more.as_object()) {
            entry.extend(more.clone());
        }
        Ok(entry)
    }

    /// Calls the plugin, for interface `eth0`.
    ///
    /// # Errors
    /// When it cannot be run, or prints what is no JSON.
    pub fn call(
        &self,
        command: &str,
        arguments: &str,
        netns: &Path,
        configuration: &Value,
    ) -> Result<CniAnswer> {
        std::fs::write(&self.input, configuration.to_string())?;
        let done = Command::new(self.bin.join("mesh-agent-cni"))
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", container(arguments))
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_ARGS", arguments)
            .env("CNI_PATH", &self.bin)
            .stdin(Stdio::from(File::open(&self.input)?))
            .output()
            .context("the plugin cannot be run")?;
        let text = String::from_utf8_lossy(&done.stdout);
        let document = if text.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).with_context(|| text.to_string())?
        };
        Ok(CniAnswer {
            ok: done.status.success(),
            document,
        })
    }

    /// ADD for a pod that the plugins before have given its address.
    ///
    /// # Errors
    /// When the plugin cannot be run, or does not pass on the result of those before.
    pub fn add(&self, arguments: &str, pod: &Pod, more: &Value) -> Result<CniAnswer> {
        let result = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": pod.netns().path() }],
            "ips": [{ "interface": 0, "address": format!("{}/32", pod.ip4()) }],
        });
        let mut configuration = self.configuration(more)?;
        configuration["prevResult"] = result.clone();
        let answer = self.call("ADD", arguments, pod.netns().path(), &configuration)?;
        if answer.ok && answer.document != result {
            bail!("the result before is not passed on: {answer:?}");
        }
        Ok(answer)
    }
}

/// A list of plugins as a cluster has it.
pub fn cni_list(name: &str) -> Value {
    json!({ "cniVersion": "1.0.0", "name": name, "plugins": [{ "type": "bridge", "bridge": "cni0" }] })
}

/// `CNI_ARGS` as a runtime gives them for a pod.
pub fn cni_arguments(namespace: &str, name: &str, uid: &str) -> String {
    format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID={uid}")
}

fn container(arguments: &str) -> String {
    let bytes = arguments.bytes().fold(7_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    format!("{bytes:064x}")
}
