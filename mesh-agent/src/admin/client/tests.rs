use std::sync::Arc;

use tokio::sync::oneshot;

use super::*;
use crate::admin::document::{
    Analysis, Bpf, BpfEvents, BpfLog, BpfLogWanted, Certificates, Checks, Config, ConnectionEntry,
    Connections, Explanation, MtlsReadiness, OlderConnections, Policies, Refusals, SandboxHost, Services,
    Status, Workloads,
};
use crate::admin::{AdminServer, AdminSocket, View};
use crate::telemetry::connections::tests::info;
use crate::telemetry::connections::{ConnectionLog, Reporter};

/// Shows the connections of a log and one status; its checks panic.
struct Shown(Arc<ConnectionLog>);

impl View for Shown {
    fn status(&self) -> Status {
        Status {
            node: "n1".into(),
            ..Status::default()
        }
    }

    fn workloads(&self) -> Workloads {
        Workloads::default()
    }

    fn connections(&self, filter: &ConnectionFilter) -> Connections {
        let live = self.0.live();
        let entries = live.iter().map(|live| ConnectionEntry::of(live));
        Connections {
            connections: entries.filter(|entry| entry.matches(filter)).collect(),
        }
    }

    fn older_connections(&self, _: &ConnectionFilter) -> OlderConnections {
        OlderConnections::default()
    }

    fn policies(&self) -> Policies {
        Policies::default()
    }

    fn refusals(&self) -> Refusals {
        Refusals::default()
    }

    fn analyze(&self) -> Result<Analysis, String> {
        Ok(Analysis::default())
    }

    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, String> {
        match query.source.as_str() {
            "nobody" => Err("nobody is called \"nobody\"".to_owned()),
            _ => Ok(Explanation {
                source: Some(query.source.clone()),
                service: Some(query.destination.clone()),
                ..Explanation::default()
            }),
        }
    }

    fn services(&self) -> Services {
        Services::default()
    }

    fn mtls_readiness(&self) -> MtlsReadiness {
        MtlsReadiness::default()
    }

    fn certificates(&self) -> Certificates {
        Certificates::default()
    }

    fn bpf(&self) -> Bpf {
        Bpf::default()
    }

    fn bpf_events(&self) -> BpfEvents {
        BpfEvents::default()
    }

    fn set_bpf_log(&self, wanted: &BpfLogWanted) -> Result<BpfLog, String> {
        match &wanted.pod {
            Some(pod) => Err(format!("no pod {pod} is captured")),
            None => Ok(BpfLog {
                on: wanted.on,
                remaining_seconds: wanted.seconds,
                pod: None,
            }),
        }
    }

    fn checks(&self) -> Checks {
        panic!("a fault of the agent")
    }

    fn config(&self) -> Config {
        Config {
            version: 0,
            age_seconds: 0,
            sources: vec![],
            rejections: vec![],
            notices: vec![],
        }
    }

    fn sandbox(&self) -> SandboxHost {
        SandboxHost {
            node: "n1".into(),
            pid: 1,
            netns: 1,
            cgroup_root: "/sys/fs/cgroup".into(),
            directory: "/run/mesh-agent/sandboxes/n1".into(),
            ranges: Default::default(),
            cluster_domain: "cluster.local".into(),
        }
    }
}

struct Served {
    client: Client,
    log: Arc<ConnectionLog>,
    path: PathBuf,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<Result<(), crate::admin::SocketError>>,
    _dir: tempfile::TempDir,
}

fn serve() -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let log = Arc::new(ConnectionLog::default());
    let socket = AdminSocket::bind(&path).unwrap();
    let server = AdminServer::new(socket, Arc::new(Shown(log.clone())));
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(server.serve(async move {
        let _ = stopped.await;
    }));
    Served {
        client: Client::new(&path),
        log,
        path,
        stop,
        task,
        _dir: dir,
    }
}

