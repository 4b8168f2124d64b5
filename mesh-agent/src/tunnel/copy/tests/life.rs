//! How long connections live, and what is held of them meanwhile.

use super::*;
use crate::tunnel::{MIN_WINDOW, Place};

#[tokio::test]
async fn a_stream_of_which_nothing_was_written_is_known_not_to_have_been_processed() {
    for driven in [false, true] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let peer = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let (connection, driver) = Connection::over(dialled, peer, &Budget::new(windows()))
            .await
            .unwrap();
        let request = Request::connect("198.18.0.1:80").body(()).unwrap();
        let slot = Arc::new(connection).reserve().unwrap();
        let mut stream = soon(slot.open(request)).await.unwrap();
        let (_client, mut app) = tcp_pair().await;
        let mut driver = tokio::spawn(driver);
        if driven {
            // The request leaves; what became of it, nobody knows.
            let _ = tokio::time::timeout(Duration::from_millis(100), &mut driver).await;
        } else {
            driver.abort();
        }
        drop(far);
        let mut early = Early::default();
        let error = soon(answered(&mut app, &mut stream, &mut early, &account(None)))
            .await
            .unwrap_err();
        let expected = (!driven).then_some(crate::tunnel::Unprocessed::Unwritten);
        assert_eq!(stream.unprocessed(&error), expected, "{error}");
    }
}

#[tokio::test]
async fn an_idle_connection_ends_when_a_limit_is_set_also_half_closed_and_else_it_does_not() {
    let limit = Duration::from_millis(200);
    for half_closed in [false, true] {
        let mut tunnel = Tunnel::new().await;
        let without = way(&mut tunnel).await;
        let (mut client, app) = tcp_pair().await;
        let stream = tunnel.open().await;
        let near = tokio::spawn(async move { over_stream(app, stream, &account(Some(limit))).await });
        let (_request, mut respond) = soon(tunnel.accepted.recv()).await.unwrap();
        let _send = respond.send_response(Response::new(()), false).unwrap();
        if half_closed {
            client.shutdown().await.unwrap();
        }
        let error = soon(near).await.unwrap().unwrap_err();
        assert_eq!(
            (error.reason(), error.flag()),
            ("idle_timeout", ResponseFlag::IdleTimeout)
        );
        assert_reset(&mut client).await;
        let (mut client, client_app) = tcp_pair().await;
        let (mut server, server_app) = tcp_pair().await;
        let spliced = tokio::spawn(joined(client_app, server_app, account(Some(limit))));
        if half_closed {
            client.shutdown().await.unwrap();
            assert_eq!(soon(server.read(&mut [0])).await.unwrap(), 0);
        }
        assert_eq!(soon(spliced).await.unwrap().unwrap_err().reason(), "idle_timeout");
        assert_reset(&mut client).await;
        exchange(without.client, without.server).await;
        soon(without.near).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_pod_over_its_bytes_holds_little_more_and_its_other_streams_go_on() {
    let limits = Limits {
        buffered_per_pod: 4 << 20,
        ..windows()
    };
    let (near, far) = (Budget::new(limits), Budget::new(limits));
    let mut tunnel = Tunnel::with(&near, &far).await;
    let mut stalled = Vec::new();
    // One by one, as a peer that heeds SETTINGS would open them: 40 MiB would be held without a budget.
    for _ in 0..40 {
        let (client, near_app) = tcp_pair().await;
        let (server, far_app) = tcp_pair().await;
        let stream = tunnel.open().await;
        let account = Account::new(&near, &Arc::default(), None);
        tokio::spawn(async move { over_stream(near_app, stream, &account).await });
        let accepted = soon(tunnel.accepted.recv()).await.unwrap();
        let account = Account::new(&far, &Arc::default(), None);
        tokio::spawn(serve(far_app, accepted, account));
        let mut writer = client;
        let chunk = vec![1; 64 << 10];
        let pause = Duration::from_millis(100);
        while tokio::time::timeout(pause, writer.write_all(&chunk))
            .await
            .is_ok()
        {}
        stalled.push((writer, server));
    }
    assert!(far.is_tight());
    let held = far.usage().held();
    let most = limits.buffered_per_pod + (1 << 20) + 40 * 2 * MIN_WINDOW as usize;
    assert!(held <= most, "{held} bytes are held, at most {most} should be");
    assert!(near.usage().held() <= most, "{:?}", near.usage());
    let way = way(&mut tunnel).await;
    exchange(way.client, way.server).await;
    // Once the readers go on, everything is released.
    drop(stalled);
    let released = async {
        while far.usage().held() + near.usage().held() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    soon(released).await;
    assert!(!far.is_tight() && far.take(Place::Stream).is_ok());
}

#[tokio::test]
async fn a_peer_that_opens_no_stream_is_told_to_go_and_one_that_uses_its_connection_is_not() {
    let limits = Limits {
        unused_tunnel: Duration::from_secs(1),
        ..windows()
    };
    let (near, far) = (Budget::new(windows()), Budget::new(limits));
    let mut used = Tunnel::with(&near, &far).await;
    let unused = Tunnel::with(&near, &far).await;
    let way = way(&mut used).await;
    // Looked at with each PING, every 10 s.
    let gone = async {
        while !unused.connection.pressure().is_closing() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    soon(gone).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!used.connection.pressure().is_closing());
    exchange(way.client, way.server).await;
}
