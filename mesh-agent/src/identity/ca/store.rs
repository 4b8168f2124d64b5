//! The CA's directory: made and checked here, locked while it is read or filled, every file put in place whole.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use mesh_common::mutation::{self, Mechanism};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize as _, Zeroizing};

use super::CaError;

pub(super) const KEY: &str = "root.key";
pub(super) const CERTIFICATE: &str = "root.crt";
/// No file of ours is longer, in bytes.
const LONGEST_FILE: u64 = 64 * 1024;

/// The directory, locked against other agents until dropped.
pub(super) struct Store {
    dir: PathBuf,
    /// Holds the lock.
    lock: File,
}

impl Store {
    /// Makes the directory where it is missing, checks that it is ours alone, and waits for its lock.
    pub(super) fn open(dir: &Path) -> Result<Self, CaError> {
        let failed = |what| {
            move |source| CaError::Io {
                path: dir.to_owned(),
                what,
                source,
            }
        };
        match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed("make it")(error));
            }
            _ => {}
        }
        let handle = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(dir)
            .map_err(failed("open it"))?;
        let metadata = handle.metadata().map_err(failed("look at it"))?;
        check_private(dir, &metadata, "700")?;
        handle.lock().map_err(failed("lock it"))?;
        Ok(Self {
            dir: dir.to_owned(),
            lock: handle,
        })
    }

    pub(super) fn key_path(&self) -> PathBuf {
        self.dir.join(KEY)
    }

    pub(super) fn certificate_path(&self) -> PathBuf {
        self.dir.join(CERTIFICATE)
    }

    /// The root's key; `None` when there is no file.
    pub(super) fn read_key(&self) -> Result<Option<KeyPair>, CaError> {
        let path = self.key_path();
        let Some(file) = open(&path)? else { return Ok(None) };
        let metadata = file.metadata().map_err(io_error(&path, "look at it"))?;
        if !metadata.is_file() {
            return Err(damaged(&path, "it is not a regular file"));
        }
        check_private(&path, &metadata, "600")?;
        let key = parse_key(&read(&path, file)?);
        key.map(Some).map_err(|why| damaged(&path, why))
    }

    /// The root's certificate; `None` when there is no file.
    pub(super) fn read_certificate(&self) -> Result<Option<CertificateDer<'static>>, CaError> {
        let path = self.certificate_path();
        let Some(file) = open(&path)? else { return Ok(None) };
        let pem = read(&path, file)?;
        let certificate = parse_certificate(&pem);
        certificate.map(Some).map_err(|why| damaged(&path, why))
    }

    pub(super) fn write_key(&self, key: &KeyPair) -> Result<(), CaError> {
        let pem = Zeroizing::new(key.serialize_pem());
        self.write(KEY, pem.as_bytes(), 0o600)
    }

    pub(super) fn write_certificate(&self, certificate: &rcgen::Certificate) -> Result<(), CaError> {
        self.write(CERTIFICATE, certificate.pem().as_bytes(), 0o644)
    }

    /// Puts a file in place whole: a crash leaves either nothing or all of it.
    fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), CaError> {
        let path = self.dir.join(name);
        let draft = self.dir.join(format!(".{name}.new"));
        // One that a crash left; the lock is ours, so nobody writes it now.
        match std::fs::remove_file(&draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(&draft, "remove an old draft")(error));
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&draft)
            .map_err(io_error(&draft, "make it"))?;
        file.write_all(content).map_err(io_error(&draft, "write it"))?;
        file.sync_all().map_err(io_error(&draft, "write it to disk"))?;
        std::fs::rename(&draft, &path).map_err(io_error(&path, "put it in place"))?;
        self.lock
            .sync_all()
            .map_err(io_error(&self.dir, "write it to disk"))
    }
}

fn open(path: &Path) -> Result<Option<File>, CaError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error(path, "open it")(error)),
    }
}

/// A root's key from PEM, or what is wrong with it.
pub(super) fn parse_key(pem: &[u8]) -> Result<KeyPair, &'static str> {
    let mut der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| "it holds no PKCS#8 key in PEM")?;
    let key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256);
    der.zeroize();
    key.map_err(|_| "it holds no ECDSA P-256 key")
}

/// A root's certificate from PEM, or what is wrong with it.
pub(super) fn parse_certificate(pem: &[u8]) -> Result<CertificateDer<'static>, &'static str> {
    CertificateDer::from_pem_slice(pem).map_err(|_| "it holds no certificate in PEM")
}

/// All of a file that is not too long to be one of ours.
pub(super) fn read(path: &Path, file: File) -> Result<Zeroizing<Vec<u8>>, CaError> {
    // Of full size from the start: growing would leave copies behind.
    let mut content = Zeroizing::new(Vec::with_capacity(LONGEST_FILE as usize + 1));
    file.take(LONGEST_FILE + 1)
        .read_to_end(&mut content)
        .map_err(io_error(path, "read it"))?;
    if content.len() as u64 > LONGEST_FILE {
        return Err(damaged(path, "it is longer than 64 KiB"));
    }
    Ok(content)
}

/// Refuses what others than this user could read or change.
pub(super) fn check_private(path: &Path, metadata: &std::fs::Metadata, wanted: &str) -> Result<(), CaError> {
    let me = nix::unistd::geteuid().as_raw();
    let refuse = |why: String, remedy: String| {
        Err(CaError::Unsafe {
            path: path.to_owned(),
            why,
            remedy,
        })
    };
    if metadata.uid() != me {
        let why = format!("it belongs to user {}, not to {me}", metadata.uid());
        return refuse(why, format!("chown {me} {}", path.display()));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 && !mutation::is_off(Mechanism::KeyPermissions) {
        let why = format!("its mode {mode:04o} lets others in");
        return refuse(why, format!("chmod {wanted} {}", path.display()));
    }
    Ok(())
}

pub(super) fn io_error(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> CaError {
    move |source| CaError::Io {
        path: path.to_owned(),
        what,
        source,
    }
}

fn damaged(path: &Path, why: &str) -> CaError {
    CaError::Damaged {
        path: path.to_owned(),
        why: why.to_owned(),
    }
}
