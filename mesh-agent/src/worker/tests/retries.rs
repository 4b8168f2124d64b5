//! Streams that failed before they were answered: which are tried again, with what, and which never.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::raw::{Act, Plan, REFUSED_STREAM, RawPeer};
use super::world::{World, identity, in_namespace, ip};
use super::{assert_refused, assert_reset, eventually, reset};
use crate::telemetry::connections::ResponseFlag;
use crate::tunnel::Limits;
use crate::tunnel::copy::EARLY_LIMIT;

async fn world(plans: &'static [Plan]) -> (World, RawPeer, SocketAddr) {
    let world = World::with(Limits::default(), "").await;
    world.enrol("order");
    let peer = RawPeer::start(&world, plans).await;
    (world, peer, SocketAddr::new(ip("payment", false), 80))
}

#[test]
fn a_stream_that_the_peer_did_not_process_goes_to_another_connection_with_its_data() {
    in_namespace(
        "retries::a_stream_that_the_peer_did_not_process_goes_to_another_connection_with_its_data",
        || async {
            const GOAWAY: &[Plan] = &[(4, Act::GoAwayBelow), (4, Act::Answer)];
            const REFUSED: &[Plan] = &[(4, Act::Reset(REFUSED_STREAM)), (4, Act::Answer)];
            for (plans, reason) in [(GOAWAY, "goaway"), (REFUSED, "refused_stream")] {
                let (world, peer, address) = world(plans).await;
                let mut client = world.connect("order", address).await;
                client.write_all(b"ping").await.unwrap();
                client.shutdown().await.unwrap();
                let mut got = String::new();
                client.read_to_string(&mut got).await.unwrap();
                assert_eq!(got, "ping", "{reason}");
                assert_eq!(peer.streams(), [b"ping", b"ping"], "{reason}");
                assert_eq!(world.log.retries().counts(), [(reason, 1)]);
                world.workers.shutdown(Duration::ZERO).await;
                peer.stop();
            }
        },
    );
}

#[test]
fn a_stream_that_the_peer_may_have_processed_is_never_sent_again() {
    in_namespace(
        "retries::a_stream_that_the_peer_may_have_processed_is_never_sent_again",
        || async {
            const CLOSE: &[Plan] = &[(4, Act::Close), (4, Act::Answer)];
            const GOAWAY: &[Plan] = &[(4, Act::GoAwayAbove), (4, Act::Answer)];
            // CANCEL and INTERNAL_ERROR say nothing about what was done.
            const CANCEL: &[Plan] = &[(4, Act::Reset(8)), (4, Act::Answer)];
            const INTERNAL: &[Plan] = &[(4, Act::Reset(2)), (4, Act::Answer)];
            for plans in [CLOSE, GOAWAY, CANCEL, INTERNAL] {
                let (world, peer, address) = world(plans).await;
                let mut client = world.connect("order", address).await;
                client.write_all(b"ping").await.unwrap();
                assert_reset(client).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert_eq!(peer.streams(), [b"ping"], "{plans:?}");
                assert!(world.log.retries().counts().is_empty(), "{plans:?}");
                world.workers.shutdown(Duration::ZERO).await;
                peer.stop();
            }
        },
    );
}

#[test]
fn an_answer_with_a_reset_at_its_heels_counts_as_the_answer() {
    in_namespace(
        "retries::an_answer_with_a_reset_at_its_heels_counts_as_the_answer",
        || async {
            const AT_ONCE: &[Plan] = &[(0, Act::Unavailable)];
            const LATER: &[Plan] = &[(4, Act::Unavailable)];
            for plans in [AT_ONCE, LATER] {
                let (world, peer, address) = world(plans).await;
                let mut client = world.connect("order", address).await;
                client.write_all(&vec![b'x'; 2 * EARLY_LIMIT]).await.unwrap();
                assert_refused(Ok(client)).await;
                eventually("the failure is told", || {
                    !world.log.failures().counts().is_empty()
                })
                .await;
                let failures = world.log.failures().counts();
                let ((_, flag, reason), count) = failures[0];
                assert_eq!((flag, reason, count), (ResponseFlag::Connect, "refused_503", 1));
                assert!(world.log.retries().counts().is_empty());
                world.workers.shutdown(Duration::ZERO).await;
                peer.stop();
            }
        },
    );
}

#[test]
fn a_peer_that_refuses_every_stream_is_asked_three_times_on_three_connections() {
    in_namespace(
        "retries::a_peer_that_refuses_every_stream_is_asked_three_times_on_three_connections",
        || async {
            let (world, peer, address) = world(&[(0, Act::Reset(REFUSED_STREAM))]).await;
            assert_refused(world.try_connect("order", Some(address)).await).await;
            let connections: Vec<_> = peer.got.lock().unwrap().keys().map(|(n, _)| *n).collect();
            assert_eq!(connections, [0, 1, 2]);
            assert_eq!(world.log.retries().counts(), [("refused_stream", 2)]);
        },
    );
}

#[test]
fn before_the_answer_a_client_is_read_from_up_to_a_limit_and_all_of_it_is_sent_again() {
    in_namespace(
        "retries::before_the_answer_a_client_is_read_from_up_to_a_limit_and_all_of_it_is_sent_again",
        || async {
            const PLANS: &[Plan] = &[
                (EARLY_LIMIT, Act::Reset(REFUSED_STREAM)),
                (EARLY_LIMIT, Act::Answer),
            ];
            let (world, peer, address) = world(PLANS).await;
            let sent: Vec<u8> = (0..EARLY_LIMIT * 4).map(|n| (n / 251) as u8).collect();
            let (mut from, mut to) = world.connect("order", address).await.into_split();
            let for_task = sent.clone();
            tokio::spawn(async move {
                to.write_all(&for_task).await.unwrap();
                to.shutdown().await.unwrap();
            });
            let mut got = Vec::new();
            from.read_to_end(&mut got).await.unwrap();
            assert!(
                got == sent,
                "{} bytes came back, not as they were sent",
                got.len()
            );
            let streams = peer.streams();
            assert!(
                streams[0] == sent[..EARLY_LIMIT],
                "the first stream got {}",
                streams[0].len()
            );
            assert!(streams[1] == sent);
        },
    );
}

#[test]
fn a_peer_that_answers_no_ping_is_given_up_in_both_roles() {
    in_namespace(
        "retries::a_peer_that_answers_no_ping_is_given_up_in_both_roles",
        || async {
            let (world, _peer, address) = world(&[(0, Act::Deaf)]).await;
            let client = world.connect("order", address).await;
            // A ping after 10 s, 20 s for its answer.
            let limit = Duration::from_secs(45);
            let as_client = tokio::time::timeout(limit, reset(client));
            let tls = world.identities.tls(&identity("visitor")).unwrap();
            let gateway = SocketAddr::new(ip("order", false), 15008);
            let tcp = tokio::net::TcpStream::connect(gateway).await.unwrap();
            let (mut io, _) = crate::identity::connect(&tls, &identity("order"), gateway, tcp)
                .await
                .unwrap();
            io.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
            io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            let as_server = tokio::time::timeout(limit, async {
                let mut got = Vec::new();
                let _ = io.read_to_end(&mut got).await;
                got
            });
            let (as_client, got) = tokio::join!(as_client, as_server);
            as_client.expect("a deaf server was not given up");
            let got = got.expect("a deaf client was not given up");
            assert!(
                got.windows(5).any(|frame| frame == [0, 0, 8, 6, 0]),
                "it was not asked"
            );
        },
    );
}
