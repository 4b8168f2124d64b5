//! How loaded an HTTP/2 connection is: what the peer's windows allow, and whether writing gets anywhere. h2 does not tell, so a thin
//! layer between TLS and h2 reads along: frame headers, and of the connection SETTINGS, WINDOW_UPDATE and GOAWAY, nothing else.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use mesh_common::mutation::{self, Mechanism};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::MAX_STREAMS;

/// Window of a connection and of its streams before anybody says otherwise (RFC 9113, 6.9.2).
const DEFAULT_WINDOW: i64 = 65_535;

/// The load of one connection. Shared by its streams, its pool and its I/O.
#[derive(Debug)]
pub struct Pressure {
    /// Streams of ours.
    streams: AtomicUsize,
    /// Streams that have waited long for flow control.
    blocked: AtomicUsize,
    /// The last write did not go through.
    congested: AtomicBool,
    /// No new streams: the peer said so, or the connection failed.
    closing: AtomicBool,
    /// The peer's SETTINGS have come.
    settled: AtomicBool,
    settled_wake: Notify,
    /// The peer's window per stream.
    stream_window: AtomicI64,
    /// What the peer has allowed in all, less what was sent.
    available: AtomicI64,
    /// The most that `available` has been: the peer's window for the connection.
    window: AtomicI64,
    /// Bytes written, whatever they are.
    written: AtomicU64,
    /// The last of our streams that the peer has processed or may yet, as its GOAWAY says.
    last_stream: AtomicU32,
}

impl Default for Pressure {
    fn default() -> Self {
        Self {
            streams: AtomicUsize::new(0),
            blocked: AtomicUsize::new(0),
            congested: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            settled_wake: Notify::new(),
            stream_window: AtomicI64::new(DEFAULT_WINDOW),
            available: AtomicI64::new(DEFAULT_WINDOW),
            window: AtomicI64::new(DEFAULT_WINDOW),
            written: AtomicU64::new(0),
            last_stream: AtomicU32::new(u32::MAX),
        }
    }
}

/// What a connection can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// A new stream at no cost to the others.
    Free,
    /// A new stream, which may have to wait behind the bytes of others: a stream has been blocked for long, or the socket takes no more.
    Congested,
    /// Not known yet: the peer's SETTINGS are on their way.
    Unsettled,
    /// No new stream.
    None,
}

impl Pressure {
    /// What the connection can take now. `allowed` is the peer's limit of concurrent streams.
    pub fn room(&self, allowed: usize) -> Room {
        let streams = self.streams.load(Ordering::Relaxed);
        if self.is_closing() {
            Room::None
        } else if streams >= self.most_streams().min(allowed) {
            if self.settled.load(Ordering::Relaxed) {
                Room::None
            } else {
                Room::Unsettled
            }
        } else if streams > 0
            && (self.blocked.load(Ordering::Relaxed) > 0 || self.congested.load(Ordering::Relaxed))
        {
            Room::Congested
        } else {
            Room::Free
        }
    }

    /// How many streams the connection may carry so that, should all their readers stall, none of them keeps the connection's window
    /// from another. One until the peer's SETTINGS have come.
    fn most_streams(&self) -> usize {
        if !self.settled.load(Ordering::Relaxed) {
            return 1;
        }
        let stream = self.stream_window.load(Ordering::Relaxed).max(1);
        let window = self.window.load(Ordering::Relaxed);
        // A quarter of a stream's window of slack: the first bytes may have left before the peer's WINDOW_UPDATE came.
        let whole = (window + stream / 4) / stream;
        if mutation::is_off(Mechanism::StreamCap) {
            return MAX_STREAMS as usize;
        }
        usize::try_from(whole.clamp(1, i64::from(MAX_STREAMS))).unwrap_or(1)
    }

