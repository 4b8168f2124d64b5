//! The network configuration with the plugin behind the cluster's own: made from the cluster's file, which stays as it is. Pure.
//!
//! A runtime takes the first file of its directory, by name (libcni: extensions `.conf`, `.conflist`, `.json`). Ours stands right before the
//! one it is made from: whatever the cluster's own CNI does with its file, at every moment one of the two is there and whole.

use serde_json::{Map, Value, json};
use thiserror::Error;

use super::PLUGIN;
use super::call::{Entry, VERSIONS};

/// What the name of our file adds to the stem of the cluster's: `-` sorts before `.`.
const SUFFIX: &str = "-mesh-agent.conflist";
/// What runtimes read (libcni's `ConfFiles`).
const EXTENSIONS: [&str; 3] = [".conflist", ".conf", ".json"];

/// Why the plugin cannot stand behind a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum ChainError {
    /// It is not JSON.
    #[error("it is not JSON: {0}")]
    Json(String),
    /// It is something else.
    #[error("it is no network configuration: it has neither `plugins` nor a `type`")]
    Shape,
    /// Plugins cannot be chained in it.
    #[error("its cniVersion is {said}: plugins are chained in {} only", VERSIONS.join(", "))]
    Version {
        /// What it says.
        said: String,
    },
}

/// The name of our file beside the cluster's.
pub(super) fn name_beside(primary: &str) -> String {
    format!("{}{SUFFIX}", stem(primary))
}

fn stem(name: &str) -> &str {
    EXTENSIONS
        .iter()
        .find_map(|extension| name.strip_suffix(extension))
        .unwrap_or(name)
}

/// Whether a file of this name is one of ours.
pub(super) fn is_ours(name: &str) -> bool {
    name.ends_with(SUFFIX)
}

/// Whether runtimes read a file of this name.
pub(super) fn is_configuration(name: &str) -> bool {
    EXTENSIONS.iter().any(|extension| name.ends_with(extension))
}

/// The one of these names (in any order) that runtimes would take if ours were not there.
pub(super) fn primary<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    names
        .into_iter()
        .filter(|name| is_configuration(name) && !is_ours(name))
        .min()
}

/// The cluster's configuration with our `entry` as its last plugin. Where it is there already, it is replaced.
///
/// # Errors
/// When it is no configuration that plugins can be chained in.
pub(super) fn with_entry(primary: &[u8], entry: &Entry) -> Result<Vec<u8>, ChainError> {
    let document: Value =
        serde_json::from_slice(primary).map_err(|error| ChainError::Json(error.to_string()))?;
    let Value::Object(mut list) = document else {
        return Err(ChainError::Shape);
    };
    let version = list
        .get("cniVersion")
        .and_then(Value::as_str)
        .unwrap_or("missing");
    if !VERSIONS.contains(&version) {
        let said = version.to_owned();
        return Err(ChainError::Version { said });
    }
    if !list.contains_key("plugins") {
        list = list_of(list)?;
    }
    let plugins = list.get_mut("plugins").and_then(Value::as_array_mut);
    let plugins = plugins
        .filter(|plugins| !plugins.is_empty())
        .ok_or(ChainError::Shape)?;
    plugins.retain(|plugin| plugin.get("type").and_then(Value::as_str) != Some(PLUGIN));
    plugins.push(json!(entry));
    serde_json::to_vec_pretty(&list).map_err(|error| ChainError::Json(error.to_string()))
}

/// A configuration of a single plugin as a list of one.
fn list_of(mut single: Map<String, Value>) -> Result<Map<String, Value>, ChainError> {
    if !single.get("type").is_some_and(Value::is_string) {
        return Err(ChainError::Shape);
    }
    let mut list = Map::new();
    for key in ["cniVersion", "name"] {
        if let Some(value) = single.remove(key) {
            list.insert(key.to_owned(), value);
        }
    }
    list.insert("plugins".to_owned(), json!([single]));
    Ok(list)
}

