//! A stream of bytes that both ends can make and check without keeping it: xorshift64*.

use std::io::{self, Read, Write};
use std::net::TcpStream;

/// Bytes that look random and are the same for the same seed.
#[derive(Clone, Debug)]
pub struct Stream {
    state: u64,
    word: [u8; 8],
    at: usize,
}

impl Stream {
    /// The stream of this seed, from its beginning.
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed | 1,
            word: [0; 8],
            at: 8,
        }
    }

    /// Its next bytes.
    pub fn fill(&mut self, buffer: &mut [u8]) {
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
///
/// # Errors
/// When the connection fails.
pub fn send(mut to: &TcpStream, seed: u64, total: u64) -> io::Result<u64> {
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
///
/// # Errors
/// When the connection fails, or a byte is not the one that was sent.
pub fn check(mut from: &TcpStream, seed: u64) -> io::Result<u64> {
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
