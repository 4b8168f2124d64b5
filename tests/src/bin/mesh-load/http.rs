//! A server for other programs' clients: HTTP/1.1, one answer for everything.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{Request, Response, body::Incoming, server::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::wire;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen.
    listen: SocketAddr,
}

pub(crate) async fn run(args: Args) -> Result<()> {
    let mut ended = signal(SignalKind::terminate())?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    wire::say(&mesh_tests::harness::LoadTally::default())?;
    let set = LocalSet::new();
    set.spawn_local(accept(listener));
    set.run_until(async {
        ended.recv().await;
    })
    .await;
    Ok(())
}

async fn accept(listener: TcpListener) {
    loop {
        let Ok((tcp, _)) = listener.accept().await else {
            continue;
        };
        let _ = tcp.set_nodelay(true);
        tokio::task::spawn_local(async move {
            // Clients that go away are no news.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(tcp), service_fn(answer))
                .await;
        });
    }
}

async fn answer(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new(Full::new(Bytes::from_static(
        &[b'.'; wire::MESSAGE],
    ))))
}
