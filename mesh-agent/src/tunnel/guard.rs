//! Cuts peers that flood: a thin layer between TLS and HTTP/2 that reads frame headers along and counts the frames that flow control
//! does not slow down. h2 bounds what such frames may hold in memory, not how many may come; answering them costs the worker's time.
//!
//! Knows frame headers only. What is in the frames is h2's business.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use mesh_common::mutation::{self, Mechanism};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Frames that an honest peer sends a few of: PING, SETTINGS, PRIORITY, GOAWAY, PUSH_PROMISE, empty DATA, unknown types. At once, and
/// for each second.
const CONTROL: (u32, u32) = (10_000, 1_000);
/// Frames that come with streams and with their bytes: HEADERS, CONTINUATION, RST_STREAM, WINDOW_UPDATE, the end of a stream. An order
/// of magnitude over what a connection with nothing but short streams brings.
const WORK: (u32, u32) = (200_000, 100_000);
/// Longest payload of a frame that is not DATA, bytes. Header lists have their own limit ([`super::MAX_HEADER_LIST`]); the rest is short.
/// (Between two large frames that are thrown away a small DATA frame would keep the buffer of both.)
const MAX_OTHER: u32 = 64 << 10;
/// Frames of these kinds that are handled before other connections of the worker get their turn.
const TURN: u32 = 256;
/// What a client says before its first frame, bytes (RFC 9113, 3.4).
const PREFACE: usize = 24;

/// Why a peer is cut. Travels as the kind of an [`io::Error`], which is all that h2 keeps of one.
pub(super) const FLOOD: io::ErrorKind = io::ErrorKind::QuotaExceeded;
/// As [`FLOOD`].
pub(super) const OVERSIZE: io::ErrorKind = io::ErrorKind::FileTooLarge;

/// Tokens that come back with time.
#[derive(Debug)]
struct Bucket {
    left: u32,
    burst: u32,
    per_second: u32,
    /// When tokens were last put back.
    filled: Instant,
}

impl Bucket {
    fn new((burst, per_second): (u32, u32), now: Instant) -> Self {
        Self {
            left: burst,
            burst,
            per_second,
            filled: now,
        }
    }

    /// Takes one; `false` when there is none. Time is looked at only when they have run out.
    fn take(&mut self, now: Instant) -> bool {
        if self.left == 0 {
            let since = now
                .saturating_duration_since(self.filled)
                .min(Duration::from_secs(3600));
            let back = since.as_millis() * u128::from(self.per_second) / 1000;
            self.left = u32::try_from(back).unwrap_or(u32::MAX).min(self.burst);
            if self.left > 0 {
                self.filled = now;
            }
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// Reads frame headers out of a byte stream, cut anywhere, and judges them.
#[derive(Debug)]
struct Judge {
    header: [u8; 9],
    filled: usize,
    /// Bytes to pass over before the next header.
    skip: usize,
    control: Bucket,
    work: Bucket,
    /// Counted frames since the last turn.
    turn: u32,
}

impl Judge {
    fn new(skip: usize, now: Instant) -> Self {
        Self {
            header: [0; 9],
            filled: 0,
            skip,
            control: Bucket::new(CONTROL, now),
            work: Bucket::new(WORK, now),
            turn: 0,
        }
    }

    fn read(&mut self, mut bytes: &[u8], now: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let passed = self.skip.min(bytes.len());
                self.skip -= passed;
                bytes = bytes.get(passed..).unwrap_or_default();
                continue;
            }
            let (head, rest) = bytes.split_at((self.header.len() - self.filled).min(bytes.len()));
            bytes = rest;
            for (to, from) in self.header.iter_mut().skip(self.filled).zip(head) {
                *to = *from;
            }
            self.filled += head.len();
            if self.filled == self.header.len() {
                self.filled = 0;
                self.frame(now)?;
            }
        }
        Ok(())
    }

    /// Judges the frame whose header is complete.
    fn frame(&mut self, now: Instant) -> io::Result<()> {
        // Length (24 bits), type, flags, stream (RFC 9113, 4.1).
        let [a, b, c, kind, flags, ..] = self.header;
        let length = u32::from_be_bytes([0, a, b, c]);
        self.skip = length as usize;
        let last = flags & 1 == 1;
        let bucket = match kind {
            0 if length > 0 => return Ok(()),
            0 if last => &mut self.work,
            1 | 3 | 8 | 9 => &mut self.work,
            _ => &mut self.control,
        };
        if kind != 0 && length > MAX_OTHER {
            let why = format!("the peer sent a frame of type {kind} with {length} bytes, over {MAX_OTHER}");
            return Err(io::Error::new(OVERSIZE, why));
        }
        self.turn += 1;
        if bucket.take(now) || mutation::is_off(Mechanism::FloodGuard) {
            return Ok(());
        }
        let Bucket {
            burst, per_second, ..
        } = bucket;
        let why = format!(
            "the peer floods with frames of type {kind}: over {burst} at once and {per_second} a second"
        );
        Err(io::Error::new(FLOOD, why))
    }
}

/// The plaintext side of a TLS connection, watched.
#[derive(Debug)]
pub(super) struct Guard<Io> {
    io: Io,
    judge: Judge,
}

impl<Io> Guard<Io> {
    /// Watches what a server sends.
    pub(super) fn of_server(io: Io) -> Self {
        let judge = Judge::new(0, Instant::now());
        Self { io, judge }
    }