#[tokio::test]
async fn documents_come_over_the_socket_until_the_server_stops() {
    let served = serve();
    let status: Status = served.client.document("/status").await.unwrap();
    assert_eq!(status.node, "n1");
    for target in [
        "/workloads",
        "/connections",
        "/policies",
        "/refusals",
        "/services",
        "/mtls/readiness",
        "/certs",
        "/bpf",
        "/config",
    ] {
        assert!(served.client.get(target).await.is_ok(), "{target}");
    }
    served.stop.send(()).unwrap();
    served.task.await.unwrap().unwrap();
    assert!(!served.path.exists());
    let error = served.client.get("/status").await.unwrap_err();
    assert!(matches!(error, ClientError::Absent { .. }), "{error}");
}

#[tokio::test]
async fn connections_are_filtered_by_the_agent() {
    let served = serve();
    let _connection = served.log.open(info(Reporter::Source));
    let ask = async |workload: &str| {
        let filter = ConnectionFilter {
            workload: Some(workload.into()),
            namespace: None,
        };
        let target = connections_target(&filter);
        served
            .client
            .document::<Connections>(&target)
            .await
            .unwrap()
            .connections
            .len()
    };
    assert_eq!(ask("order-1").await, 1);
    assert_eq!(ask("visitor & co").await, 0);
}

#[tokio::test]
async fn an_unknown_path_and_a_bad_query_are_refused_with_a_sentence() {
    let served = serve();
    let error = served.client.get("/nonsense").await.unwrap_err();
    assert!(matches!(&error, ClientError::Refused { status, .. } if status.as_u16() == 404));
    assert!(error.to_string().contains("/nonsense"), "{error}");
    let error = served.client.get("/connections?color=red").await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused { status, .. } if status.as_u16() == 400),
        "{error}"
    );
}

#[tokio::test]
async fn a_panic_in_one_answer_leaves_the_server_alive() {
    let served = serve();
    let error = served.client.get("/check").await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused { status, .. } if status.as_u16() == 500),
        "{error}"
    );
    assert!(served.client.get("/status").await.is_ok());
}

#[tokio::test]
async fn a_socket_without_an_agent_is_told_apart_from_no_socket() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    let error = Client::new(&path).get("/status").await.unwrap_err();
    assert!(matches!(error, ClientError::Absent { .. }), "{error}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let error = Client::new(&path).get("/status").await.unwrap_err();
    assert!(matches!(error, ClientError::Gone { .. }), "{error}");
    assert!(error.to_string().contains(path.to_str().unwrap()));
}

#[tokio::test]
async fn an_answer_of_another_shape_is_not_taken_for_a_document() {
    let served = serve();
    let error = served.client.document::<Status>("/workloads").await.unwrap_err();
    assert!(matches!(error, ClientError::Shape(_)), "{error}");
}

#[tokio::test]
async fn the_debug_log_is_switched_by_a_question_and_refused_with_a_sentence() {
    let served = serve();
    let wanted = BpfLogWanted {
        on: true,
        seconds: 60,
        pod: None,
    };
    let answer = served.client.post("/bpf/log", &wanted).await.unwrap();
    let log: BpfLog = serde_json::from_slice(&answer).unwrap();
    assert!(log.on && log.remaining_seconds == 60);
    let nobody = BpfLogWanted {
        pod: Some("shop/nobody".into()),
        ..wanted
    };
    let error = served.client.post("/bpf/log", &nobody).await.unwrap_err();
    assert!(error.to_string().contains("shop/nobody"), "{error}");
    let error = served.client.post("/bpf/log", &"nonsense").await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    let error = served.client.get("/bpf/log").await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");
    assert!(served.client.get("/bpf/events").await.is_ok());
}

#[tokio::test]
async fn a_question_comes_whole_to_the_agent_and_so_does_its_refusal() {
    let served = serve();
    let query = ExplainQuery {
        source: "spiffe://a.b/ns/x/sa/y&z".into(),
        destination: "[2001:db8::1]:80".into(),
    };
    let explanation: Explanation = served.client.document(&explain_target(&query)).await.unwrap();
    assert_eq!(explanation.source, Some(query.source));
    assert_eq!(explanation.service, Some(query.destination));
    let query = ExplainQuery {
        source: "nobody".into(),
        destination: "a/b:80".into(),
    };
    let error = served.client.get(&explain_target(&query)).await.unwrap_err();
    assert!(error.to_string().contains("nobody is called"), "{error}");
}