    /// Live streams.
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Takes no new streams from now on.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        self.settle();
    }

    /// Whether it takes no new streams for good.
    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Relaxed)
    }

    /// Waits until the peer's SETTINGS have come, or the connection has failed.
    pub async fn settled(&self) {
        let woken = self.settled_wake.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        if !self.settled.load(Ordering::Relaxed) {
            woken.await;
        }
    }

    fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
        self.settled_wake.notify_waiters();
    }

    /// Counts a stream for as long as the guard lives.
    pub fn enter(self: &Arc<Self>) -> StreamGuard {
        self.streams.fetch_add(1, Ordering::Relaxed);
        StreamGuard(Arc::clone(self))
    }

    /// Counts a stream as blocked for as long as the guard lives.
    pub fn block(self: &Arc<Self>) -> BlockedGuard {
        self.blocked.fetch_add(1, Ordering::Relaxed);
        BlockedGuard(Arc::clone(self))
    }

    /// Counts bytes handed to the connection.
    pub fn sent(&self, bytes: usize) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.available.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that have been written to the connection.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Whether the peer has said GOAWAY and that it has not processed stream `id` of ours, nor will (RFC 9113, 6.8).
    pub fn disowns(&self, id: u32) -> bool {
        id > self.last_stream.load(Ordering::Relaxed)
    }

    /// The peer has said GOAWAY. A later one can only name a lower stream.
    fn go_away(&self, last_stream: u32) {
        self.last_stream.fetch_min(last_stream, Ordering::Relaxed);
        self.close();
    }

    fn credit(&self, bytes: i64) {
        let available = self
            .available
            .fetch_add(bytes, Ordering::Relaxed)
            .saturating_add(bytes);
        self.window.fetch_max(available, Ordering::Relaxed);
    }
}

