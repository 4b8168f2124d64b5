//! Resumption: that it works, and that it proves no less than a full handshake.

use std::sync::Arc;
use std::time::Duration;

use rustls::HandshakeKind;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::fixture::{self, Claims, id, install, workload};
use super::stranger::{Connected, ORDER, PAYMENT, Stranger, address, meet};
use crate::identity::{accept, connect, reason};

#[tokio::test]
async fn a_second_handshake_is_resumed_and_proves_the_same() {
    let root = fixture::root("td");
    let (order, payment) = (
        workload(&root, &id(ORDER), &[]),
        workload(&root, &id(PAYMENT), &[]),
    );
    let kind = |connected: &Connected| connected.as_ref().unwrap().0.get_ref().1.handshake_kind();
    let (first, _) = meet(&order, &payment, &id(PAYMENT)).await;
    assert_eq!(kind(&first), Some(HandshakeKind::Full));
    let (second, accepted) = meet(&order, &payment, &id(PAYMENT)).await;
    assert_eq!(kind(&second), Some(HandshakeKind::Resumed));
    assert_eq!((second.unwrap().1, accepted.unwrap()), (id(PAYMENT), id(ORDER)));
}

#[tokio::test]
async fn a_session_is_not_offered_for_another_expectation() {
    let root = fixture::root("td");
    let (order, payment) = (
        workload(&root, &id(ORDER), &[]),
        workload(&root, &id(PAYMENT), &[]),
    );
    meet(&order, &payment, &id(PAYMENT)).await.0.unwrap();
    let (refused, _) = meet(&order, &payment, &id("spiffe://td/ns/shop/sa/other")).await;
    assert_eq!(refused.unwrap_err().reason, reason::UNEXPECTED_IDENTITY);
}

#[tokio::test]
async fn a_session_of_one_identity_is_never_resumed_by_another() {
    let root = fixture::root("td");
    let (order, payment) = (
        workload(&root, &id(ORDER), &[]),
        workload(&root, &id(PAYMENT), &[]),
    );
    let cart = workload(&root, &id("spiffe://td/ns/shop/sa/cart"), &[]);
    meet(&order, &payment, &id(PAYMENT)).await.0.unwrap();
    let (connected, accepted) = meet(&cart, &payment, &id(PAYMENT)).await;
    assert_eq!(
        connected.unwrap().0.get_ref().1.handshake_kind(),
        Some(HandshakeKind::Full)
    );
    assert_eq!(accepted.unwrap(), *cart.id());
}

#[tokio::test]
async fn a_rotated_certificate_ends_sessions_on_either_side_but_no_connection() {
    let root = fixture::root("td");
    let (order, payment) = (
        workload(&root, &id(ORDER), &[]),
        workload(&root, &id(PAYMENT), &[]),
    );
    for rotated in [&order, &payment] {
        meet(&order, &payment, &id(PAYMENT)).await.0.unwrap();
        let (near, far) = duplex(64 * 1024);
        let (to, expected) = (payment.clone(), id(PAYMENT));
        let (client, server) = tokio::join!(connect(&order, &expected, address(), near), accept(&to, far));
        let ((mut client, _), (mut server, _)) = (client.unwrap(), server.unwrap());
        let configs = (Arc::clone(&rotated.client), Arc::clone(&rotated.server));

        install(rotated, &root.leaf(&Claims::uris(&[&rotated.id().to_string()])));

        client.write_all(b"still here").await.unwrap();
        client.flush().await.unwrap();
        let mut heard = [0; 10];
        server.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"still here");
        assert!(Arc::ptr_eq(&configs.0, &rotated.client) && Arc::ptr_eq(&configs.1, &rotated.server));
        let (next, _) = meet(&order, &payment, &id(PAYMENT)).await;
        assert_eq!(
            next.unwrap().0.get_ref().1.handshake_kind(),
            Some(HandshakeKind::Full)
        );
    }
}

/// Long enough for a certificate of one second, whose last second counts whole, to run out.
const RUN_OUT: Duration = Duration::from_millis(2100);

#[tokio::test]
async fn a_session_is_not_resumed_on_a_server_certificate_that_has_run_out() {
    let root = fixture::root("td");
    let order = workload(&root, &id(ORDER), &[]);
    let mut claims = Claims::uris(&[PAYMENT]);
    claims.not_after = 1;
    // This server never looks at the clock and resumes whatever it remembers.
    let server = Arc::new(Stranger::with(&root.leaf(&claims)).server());
    let dial = async || {
        let (near, far) = duplex(64 * 1024);
        let expected = id(PAYMENT);
        let serve = async {
            let mut stream = TlsAcceptor::from(Arc::clone(&server)).accept(far).await?;
            stream.write_all(b"x").await?;
            stream.flush().await?;
            std::io::Result::Ok(stream.get_ref().1.handshake_kind())
        };
        let dial = async {
            let (mut stream, _) = connect(&order, &expected, address(), near).await?;
            stream.read_u8().await.unwrap();
            Ok(())
        };
        tokio::join!(dial, serve)
    };
    let (first, kind) = dial().await;
    first.map_err(|error: crate::identity::PeerError| error).unwrap();
    assert_eq!(kind.unwrap(), Some(HandshakeKind::Full));
    tokio::time::sleep(RUN_OUT).await;
    let (resumed, _) = dial().await;
    let error = resumed.unwrap_err();
    assert_eq!(error.reason, reason::EXPIRED);
    assert!(
        error.message.contains("has expired"),
        "found out after a resumption, not by the verifier: {error}"
    );
    // Its sessions are forgotten: the next handshake is full, and fails in the verifier.
    let (full, _) = dial().await;
    let error = full.unwrap_err();
    assert_eq!(error.reason, reason::EXPIRED);
    assert!(!error.message.contains("has expired"), "{error}");
}

#[tokio::test]
async fn a_session_is_not_resumed_on_a_client_certificate_that_has_run_out() {
    let root = fixture::root("td");
    let order = workload(&root, &id(ORDER), &[]);
    let mut claims = Claims::uris(&[PAYMENT]);
    claims.not_after = 1;
    let client = Arc::new(Stranger::with(&root.leaf(&claims)).client());
    let dial = async || {
        let (near, far) = duplex(64 * 1024);
        let serve = async {
            let (mut stream, _) = accept(&order, far).await?;
            stream.write_all(b"x").await.unwrap();
            stream.flush().await.unwrap();
            Ok::<_, crate::identity::PeerError>(())
        };
        let dial = async {
            let name = ServerName::try_from("stranger.test").unwrap();
            let mut stream = TlsConnector::from(Arc::clone(&client))
                .connect(name, near)
                .await?;
            let _ = stream.read_u8().await;
            std::io::Result::Ok(stream.get_ref().1.handshake_kind())
        };
        tokio::join!(serve, dial)
    };
    dial().await.0.unwrap();
    tokio::time::sleep(RUN_OUT).await;
    let (refused, kind) = dial().await;
    assert_eq!(kind.unwrap(), Some(HandshakeKind::Resumed));
    assert_eq!(refused.unwrap_err().reason, reason::EXPIRED);
}
