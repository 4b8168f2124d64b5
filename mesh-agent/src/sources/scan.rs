//! Reads a directory of documents, again and again, and only what changed since. Knows nothing of documents.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::ledger::Outcome;

/// Subdirectories within subdirectories that are followed.
pub(super) const DEPTH: usize = 8;
/// Largest file that is read, in bytes.
pub(super) const MAX_SIZE: u64 = 64 << 20;
/// A file that was touched this shortly before it was read is read again: its stamp may not show a later change.
const RACY: Duration = Duration::from_secs(2);
/// How long a file that is suddenly empty is taken for one that is being written.
const EMPTY_GRACE: Duration = Duration::from_millis(600);
/// How often a file that changes while it is read is tried again at once.
const ATTEMPTS: usize = 3;

/// What tells one state of a file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

#[derive(Clone, Debug)]
struct Known {
    stamp: Option<Stamp>,
    /// Read long enough after its last change for the stamp to be trusted.
    settled: bool,
    outcome: Arc<Outcome>,
}

/// The files of a directory as last read.
#[derive(Debug)]
pub(super) struct Directory {
    root: PathBuf,
    known: BTreeMap<Arc<str>, Known>,
}

/// What a look at the directory showed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Something is different from last time.
    pub(super) changed: bool,
    /// A file was being written: look again soon.
    pub(super) unfinished: bool,
}

impl Directory {
    /// A directory that nobody looked at yet.
    pub(super) fn new(root: PathBuf) -> Self {
        Self {
            root,
            known: BTreeMap::new(),
        }
    }

    /// What each file gave when it was last read, by path.
    pub(super) fn outcomes(&self) -> BTreeMap<Arc<str>, Arc<Outcome>> {
        self.known
            .iter()
            .map(|(path, known)| (path.clone(), known.outcome.clone()))
            .collect()
    }

    /// Looks at all files and reads those that may have changed. `now` is the time by the clock that stamps files.
    ///
    /// # Errors
    /// When the directory itself cannot be listed; then nothing is different from before.
    pub(super) fn look(&mut self, now: SystemTime) -> io::Result<Look> {
        let mut paths = Vec::new();
        list(&self.root, DEPTH, &mut paths)?;
        let mut look = Look::default();
        let mut next = BTreeMap::new();
        for path in paths {
            let name: Arc<str> = path.to_string_lossy().into();
            let before = self.known.get(&name);
            match read(&path, &name, before, now) {
                Found::Gone => {}
                Found::Unfinished => {
                    look.unfinished = true;
                    if let Some(before) = before {
                        next.insert(name, before.clone());
                    }
                }
                Found::Known(known) => {
                    look.changed |= before.is_none_or(|before| before.outcome != known.outcome);
                    next.insert(name, known);
                }
            }
        }
        look.changed |= self.known.keys().any(|name| !next.contains_key(name));
        self.known = next;
        Ok(look)
    }
}

enum Found {
    Gone,
    Unfinished,
    Known(Known),
}

fn read(path: &Path, name: &Arc<str>, before: Option<&Known>, now: SystemTime) -> Found {
    for _ in 0..ATTEMPTS {
        let meta = match fs::metadata(path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_link(path) => return Found::Gone,
            Err(error) => return unreadable(None, &error.to_string()),
        };
        let stamp = Stamp::of(&meta);
        if let Some(before) = before
            && before.settled
            && before.stamp.as_ref() == Some(&stamp)
        {
            return Found::Known(before.clone());
        }
        if !meta.is_file() {
            return unreadable(Some(stamp), "it is no regular file");
        }
        if meta.size() > MAX_SIZE {
            return unreadable(
                Some(stamp),
                &format!("it has {} bytes, more than {MAX_SIZE}", meta.size()),
            );
        }
        let age = meta
            .modified()
            .ok()
            .and_then(|at| now.duration_since(at).ok())
            .unwrap_or_default();
        if meta.size() == 0 && age < EMPTY_GRACE && before.is_some_and(gives_objects) {
            return Found::Unfinished;
        }
        let bytes = match bytes(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Gone,
            Err(error) => return unreadable(None, &error.to_string()),
        };
        // Written to while we read: what we have may be torn.
        if fs::metadata(path).is_ok_and(|after| Stamp::of(&after) == stamp) {
            return Found::Known(Known {
                stamp: Some(stamp),
                settled: age > RACY,
                outcome: parse(name, &bytes, before),
            });
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Found::Unfinished
}

/// Parses, and keeps the old outcome when the new one is the same.
fn parse(name: &Arc<str>, bytes: &[u8], before: Option<&Known>) -> Arc<Outcome> {
    let outcome = Outcome::Read(mesh_core::manifest::parse(name, bytes));
    match before {
        Some(before) if *before.outcome == outcome => before.outcome.clone(),
        _ => Arc::new(outcome),
    }
}

fn gives_objects(known: &Known) -> bool {
    matches!(&*known.outcome, Outcome::Read(contents) if !contents.accepted.is_empty())
}

fn unreadable(stamp: Option<Stamp>, why: &str) -> Found {
    Found::Known(Known {
        stamp,
        settled: false,
        outcome: Arc::new(Outcome::Unreadable(why.to_owned())),
    })
}

fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink())
}

fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The documents' files in and below `directory`, sorted. Names that begin with a dot are not ours: editors' scratch files, and the
/// `..data` directories behind the links of a mounted ConfigMap.
pub(super) fn list(directory: &Path, depth: usize, found: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match depth.checked_sub(1) {
                Some(depth) => match list(&path, depth, found) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                },
                None => tracing::debug!(path = %path.display(), "too deep: not read"),
            }
        } else if path
            .extension()
            .is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json")
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(())
}
