//! From the tunnel to the application.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use tokio::time::{Instant, sleep_until};

use super::{App, CopyError, Turn};
use crate::tunnel::{Account, Hold};

/// Most slices of one write.
const SLICES: usize = 32;
/// What is gathered before a write, bytes.
const GATHER: usize = 256 << 10;
/// Frames below this are copied together: kept as they are, each would pin the buffer that it was read into.
const SMALL: usize = 4 << 10;
/// When an application has not read for this long, what is held for it is copied into buffers of its own. Frames share the buffer that
/// they were read into with their neighbours: without the copy, little data between much of other streams would keep all of it.
const STALLED_AFTER: Duration = Duration::from_millis(100);

/// Carries what comes through the tunnel until the peer ends its direction.
///
/// Frames are taken out of h2 as they come, also while the application does not read: left there, small ones would use up a budget that
/// all streams of the connection share. Window is given back only for what the application has taken, so that the stream's window
/// bounds what is held here.
pub(super) fn run(
    app: App<'_>,
    recv: &mut RecvStream,
    account: &Arc<Account>,
) -> impl Future<Output = Result<(), CopyError>> {
    // Not an `async fn`, which would keep what it is given twice.
    let (mut turn, mut held) = (Turn::default(), Held::new(account));
    async move {
        loop {
            if held.is_empty() {
                if held.ended {
                    return app.end();
                }
                held.wait(recv).await?;
            }
            held.gather(recv).await?;
            if held.is_empty() {
                continue;
            }
            match held.write(app) {
                Ok(written) => {
                    // Fails only for a stream that is closed, whose window nobody needs.
                    let _ = recv.flow_control().release_capacity(written);
                    app.side.other().count_from(&account.counts, written);
                    turn.took(written).await;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    Box::pin(held.wait_either(app, recv)).await?;
                }
                Err(e) => return Err(app.failed(e)),
            }
        }
    }
}

/// What has come and is not written yet.
#[derive(Debug)]
struct Held {
    hold: Hold,
    chunks: VecDeque<Bytes>,
    /// Small frames, copied together; behind `chunks`.
    tail: BytesMut,
    len: usize,
    ended: bool,
    reader: Reader,
}

/// Whether the application takes what it gets.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Reads,
    /// It has taken nothing; when that counts as stalled.
    Slow(Instant),
    Stalled,
}

impl Held {
    fn new(account: &Arc<Account>) -> Self {
        Self {
            hold: account.hold(0),
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            len: 0,
            ended: false,
            reader: Reader::Reads,
        }
    }

    fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Waits for the next frame, and holds nothing meanwhile.
    async fn wait(&mut self, recv: &mut RecvStream) -> Result<(), CopyError> {
        let frame = poll_fn(|cx| {
            let frame = recv.poll_data(cx);
            if frame.is_pending() {
                self.chunks = VecDeque::new();
                self.tail = BytesMut::new();
            }
            frame
        });
        let frame = frame.await;
        self.take(frame)
    }

    /// Waits until the application takes more, or the next frame comes.
    async fn wait_either(&mut self, app: App<'_>, recv: &mut RecvStream) -> Result<(), CopyError> {
        let stalled_at = match self.reader {
            Reader::Reads => Some(Instant::now() + STALLED_AFTER),
            Reader::Slow(at) => Some(at),
            Reader::Stalled => None,
        };
        self.reader = stalled_at.map_or(Reader::Stalled, Reader::Slow);
        tokio::select! {
            biased;
            frame = poll_fn(|cx| recv.poll_data(cx)), if !self.ended => self.take(frame),
            writable = app.tcp.writable() => writable.map_err(|e| app.failed(e)),
            () = until(stalled_at) => {
                self.keep();
                Ok(())
            }
        }
    }

    /// The application has stalled: copies what is held, so that it takes no more memory than it has bytes.
    fn keep(&mut self) {
        self.reader = Reader::Stalled;
        self.settle_tail();
        for chunk in &mut self.chunks {
            *chunk = Bytes::copy_from_slice(chunk);
        }
    }

    /// Takes what has come already, up to [`GATHER`] bytes.
    async fn gather(&mut self, recv: &mut RecvStream) -> Result<(), CopyError> {
        poll_fn(|cx| {
            while !self.ended && self.len < GATHER {
                match recv.poll_data(cx) {
                    Poll::Ready(frame) => self.take(frame)?,
                    Poll::Pending => break,
                }
            }
            Poll::Ready(Ok(()))
        })
        .await
    }

    fn take(&mut self, frame: Option<Result<Bytes, h2::Error>>) -> Result<(), CopyError> {
        match frame {
            None => self.ended = true,
            Some(frame) => self.push(frame?),
        }
        Ok(())
    }

    fn push(&mut self, data: Bytes) {
        self.len += data.len();
        self.hold.set(self.len);
        if data.len() < SMALL && !self.is_alone(&data) {
            self.tail.extend_from_slice(&data);
        } else if !data.is_empty() {
            self.settle_tail();
            self.chunks.push_back(match self.reader {
                Reader::Stalled => Bytes::copy_from_slice(&data),
                Reader::Reads | Reader::Slow(_) => data,
            });
        }
    }

    /// Whether `data` is all there is: then it is about to be written, and copying it would be for nothing.
    fn is_alone(&self, data: &Bytes) -> bool {
        self.len == data.len()
    }

    fn settle_tail(&mut self) {
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
    }

    /// Writes what is held as far as the application takes it.
    fn write(&mut self, app: App<'_>) -> io::Result<usize> {
        self.settle_tail();
        let written = match self.chunks.front() {
            Some(only) if self.chunks.len() == 1 => app.tcp.try_write(only)?,
            _ => {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut used = 0;
                for (slice, chunk) in slices.iter_mut().zip(&self.chunks) {
                    *slice = IoSlice::new(chunk);
                    used += 1;
                }
                app.tcp
                    .try_write_vectored(slices.get(..used).unwrap_or_default())?
            }
        };
        if written > 0 {
            self.reader = Reader::Reads;
        }
        self.advance(written);
        Ok(written)
    }

    fn advance(&mut self, mut written: usize) {
        self.len = self.len.saturating_sub(written);
        self.hold.set(self.len);
        while let Some(front) = self.chunks.front_mut() {
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.chunks.pop_front();
        }
        if self.chunks.capacity() > SLICES {
            self.chunks = VecDeque::new();
        }
    }
}

/// Resolves at that time, or never.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
