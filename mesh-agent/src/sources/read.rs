//! Reads files of documents once, for whoever looks at them without an agent. What counts as one is as for a directory that is watched.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::scan::{self, DEPTH, MAX_SIZE};

/// Why something cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// A file or a directory.
    #[error("cannot read {path}: {error}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// More than is read of a file.
    #[error("{path} has more than {MAX_SIZE} bytes: is it a document?")]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// Nothing that could be looked at.
    #[error("there is no file *.yaml, *.yml or *.json in or below {path}")]
    Nothing {
        /// Where.
        path: PathBuf,
    },
}

/// A file as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its path as it was given or found; `-` is standard input.
    pub name: String,
    /// Its content.
    pub bytes: Vec<u8>,
}

/// The files that `paths` name: a file, a directory with what is in and below it, or `-` for `input`. Each once, in their order.
///
/// # Errors
/// When one cannot be read, is too large, or is a directory without documents.
pub fn read_documents(paths: &[PathBuf], mut input: impl Read) -> Result<Vec<Document>, ReadError> {
    let mut seen = BTreeSet::new();
    let mut documents = Vec::new();
    for path in paths {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| ReadError::Io { path, error }
        };
        if path.as_os_str() == "-" {
            if seen.insert(path.clone()) {
                documents.push(limited(path, &mut input)?);
            }
            continue;
        }
        let mut found = Vec::new();
        if std::fs::metadata(path).map_err(io(path))?.is_dir() {
            scan::list(path, DEPTH, &mut found).map_err(io(path))?;
            if found.is_empty() {
                return Err(ReadError::Nothing { path: path.clone() });
            }
        } else {
            found.push(path.clone());
        }
        for file in found {
            if seen.insert(file.clone()) {
                let opened = std::fs::File::open(&file).map_err(io(&file))?;
                documents.push(limited(&file, opened)?);
            }
        }
    }
    Ok(documents)
}

fn limited(path: &Path, from: impl Read) -> Result<Document, ReadError> {
    let mut bytes = Vec::new();
    from.take(MAX_SIZE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| ReadError::Io {
            path: path.to_owned(),
            error,
        })?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(ReadError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(Document {
        name: path.to_string_lossy().into_owned(),
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_directories_and_standard_input_are_read_once_each() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("sub")).unwrap();
        for name in ["a.yaml", "sub/b.json", ".hidden.yaml", "readme.md"] {
            std::fs::write(at(name), name).unwrap();
        }
        let paths = [
            at("readme.md"),
            dir.path().to_owned(),
            at("a.yaml"),
            "-".into(),
            "-".into(),
        ];
        let read = read_documents(&paths, &b"piped"[..]).unwrap();
        let bytes: Vec<_> = read
            .iter()
            .map(|one| String::from_utf8_lossy(&one.bytes).into_owned())
            .collect();
        assert_eq!(bytes, ["readme.md", "a.yaml", "sub/b.json", "piped"]);
        assert_eq!(read[3].name, "-");
    }

    #[test]
    fn what_is_not_there_or_empty_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: PathBuf| read_documents(&[path], io::empty()).unwrap_err().to_string();
        assert!(error(dir.path().join("x")).contains("/x: "));
        assert!(error(dir.path().to_owned()).starts_with("there is no file *.yaml"));
    }
}
