//! What is in the binaries: each crate that is linked into them, as a software bill of materials (CycloneDX 1.5, JSON).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::project::Project;
use crate::ship::Shipped;

/// A crate from a registry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Component {
    pub(super) name: String,
    pub(super) version: String,
    /// As its manifest has it: an SPDX expression in nearly all cases.
    licence: Option<String>,
    /// SHA-256 of the package, as the lock file has it.
    checksum: Option<String>,
    directory: PathBuf,
}

/// The crates that are linked into mesh-agent's binaries for `target`, or take part in building those that are.
pub(super) fn components(project: &Project, target: &str) -> Result<Vec<Component>> {
    let metadata = project.metadata(&["--locked", "--filter-platform", target])?;
    let lock = project.root().join("Cargo.lock");
    let lock = std::fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    select(&metadata, &checksums(&lock)?)
}

/// Name and version to checksum.
fn checksums(lock: &str) -> Result<BTreeMap<(String, String), String>> {
    let table: toml::Table = lock.parse().context("Cargo.lock is no TOML")?;
    let packages = table.get("package").and_then(toml::Value::as_array);
    let word = |package: &toml::Value, key: &str| package.get(key)?.as_str().map(str::to_owned);
    Ok(packages
        .into_iter()
        .flatten()
        .filter_map(|package| {
            let key = (word(package, "name")?, word(package, "version")?);
            Some((key, word(package, "checksum")?))
        })
        .collect())
}

fn select(metadata: &Value, checksums: &BTreeMap<(String, String), String>) -> Result<Vec<Component>> {
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let nodes: BTreeMap<String, Value> = array(&metadata["resolve"]["nodes"])
        .into_iter()
        .filter_map(|node| Some((text(&node["id"])?, node)))
        .collect();
    let packages: BTreeMap<String, Value> = array(&metadata["packages"])
        .into_iter()
        .filter_map(|package| Some((text(&package["id"])?, package)))
        .collect();
    let root = packages
        .iter()
        .find(|(_, package)| package["name"] == "mesh-agent")
        .map(|(id, _)| id.clone())
        .context("cargo metadata does not know mesh-agent")?;
    let mut seen = BTreeSet::from([root.clone()]);
    let mut open = vec![root];
    while let Some(id) = open.pop() {
        for dependency in array(&nodes.get(&id).context("a package that cargo did not resolve")?["deps"]) {
            // What is for tests only is of the kind `dev`.
            let linked = array(&dependency["dep_kinds"])
                .iter()
                .any(|kind| kind["kind"] != "dev");
            if let (true, Some(id)) = (linked, text(&dependency["pkg"]))
                && seen.insert(id.clone())
            {
                open.push(id);
            }
        }
    }
    let mut components = Vec::new();
    for id in seen {
        let package = packages
            .get(&id)
            .context("a package that cargo did not describe")?;
        // Without a source it is of this workspace.
        if package["source"].is_null() {
            continue;
        }
        let name = text(&package["name"]).context("a package without a name")?;
        let version = text(&package["version"]).context("a package without a version")?;
        let manifest = text(&package["manifest_path"]).context("a package without a manifest")?;
        components.push(Component {
            checksum: checksums.get(&(name.clone(), version.clone())).cloned(),
            licence: text(&package["license"]),
            directory: Path::new(&manifest)
                .parent()
                .map(Path::to_owned)
                .unwrap_or_default(),
            name,
            version,
        });
    }
    components.sort();
    Ok(components)
}

impl Component {
    /// The files in its package that say under which terms it may be used, by name.
    pub(super) fn licence_files(&self) -> Result<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.directory)
            .with_context(|| format!("cannot read {}", self.directory.display()))?;
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .to_uppercase();
            let says = [
                "LICENSE",
                "LICENCE",
                "COPYING",
                "COPYRIGHT",
                "NOTICE",
                "UNLICENSE",
            ];
            if path.is_file() && says.iter().any(|word| name.starts_with(word)) {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }

    fn entry(&self) -> Value {
        let purl = format!("pkg:cargo/{}@{}", self.name, self.version);
        let mut entry = json!({
            "type": "library", "bom-ref": purl, "name": self.name, "version": self.version, "purl": purl,
        });
        if let Some(licence) = &self.licence {
            // Before SPDX, crates.io had `MIT/Apache-2.0`.
            entry["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
        }
        if let Some(checksum) = &self.checksum {
            entry["hashes"] = json!([{ "alg": "SHA-256", "content": checksum }]);
        }
        entry
    }
}

/// The bill of materials.
pub(super) fn document(shipped: &Shipped, components: &[Component]) -> Value {
    let entries: Vec<Value> = components.iter().map(Component::entry).collect();
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": "mesh-agent",
                "name": "mesh-agent",
                "version": shipped.version,
                "licenses": [{ "expression": "Apache-2.0 AND (MIT OR GPL-2.0-only)" }],
            },
        },
        "components": entries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_listed_and_what_tests_need_is_not() {
        let package = |id: &str, source: Value| {
            json!({"id": id, "name": id, "version": "1.0.0", "license": "MIT/Apache-2.0", "source": source,
                   "manifest_path": format!("/crates/{id}/Cargo.toml")})
        };
        let registry = || json!("registry+https://example.org/index");
        let dependency = |id: &str, kind: Value| json!({"pkg": id, "dep_kinds": [{"kind": kind}]});
        let metadata = json!({
            "packages": [package("mesh-agent", Value::Null), package("mesh-core", Value::Null),
                         package("linked", registry()), package("built", registry()),
                         package("tested", registry()), package("others", registry())],
            "resolve": {"nodes": [
                {"id": "mesh-agent", "deps": [dependency("mesh-core", Value::Null), dependency("tested", json!("dev"))]},
                {"id": "mesh-core", "deps": [dependency("linked", Value::Null)]},
                {"id": "linked", "deps": [dependency("built", json!("build"))]},
                {"id": "built", "deps": []}, {"id": "tested", "deps": []}, {"id": "others", "deps": []},
            ]},
        });
        let lock = "[[package]]\nname = \"linked\"\nversion = \"1.0.0\"\nchecksum = \"abc\"\n[[package]]\nname = \"mesh-agent\"\nversion = \"0.1.0\"\n";
        let found = select(&metadata, &checksums(lock).unwrap()).unwrap();
        let names: Vec<&str> = found.iter().map(|component| component.name.as_str()).collect();
        assert_eq!(names, ["built", "linked"]);
        assert_eq!(
            found[1].entry(),
            json!({"type": "library", "bom-ref": "pkg:cargo/linked@1.0.0", "name": "linked", "version": "1.0.0",
                   "purl": "pkg:cargo/linked@1.0.0", "licenses": [{"expression": "MIT OR Apache-2.0"}],
                   "hashes": [{"alg": "SHA-256", "content": "abc"}]})
        );
    }
}
