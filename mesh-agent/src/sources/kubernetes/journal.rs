//! The documents of one kind, kept on disk for a start while the API server is away: a file of lines, each an object that came or went.
//! Written through: one change is one line, however many objects there are. Nothing is read while the agent runs but to shorten it.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_core::model::ObjectRef;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Changes with another meaning of the lines.
const FORMAT: u32 = 1;
/// Lines that say nothing any more are left until there are this many, and more than those that do.
const GARBAGE: usize = 4096;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    kind: String,
}

/// Any other line, to write.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Line<'a> {
    Put(&'a Value),
    Delete(&'a ObjectRef),
}

/// A line with a document, to read.
#[derive(Deserialize)]
struct Put {
    put: Value,
}

/// A line of which only the name counts.
#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Name {
    Put(Named),
    Delete(ObjectRef),
}

#[derive(Deserialize)]
struct Named {
    metadata: Meta,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    namespace: String,
    name: String,
}

/// The file of one kind.
#[derive(Debug)]
pub(super) struct Journal {
    kind: &'static str,
    path: PathBuf,
    /// Open to append; `None` before the first full list, and after a failure.
    file: Option<File>,
    lines: usize,
    /// That it cannot be written has been told.
    told: bool,
}

/// A new file that is being written, to take the place of the old one.
#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
    file: BufWriter<File>,
    lines: usize,
}

impl Journal {
    /// The file of `kind` below `dir`. Nothing is read or written.
    pub(super) fn new(dir: &Path, kind: &'static str) -> Self {
        Self {
            kind,
            path: dir.join(format!("{}.jsonl", kind.to_ascii_lowercase())),
            file: None,
            lines: 0,
            told: false,
        }
    }

    /// Gives each document that the file holds at its end to `each`. `false` when there is no such file, or it is not whole: of a file
    /// with a hole nobody can say what is missing.
    pub(super) fn read(&self, mut each: impl FnMut(Value)) -> bool {
        match self.documents(|_| true, |value, _| each(value)) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => {
                tracing::warn!(
                    target: "mesh_agent::kubernetes",
                    path = %self.path.display(), %error, "what an earlier run kept cannot be used"
                );
                false
            }
        }
    }

    /// How long ago the file was written to.
    pub(super) fn age(&self) -> Duration {
        let written = fs::metadata(&self.path).and_then(|meta| meta.modified());
        let age = written
            .ok()
            .and_then(|at| SystemTime::now().duration_since(at).ok());
        age.unwrap_or_default()
    }

    /// The last document of each object that `wanted` names, with its line.
    fn documents(
        &self,
        wanted: impl Fn(&ObjectRef) -> bool,
        mut each: impl FnMut(Value, &str),
    ) -> io::Result<()> {
        let mut last: HashMap<ObjectRef, usize> = HashMap::new();
        self.lines(|number, line| {
            match serde_json::from_str(line)? {
                Name::Put(Named { metadata }) => {
                    let name = ObjectRef::new(self.kind, &metadata.namespace, &metadata.name);
                    if wanted(&name) {
                        last.insert(name, number);
                    }
                }
                Name::Delete(name) => drop(last.remove(&name)),
            }
            Ok(())
        })?;
        let last: HashSet<usize> = last.into_values().collect();
        self.lines(|number, line| {
            if last.contains(&number) {
                let Put { put } = serde_json::from_str(line)?;
                each(put, line);
            }
            Ok(())
        })
    }

    /// Every whole line after the first. A last line without its end was being written when the machine stopped.
    fn lines(&self, mut each: impl FnMut(usize, &str) -> io::Result<()>) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(1 << 16, File::open(&self.path)?);
        let mut line = String::new();
        for number in 0.. {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return if number == 0 {
                    Err(io::ErrorKind::InvalidData.into())
                } else {
                    Ok(())
                };
            }
            if number == 0 {
                let head: Head = serde_json::from_str(&line)?;
                if head.format != FORMAT || head.kind != self.kind {
                    return Err(io::ErrorKind::InvalidData.into());
                }
            } else if line.ends_with('\n') {
                each(number, &line)?;
            }
        }
        Ok(())
    }

    /// A new file, empty; `None` when it cannot be written, which is told.
    pub(super) fn draft(&mut self) -> Option<Draft> {
        match Draft::create(&self.path, self.kind) {
            Ok(draft) => Some(draft),
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    /// Puts the draft in place of the file. Of the objects in `keep` the old file's last documents are taken over.
    pub(super) fn commit(&mut self, mut draft: Draft, keep: &HashSet<Arc<ObjectRef>>) {
        if !keep.is_empty() {
            let mut copied = Ok(());
            let found = self.documents(
                |name| keep.contains(name),
                |_, line| {
                    if copied.is_ok() {
                        copied = draft.write(line.as_bytes());
                    }
                },
            );
            if let Err(error) = found.and(copied)
                && error.kind() != io::ErrorKind::NotFound
            {
                return self.fail(&error);
            }
        }
        match draft.finish(&self.path) {
            Ok((file, lines)) => {
                self.file = Some(file);
                self.lines = lines;
                self.told = false;
            }
            Err(error) => self.fail(&error),
        }
    }

    /// This is the document of an object now.
    pub(super) fn put(&mut self, document: &Value) {
        self.append(&Line::Put(document));
    }

    /// An object is gone.
    pub(super) fn delete(&mut self, name: &ObjectRef) {
        self.append(&Line::Delete(name));
    }

    fn append(&mut self, line: &Line<'_>) {
        let Some(file) = &mut self.file else { return };
        let written = serde_json::to_vec(line)
            .map_err(io::Error::from)
            .and_then(|mut bytes| {
                bytes.push(b'\n');
                file.write_all(&bytes)
            });
        match written {
            Ok(()) => self.lines += 1,
            Err(error) => self.fail(&error),
        }
    }

    /// Leaves out what says nothing any more, once there is more of that than of the rest.
    pub(super) fn shorten(&mut self, live: usize) {
        if self.file.is_none() || self.lines < 2 * live + GARBAGE {
            return;
        }
        let Some(mut draft) = self.draft() else { return };
        let mut copied = Ok(());
        let read = self.documents(
            |_| true,
            |_, line| {
                if copied.is_ok() {
                    copied = draft.write(line.as_bytes());
                }
            },
        );
        match read.and(copied) {
            Ok(()) => self.commit(draft, &HashSet::new()),
            Err(error) => self.fail(&error),
        }
    }

    /// Nothing is kept: a list could not be written.
    pub(super) fn forget(&mut self) {
        if self.file.take().is_some() || !self.told {
            self.fail(&io::Error::other("a full list could not be written"));
        }
    }

    /// A file that misses a change must not be believed later: it goes, until the next full list.
    fn fail(&mut self, error: &io::Error) {
        self.file = None;
        drop(fs::remove_file(&self.path));
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                target: "mesh_agent::kubernetes",
                path = %self.path.display(), %error,
                "what the API server says is not kept for the next start: is --state-dir writable, and is there room?"
            );
        }
    }
}

