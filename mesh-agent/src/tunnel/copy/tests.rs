//! Whole ways on loopback: application, copy loop, HTTP/2, copy loop, application.

use std::io::ErrorKind;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::tunnel::client::{Connection, OpenStream};
use crate::tunnel::{Budget, Limits, accept_http2};

mod life;

const SOON: Duration = Duration::from_secs(20);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, work)
        .await
        .expect("nothing happened for 20 s")
}

/// Two ends of a TCP connection on loopback: the application's, and ours.
async fn tcp_pair() -> (TcpStream, AppStream) {
    tcp_pair_with(TcpSocket::new_v4().unwrap()).await
}

/// As [`tcp_pair`], where the application reads through tiny buffers.
async fn narrow_tcp_pair() -> (TcpStream, AppStream) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(2048).unwrap();
    let (app, ours) = tcp_pair_with(socket).await;
    SockRef::from(ours.tcp()).set_send_buffer_size(4096).unwrap();
    (app, ours)
}

async fn tcp_pair_with(socket: TcpSocket) -> (TcpStream, AppStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app = socket.connect(listener.local_addr().unwrap()).await.unwrap();
    let (ours, _) = listener.accept().await.unwrap();
    (app, AppStream::new(ours))
}

/// Windows of 1 MiB, for tests that let readers stall.
fn windows() -> Limits {
    Limits {
        stream_window: 1 << 20,
        ..Limits::default()
    }
}

fn account(idle: Option<Duration>) -> Arc<Account> {
    Account::new(&Budget::new(windows()), &Arc::default(), idle)
}

type Accepted = (Request<RecvStream>, h2::server::SendResponse<Bytes>);

/// An HTTP/2 connection between two agents, without TLS.
struct Tunnel {
    connection: Arc<Connection>,
    accepted: mpsc::UnboundedReceiver<Accepted>,
    tasks: Vec<JoinHandle<()>>,
}

impl Tunnel {
    async fn new() -> Self {
        Self::with(&Budget::new(windows()), &Budget::new(windows())).await
    }

    /// A tunnel between pods with these budgets.
    async fn with(client: &Arc<Budget>, server: &Arc<Budget>) -> Self {
        let server_budget = Arc::clone(server);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (io, _) = listener.accept().await.unwrap();
        let (told, accepted) = mpsc::unbounded_channel();
        let server = tokio::spawn(async move {
            let mut alive = Vec::new();
            let serve = |request, respond, guard| {
                alive.push(guard);
                let _ = told.send((request, respond));
            };
            let pressure = Arc::default();
            let _ = accept_http2(io, CancellationToken::new(), &server_budget, &pressure, serve).await;
        });
        let peer = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let (connection, driver) = Connection::over(dialled, peer, client).await.unwrap();
        soon(async {
            let driver = tokio::spawn(async { drop(driver.await) });
            connection.pressure().settled().await;
            Self {
                connection: Arc::new(connection),
                accepted,
                tasks: vec![server, driver],
            }
        })
        .await
    }

    async fn open(&self) -> OpenStream {
        let request = Request::builder()
            .method("CONNECT")
            .uri("198.18.0.1:80")
            .body(())
            .unwrap();
        self.connection.reserve().unwrap().open(request).await.unwrap()
    }

