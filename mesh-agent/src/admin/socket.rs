//! The admin socket as a file: mode 0600 from its first moment, one agent per path, removed when the agent goes.
//!
//! Who owns a path is decided by a lock on `PATH.lock`, which the kernel drops with the process; so a socket left by a crash is replaced,
//! and one of a live agent never is.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};
use thiserror::Error;

/// Why the admin socket cannot be had.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A live agent has it.
    #[error("another agent{} owns the admin socket {path}: stop it, or choose another path with --admin-socket", pid_text(.pid))]
    Owned {
        /// The socket.
        path: PathBuf,
        /// The agent's process id, where it could be read.
        pid: Option<u32>,
    },
    /// Something else has the name.
    #[error("{0} exists and is not a socket: remove it, or choose another path with --admin-socket")]
    NotASocket(PathBuf),
    /// The path has no directory or no file name.
    #[error("{0} is not a path for a socket: expected an absolute path with a file name")]
    Path(PathBuf),
    /// The kernel refuses.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

fn pid_text(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// The listening socket with its path. Dropping it removes the file.
#[derive(Debug)]
pub struct AdminSocket {
    path: PathBuf,
    inode: u64,
    listener: std::os::unix::net::UnixListener,
    /// Held for its lock.
    _lock: File,
}

impl AdminSocket {
    /// Listens on `path`; makes its directory (0755) where it is missing.
    ///
    /// # Errors
    /// When another agent owns the path, something else has it, or the kernel refuses.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let (Some(directory), Some(_), true) = (path.parent(), path.file_name(), path.is_absolute()) else {
            return Err(SocketError::Path(path.to_owned()));
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .map_err(io_error("create the directory", directory))?;
        let lock = take_lock(path)?;
        if let Ok(metadata) = fs::symlink_metadata(path)
            && !metadata.file_type().is_socket()
        {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        let listener = private_listener(path)?;
        let inode = fs::symlink_metadata(path)
            .map_err(io_error("look at", path))?
            .ino();
        Ok(Self {
            path: path.to_owned(),
            inode,
            listener,
            _lock: lock,
        })
    }

    /// A listener for the runtime. The file goes with `self`, so keep it.
    ///
    /// # Errors
    /// When no runtime runs or descriptors have run out.
    pub fn listener(&self) -> Result<tokio::net::UnixListener, SocketError> {
        self.listener
            .try_clone()
            .and_then(tokio::net::UnixListener::from_std)
            .map_err(io_error("listen on", &self.path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for AdminSocket {
    fn drop(&mut self) {
        // The lock is ours, so only a person can have put another file there: leave that.
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// `PATH` with `suffix` behind it.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Takes the lock of `path` and writes our process id into it. The lock file stays when we go: removing it would let two agents hold
/// locks on two files of that name.
fn take_lock(path: &Path) -> Result<File, SocketError> {
    let lock_path = beside(path, ".lock");
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&lock_path)
        .map_err(io_error("open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            let _ = (&mut lock).take(16).read_to_string(&mut text);
            return Err(SocketError::Owned {
                path: path.to_owned(),
                pid: text.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(io_error("lock", &lock_path)(source)),
    }
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(io_error("write", &lock_path))?;
    Ok(lock)
}

/// A listening socket at `path` for its owner alone. Binds under another name, narrows the mode, listens, and only then takes the real
/// name: nobody can connect before. What had the name loses it.
///
/// # Errors
/// When the kernel refuses.
pub fn private_listener(path: &Path) -> Result<std::os::unix::net::UnixListener, SocketError> {
    let fresh = beside(path, ".new");
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error("remove", &fresh)(error));
        }
        _ => {}
    }
    let address =
        SockAddr::unix(&fresh).map_err(io_error("use as an address of at most 107 bytes", &fresh))?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)
        .map_err(io_error("make a socket for", path))?;
    socket.bind(&address).map_err(io_error("bind to", &fresh))?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o600))
        .and_then(|()| socket.listen(64))
        .and_then(|()| fs::rename(&fresh, path))
        .map_err(io_error("listen on", path))?;
    Ok(std::os::unix::net::UnixListener::from(
        std::os::fd::OwnedFd::from(socket),
    ))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_socket_is_for_its_owner_alone_and_goes_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/mesh-agent/admin.sock");
        let socket = AdminSocket::bind(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&beside(&path, ".lock")), 0o600);
        assert!(UnixStream::connect(&path).is_ok());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_second_agent_on_the_same_socket_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        let first = AdminSocket::bind(&path).unwrap();
        let error = AdminSocket::bind(&path).unwrap_err();
        assert!(
            matches!(&error, SocketError::Owned { pid: Some(pid), .. } if *pid == std::process::id()),
            "{error}"
        );
        assert!(UnixStream::connect(&path).is_ok(), "the first one still answers");
        drop(first);
        assert!(AdminSocket::bind(&path).is_ok());
    }

    #[test]
    fn a_socket_left_by_a_crash_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(UnixStream::connect(&path).is_err());
        let _socket = AdminSocket::bind(&path).unwrap();
        assert!(UnixStream::connect(&path).is_ok());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("admin.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            AdminSocket::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let link = dir.path().join("link.sock");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(
            AdminSocket::bind(&link),
            Err(SocketError::NotASocket(_))
        ));
    }

    #[test]
    fn bad_paths_are_named() {
        assert!(matches!(
            AdminSocket::bind(Path::new("admin.sock")),
            Err(SocketError::Path(_))
        ));
        assert!(matches!(
            AdminSocket::bind(Path::new("/")),
            Err(SocketError::Path(_))
        ));
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(200));
        let error = AdminSocket::bind(&long).unwrap_err().to_string();
        assert!(error.contains("at most 107 bytes"), "{error}");
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(
            AdminSocket::bind(&file.join("admin.sock")),
            Err(SocketError::Io { .. })
        ));
    }
}
