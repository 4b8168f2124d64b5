//! Another implementation of the tunnel's server in front of pod `payment`, with the windows and the manners that a test wants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use super::world::{World, identity, ip};
use crate::identity::accept;

/// Port whose streams are echoed.
pub(super) const ECHO: u16 = 7;
/// Port whose streams are accepted and never read.
pub(super) const STALL: u16 = 9;

/// What the peer does.
#[derive(Clone, Copy)]
pub(super) struct Manners {
    pub(super) stream_window: u32,
    pub(super) connection_window: u32,
}

/// A running peer.
#[derive(Clone, Default)]
pub(super) struct Peer {
    pub(super) connections: Arc<AtomicUsize>,
    /// Has every connection say GOAWAY.
    pub(super) goaway: Arc<Notify>,
}

impl Peer {
    pub(super) async fn start(world: &World, manners: Manners) -> Self {
        let peer = Self::default();
        let listener = TcpListener::bind(SocketAddr::new(ip("payment", false), 15008))
            .await
            .unwrap();
        let tls = world.identities.tls(&identity("payment")).unwrap();
        let for_task = peer.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let (tls, peer) = (tls.clone(), for_task.clone());
                tokio::spawn(async move {
                    let (io, _) = accept(&tls, tcp).await.unwrap();
                    peer.connections.fetch_add(1, Ordering::Relaxed);
                    peer.serve(io, manners).await;
                });
            }
        });
        peer
    }

    async fn serve(&self, io: tokio_rustls::server::TlsStream<TcpStream>, manners: Manners) {
        let mut connection = h2::server::Builder::new()
            .initial_window_size(manners.stream_window)
            .initial_connection_window_size(manners.connection_window)
            .max_concurrent_streams(100)
            .data_frame_budget(1 << 30)
            .handshake::<_, Bytes>(io)
            .await
            .unwrap();
        let mut stalled = Vec::new();
        loop {
            tokio::select! {
                stream = connection.accept() => match stream {
                    Some(Ok((request, mut respond))) => match request.uri().port_u16() {
                        Some(ECHO) => drop(tokio::spawn(echo(request, respond))),
                        Some(STALL) => {
                            let send = respond.send_response(Response::new(()), false).unwrap();
                            stalled.push((request, send));
                        }
                        _ => {}
                    },
                    Some(Err(_)) | None => return,
                },
                () = self.goaway.notified() => connection.graceful_shutdown(),
            }
        }
    }
}

async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        if send.send_data(data, false).is_err() {
            return;
        }
    }
    let _ = send.send_data(Bytes::new(), true);
}