    /// Watches what a client sends, its preface first.
    pub(super) fn of_client(io: Io) -> Self {
        let judge = Judge::new(PREFACE, Instant::now());
        Self { io, judge }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Guard<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.judge.turn >= TURN {
            this.judge.turn = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(Ok(())) => {
                let read = buf.filled().get(before..).unwrap_or_default();
                Poll::Ready(this.judge.read(read, Instant::now()))
            }
            Poll::Pending => {
                this.judge.turn = 0;
                Poll::Pending
            }
            failed => failed,
        }
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Guard<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;

    fn frame(kind: u8, flags: u8, length: u32) -> Vec<u8> {
        let [_, a, b, c] = length.to_be_bytes();
        let mut frame = vec![a, b, c, kind, flags, 0, 0, 0, 1];
        frame.resize(9 + length as usize, 0);
        frame
    }

    #[test]
    fn frames_that_flow_control_does_not_slow_are_counted_and_come_back_with_time() {
        for (kind, flags, (burst, per_second)) in [
            (6, 0, CONTROL),
            (4, 0, CONTROL),
            (2, 0, CONTROL),
            (7, 0, CONTROL),
            (0, 0, CONTROL),
            (0xbe, 0, CONTROL),
            (0, 1, WORK),
            (1, 0, WORK),
            (3, 0, WORK),
            (8, 0, WORK),
            (9, 0, WORK),
        ] {
            let now = Instant::now();
            let mut judge = Judge::new(0, now);
            let one = frame(kind, flags, 0);
            for _ in 0..burst {
                judge.read(&one, now).unwrap();
            }
            assert_eq!(judge.read(&one, now).unwrap_err().kind(), FLOOD, "type {kind}");
            let later = now + Duration::from_millis(100);
            for _ in 0..per_second / 10 {
                judge.read(&one, later).unwrap();
            }
            assert_eq!(judge.read(&one, later).unwrap_err().kind(), FLOOD, "type {kind}");
            // However long it was silent, it has no more than a burst.
            let much_later = now + Duration::from_secs(86_400);
            let taken = (0..2 * burst)
                .take_while(|_| judge.read(&one, much_later).is_ok())
                .count();
            assert_eq!(taken, burst as usize, "type {kind}");
        }
    }

    #[test]
    fn data_is_not_counted_and_may_be_large() {
        let now = Instant::now();
        let mut judge = Judge::new(0, now);
        for _ in 0..3 * CONTROL.0 {
            judge.read(&frame(0, 0, 1), now).unwrap();
        }
        judge.read(&frame(0, 0, 1 << 20), now).unwrap();
        assert_eq!(judge.turn, 0);
        let error = judge.read(&frame(0xbe, 0, MAX_OTHER + 1), now).unwrap_err();
        assert_eq!(error.kind(), OVERSIZE);
    }

    #[test]
    fn frames_are_found_however_the_bytes_are_cut() {
        let now = Instant::now();
        let mut wire = vec![b'x'; PREFACE];
        for (kind, length) in [(4, 18), (0, 70_000), (6, 8), (0, 0), (1, 300)] {
            wire.extend(frame(kind, 0, length));
        }
        for size in [1, 2, 7, 9, 10, 4096, wire.len()] {
            let mut judge = Judge::new(PREFACE, now);
            for piece in wire.chunks(size) {
                judge.read(piece, now).unwrap();
            }
            assert_eq!((judge.turn, judge.filled, judge.skip), (4, 0, 0), "cut by {size}");
        }
    }

    #[tokio::test]
    async fn a_flood_lets_others_run_in_between_and_ends_in_an_error() {
        let wire = frame(6, 0, 8).repeat(CONTROL.0 as usize + 500);
        let mut guard = Guard::of_server(wire.as_slice());
        let (mut pending, mut buffer) = (0, [0; 17 * 64]);
        let error = loop {
            let read = guard.read(&mut buffer);
            let mut read = std::pin::pin!(read);
            let polled = std::future::poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
            match polled {
                Poll::Pending => pending += 1,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => break error,
            }
        };
        assert_eq!(error.kind(), FLOOD);
        assert!(pending >= CONTROL.0 / TURN, "{pending} turns for others");
    }
}
