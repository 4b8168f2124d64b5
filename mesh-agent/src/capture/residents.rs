//! Which processes live in a network namespace, and in which cgroups. Reads `/proc` only.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::cgroup::Cgroup2;

/// The processes of a network namespace, as far as the agent sees them (it runs in the host's pid namespace, or sees none).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Residents {
    /// How many are in the cgroup or below it.
    pub(super) inside: usize,
    /// One that is not, with its cgroup.
    pub(super) outside: Option<(u32, PathBuf)>,
}

impl Residents {
    /// Of the namespace with inode `netns`, by the cgroup `home`.
    pub(super) fn of(proc_root: &Path, netns: u64, home: &Path, cgroup2: &Cgroup2) -> std::io::Result<Self> {
        let mut found = Self::default();
        for entry in std::fs::read_dir(proc_root)? {
            let Ok(entry) = entry else { continue };
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
            else {
                continue;
            };
            // Processes end while we look, and some may not be looked at.
            let lives_there =
                std::fs::metadata(entry.path().join("ns/net")).is_ok_and(|meta| meta.ino() == netns);
            if !lives_there {
                continue;
            }
            let Ok(text) = std::fs::read_to_string(entry.path().join("cgroup")) else {
                continue;
            };
            match cgroup2.place_of(&text) {
                Some(place) if place.starts_with(home) => found.inside += 1,
                place => {
                    let place = place.unwrap_or_else(|| "outside the cgroup2 mount".into());
                    found.outside.get_or_insert((pid, place));
                }
            }
        }
        Ok(found)
    }

    /// The process by which capture would be a pretence: the pod's processes are all elsewhere. (One that was sent into the namespace
    /// from the host, to look around, is no reason.)
    pub(super) fn stray(self) -> Option<(u32, PathBuf)> {
        self.outside.filter(|_| self.inside == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_astray_when_none_of_its_processes_is_at_home() {
        let outside = Some((7, PathBuf::from("/x")));
        let of = |inside, outside| Residents { inside, outside };
        assert_eq!(of(0, None).stray(), None);
        assert_eq!(of(2, outside.clone()).stray(), None);
        assert_eq!(of(0, outside.clone()).stray(), outside);
    }
}
