//! The agent's table of namespaces for its plugin: what is part of the mesh, on disk, for when neither agent nor API server can be asked.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use mesh_core::snapshot::NamespaceStanding;
use serde::{Deserialize, Serialize};

/// What is known of each namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Table {
    pub(super) namespaces: BTreeMap<String, NamespaceStanding>,
    /// Label `istio.io/dataplane-mode` is left to Istio on this node.
    #[serde(default)]
    pub(super) istio_label_left: bool,
}

impl Table {
    /// The one at `path`.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    /// Puts it there.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        write_whole(path, &serde_json::to_vec(self)?, 0o644)
    }
}

/// Writes a file that is there whole, or as before: under another name in the same directory first, which no container runtime takes for a
/// network configuration.
pub(super) fn write_whole(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".mesh-agent-new");
    // One that was left behind may have another mode.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_table_is_read_as_it_was_written_and_a_broken_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.json");
        assert!(Table::read(&path).is_err());
        let standing = NamespaceStanding {
            enrolled: true,
            mixed: false,
        };
        let table = Table {
            namespaces: [("shop".to_owned(), standing)].into(),
            istio_label_left: true,
        };
        table.write(&path).unwrap();
        assert_eq!(Table::read(&path).unwrap(), table);
        fs::write(&path, "{\"namespaces\":").unwrap();
        assert!(Table::read(&path).is_err());
    }

    #[test]
    fn a_file_has_its_mode_from_the_first_moment_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        fs::write(dir.path().join("kubeconfig.mesh-agent-new"), "left behind").unwrap();
        write_whole(&path, b"one", 0o600).unwrap();
        write_whole(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
