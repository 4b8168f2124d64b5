//! Tar archives whose bytes follow from what is put in, and from nothing else: one owner, one time, the order in which it is put in.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// An archive that is being made.
pub(crate) struct Archive {
    builder: Builder<Vec<u8>>,
    /// The time that everything in it bears, in seconds since 1970.
    time: u64,
    directories: BTreeSet<PathBuf>,
}

impl Archive {
    /// An empty one, in which everything will be of `time` (seconds since 1970).
    pub(crate) fn new(time: u64) -> Self {
        Self {
            builder: Builder::new(Vec::new()),
            time,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a file, after the directories above it that are not there yet.
    pub(crate) fn file(&mut self, path: impl AsRef<Path>, mode: u32, content: &[u8]) -> Result<()> {
        let path = path.as_ref();
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        for directory in above.into_iter().rev() {
            self.directory(directory)?;
        }
        let mut header = self.header(EntryType::Regular, mode);
        header.set_size(content.len() as u64);
        self.builder
            .append_data(&mut header, path, content)
            .with_context(|| format!("cannot put {} into an archive", path.display()))
    }

    /// Adds a directory, unless it is there.
    pub(crate) fn directory(&mut self, path: &Path) -> Result<()> {
        if path.as_os_str().is_empty() || !self.directories.insert(path.to_owned()) {
            return Ok(());
        }
        let mut header = self.header(EntryType::Directory, 0o755);
        self.builder
            .append_data(&mut header, path, std::io::empty())
            .with_context(|| format!("cannot put {} into an archive", path.display()))
    }

    fn header(&self, kind: EntryType, mode: u32) -> Header {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(self.time);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header
    }

    /// Its bytes.
    pub(crate) fn finish(self) -> Result<Vec<u8>> {
        self.builder.into_inner().context("cannot finish an archive")
    }
}

/// `content` as gzip, without name and time.
pub(crate) fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut writer = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    writer.write_all(content)?;
    Ok(writer.finish()?)
}

/// SHA-256 of `content`, in hexadecimal digits.
pub(crate) fn digest(content: &[u8]) -> String {
    Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive() -> Vec<u8> {
        let mut archive = Archive::new(1_700_000_000);
        archive.file("usr/bin/one", 0o755, b"first").unwrap();
        archive.file("usr/bin/two", 0o644, b"second").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn the_same_content_is_the_same_archive_with_every_directory_once() {
        assert_eq!(archive(), archive());
        let bytes = archive();
        let mut read = tar::Archive::new(bytes.as_slice());
        let entries: Vec<_> = read
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let header = entry.header();
                assert_eq!(
                    (header.uid().unwrap(), header.mtime().unwrap()),
                    (0, 1_700_000_000)
                );
                (
                    entry.path().unwrap().display().to_string(),
                    header.mode().unwrap(),
                    entry.size(),
                )
            })
            .collect();
        assert_eq!(
            entries,
            [
                ("usr".to_owned(), 0o755, 0),
                ("usr/bin".to_owned(), 0o755, 0),
                ("usr/bin/one".to_owned(), 0o755, 5),
                ("usr/bin/two".to_owned(), 0o644, 6),
            ]
        );
    }

    #[test]
    fn what_is_compressed_twice_is_the_same_both_times() {
        let once = gzip(&archive()).unwrap();
        assert_eq!(once, gzip(&archive()).unwrap());
        let mut back = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(once.as_slice()), &mut back).unwrap();
        assert_eq!(back, archive());
    }
}
