//! A root that the operator gives to all agents of a mesh, as a Secret's volume or as files.

use std::fs::File;
use std::io;
use std::path::Path;

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;

use super::CaError;
use super::store::{CERTIFICATE, KEY, check_private, io_error, parse_certificate, parse_key, read};

/// Reads key and certificate. A Secret's volume holds symbolic links, which it exchanges, in a directory that anybody may read: what counts
/// is the mode of the key's file.
pub(super) fn read_root(dir: &Path) -> Result<(KeyPair, CertificateDer<'static>), CaError> {
    let path = dir.join(KEY);
    let file = open(&path)?;
    let metadata = file.metadata().map_err(io_error(&path, "look at it"))?;
    if !metadata.is_file() {
        return Err(unfit(&path, "it is not a regular file"));
    }
    check_private(&path, &metadata, "400")?;
    let key = parse_key(&read(&path, file)?).map_err(|why| unfit(&path, why))?;
    let path = dir.join(CERTIFICATE);
    let file = open(&path)?;
    let root = parse_certificate(&read(&path, file)?).map_err(|why| unfit(&path, why))?;
    Ok((key, root))
}

fn open(path: &Path) -> Result<File, CaError> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unfit(path, "there is no such file"),
        _ => io_error(path, "open it")(error),
    })
}

fn unfit(path: &Path, why: &str) -> CaError {
    CaError::Given {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}
