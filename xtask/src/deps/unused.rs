//! Dependencies that a package declares and no source of it mentions. A crate that is needed without being named (a feature of
//! another crate, say) is listed in the package's `[package.metadata.cargo-machete] ignored`, which cargo-machete reads too.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::array;
use crate::stamp::files_below;

/// The unused dependencies, in words.
pub(super) fn find(metadata: &Value) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for package in array(&metadata["packages"])? {
        let sources = sources(package)?;
        let ignored = &package["metadata"]["cargo-machete"]["ignored"];
        for dependency in array(&package["dependencies"])? {
            let name = dependency["rename"]
                .as_str()
                .or(dependency["name"].as_str())
                .unwrap_or_default();
            let is_ignored = ignored
                .as_array()
                .is_some_and(|list| list.iter().any(|entry| entry == name));
            let identifier = name.replace('-', "_");
            if !is_ignored && !sources.iter().any(|source| mentions(source, &identifier)) {
                let owner = package["name"].as_str().unwrap_or_default();
                faults.push(format!("{owner} does not use {name}"));
            }
        }
    }
    Ok(faults)
}

/// The text of every Rust file of a package's targets.
fn sources(package: &Value) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for target in array(&package["targets"])? {
        let Some(path) = target["src_path"].as_str().map(PathBuf::from) else {
            continue;
        };
        let is_script = array(&target["kind"])?.iter().any(|kind| kind == "custom-build");
        match path.parent() {
            Some(directory) if !is_script => files_below(directory, &mut files)?,
            _ => files.push(path),
        }
    }
    files.sort();
    files.dedup();
    files
        .iter()
        .filter(|file| file.extension().is_some_and(|extension| extension == "rs"))
        .map(|file| read(file))
        .collect()
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Whether code (not a comment) names the crate: as a path's start, in a `use`, or as an attribute's or a macro's.
fn mentions(source: &str, identifier: &str) -> bool {
    source
        .lines()
        .map(str::trim_start)
        .filter(|line| !line.starts_with("//"))
        .any(|line| {
            line.match_indices(identifier).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let after = line[at + identifier.len()..].trim_start();
                let starts = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '.');
                starts && (after.starts_with("::") || after.starts_with(';') || after.starts_with("as "))
            })
        })
}

#[cfg(test)]
mod tests {
    use super::mentions;

    #[test]
    fn a_use_and_a_path_mention_a_crate() {
        assert!(mentions("use serde_json::Value;", "serde_json"));
        assert!(mentions("    let x = h2::client::handshake(io);", "h2"));
        assert!(mentions("use libc;", "libc"));
        assert!(mentions("use {anyhow::Result, libc as c};", "libc"));
        assert!(mentions("#[tokio::main]", "tokio"));
    }

    #[test]
    fn comments_fields_and_longer_names_do_not() {
        assert!(!mentions("// see serde_json::Value", "serde_json"));
        assert!(!mentions("//! [`libc::socket`]", "libc"));
        assert!(!mentions("let a = my_libc::x;", "libc"));
        assert!(!mentions("let http = 3;", "http"));
        assert!(!mentions("use http_body::Body;", "http"));
    }
}