    fn break_off(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

type Outcome = JoinHandle<Result<(), CopyError>>;

/// Both applications of one connection through a tunnel, and how each agent's copy loop ends.
struct Way {
    client: TcpStream,
    server: TcpStream,
    near: Outcome,
    far: Outcome,
    near_counts: Arc<ByteCounts>,
    far_counts: Arc<ByteCounts>,
}

/// What the outbound side does with an open stream.
async fn over_stream(
    mut app: AppStream,
    mut stream: OpenStream,
    account: &Arc<Account>,
) -> Result<(), CopyError> {
    let mut early = Early::default();
    let recv = answered(&mut app, &mut stream, &mut early, account).await?;
    let mut carriage = Carriage {
        app,
        side: Side::Client,
        early: early.left(),
        send: stream.send,
        recv,
        pressure: stream.pressure,
        account: Arc::clone(account),
    };
    carriage.carry().await
}

/// What the inbound side does with a stream that it was asked for.
async fn serve(
    app: AppStream,
    (request, mut respond): Accepted,
    account: Arc<Account>,
) -> Result<(), CopyError> {
    let mut carriage = Carriage {
        app,
        side: Side::Server,
        early: None,
        send: respond.send_response(Response::new(()), false).unwrap(),
        recv: request.into_body(),
        pressure: Arc::default(),
        account,
    };
    carriage.carry().await
}

async fn way(tunnel: &mut Tunnel) -> Way {
    let (client, near_app) = tcp_pair().await;
    let (server, far_app) = tcp_pair().await;
    let (near_counts, far_counts) = (Arc::<ByteCounts>::default(), Arc::<ByteCounts>::default());
    let stream = tunnel.open().await;
    let account = Account::new(&Budget::new(windows()), &near_counts, None);
    let near = tokio::spawn(async move { over_stream(near_app, stream, &account).await });
    let accepted = soon(tunnel.accepted.recv()).await.unwrap();
    let account = Account::new(&Budget::new(windows()), &far_counts, None);
    let far = tokio::spawn(serve(far_app, accepted, account));
    Way {
        client,
        server,
        near,
        far,
        near_counts,
        far_counts,
    }
}

/// What is done with a connection that does not go through a tunnel.
async fn joined(
    mut client: AppStream,
    mut server: AppStream,
    account: Arc<Account>,
) -> Result<(), CopyError> {
    splice(&mut client, &mut server, &account).await
}

/// Both applications of one connection through [`splice`].
async fn spliced() -> (TcpStream, TcpStream, Outcome) {
    let (client, client_app) = tcp_pair().await;
    let (server, server_app) = tcp_pair().await;
    let outcome = tokio::spawn(joined(client_app, server_app, account(None)));
    (client, server, outcome)
}

fn reset(tcp: TcpStream) {
    SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
}

async fn assert_reset(app: &mut TcpStream) {
    let error = soon(app.read_to_end(&mut Vec::new()))
        .await
        .expect_err("ended in order instead of a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// Sends 16 MiB each way at once.
async fn exchange(client: TcpStream, server: TcpStream) {
    let (up, down) = (pattern(16 << 20, 1), pattern(16 << 20, 2));
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let write_up = async {
        client_write.write_all(&up).await.unwrap();
        client_write.shutdown().await.unwrap();
    };
    let write_down = async {
        server_write.write_all(&down).await.unwrap();
        server_write.shutdown().await.unwrap();
    };
    let (mut got_up, mut got_down) = (Vec::new(), Vec::new());
    let all = async {
        tokio::join!(
            write_up,
            write_down,
            async { server_read.read_to_end(&mut got_up).await.unwrap() },
            async { client_read.read_to_end(&mut got_down).await.unwrap() },
        )
    };
    soon(all).await;
    assert!(got_up == up && got_down == down);
}

#[tokio::test]
async fn sixteen_mib_each_way_arrive_byte_for_byte_and_are_counted() {
    let way = way(&mut Tunnel::new().await).await;
    exchange(way.client, way.server).await;
    soon(way.near).await.unwrap().unwrap();
    soon(way.far).await.unwrap().unwrap();
    for counts in [way.near_counts, way.far_counts] {
        use std::sync::atomic::Ordering::Relaxed;
        assert_eq!(
            (counts.received.load(Relaxed), counts.sent.load(Relaxed)),
            (16 << 20, 16 << 20)
        );
    }
}

#[tokio::test]
async fn sixteen_mib_each_way_arrive_byte_for_byte_between_sockets() {
    let (client, server, outcome) = spliced().await;
    exchange(client, server).await;
    soon(outcome).await.unwrap().unwrap();
}

async fn half_close(mut first: TcpStream, mut second: TcpStream) {
    first.write_all(b"question").await.unwrap();
    first.shutdown().await.unwrap();
    let mut got = String::new();
    soon(second.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "question");
    second.write_all(b"answer").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    second.write_all(b", later").await.unwrap();
    second.shutdown().await.unwrap();
    got.clear();
    soon(first.read_to_string(&mut got)).await.unwrap();
    assert_eq!(got, "answer, later");
}

#[tokio::test]
async fn either_side_may_end_its_direction_and_still_hear_the_other() {
    let mut tunnel = Tunnel::new().await;
    for client_first in [true, false] {
        let way = way(&mut tunnel).await;
        let (first, second) = if client_first {
            (way.client, way.server)
        } else {
            (way.server, way.client)
        };
        half_close(first, second).await;
        soon(way.near).await.unwrap().unwrap();
        soon(way.far).await.unwrap().unwrap();
        let (client, server, outcome) = spliced().await;
        let (first, second) = if client_first {
            (client, server)
        } else {
            (server, client)
        };
        half_close(first, second).await;
        soon(outcome).await.unwrap().unwrap();
    }
    assert_eq!(tunnel.connection.pressure().streams(), 0);
}

#[tokio::test]
async fn a_reset_of_either_side_is_a_reset_of_the_other() {
    let mut tunnel = Tunnel::new().await;
    for client_resets in [true, false] {
        let way = way(&mut tunnel).await;
        let (gone, mut other) = if client_resets {
            (way.client, way.server)
        } else {
            (way.server, way.client)
        };
        reset(gone);
        assert_reset(&mut other).await;
        let (near, far) = (soon(way.near).await.unwrap(), soon(way.far).await.unwrap());
        let (saw, heard) = if client_resets { (near, far) } else { (far, near) };
        assert!(matches!(saw, Err(CopyError::AppReset { .. })), "{saw:?}");
        assert!(
            matches!(heard, Err(CopyError::StreamReset(h2::Reason::CANCEL))),
            "{heard:?}"
        );

        let (client, server, outcome) = spliced().await;
        let (gone, mut other) = if client_resets {
            (client, server)
        } else {
            (server, client)
        };
        reset(gone);
        assert_reset(&mut other).await;
        soon(outcome).await.unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn a_client_that_aborts_after_its_request_is_noticed_while_only_the_answer_flows() {
    let mut way = way(&mut Tunnel::new().await).await;
    way.client.write_all(b"GET").await.unwrap();
    way.client.shutdown().await.unwrap();
    let mut got = [0; 3];
    soon(way.server.read_exact(&mut got)).await.unwrap();
    // Answer, which the client leaves unread, and stall both ways.
    way.server.write_all(b"partial").await.unwrap();
    soon(way.client.readable()).await.unwrap();
    reset(way.client);
    soon(way.near).await.unwrap().unwrap_err();
    soon(way.far).await.unwrap().unwrap_err();
    let error = soon(async {
        loop {
            if let Err(error) = way.server.write_all(b"more").await {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(matches!(
        error.await.kind(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
    ));
}

#[tokio::test]
async fn a_client_that_aborts_while_nobody_takes_its_data_is_noticed() {
    let mut way = way(&mut Tunnel::new().await).await;
    let chunk = vec![7; 64 << 10];
    // Until nothing moves any more.
    while tokio::time::timeout(Duration::from_millis(300), way.client.write_all(&chunk))
        .await
        .is_ok()
    {}
    reset(way.client);
    soon(way.near).await.unwrap().unwrap_err();
    soon(way.far).await.unwrap().unwrap_err();
    assert_reset(&mut way.server).await;
}

#[tokio::test]
async fn a_broken_tunnel_resets_both_applications() {
    let mut tunnel = Tunnel::new().await;
    let mut way = way(&mut tunnel).await;
    way.client.write_all(b"x").await.unwrap();
    soon(way.server.read_u8()).await.unwrap();
    tunnel.break_off();
    assert_reset(&mut way.client).await;
    assert_reset(&mut way.server).await;
    assert_eq!(
        soon(way.near).await.unwrap().unwrap_err().reason(),
        "tunnel_broken"
    );
}

#[tokio::test]
async fn a_refusing_status_resets_the_client_and_is_named() {
    let mut tunnel = Tunnel::new().await;
    for (status, reason) in [
        (400, "refused_400"),
        (401, "refused_401"),
        (503, "refused_503"),
        (404, "refused"),
    ] {
        let (mut client, app) = tcp_pair().await;
        let stream = tunnel.open().await;
        let near = tokio::spawn(async move { over_stream(app, stream, &account(None)).await });
        client.write_all(b"sent before the answer").await.unwrap();
        let (_request, mut respond) = soon(tunnel.accepted.recv()).await.unwrap();
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        respond.send_response(response, true).unwrap();
        assert_eq!(soon(near).await.unwrap().unwrap_err().reason(), reason);
        assert_reset(&mut client).await;
    }
}

#[tokio::test]
async fn data_follows_the_connect_without_waiting_for_the_answer() {
    let mut tunnel = Tunnel::new().await;
    let (mut client, app) = tcp_pair().await;
    let stream = tunnel.open().await;
    let near = tokio::spawn(async move { over_stream(app, stream, &account(None)).await });
    client.write_all(b"early").await.unwrap();
    let (request, _respond) = soon(tunnel.accepted.recv()).await.unwrap();
    let data = soon(request.into_body().data()).await.unwrap().unwrap();
    assert_eq!(data, "early");
    near.abort();
}

#[tokio::test]
async fn readers_that_stall_do_not_hold_up_their_siblings() {
    let mut tunnel = Tunnel::new().await;
    let mut stalled = Vec::new();
    for _ in 0..63 {
        let mut way = way(&mut tunnel).await;
        let writer = tokio::spawn(async move {
            let chunk = vec![1; 64 << 10];
            while way.client.write_all(&chunk).await.is_ok() {}
        });
        stalled.push((writer, way.server, way.near, way.far));
    }
    // 63 × (1 MiB of window + socket buffers) are stuck once the writers stop.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let way = way(&mut tunnel).await;
    exchange(way.client, way.server).await;
    soon(way.near).await.unwrap().unwrap();
    // And the connection is known to be second choice for new streams meanwhile.
    assert_eq!(tunnel.connection.room(), crate::tunnel::meter::Room::Congested);
    assert!(stalled.iter().all(|(writer, ..)| !writer.is_finished()));
}

#[tokio::test]
async fn four_hundred_thousand_tiny_unread_frames_cost_nobody_the_connection() {
    let mut tunnel = Tunnel::new().await;
    let mut stream = tunnel.open().await;
    let (mut server, far_app) = narrow_tcp_pair().await;
    let accepted = soon(tunnel.accepted.recv()).await.unwrap();
    let far = tokio::spawn(serve(far_app, accepted, account(None)));
    for _ in 0..400_000 {
        stream.send.send_data(Bytes::from_static(b"."), false).unwrap();
        tokio::task::consume_budget().await;
    }
    let mut sibling = way(&mut tunnel).await;
    sibling.client.write_all(b"!").await.unwrap();
    assert_eq!(soon(sibling.server.read_u8()).await.unwrap(), b'!');
    stream.send.send_data(Bytes::new(), true).unwrap();
    let mut got = Vec::new();
    server.shutdown().await.unwrap();
    soon(server.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 400_000);
    soon(far).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cancelled_copy_resets_its_application() {
    let mut way = way(&mut Tunnel::new().await).await;
    way.near.abort();
    assert_reset(&mut way.client).await;
    assert_reset(&mut way.server).await;
}
