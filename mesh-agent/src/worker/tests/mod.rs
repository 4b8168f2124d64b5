//! Whole ways: client, outbound listener, tunnel under mutual TLS, tunnel listener, application.

mod memory;
mod peer;
mod raw;
mod rejudge;
mod retries;
mod world;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::capture::PodServer;
use crate::identity;
use crate::tunnel::Limits;
use peer::{ECHO, Manners, Peer, STALL};
use world::{World, application, documents, in_namespace, ip, uid};

/// Sends a word each way and ends in order; the server's peer.
async fn talk(mut client: TcpStream, listener: &TcpListener) -> SocketAddr {
    client.write_all(b"ping").await.unwrap();
    client.shutdown().await.unwrap();
    let (mut server, peer) = listener.accept().await.unwrap();
    let mut got = String::new();
    server.read_to_string(&mut got).await.unwrap();
    server.write_all(got.to_uppercase().as_bytes()).await.unwrap();
    drop(server);
    got.clear();
    client.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "PING");
    peer
}

/// A connection that stands, both ends.
async fn pair(world: &World, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = world.connect("order", listener.local_addr().unwrap()).await;
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"x").await.unwrap();
    server.read_u8().await.unwrap();
    (client, server)
}

async fn assert_reset(client: TcpStream) {
    tokio::time::timeout(Duration::from_secs(20), reset(client))
        .await
        .expect("a connection lives on that was to be reset");
}