impl Draft {
    fn create(target: &Path, kind: &str) -> io::Result<Self> {
        if let Some(dir) = target.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        let path = target.with_extension("new");
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)?;
        let mut draft = Self {
            path,
            file: BufWriter::with_capacity(1 << 16, file),
            lines: 0,
        };
        let head = Head {
            format: FORMAT,
            kind: kind.to_owned(),
        };
        serde_json::to_writer(&mut draft.file, &head)?;
        draft.file.write_all(b"\n")?;
        Ok(draft)
    }

    /// Adds a document.
    pub(super) fn put(&mut self, document: &Value) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(&Line::Put(document))?;
        bytes.push(b'\n');
        self.write(&bytes)
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.lines += 1;
        self.file.write_all(line)
    }

    fn finish(self, target: &Path) -> io::Result<(File, usize)> {
        let file = self.file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_data()?;
        fs::rename(&self.path, target)?;
        Ok((file, self.lines))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    fn document(name: &str, app: &str) -> Value {
        json!({"kind": "Pod", "metadata": {"namespace": "shop", "name": name, "labels": {"app": app}}})
    }

    fn kept(dir: &Path) -> Option<Vec<String>> {
        let mut found = Vec::new();
        let whole = Journal::new(dir, "Pod").read(|value| {
            let meta = &value["metadata"];
            found.push(format!("{} {}", meta["name"], meta["labels"]["app"]).replace('"', ""));
        });
        found.sort();
        whole.then_some(found)
    }

    fn started(dir: &Path) -> Journal {
        let mut journal = Journal::new(dir, "Pod");
        let mut draft = journal.draft().unwrap();
        draft.put(&document("a", "1")).unwrap();
        draft.put(&document("b", "1")).unwrap();
        journal.commit(draft, &HashSet::new());
        journal
    }

    #[test]
    fn what_was_written_last_is_what_is_read() {
        let dir = TempDir::new().unwrap();
        assert_eq!(kept(dir.path()), None);
        let mut journal = started(dir.path());
        journal.put(&document("a", "2"));
        journal.put(&document("c", "1"));
        journal.delete(&ObjectRef::new("Pod", "shop", "b"));
        assert_eq!(kept(dir.path()).unwrap(), ["a 2", "c 1"]);
        let draft = journal.draft().unwrap();
        journal.commit(draft, &HashSet::new());
        assert_eq!(kept(dir.path()), Some(Vec::new()));
    }

    #[test]
    fn an_old_document_can_be_kept_over_a_new_list() {
        let dir = TempDir::new().unwrap();
        let mut journal = started(dir.path());
        journal.put(&document("b", "2"));
        let mut draft = journal.draft().unwrap();
        draft.put(&document("c", "1")).unwrap();
        journal.commit(
            draft,
            &HashSet::from([Arc::new(ObjectRef::new("Pod", "shop", "b"))]),
        );
        assert_eq!(kept(dir.path()).unwrap(), ["b 2", "c 1"]);
    }

    #[test]
    fn a_torn_end_costs_its_line_and_a_hole_everything() {
        let dir = TempDir::new().unwrap();
        let mut journal = started(dir.path());
        journal.put(&document("c", "1"));
        let path = dir.path().join("pod.jsonl");
        let whole = fs::read_to_string(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 5]).unwrap();
        assert_eq!(kept(dir.path()).unwrap(), ["a 1", "b 1"]);
        fs::write(&path, whole.replacen("\"put\"", "\"p", 1)).unwrap();
        assert_eq!(kept(dir.path()), None);
        fs::write(&path, whole.replace("\"format\":1", "\"format\":9")).unwrap();
        assert_eq!(kept(dir.path()), None);
        fs::write(&path, "").unwrap();
        assert_eq!(kept(dir.path()), None);
    }

    #[test]
    fn a_file_does_not_grow_with_the_changes() {
        let dir = TempDir::new().unwrap();
        let mut journal = started(dir.path());
        for i in 0..3 * GARBAGE {
            journal.put(&document("a", &i.to_string()));
            journal.shorten(2);
        }
        assert!(journal.lines < 2 * GARBAGE, "{}", journal.lines);
        let last = format!("a {}", 3 * GARBAGE - 1);
        assert_eq!(kept(dir.path()).unwrap(), [last, "b 1".to_owned()]);
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::metadata(dir.path().join("pod.jsonl"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
