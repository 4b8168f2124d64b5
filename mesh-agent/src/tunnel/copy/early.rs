//! What an application sends before the other agent has answered. Data follows a CONNECT without waiting for its 200, and the stream may
//! turn out not to have been processed; so everything is kept until the answer, and can be sent again from its start.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::ReadHalf;

use super::uplink::{capacity, with_scratch};
use super::{App, CopyError};
use crate::tunnel::{Account, Pressure};

/// What is kept at most, bytes. An application that has sent more is not read from until the answer has come.
pub const EARLY_LIMIT: usize = 64 << 10;

/// What an application has sent so far, and how much of it the stream at hand has got.
#[derive(Debug, Default)]
pub struct Early {
    /// In order, none of them empty.
    kept: Vec<Bytes>,
    len: usize,
    /// The application has ended its direction.
    ended: bool,
    /// The first of `kept` that the stream has not got in whole, and how much of it it has.
    next: (usize, usize),
    /// The stream has been told of the end.
    end_sent: bool,
}

impl Early {
    /// Begins anew, for another stream.
    pub fn rewind(&mut self) {
        self.next = (0, 0);
        self.end_sent = false;
    }

    /// What the stream has yet to be told: bytes, or that there is an end. `None` is nothing, and takes no room.
    pub fn left(self) -> Option<Box<Self>> {
        (self.ended || self.next.0 < self.kept.len()).then(|| Box::new(self))
    }

    /// Carries bytes from the application to the stream as far as both and [`EARLY_LIMIT`] allow. Never returns without an error: whoever
    /// waits for the answer drops it, at any await, and nothing is lost by that.
    pub(super) async fn feed(
        &mut self,
        app: App<'_>,
        from: &mut ReadHalf<'_>,
        send: &mut SendStream<Bytes>,
        pressure: &Arc<Pressure>,
        account: &Arc<Account>,
    ) -> Result<std::convert::Infallible, CopyError> {
        loop {
            self.send(send, pressure).await?;
            if self.ended || self.len >= EARLY_LIMIT {
                std::future::pending::<()>().await;
            }
            let data = self.read(app, from, account).await?;
            app.side.count_from(&account.counts, data.len());
            self.push(data);
        }
    }

    /// Gives the stream what it has not got yet.
    pub(super) async fn send(
        &mut self,
        send: &mut SendStream<Bytes>,
        pressure: &Arc<Pressure>,
    ) -> Result<(), CopyError> {
        while let Some(mut rest) = self.unsent() {
            let room = capacity(send, rest.len(), pressure).await?;
            pressure.sent(room);
            send.send_data(rest.split_to(room), false)?;
            self.advance(room);
            if self.unsent().is_none() {
                send.reserve_capacity(0);
            }
        }
        if self.ended && !self.end_sent {
            send.send_data(Bytes::new(), true)?;
            self.end_sent = true;
        }
        Ok(())
    }

    /// Whether the application has ended its direction, and the stream knows it.
    pub(super) fn is_over(&self) -> bool {
        self.end_sent
    }

    fn unsent(&self) -> Option<Bytes> {
        let (at, offset) = self.next;
        self.kept.get(at).map(|chunk| chunk.slice(offset..))
    }

    fn advance(&mut self, sent: usize) {
        let (at, offset) = self.next;
        let whole = self.kept.get(at).map_or(0, Bytes::len);
        self.next = if offset + sent < whole {
            (at, offset + sent)
        } else {
            (at + 1, 0)
        };
    }

    fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            self.ended = true;
        } else {
            self.len += data.len();
            self.kept.push(data);
        }
    }

    async fn read(
        &self,
        app: App<'_>,
        from: &mut ReadHalf<'_>,
        account: &Arc<Account>,
    ) -> Result<Bytes, CopyError> {
        let most = EARLY_LIMIT.saturating_sub(self.len);
        poll_fn(|cx| read_up_to(most, from, account, cx))
            .await
            .map_err(|e| app.failed(e))
    }
}

fn read_up_to(
    most: usize,
    from: &mut ReadHalf<'_>,
    account: &Arc<Account>,
    cx: &mut Context<'_>,
) -> Poll<std::io::Result<Bytes>> {
    with_scratch(|scratch| {
        let most = most.min(scratch.len());
        let mut buffer = ReadBuf::new(scratch.get_mut(..most).unwrap_or_default());
        ready!(Pin::new(from).poll_read(cx, &mut buffer))?;
        Poll::Ready(Ok(account.sending(buffer.filled().to_vec())))
    })
}
