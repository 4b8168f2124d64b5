//! Where things are, and how a cargo is started from inside a cargo.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run;

/// The checked-out project.
pub(crate) struct Project {
    root: PathBuf,
    target: PathBuf,
    cargo: PathBuf,
}

impl Project {
    /// Finds the project that this xtask belongs to.
    pub(crate) fn find() -> Result<Self> {
        let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = xtask
            .parent()
            .with_context(|| format!("{} has no parent directory", xtask.display()))?
            .to_owned();
        if !root.join("mesh-agent").is_dir() {
            bail!(
                "{} is not the project: run `cargo xtask` in a clone of it",
                root.display()
            );
        }
        let cargo = std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from);
        let mut project = Self {
            target: root.join("target"),
            root,
            cargo,
        };
        let metadata = project.metadata(&["--no-deps"])?;
        if let Some(target) = metadata["target_directory"].as_str() {
            project.target = PathBuf::from(target);
        }
        Ok(project)
    }

    /// The root of the clone.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the userspace binaries are built, and what xtask keeps is kept.
    pub(crate) fn target(&self) -> &Path {
        &self.target
    }

    /// A binary of the workspace.
    pub(crate) fn binary(&self, name: &str, release: bool) -> PathBuf {
        self.target
            .join(if release { "release" } else { "debug" })
            .join(name)
    }

    /// The Python of one of the virtual environments below target/.
    pub(crate) fn python(&self, environment: &str) -> PathBuf {
        self.target.join(environment).join("bin/python")
    }

    /// The workspace of the BPF programs.
    pub(crate) fn ebpf(&self) -> PathBuf {
        self.root.join("mesh-ebpf")
    }

    /// A cargo in the project's workspace, without the variables that the cargo which started xtask set for xtask alone.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            if is_of_running_package(&name) {
                command.env_remove(name);
            }
        }
        command
    }

    /// A cargo for another workspace and another compiler: nothing of this one's settings may reach it.
    pub(crate) fn foreign_cargo(&self) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root);
        for (name, _) in std::env::vars_os() {
            if is_of_this_workspace(&name) {
                command.env_remove(name);
            }
        }
        command
    }

    /// `cargo metadata` with these arguments.
    pub(crate) fn metadata(&self, arguments: &[&str]) -> Result<Value> {
        let text = run::output(
            self.cargo()
                .args(["metadata", "--format-version", "1"])
                .args(arguments),
        )?;
        serde_json::from_str(&text).context("cargo metadata printed something that is not JSON")
    }
}

fn is_of_running_package(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
        || name == "CARGO_PRIMARY_PACKAGE"
        || name == "OUT_DIR"
}

fn is_of_this_workspace(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let kept = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "CARGO_BUILD_JOBS",
    ]
    .iter()
    .any(|prefix| name.starts_with(prefix));
    let cargos = name == "CARGO" || name.starts_with("CARGO_");
    let compilers = name.starts_with("RUSTC") || name.starts_with("RUSTDOC") || name == "RUSTFLAGS";
    let rustups = name == "RUSTUP_TOOLCHAIN" || name == "RUST_RECURSION_COUNT" || name == "LD_LIBRARY_PATH";
    (cargos && !kept) || compilers || rustups || name == "OUT_DIR"
}

#[cfg(test)]
mod tests {
    use super::{is_of_running_package, is_of_this_workspace};

    #[test]
    fn the_other_workspace_sees_the_registries_settings_but_not_our_flags() {
        for kept in [
            "CARGO_HOME",
            "CARGO_NET_OFFLINE",
            "CARGO_HTTP_PROXY",
            "CARGO_REGISTRIES_X_TOKEN",
            "PATH",
            "HOME",
        ] {
            assert!(!is_of_this_workspace(kept.as_ref()), "{kept}");
        }
        for dropped in [
            "CARGO_TARGET_DIR",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTUP_TOOLCHAIN",
        ] {
            assert!(is_of_this_workspace(dropped.as_ref()), "{dropped}");
        }
    }

    #[test]
    fn the_same_workspace_keeps_its_flags() {
        assert!(!is_of_running_package("RUSTFLAGS".as_ref()));
        assert!(!is_of_running_package("CARGO_TARGET_DIR".as_ref()));
        assert!(is_of_running_package("CARGO_PKG_NAME".as_ref()));
    }
}
