//! From the application into the tunnel.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::SendStream;

use super::{App, CopyError, Turn};
use crate::telemetry::connections::ByteCounts;
use crate::tunnel::Pressure;

/// Size of a worker's scratch buffer, bytes: what one read takes at most unless a connection moves bulk data.
const SCRATCH: usize = 64 << 10;
/// Size of a read, bytes, while a connection moves bulk data; into a buffer of its own.
const BULK: usize = 256 << 10;
/// A stream that waits longer than this for flow control makes its connection unfit for new streams.
const BLOCKED_AFTER: Duration = Duration::from_millis(100);

thread_local! {
    static SCRATCH_BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// Lends the thread's scratch buffer: connections that wait hold none.
pub(super) fn with_scratch<T>(f: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH_BUFFER.with(|buffer| match buffer.try_borrow_mut() {
        Ok(mut buffer) => f(&mut buffer),
        // Not nested today; a fresh buffer is right all the same.
        Err(_) => f(&mut vec![0; SCRATCH]),
    })
}

/// Carries what the application sends until it ends its direction.
pub(super) async fn run(
    app: App<'_>,
    send: &mut SendStream<Bytes>,
    pressure: &Arc<Pressure>,
    counts: &ByteCounts,
) -> Result<(), CopyError> {
    let mut turn = Turn::default();
    let mut reader = Reader { bulk: false };
    loop {
        readable(app, send).await?;
        let room = capacity(send, reader.want(), pressure).await?;
        let data = match reader.read(app, room)? {
            Read::Nothing => {
                // What was reserved for us goes back to the streams that need it.
                send.reserve_capacity(0);
                continue;
            }
            Read::End => {
                send.reserve_capacity(0);
                return Ok(send.send_data(Bytes::new(), true)?);
            }
            Read::Data(data) => data,
        };
        let bytes = data.len();
        pressure.sent(bytes);
        send.send_data(data, false)?;
        send.reserve_capacity(0);
        app.side.count_from(counts, bytes);
        turn.took(bytes).await;
    }
}

/// Waits until the application has something to say, or the peer resets the stream.
async fn readable(app: App<'_>, send: &mut SendStream<Bytes>) -> Result<(), CopyError> {
    tokio::select! {
        biased;
        readable = app.tcp.readable() => readable.map_err(|e| app.failed(e)),
        reset = poll_fn(|cx| send.poll_reset(cx)) => Err(match reset {
            Ok(reason) => CopyError::StreamReset(reason),
            Err(error) => error.into(),
        }),
    }
}

/// Waits until the peer takes up to `want` bytes more; how many. A long wait is told to the connection's pool.
async fn capacity(
    send: &mut SendStream<Bytes>,
    want: usize,
    pressure: &Arc<Pressure>,
) -> Result<usize, CopyError> {
    send.reserve_capacity(want);
    if send.capacity() > 0 {
        return Ok(send.capacity().min(want));
    }
    let room = match tokio::time::timeout(BLOCKED_AFTER, granted(send)).await {
        Ok(room) => room?,
        Err(_) => {
            let _blocked = pressure.block();
            granted(send).await?
        }
    };
    Ok(room.min(want))
}

async fn granted(send: &mut SendStream<Bytes>) -> Result<usize, CopyError> {
    poll_fn(|cx| {
        loop {
            match send.capacity() {
                0 => {}
                room => return Poll::Ready(Ok(room)),
            }
            match ready!(send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(reset_reason(send, cx))),
            }
        }
    })
    .await
}

/// Why a stream takes no data any more.
fn reset_reason(send: &mut SendStream<Bytes>, cx: &mut std::task::Context<'_>) -> CopyError {
    match send.poll_reset(cx) {
        Poll::Ready(Ok(reason)) => CopyError::StreamReset(reason),
        Poll::Ready(Err(error)) => error.into(),
        Poll::Pending => CopyError::TunnelBroken("the stream was closed".to_owned()),
    }
}

enum Read {
    Nothing,
    End,
    Data(Bytes),
}

/// Reads with buffers that fit what the connection does: the worker's scratch buffer and an exact copy for small reads (so that many
/// small writes in flight never pin big buffers), a buffer of its own for bulk.
struct Reader {
    bulk: bool,
}

impl Reader {
    fn want(&self) -> usize {
        if self.bulk { BULK } else { SCRATCH }
    }

    fn read(&mut self, app: App<'_>, room: usize) -> Result<Read, CopyError> {
        let outcome = if self.bulk && room >= SCRATCH {
            read_own(app, room)
        } else {
            read_scratch(app, room)
        };
        match outcome {
            Ok(data) if data.is_empty() => Ok(Read::End),
            Ok(data) => {
                if data.len() >= SCRATCH {
                    self.bulk = true;
                } else if data.len() < room {
                    self.bulk = false;
                }
                Ok(Read::Data(data))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                self.bulk = false;
                Ok(Read::Nothing)
            }
            Err(e) => Err(app.failed(e)),
        }
    }
}

fn read_scratch(app: App<'_>, room: usize) -> io::Result<Bytes> {
    with_scratch(|scratch| {
        let len = room.min(scratch.len());
        let into = scratch.get_mut(..len).unwrap_or_default();
        let read = app.tcp.try_read(into)?;
        Ok(Bytes::copy_from_slice(into.get(..read).unwrap_or_default()))
    })
}

fn read_own(app: App<'_>, room: usize) -> io::Result<Bytes> {
    use bytes::BufMut;
    let mut buffer = BytesMut::with_capacity(room.min(BULK));
    app.tcp.try_read_buf(&mut (&mut buffer).limit(room))?;
    if buffer.len() * 2 < buffer.capacity() {
        return Ok(Bytes::copy_from_slice(&buffer));
    }
    Ok(buffer.freeze())
}
