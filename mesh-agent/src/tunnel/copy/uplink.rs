//! From the application into the tunnel.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio::net::tcp::ReadHalf;

use super::{App, CopyError, Early, Turn};
use crate::tunnel::{Account, Pressure};

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

/// Carries what the application sends until it ends its direction; first what is left of `early`.
///
/// Window is asked for only while there is something to send: what one stream has reserved, its siblings cannot use.
pub(super) fn run(
    app: App<'_>,
    from: &mut ReadHalf<'_>,
    early: &mut Option<Box<Early>>,
    send: &mut SendStream<Bytes>,
    pressure: &Arc<Pressure>,
    account: &Arc<Account>,
) -> impl Future<Output = Result<(), CopyError>> {
    // Not an `async fn`, which would keep what it is given twice; so does each that it would call.
    let (mut turn, mut reader) = (Turn::default(), Reader { bulk: false });
    async move {
        if let Some(mut early) = early.take() {
            early.send(send, pressure).await?;
            if early.is_over() {
                return Ok(());
            }
        }
        loop {
            if account.is_full() {
                Box::pin(account.room()).await;
            }
            let mut data = poll_fn(|cx| next(app, &mut reader, from, send, account, cx)).await?;
            if data.is_empty() {
                return Ok(send.send_data(data, true)?);
            }
            let bytes = data.len();
            while !data.is_empty() {
                let room = capacity(send, data.len(), pressure).await?;
                pressure.sent(room);
                send.send_data(data.split_to(room), false)?;
            }
            send.reserve_capacity(0);
            app.side.count_from(&account.counts, bytes);
            turn.took(bytes).await;
        }
    }
}

/// The next bytes of the application, none at their end; unless the peer resets the stream.
fn next(
    app: App<'_>,
    reader: &mut Reader,
    from: &mut ReadHalf<'_>,
    send: &mut SendStream<Bytes>,
    account: &Arc<Account>,
    cx: &mut Context<'_>,
) -> Poll<Result<Bytes, CopyError>> {
    if let Poll::Ready(read) = reader.poll_read(from, account, cx) {
        return Poll::Ready(read.map_err(|e| app.failed(e)));
    }
    match ready!(send.poll_reset(cx)) {
        Ok(reason) => Poll::Ready(Err(CopyError::StreamReset(reason))),
        Err(error) => Poll::Ready(Err(error.into())),
    }
}

/// Waits until the peer takes up to `want` bytes more; how many. A long wait is told to the connection's pool.
pub(super) async fn capacity(
    send: &mut SendStream<Bytes>,
    want: usize,
    pressure: &Arc<Pressure>,
) -> Result<usize, CopyError> {
    send.reserve_capacity(want);
    let room = match send.capacity() {
        0 => Box::pin(wait_for_capacity(send, pressure)).await?,
        room => room,
    };
    Ok(room.min(want))
}

async fn wait_for_capacity(
    send: &mut SendStream<Bytes>,
    pressure: &Arc<Pressure>,
) -> Result<usize, CopyError> {
    match tokio::time::timeout(BLOCKED_AFTER, granted(send)).await {
        Ok(room) => room,
        Err(_) => {
            let _blocked = pressure.block();
            granted(send).await
        }
    }
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
fn reset_reason(send: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> CopyError {
    match send.poll_reset(cx) {
        Poll::Ready(Ok(reason)) => CopyError::StreamReset(reason),
        Poll::Ready(Err(error)) => error.into(),
        Poll::Pending => CopyError::TunnelBroken("the stream was closed".to_owned()),
    }
}

/// Reads with buffers that fit what the connection does: the worker's scratch buffer and an exact copy for small reads (so that many
/// small writes in flight never pin big buffers), a buffer of its own for bulk. None is held while there is nothing to read.
struct Reader {
    bulk: bool,
}

impl Reader {
    fn poll_read(
        &mut self,
        from: &mut ReadHalf<'_>,
        account: &Arc<Account>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Bytes>> {
        let outcome = if self.bulk && !account.is_tight() {
            read_own(from, account, cx)
        } else {
            read_scratch(from, account, cx)
        };
        self.bulk = matches!(&outcome, Poll::Ready(Ok(data)) if data.len() >= SCRATCH);
        outcome
    }
}

fn read_scratch(
    from: &mut ReadHalf<'_>,
    account: &Arc<Account>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    with_scratch(|scratch| {
        let mut buffer = ReadBuf::new(scratch);
        ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(account.sending(buffer.filled().to_vec())))
    })
}

fn read_own(
    from: &mut ReadHalf<'_>,
    account: &Arc<Account>,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Bytes>> {
    let mut buffer = Vec::with_capacity(BULK);
    let read = ready!(std::pin::pin!(from.read_buf(&mut buffer)).poll(cx))?;
    if read * 2 < BULK {
        buffer.shrink_to_fit();
    }
    Poll::Ready(Ok(account.sending(buffer)))
}
