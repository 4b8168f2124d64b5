//! The stream of bytes that both ends know, the names of errors, and the hard way to close.

use std::io;
use std::net::TcpStream;

pub(crate) use mesh_tests::stream::{check, send};

/// The name of an error as the tests compare it.
pub(crate) fn name(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionReset => "reset".to_owned(),
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timeout".to_owned(),
        io::ErrorKind::BrokenPipe => "pipe".to_owned(),
        io::ErrorKind::PermissionDenied => "denied".to_owned(),
        _ => error.to_string(),
    }
}

/// Closes with a reset instead of an orderly end.
pub(crate) fn reset(stream: TcpStream) -> io::Result<()> {
    socket2::SockRef::from(&stream).set_linger(Some(std::time::Duration::ZERO))?;
    drop(stream);
    Ok(())
}
