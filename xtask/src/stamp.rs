//! Remembers what a step was made from, so that it is done again only when that changed.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// What a step is made from: files by content, and words such as versions and flags.
#[derive(Default)]
pub(crate) struct Inputs {
    hasher: DefaultHasher,
}

impl Inputs {
    /// Adds a word.
    pub(crate) fn word(mut self, word: &str) -> Self {
        word.hash(&mut self.hasher);
        self
    }

    /// Adds a file, or every file below a directory, by path and content. What does not exist adds its absence.
    pub(crate) fn path(mut self, path: &Path) -> Result<Self> {
        let mut files = Vec::new();
        files_below(path, &mut files)?;
        files.sort();
        files.len().hash(&mut self.hasher);
        for file in files {
            file.hash(&mut self.hasher);
            let content = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            content.hash(&mut self.hasher);
        }
        Ok(self)
    }

    /// The stamp to compare and to write.
    pub(crate) fn stamp(self) -> String {
        format!("{:016x}\n", self.hasher.finish())
    }
}

/// Every file at or below `path`.
pub(crate) fn files_below(path: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_dir() {
        for entry in std::fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
            files_below(&entry?.path(), into)?;
        }
    } else if path.is_file() {
        into.push(path.to_owned());
    }
    Ok(())
}

/// Whether `file` holds `stamp`.
pub(crate) fn is_current(file: &Path, stamp: &str) -> bool {
    std::fs::read_to_string(file).is_ok_and(|found| found == stamp)
}

#[cfg(test)]
mod tests {
    use super::Inputs;

    #[test]
    fn a_stamp_changes_with_content_and_stays_with_time() {
        let directory = std::env::temp_dir().join(format!("xtask-stamp-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("deep")).unwrap();
        let file = directory.join("deep/file");
        let stamp = || Inputs::default().path(&directory).unwrap().word("x").stamp();
        std::fs::write(&file, "one").unwrap();
        let first = stamp();
        std::fs::write(&file, "one").unwrap();
        assert_eq!(first, stamp());
        std::fs::write(&file, "two").unwrap();
        assert_ne!(first, stamp());
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