/// Guard of a live stream.
#[derive(Debug)]
pub struct StreamGuard(Arc<Pressure>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Guard of a stream that waits for flow control.
#[derive(Debug)]
pub struct BlockedGuard(Arc<Pressure>);

impl Drop for BlockedGuard {
    fn drop(&mut self) {
        self.0.blocked.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Reads frame headers out of a byte stream, cut anywhere.
#[derive(Debug, Default)]
struct FrameReader {
    /// Bytes gathered of the unit in progress: a frame header, or a piece of a payload that matters.
    unit: [u8; 9],
    filled: usize,
    /// Payload bytes still to come.
    payload: usize,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    /// Between frames.
    #[default]
    Header,
    /// SETTINGS, not an acknowledgement.
    Settings,
    /// WINDOW_UPDATE of the connection.
    WindowUpdate,
    /// GOAWAY, up to its last stream.
    GoAway,
    /// Anything else.
    Other,
}

impl Kind {
    /// How many bytes are looked at together.
    fn unit(self) -> usize {
        match self {
            Kind::Header => 9,
            Kind::Settings => 6,
            Kind::WindowUpdate | Kind::GoAway => 4,
            Kind::Other => 0,
        }
    }
}

impl FrameReader {
    fn read(&mut self, mut bytes: &[u8], pressure: &Pressure) {
        while !bytes.is_empty() {
            let want = match self.kind {
                Kind::Other => self.payload,
                Kind::Header => Kind::Header.unit() - self.filled,
                kind => (kind.unit() - self.filled).min(self.payload),
            };
            let (now, later) = bytes.split_at(want.min(bytes.len()));
            bytes = later;
            if self.kind != Kind::Header {
                self.payload = self.payload.saturating_sub(now.len());
            }
            if self.kind != Kind::Other {
                for (to, from) in self.unit.iter_mut().skip(self.filled).zip(now) {
                    *to = *from;
                }
                self.filled += now.len();
                if self.filled == self.kind.unit() {
                    self.filled = 0;
                    self.finish_unit(pressure);
                }
            }
            if self.kind != Kind::Header && self.payload == 0 {
                if self.kind == Kind::Settings {
                    pressure.settle();
                }
                self.kind = Kind::Header;
                self.filled = 0;
            }
        }
    }

    fn finish_unit(&mut self, pressure: &Pressure) {
        let [a, b, c, d, e, f, g, h, i] = self.unit;
        match self.kind {
            Kind::Header => {
                // Length (24 bits), type, flags, stream (RFC 9113, 4.1).
                self.payload = u32::from_be_bytes([0, a, b, c]) as usize;
                let stream = u32::from_be_bytes([f & 0x7f, g, h, i]);
                self.kind = match (d, stream) {
                    (4, 0) if e & 1 == 0 => Kind::Settings,
                    (8, 0) => Kind::WindowUpdate,
                    (7, 0) => Kind::GoAway,
                    _ => Kind::Other,
                };
            }
            Kind::Settings => {
                if u16::from_be_bytes([a, b]) == 4 {
                    let window = i64::from(u32::from_be_bytes([c, d, e, f]));
                    pressure.stream_window.store(window, Ordering::Relaxed);
                }
            }
            Kind::WindowUpdate => pressure.credit(i64::from(u32::from_be_bytes([a & 0x7f, b, c, d]))),
            Kind::GoAway => {
                pressure.go_away(u32::from_be_bytes([a & 0x7f, b, c, d]));
                self.kind = Kind::Other;
            }
            Kind::Other => {}
        }
    }
}

/// The plaintext side of a TLS connection, read along.
#[derive(Debug)]
pub struct Meter<Io> {
    io: Io,
    frames: FrameReader,
    pressure: Arc<Pressure>,
}

impl<Io> Meter<Io> {
    /// Reads along `io`.
    pub fn new(io: Io, pressure: Arc<Pressure>) -> Self {
        Self {
            io,
            frames: FrameReader::default(),
            pressure,
        }
    }

    fn note(&self, wrote: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = wrote {
            self.pressure.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        self.pressure
            .congested
            .store(wrote.is_pending(), Ordering::Relaxed);
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Meter<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let this = &mut *self;
        let outcome = Pin::new(&mut this.io).poll_read(cx, buf);
        if let Some(read) = buf.filled().get(before..) {
            this.frames.read(read, &this.pressure);
        }
        outcome
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Meter<Io> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.note(&wrote);
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.note(&wrote);
        wrote
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
    use super::*;
    use proptest::prelude::*;

    /// SETTINGS (stream window 4 MiB), WINDOW_UPDATE (connection, to 16 MiB), and a DATA frame with treacherous content.
    fn peer_preface() -> Vec<u8> {
        let mut bytes = vec![
            0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100, 0, 4, 0, 0x40, 0, 0,
        ];
        bytes.extend([0, 0, 4, 8, 0, 0, 0, 0, 0]);
        bytes.extend(((16 << 20) - 65_535_u32).to_be_bytes());
        bytes.extend([0, 0, 13, 0, 0, 0, 0, 0, 1]);
        bytes.extend([0, 0, 4, 8, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]);
        bytes.extend([0, 0, 0, 4, 1, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn before_the_peers_settings_one_stream_is_free_and_the_next_waits() {
        let pressure = Arc::new(Pressure::default());
        assert_eq!(pressure.room(100), Room::Free);
        let _stream = pressure.enter();
        assert_eq!(pressure.room(100), Room::Unsettled);
    }

    #[test]
    fn a_peer_with_4_and_16_mib_windows_gets_four_streams_per_connection() {
        let pressure = Arc::new(Pressure::default());
        pressure.sent(100);
        FrameReader::default().read(&peer_preface(), &pressure);
        let streams: Vec<_> = (0..4)
            .map(|_| {
                assert_eq!(pressure.room(100), Room::Free);
                pressure.enter()
            })
            .collect();
        assert_eq!(pressure.room(100), Room::None);
        drop(streams);
        assert_eq!(pressure.room(100), Room::Free);
    }

    #[test]
    fn a_goaway_disowns_the_streams_above_its_last_and_a_second_one_more_of_them() {
        let pressure = Pressure::default();
        let mut reader = FrameReader::default();
        let goaway = |last: u32| {
            let mut bytes = vec![0, 0, 12, 7, 0, 0, 0, 0, 0];
            bytes.extend(last.to_be_bytes());
            bytes.extend([0, 0, 0, 0]);
            bytes.extend(b"bye!");
            bytes
        };
        reader.read(&goaway((1 << 31) - 1), &pressure);
        assert!(pressure.is_closing() && !pressure.disowns((1 << 31) - 1));
        for byte in goaway(5) {
            reader.read(&[byte], &pressure);
        }
        assert!(!pressure.disowns(5) && pressure.disowns(7));
        // Cut short by its own length: nothing to believe.
        reader.read(&[0, 0, 2, 7, 0, 0, 0, 0, 0, 0, 0], &pressure);
        assert!(!pressure.disowns(5));
        assert_eq!(reader.kind, Kind::Header);
    }

    #[test]
    fn a_blocked_stream_makes_its_connection_second_choice_until_it_moves() {
        let pressure = Arc::new(Pressure::default());
        FrameReader::default().read(&peer_preface(), &pressure);
        let _stream = pressure.enter();
        let blocked = pressure.block();
        assert_eq!(pressure.room(100), Room::Congested);
        drop(blocked);
        assert_eq!(pressure.room(100), Room::Free);
    }

    proptest! {
        #[test]
        fn frames_are_read_the_same_however_they_are_cut(cuts in proptest::collection::vec(1_usize..9, 0..60)) {
            let bytes = peer_preface();
            let pressure = Pressure::default();
            let mut reader = FrameReader::default();
            let mut rest = bytes.as_slice();
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                reader.read(now, &pressure);
                rest = later;
            }
            reader.read(rest, &pressure);
            prop_assert_eq!(pressure.stream_window.load(Ordering::Relaxed), 4 << 20);
            prop_assert_eq!(pressure.window.load(Ordering::Relaxed), 16 << 20);
            prop_assert_eq!(reader.kind, Kind::Header);
            prop_assert_eq!(reader.filled, 0);
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            FrameReader::default().read(&bytes, &Pressure::default());
        }
    }
}