/// Whether this content has our entry: only such files are removed.
pub(super) fn has_entry(content: &[u8]) -> bool {
    let document: Value = serde_json::from_slice(content).unwrap_or_default();
    let plugins = document.get("plugins").and_then(Value::as_array);
    let ours = |plugin: &Value| plugin.get("type").and_then(Value::as_str) == Some(PLUGIN);
    plugins.into_iter().flatten().any(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry {
            kind: PLUGIN.into(),
            socket: "/run/mesh-agent/admin.sock.cni".into(),
            kubeconfig: None,
            table: None,
            exclude_namespaces: ["kube-system".to_owned()].into(),
            wait_ms: 1000,
        }
    }

    fn chained(primary: &Value) -> Result<Value, ChainError> {
        let made = with_entry(&serde_json::to_vec(primary).unwrap(), &entry())?;
        assert!(has_entry(&made));
        Ok(serde_json::from_slice(&made).unwrap())
    }

    #[test]
    fn the_plugin_comes_last_once_and_the_rest_stays_as_it_was() {
        let primary = json!({
            "cniVersion": "1.0.0", "name": "bridge", "disableCheck": true,
            "plugins": [{ "type": "bridge", "ipam": { "type": "host-local" } }, { "type": "portmap", "snat": true }],
        });
        let once = chained(&primary).unwrap();
        let types: Vec<&str> = once["plugins"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["type"].as_str().unwrap())
            .collect();
        assert_eq!(types, ["bridge", "portmap", PLUGIN]);
        assert_eq!(once["plugins"][0], primary["plugins"][0]);
        assert_eq!(
            (&once["name"], &once["disableCheck"]),
            (&json!("bridge"), &json!(true))
        );
        assert_eq!(chained(&once).unwrap(), once);
        let read = super::super::call::Configuration::read(
            &serde_json::to_vec(&{
                let mut own = once["plugins"][2].clone();
                own["cniVersion"] = json!("1.0.0");
                own
            })
            .unwrap(),
        );
        assert_eq!(read.unwrap().entry, entry());
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let made =
            chained(&json!({ "cniVersion": "0.3.1", "name": "n", "type": "ptp", "mtu": 1400 })).unwrap();
        assert_eq!(
            (&made["name"], &made["cniVersion"]),
            (&json!("n"), &json!("0.3.1"))
        );
        assert_eq!(made["plugins"][0], json!({ "type": "ptp", "mtu": 1400 }));
    }

    #[test]
    fn what_nothing_can_be_chained_in_is_told() {
        assert!(matches!(with_entry(b"{", &entry()), Err(ChainError::Json(_))));
        for shape in [
            json!([]),
            json!({ "cniVersion": "1.0.0" }),
            json!({ "cniVersion": "1.0.0", "plugins": [] }),
        ] {
            assert_eq!(chained(&shape), Err(ChainError::Shape), "{shape}");
        }
        for version in [
            json!({ "type": "x" }),
            json!({ "type": "x", "cniVersion": "0.2.0" }),
        ] {
            assert!(
                matches!(chained(&version), Err(ChainError::Version { .. })),
                "{version}"
            );
        }
    }

    #[test]
    fn our_file_sorts_right_before_the_clusters() {
        for primary in [
            "10-bridge.conflist",
            "10-bridge.conf",
            "a.json",
            "10-calico-x.conflist",
        ] {
            let ours = name_beside(primary);
            assert!(
                ours.as_str() < primary && is_ours(&ours) && is_configuration(&ours),
                "{ours} {primary}"
            );
        }
        let names = [
            "20-b.conflist",
            "10-a-mesh-agent.conflist",
            "10-a.conf",
            "00-notes.txt",
            "10-a.conf.mesh-agent-new",
        ];
        assert_eq!(primary(names), Some("10-a.conf"));
        assert_eq!(primary(["10-a-mesh-agent.conflist"]), None);
    }
}
