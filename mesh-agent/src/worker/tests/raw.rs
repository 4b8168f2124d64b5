//! A tunnel's server in front of pod `payment` that speaks HTTP/2 frame by frame, so that it can say what a library would not: a GOAWAY
//! below streams that have come, refusals, or nothing at all.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::world::{World, identity, ip};
use crate::identity::accept;

/// What the peer does with a stream once enough of it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// 200; what comes is sent back at its end.
    Answer,
    /// 200; what comes is sent back at its end, and no PING is answered.
    Deaf,
    /// GOAWAY whose last stream is the one before, and the end of the connection.
    GoAwayBelow,
    /// GOAWAY whose last stream is this one, and the end of the connection.
    GoAwayAbove,
    /// 503 with the end of the stream, and RST_STREAM with NO_ERROR behind it: what is sent is not wanted (RFC 9113, 8.1).
    Unavailable,
    /// RST_STREAM with this code.
    Reset(u32),
    /// The end of the connection.
    Close,
}

/// RFC 9113, 7.
pub(super) const REFUSED_STREAM: u32 = 7;

/// Bytes by connection and stream.
type Got = BTreeMap<(usize, u32), Vec<u8>>;

/// A running peer. Each connection deals with all its streams alike.
#[derive(Clone, Default)]
pub(super) struct RawPeer {
    /// What has come, by connection and stream, in this order.
    pub(super) got: Arc<Mutex<Got>>,
    end: tokio_util::sync::CancellationToken,
}

/// What to do on one connection: how many bytes of a stream to wait for (and a little longer, in case more come), and then what.
pub(super) type Plan = (usize, Act);

impl RawPeer {
    /// `plans` by connection; the last one for all that follow.
    pub(super) async fn start(world: &World, plans: &'static [Plan]) -> Self {
        let listener = TcpListener::bind(SocketAddr::new(ip("payment", false), 15008))
            .await
            .unwrap();
        let tls = world.identities.tls(&identity("payment")).unwrap();
        let peer = Self::default();
        let for_task = peer.clone();
        tokio::spawn(async move {
            for number in 0.. {
                let (tcp, _) = tokio::select! {
                    () = for_task.end.cancelled() => return,
                    accepted = listener.accept() => accepted.unwrap(),
                };
                let plan = plans.get(number).or(plans.last()).copied().unwrap();
                let (tls, peer) = (tls.clone(), for_task.clone());
                tokio::spawn(async move {
                    let (io, _) = accept(&tls, tcp).await.unwrap();
                    // Its end is the client's, or part of the plan.
                    let _ = peer.serve(number, io, plan).await;
                });
            }
        });
        peer
    }

    /// Accepts nothing more.
    pub(super) fn stop(&self) {
        self.end.cancel();
    }

    /// What has come, in the order of connections.
    pub(super) fn streams(&self) -> Vec<Vec<u8>> {
        self.got.lock().unwrap().values().cloned().collect()
    }

    async fn serve(
        &self,
        number: usize,
        mut io: tokio_rustls::server::TlsStream<TcpStream>,
        (enough, act): Plan,
    ) -> std::io::Result<()> {
        io.read_exact(&mut [0; 24]).await?;
        // Windows of 1 MiB for streams, more for the connection.
        write(&mut io, 4, 0, 0, &[0, 4, 0, 16, 0, 0]).await?;
        write(&mut io, 8, 0, 0, &(64_u32 << 20).to_be_bytes()).await?;
        let mut acted = Vec::new();
        loop {
            let (kind, flags, stream, payload) = read(&mut io).await?;
            match kind {
                4 if flags & 1 == 0 => write(&mut io, 4, 1, 0, &[]).await?,
                6 if flags & 1 == 0 && act != Act::Deaf => write(&mut io, 6, 1, 0, &payload).await?,
                1 => {
                    self.got.lock().unwrap().insert((number, stream), Vec::new());
                }
                0 => self
                    .got
                    .lock()
                    .unwrap()
                    .get_mut(&(number, stream))
                    .unwrap()
                    .extend(payload),
                _ => continue,
            }
            let so_far = self.got.lock().unwrap().get(&(number, stream)).cloned();
            let Some(so_far) = so_far else { continue };
            if so_far.len() >= enough && !acted.contains(&stream) {
                acted.push(stream);
                tokio::time::sleep(Duration::from_millis(100)).await;
                match act {
                    Act::Answer | Act::Deaf => write(&mut io, 1, 4, stream, &[0x88]).await?,
                    Act::Reset(code) => write(&mut io, 3, 0, stream, &code.to_be_bytes()).await?,
                    Act::Unavailable => {
                        // `:status` by its name in the static table (RFC 7541, appendix A).
                        let mut frames = frame(1, 5, stream, b"\x08\x03503");
                        frames.extend(frame(3, 0, stream, &[0; 4]));
                        io.write_all(&frames).await?;
                        io.flush().await?;
                    }
                    Act::GoAwayBelow => return go_away(&mut io, stream.saturating_sub(2)).await,
                    Act::GoAwayAbove => return go_away(&mut io, stream).await,
                    Act::Close => return io.shutdown().await,
                }
            }
            if matches!(act, Act::Answer | Act::Deaf) && kind == 0 && flags & 1 == 1 {
                for chunk in so_far.chunks(16 << 10) {
                    write(&mut io, 0, 0, stream, chunk).await?;
                }
                write(&mut io, 0, 1, stream, &[]).await?;
            }
        }
    }
}

type Io = tokio_rustls::server::TlsStream<TcpStream>;

async fn go_away(io: &mut Io, last: u32) -> std::io::Result<()> {
    let payload = [last.to_be_bytes(), [0; 4]].concat();
    write(io, 7, 0, 0, &payload).await?;
    io.shutdown().await
}

async fn write(io: &mut Io, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> std::io::Result<()> {
    io.write_all(&frame(kind, flags, stream, payload)).await?;
    io.flush().await
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

async fn read(io: &mut Io) -> std::io::Result<(u8, u8, u32, Vec<u8>)> {
    let mut header = [0; 9];
    io.read_exact(&mut header).await?;
    let [a, b, c, kind, flags, d, e, f, g] = header;
    let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
    io.read_exact(&mut payload).await?;
    Ok((kind, flags, u32::from_be_bytes([d & 0x7f, e, f, g]), payload))
}
