use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::*;
use crate::telemetry::connections::ConnectionLog;
use crate::telemetry::metrics::Readings;
use crate::telemetry::readiness::ReadinessFacts;

async fn get(address: SocketAddr, path: &str) -> (u16, String, String) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = axum::http::Request::get(path)
        .header("host", "agent")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let kind = response.headers().get("content-type");
    let kind = kind
        .map(|kind| kind.to_str().unwrap().to_owned())
        .unwrap_or_default();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind, String::from_utf8(body.to_vec()).unwrap())
}

fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

async fn readiness_of(facts: ReadinessFacts) -> SocketAddr {
    let server = HttpServer::readiness(any(), Arc::new(move || facts.clone()))
        .await
        .unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.serve(std::future::pending()));
    address
}

#[tokio::test]
async fn readiness_says_why_not_and_liveness_is_another_matter() {
    let address = readiness_of(ReadinessFacts::default()).await;
    for path in ["/healthz/ready", "/ready"] {
        let (status, _, body) = get(address, path).await;
        assert_eq!(
            (status, body.as_str()),
            (503, "not ready:\n- no configuration is in force yet\n")
        );
    }
    for path in ["/healthz/live", "/live"] {
        assert_eq!(get(address, path).await.0, 200);
    }
    assert_eq!(get(address, "/metrics").await.0, 404);
}

#[tokio::test]
async fn a_ready_agent_answers_200() {
    let address = readiness_of(ReadinessFacts {
        configured: true,
        ..ReadinessFacts::default()
    })
    .await;
    assert_eq!(get(address, "/healthz/ready").await.0, 200);
}

#[tokio::test]
async fn metrics_are_served_in_the_text_format() {
    let metrics = Metrics::new(Arc::new(ConnectionLog::default()), Arc::new(Readings::default)).unwrap();
    let server = HttpServer::metrics(any(), Arc::new(metrics)).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.serve(std::future::pending()));
    let (status, kind, body) = get(address, "/metrics").await;
    assert_eq!((status, kind.as_str()), (200, CONTENT_TYPE));
    assert!(body.contains("mesh_agent_snapshot_version 0\n"), "{body}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_named() {
    let first = readiness_of(ReadinessFacts::default()).await;
    let error = HttpServer::readiness(first, Arc::new(ReadinessFacts::default))
        .await
        .unwrap_err();
    assert!(error.to_string().contains(&first.to_string()), "{error}");
}
