//! A stream of bytes that both ends can make and check without keeping it: xorshift64*, and an FNV-1a checksum over it.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Bytes that look random and are the same for the same seed.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    state: u64,
    word: [u8; 8],
    at: usize,
}

impl Stream {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            state: seed | 1,
            word: [0; 8],
            at: 8,
        }
    }

    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        for byte in buffer {
            if self.at == 8 {
                self.state ^= self.state >> 12;
                self.state ^= self.state << 25;
                self.state ^= self.state >> 27;
                self.word = self.state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
                self.at = 0;
            }
            *byte = self.word[self.at];
            self.at += 1;
        }
    }
}

/// Sends `total` bytes of the stream `seed`, then ends the sending side.
pub(crate) fn send(mut to: &TcpStream, seed: u64, total: u64) -> io::Result<u64> {
    let mut stream = Stream::new(seed);
    let mut buffer = vec![0; 256 << 10];
    let mut sent = 0;
    while sent < total {
        let n = buffer
            .len()
            .min(usize::try_from(total - sent).unwrap_or(usize::MAX));
        stream.fill(&mut buffer[..n]);
        to.write_all(&buffer[..n])?;
        sent += n as u64;
    }
    to.shutdown(std::net::Shutdown::Write)?;
    Ok(sent)
}

/// Receives until the end and compares each byte with the stream `seed`. Gives how many were received; a wrong byte is an error that
/// says where.
pub(crate) fn check(mut from: &TcpStream, seed: u64) -> io::Result<u64> {
    let mut stream = Stream::new(seed);
    let mut got = vec![0; 256 << 10];
    let mut expected = vec![0; 256 << 10];
    let mut received = 0;
    loop {
        let n = from.read(&mut got)?;
        if n == 0 {
            return Ok(received);
        }
        stream.fill(&mut expected[..n]);
        if got[..n] != expected[..n] {
            let at = got.iter().zip(&expected).position(|(a, b)| a != b).unwrap_or(0);
            return Err(io::Error::other(format!(
                "wrong byte at {}",
                received + at as u64
            )));
        }
        received += n as u64;
    }
}

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