/// Resolves when the connection is reset.
async fn reset(mut client: TcpStream) {
    let error = client
        .read_to_end(&mut Vec::new())
        .await
        .expect_err("ended in order instead of a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// As [`assert_reset`], for a connection that may be reset while it is being made.
async fn assert_refused(client: std::io::Result<TcpStream>) {
    match client {
        Ok(client) => assert_reset(client).await,
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 5 s: {what}");
}

#[test]
fn a_captured_connection_goes_through_the_tunnel_in_both_families() {
    in_namespace(
        "a_captured_connection_goes_through_the_tunnel_in_both_families",
        || async {
            let world = World::new().await;
            for v6 in [false, true] {
                let (listener, address) = application("payment", v6).await;
                let client = world.connect("order", address).await;
                let real = client.local_addr().unwrap();
                let peer = talk(client, &listener).await;
                let own = if v6 {
                    peer.ip() == address.ip()
                } else {
                    peer.ip().is_loopback()
                };
                assert!(own, "delivered from {peer}");
                assert_eq!(world.flows.announced.lock().unwrap().pop(), Some(real));
            }
            assert_eq!(world.pooled().0, 2);
        },
    );
}

#[test]
fn connections_share_one_tunnel_and_leave_nothing_behind() {
    in_namespace(
        "connections_share_one_tunnel_and_leave_nothing_behind",
        || async {
            let world = World::new().await;
            let (listener, _) = application("payment", false).await;
            let mut pairs = Vec::new();
            for _ in 0..40 {
                pairs.push(pair(&world, &listener).await);
            }
            assert_eq!(world.pooled(), (1, 40));
            drop(pairs);
            eventually("all streams end", || world.pooled() == (1, 0)).await;
        },
    );
}

/// Our established sockets in this namespace that the kernel probes, as `ss` sees them.
fn probed() -> usize {
    let listed = std::process::Command::new("ss")
        .args(["-Htno", "state", "established"])
        .output()
        .expect("iproute2 is installed");
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed.lines().filter(|line| line.contains("keepalive")).count()
}

#[test]
fn every_leg_is_probed_by_the_kernel_and_no_socket_of_an_application_is() {
    in_namespace(
        "every_leg_is_probed_by_the_kernel_and_no_socket_of_an_application_is",
        || async {
            let world = World::new().await;
            let (listener, _) = application("payment", false).await;
            let _tunnelled = pair(&world, &listener).await;
            eventually("the client's leg, both ends of the tunnel, the delivery", || {
                probed() == 4
            })
            .await;
            let (listener, address) = application("visitor", false).await;
            let mut client = world.connect("order", address).await;
            client.write_all(b"x").await.unwrap();
            let _server = listener.accept().await.unwrap();
            eventually("and both legs of a passthrough", || probed() == 6).await;
        },
    );
}

#[test]
fn a_pod_over_its_stream_budget_refuses_and_says_so() {
    in_namespace("a_pod_over_its_stream_budget_refuses_and_says_so", || async {
        let limits = Limits {
            streams_per_pod: 2,
            ..Limits::default()
        };
        let world = World::with(limits, "").await;
        world.enrol("order");
        world.enrol("payment");
        let (listener, address) = application("payment", false).await;
        let first = pair(&world, &listener).await;
        let _second = pair(&world, &listener).await;
        assert_refused(world.try_connect("order", Some(address)).await).await;
        let usage = world.workers.usage()[&uid("payment")];
        assert_eq!((usage.taken[1], usage.refused), (2, [0, 1, 0, 0]));
        let failures = world.log.failures().counts();
        assert!(
            failures
                .iter()
                .any(|((_, _, reason), n)| *reason == "stream_budget" && *n == 1)
        );
        drop(first);
        eventually("the stream ends", || world.pooled() == (1, 1)).await;
        let _third = pair(&world, &listener).await;
    });
}

#[test]
fn a_hundred_connections_at_once_dial_no_herd() {
    in_namespace("a_hundred_connections_at_once_dial_no_herd", || async {
        let world = World::new().await;
        let (listener, address) = application("payment", false).await;
        let mut clients = Vec::new();
        for _ in 0..100 {
            clients.push(world.connect("order", address).await);
        }
        let mut servers = Vec::new();
        for _ in 0..100 {
            servers.push(listener.accept().await.unwrap());
        }
        assert_eq!(world.pooled(), (2, 100));
    });
}

#[test]
fn a_destination_outside_the_mesh_is_dialled_as_it_is() {
    in_namespace("a_destination_outside_the_mesh_is_dialled_as_it_is", || async {
        let world = World::new().await;
        let (listener, address) = application("visitor", false).await;
        let client = world.connect("order", address).await;
        talk(client, &listener).await;
        assert_eq!(world.pooled(), (0, 0));
        assert!(world.flows.announced.lock().unwrap().is_empty());
    });
}

#[test]
fn a_connection_that_was_not_captured_is_reset() {
    in_namespace("a_connection_that_was_not_captured_is_reset", || async {
        let world = World::new().await;
        assert_refused(world.try_connect("order", None).await).await;
    });
}

#[test]
fn an_application_that_does_not_listen_resets_the_client() {
    in_namespace(
        "an_application_that_does_not_listen_resets_the_client",
        || async {
            let world = World::new().await;
            let nobody = SocketAddr::new(ip("payment", false), 81);
            assert_refused(world.try_connect("order", Some(nobody)).await).await;
            eventually("its stream is gone", || world.pooled() == (1, 0)).await;
        },
    );
}

#[test]
fn a_failed_dial_is_not_remembered() {
    in_namespace("a_failed_dial_is_not_remembered", || async {
        let world = World::with(Limits::default(), "").await;
        world.enrol("order");
        let (listener, address) = application("payment", false).await;
        assert_refused(world.try_connect("order", Some(address)).await).await;
        world.enrol("payment");
        talk(world.connect("order", address).await, &listener).await;
    });
}

#[test]
fn a_server_that_is_not_who_the_registry_says_gets_nothing() {
    in_namespace(
        "a_server_that_is_not_who_the_registry_says_gets_nothing",
        || async {
            let world = World::new().await;
            world
                .snapshots
                .publish(documents("payment", "somebody-else", "").into());
            let (listener, address) = application("payment", false).await;
            assert_refused(world.try_connect("order", Some(address)).await).await;
            let nobody = tokio::time::timeout(Duration::from_millis(200), listener.accept()).await;
            assert!(nobody.is_err(), "delivered all the same");
        },
    );
}

#[test]
fn a_pod_that_takes_over_an_address_never_meets_its_predecessors_tunnel() {
    in_namespace(
        "a_pod_that_takes_over_an_address_never_meets_its_predecessors_tunnel",
        || async {
            let world = World::new().await;
            let (listener, _) = application("payment", false).await;
            let (client, _server) = pair(&world, &listener).await;
            assert_eq!(world.pooled(), (1, 1));
            // The same address and service account, another pod.
            world
                .snapshots
                .publish(documents("another", "payment", "").into());
            eventually("the pool forgets it", || world.pooled() == (0, 0)).await;
            assert_reset(client).await;
            // Its node's agent serves it under its new uid.
            let address = listener.local_addr().unwrap();
            assert_refused(world.try_connect("order", Some(address)).await).await;
        },
    );
}

#[test]
fn a_retired_pods_connections_are_reset_and_its_tunnels_dropped() {
    in_namespace(
        "a_retired_pods_connections_are_reset_and_its_tunnels_dropped",
        || async {
            let world = World::new().await;
            let (listener, address) = application("payment", false).await;
            let (client, server) = pair(&world, &listener).await;
            world.workers.retire(&uid("order"));
            assert_reset(client).await;
            assert_reset(server).await;
            assert_eq!(world.pooled(), (0, 0));
            eventually("its listeners close", || world.workers.status()[0].pods == 1).await;
            // Again under the same uid: served afresh.
            tokio::time::sleep(Duration::from_millis(50)).await;
            world.workers.retire(&uid("payment"));
            tokio::time::sleep(Duration::from_millis(50)).await;
            world.enrol("order");
            world.enrol("payment");
            talk(world.connect("order", address).await, &listener).await;
        },
    );
}

#[test]
fn a_panic_costs_one_connection() {
    in_namespace("a_panic_costs_one_connection", || async {
        let world = World::new().await;
        let (listener, address) = application("payment", false).await;
        let (mut client, mut server) = pair(&world, &listener).await;
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::new(ip("order", false), 0)).unwrap();
        *world.flows.cursed.lock().unwrap() = Some(socket.local_addr().unwrap());
        let listener_address = world.connect("order", address).await.peer_addr().unwrap();
        assert_refused(socket.connect(listener_address).await).await;
        eventually("the panic is counted", || world.workers.status()[0].panics == 1).await;
        server.write_all(b"y").await.unwrap();
        assert_eq!(client.read_u8().await.unwrap(), b'y');
    });
}

#[test]
fn a_pod_over_its_connection_budget_is_refused_and_served_again_later() {
    in_namespace(
        "a_pod_over_its_connection_budget_is_refused_and_served_again_later",
        || async {
            let limits = Limits {
                connections_per_pod: 3,
                ..Limits::default()
            };
            let world = World::with(limits, "").await;
            world.enrol("order");
            world.enrol("payment");
            let (listener, address) = application("payment", false).await;
            let first = pair(&world, &listener).await;
            let second = pair(&world, &listener).await;
            let third = pair(&world, &listener).await;
            assert_refused(world.try_connect("order", Some(address)).await).await;
            let usage = world.workers.usage()[&uid("order")];
            assert_eq!((usage.taken[0], usage.refused), (3, [1, 0, 0, 0]));
            drop(first);
            eventually("the stream ends", || world.pooled() == (1, 2)).await;
            let fourth = pair(&world, &listener).await;
            drop((second, third, fourth));
        },
    );
}

#[test]
fn a_shutdown_lets_live_connections_end_and_then_resets_them() {
    in_namespace(
        "a_shutdown_lets_live_connections_end_and_then_resets_them",
        || async {
            let world = World::new().await;
            let (listener, address) = application("payment", false).await;
            let (mut client, mut server) = pair(&world, &listener).await;
            let (stuck, _server) = pair(&world, &listener).await;
            let workers = world.workers.clone();
            let shutdown = tokio::spawn(async move { workers.shutdown(Duration::from_millis(700)).await });
            tokio::time::sleep(Duration::from_millis(200)).await;
            assert!(
                TcpStream::connect((ip("payment", false), 15008)).await.is_err(),
                "still accepts"
            );
            client.write_all(b"late").await.unwrap();
            client.shutdown().await.unwrap();
            let mut got = String::new();
            server.read_to_string(&mut got).await.unwrap();
            assert_eq!(got, "late");
            drop(server);
            assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
            shutdown.await.unwrap();
            assert_reset(stuck).await;
            let _ = address;
        },
    );
}

/// Asks payment's tunnel listener, as `order`, for `request`; the status.
async fn ask(world: &World, request: Request<()>) -> StatusCode {
    let gateway = SocketAddr::new(ip("payment", false), 15008);
    let tls = world.identities.tls(&world::identity("order")).unwrap();
    let tcp = TcpStream::connect(gateway).await.unwrap();
    let (io, _) = identity::connect(&tls, &world::identity("payment"), gateway, tcp)
        .await
        .unwrap();
    let (requests, connection) = h2::client::handshake(io).await.unwrap();
    let driver = tokio::spawn(connection);
    let (response, _send) = requests
        .ready()
        .await
        .unwrap()
        .send_request(request, false)
        .unwrap();
    let status = response.await.unwrap().status();
    driver.abort();
    status
}

#[test]
fn the_tunnel_answers_each_request_as_the_protocol_says() {
    in_namespace("the_tunnel_answers_each_request_as_the_protocol_says", || async {
        let world = World::new().await;
        let (_listener, address) = application("payment", false).await;
        let connect = |authority: String| {
            Request::builder()
                .method(Method::CONNECT)
                .uri(authority)
                .body(())
                .unwrap()
        };
        let port = address.port();
        for (authority, status) in [
            (address.to_string(), 200),
            (format!("198.18.0.1:{port}"), 400),
            (format!("127.0.0.1:{port}"), 400),
            (format!("payment.shop.svc.cluster.local:{port}"), 400),
            ("198.18.0.2:15008".to_owned(), 503),
            ("198.18.0.2:15001".to_owned(), 503),
            ("198.18.0.2:81".to_owned(), 503),
        ] {
            assert_eq!(
                ask(&world, connect(authority.clone())).await.as_u16(),
                status,
                "{authority}"
            );
        }
        let get = Request::builder()
            .uri(format!("https://{address}/"))
            .body(())
            .unwrap();
        assert_eq!(ask(&world, get).await, StatusCode::BAD_REQUEST);
    });
}

/// A plaintext connection to payment while `extra` is in force: the client, and the application's listener behind it.
async fn plaintext(world: &World) -> (TcpStream, TcpListener) {
    // The socket lookup that sends plaintext to the agent needs BPF; here the agent holds the port first, the application after it.
    let listener = std::net::TcpListener::bind(SocketAddr::new(ip("payment", false), 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(ip("visitor", false), 0)).unwrap();
    let client = socket.connect(address).await.unwrap();
    let (accepted, _) = listener.accept().unwrap();
    accepted.set_nonblocking(true).unwrap();
    drop(listener);
    let application = TcpListener::bind(address).await.unwrap();
    world.take_plaintext("payment", accepted);
    (client, application)
}

#[test]
fn plaintext_is_delivered_where_the_policy_is_permissive() {
    in_namespace(
        "plaintext_is_delivered_where_the_policy_is_permissive",
        || async {
            let world = World::new().await;
            let (client, application) = plaintext(&world).await;
            let real = client.local_addr().unwrap();
            let peer = talk(client, &application).await;
            assert!(peer.ip().is_loopback());
            assert_eq!(world.flows.announced.lock().unwrap().pop(), Some(real));
        },
    );
}

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
    metadata: {name: default, namespace: shop}\nspec: {mtls: {mode: STRICT}}\n";

#[test]
fn plaintext_is_reset_where_the_policy_is_strict() {
    in_namespace("plaintext_is_reset_where_the_policy_is_strict", || async {
        let world = World::with(Limits::default(), STRICT).await;
        world.enrol("payment");
        let (client, application) = plaintext(&world).await;
        assert_reset(client).await;
        let nobody = tokio::time::timeout(Duration::from_millis(200), application.accept()).await;
        assert!(nobody.is_err(), "delivered all the same");
        assert!(world.flows.announced.lock().unwrap().is_empty());
    });
}

async fn assert_echoes(client: &mut TcpStream) {
    let echoed = async {
        client.write_all(b"still here").await.unwrap();
        let mut got = [0; 10];
        client.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"still here");
    };
    tokio::time::timeout(Duration::from_secs(10), echoed)
        .await
        .expect("held up for 10 s");
}

#[test]
fn readers_that_stall_behind_a_peer_with_other_windows_hold_up_nobody() {
    in_namespace(
        "readers_that_stall_behind_a_peer_with_other_windows_hold_up_nobody",
        || async {
            let world = World::with(Limits::default(), "").await;
            world.enrol("order");
            let windows = Manners {
                stream_window: 4 << 20,
                connection_window: 16 << 20,
            };
            Peer::start(&world, windows).await;
            let at = |port| SocketAddr::new(ip("payment", false), port);
            let (mut siblings, mut stalled) = (Vec::new(), Vec::new());
            for n in 0..24 {
                if n % 4 == 0 {
                    siblings.push(world.connect("order", at(ECHO)).await);
                } else {
                    stalled.push(world.connect("order", at(STALL)).await);
                }
            }
            for client in &mut siblings {
                assert_echoes(client).await;
            }
            let writers: Vec<_> = stalled
                .into_iter()
                .map(|mut client| {
                    tokio::spawn(async move {
                        let chunk = vec![1; 64 << 10];
                        let second = Duration::from_secs(1);
                        while let Ok(written) = tokio::time::timeout(second, client.write_all(&chunk)).await {
                            written.unwrap();
                        }
                        client
                    })
                })
                .collect();
            let mut blocked = Vec::new();
            for writer in writers {
                blocked.push(writer.await.unwrap());
            }
            for client in &mut siblings {
                assert_echoes(client).await;
            }
            for _ in 0..8 {
                assert_echoes(&mut world.connect("order", at(ECHO)).await).await;
            }
        },
    );
}

#[test]
fn after_a_goaway_live_streams_go_on_and_new_ones_take_another_connection() {
    in_namespace(
        "after_a_goaway_live_streams_go_on_and_new_ones_take_another_connection",
        || async {
            let world = World::with(Limits::default(), "").await;
            world.enrol("order");
            let windows = Manners {
                stream_window: 1 << 20,
                connection_window: 64 << 20,
            };
            let peer = Peer::start(&world, windows).await;
            let address = SocketAddr::new(ip("payment", false), ECHO);
            let mut live = world.connect("order", address).await;
            assert_echoes(&mut live).await;
            for round in 1..=3 {
                peer.goaway.notify_waiters();
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert_echoes(&mut live).await;
                let mut new = world.connect("order", address).await;
                assert_echoes(&mut new).await;
                assert_echoes(&mut live).await;
                assert_eq!(
                    peer.connections.load(std::sync::atomic::Ordering::Relaxed),
                    round + 1
                );
            }
        },
    );
}

#[test]
fn garbage_and_silence_on_the_tunnels_port_disturb_nobody() {
    in_namespace(
        "garbage_and_silence_on_the_tunnels_port_disturb_nobody",
        || async {
            let world = World::new().await;
            let gateway = SocketAddr::new(ip("payment", false), 15008);
            let mut silent = Vec::new();
            for n in 0_u8..200 {
                let mut client = TcpStream::connect(gateway).await.unwrap();
                match n % 3 {
                    0 => client.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap(),
                    1 => client.write_all(&[22, 3, 1, 2]).await.unwrap(),
                    _ => {}
                }
                silent.push(client);
            }
            let (listener, address) = application("payment", false).await;
            talk(world.connect("order", address).await, &listener).await;
            assert_eq!(world.workers.status()[0].panics, 0);
        },
    );
}
