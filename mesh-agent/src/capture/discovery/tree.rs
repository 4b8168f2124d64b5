//! The kubelet's part of the cgroup2 tree: finds the cgroups of pods by uid. Remembers the directories that hold pods, so that a look costs a
//! few of these; walks the whole tree only for what is in none of them, and then no more of the time than a small share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::layout::{Level, PodKey, Step};

/// Levels that are followed: hosts of hosts nest, but not for ever.
const DEEPEST: usize = 24;
/// Directories that a walk looks at.
const MOST: usize = 50_000;
/// A walk may take one part in so many of the time: before a kubelet's tree was found, and after, when it has nearly always what is
/// looked for.
const SHARES: (u32, u32) = (50, 500);
/// The shortest time between two walks.
const SPACING: Duration = Duration::from_millis(200);

/// The cgroups found for each pod that was asked for: one, unless somebody imitates.
pub(super) type Places = BTreeMap<PodKey, Vec<PathBuf>>;

/// The tree below one directory.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    branches: Vec<(PathBuf, Level)>,
    next_walk: Option<Instant>,
    /// The last walk did not see everything.
    cut_short: bool,
}

impl Tree {
    /// The tree below `root`.
    pub(super) fn new(root: PathBuf) -> Self {
        Self {
            root,
            branches: Vec::new(),
            next_walk: None,
            cut_short: false,
        }
    }

    /// Where it begins.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Whether there is a kubelet's tree at all, as far as was seen.
    pub(super) fn is_empty(&self) -> bool {
        self.branches.is_empty()
    }

    /// Whether the last walk was given up before its end: the tree is too large.
    pub(super) fn was_cut_short(&self) -> bool {
        self.cut_short
    }

    /// Looks for the cgroups of these pods.
    ///
    /// # Errors
    /// When the root cannot be read. What goes away meanwhile is no error.
    pub(super) fn find(&mut self, wanted: &BTreeSet<PodKey>, now: Instant) -> io::Result<Places> {
        let mut places = Places::new();
        if wanted.is_empty() {
            return Ok(places);
        }
        for (path, level) in &self.branches {
            match list(path) {
                Ok(children) => take(path, level, children, wanted, &mut places),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let is_due = self.next_walk.is_none_or(|due| now >= due);
        if is_due && wanted.iter().any(|pod| !places.contains_key(pod)) {
            let began = Instant::now();
            places = self.walk(wanted)?;
            let share = if self.is_empty() { SHARES.0 } else { SHARES.1 };
            self.next_walk = Some(now + (began.elapsed() * share).max(SPACING));
        }
        Ok(places)
    }

    /// Breadth first, so that what is deep and plentiful hides nothing that is above it. Never below a pod.
    fn walk(&mut self, wanted: &BTreeSet<PodKey>) -> io::Result<Places> {
        let mut places = Places::new();
        let mut branches = Vec::new();
        let mut seen = 0;
        let mut waiting = VecDeque::from([(self.root.clone(), Level::Outside, 0)]);
        self.cut_short = false;
        while let Some((path, level, depth)) = waiting.pop_front() {
            seen += 1;
            if seen > MOST {
                self.cut_short = true;
                break;
            }
            let children = match list(&path) {
                Ok(children) => children,
                Err(error) if depth == 0 => return Err(error),
                Err(_) => continue,
            };
            if depth < DEEPEST {
                for name in &children {
                    if let Step::Level(next) = level.enter(name) {
                        waiting.push_back((path.join(name), next, depth + 1));
                    }
                }
            }
            if level.holds_pods() {
                take(&path, &level, children, wanted, &mut places);
                branches.push((path, level));
            }
        }
        self.branches = branches;
        Ok(places)
    }
}

fn take(
    path: &Path,
    level: &Level,
    children: Vec<std::ffi::OsString>,
    wanted: &BTreeSet<PodKey>,
    places: &mut Places,
) {
    for name in children {
        if let Step::Pod(pod) = level.enter(&name)
            && wanted.contains(&pod)
        {
            places.entry(pod).or_default().push(path.join(name));
        }
    }
}

/// The names of the directories in `path`.
pub(super) fn list(path: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.push(entry.file_name());
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "6d5e6f1c-0d2d-4e55-a5d4-0f3a8f2f0c11";
    const B: &str = "7d5e6f1c-0d2d-4e55-a5d4-0f3a8f2f0c12";

    fn keys(uids: &[&str]) -> BTreeSet<PodKey> {
        uids.iter().filter_map(|uid| PodKey::of(uid)).collect()
    }

    fn make(root: &Path, cgroup: &str) -> PathBuf {
        let path = root.join(cgroup);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn pods_are_found_wherever_the_kubelets_tree_hangs_and_new_ones_without_a_walk() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = Tree::new(root.path().to_owned());
        let now = Instant::now();
        assert!(tree.find(&keys(&[A]), now).unwrap().is_empty());
        assert!(tree.is_empty());
        let a = make(root.path(), &format!("node-a/kubepods/burstable/pod{A}"));
        make(
            root.path(),
            &format!("node-a/kubepods/besteffort/pod{B}/kubepods/pod{A}"),
        );
        // Not before the next walk is due, and then at once.
        assert!(tree.find(&keys(&[A]), now).unwrap().is_empty());
        let found = tree.find(&keys(&[A]), now + Duration::from_secs(60)).unwrap();
        assert_eq!(found.values().flatten().collect::<Vec<_>>(), [&a]);
        let b = make(root.path(), "node-a/kubepods/podnew");
        let found = tree.find(&keys(&["new"]), now).unwrap();
        assert_eq!(found.values().flatten().collect::<Vec<_>>(), [&b]);
    }

    #[test]
    fn two_cgroups_of_one_uid_are_both_told() {
        let root = tempfile::tempdir().unwrap();
        make(root.path(), &format!("kubepods/pod{A}"));
        make(
            root.path(),
            &format!("system.slice/docker-1.scope/kubepods/pod{A}"),
        );
        let mut tree = Tree::new(root.path().to_owned());
        let found = tree.find(&keys(&[A]), Instant::now()).unwrap();
        assert_eq!(found.values().map(Vec::len).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_tree_that_is_not_there_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let mut tree = Tree::new(root.path().join("none"));
        assert!(tree.find(&keys(&[A]), Instant::now()).is_err());
    }
}
