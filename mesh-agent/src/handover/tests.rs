use std::sync::Arc;

use super::*;

fn claim() -> Claim {
    Claim {
        node: "n1".into(),
        version: "1.0.0".into(),
        pid: 7,
    }
}

fn estate() -> Estate {
    Estate {
        version: "0.9.0".into(),
        pid: 6,
        agent_cgroup: 4711,
        handovers: Counts {
            taken_over: 2,
            ..Counts::default()
        },
    }
}

async fn ask(path: PathBuf) -> Result<Option<Predecessor>, HandoverError> {
    tokio::task::spawn_blocking(move || Predecessor::ask(&path, claim()))
        .await
        .unwrap()
}

#[test]
fn where_no_agent_runs_nobody_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let admin = dir.path().join("admin.sock");
    assert!(Predecessor::ask(&admin, claim()).unwrap().is_none());
    drop(std::os::unix::net::UnixListener::bind(path_beside(&admin)).unwrap());
    assert!(
        Predecessor::ask(&admin, claim()).unwrap().is_none(),
        "a crash has left the file"
    );
}

#[tokio::test]
async fn an_agent_yields_and_learns_that_it_was_relieved() {
    let dir = tempfile::tempdir().unwrap();
    let admin = dir.path().join("admin.sock");
    let door = Door::open(&admin).unwrap();
    let successor = tokio::spawn(ask(admin));
    let mut visitor = door.knock().await;
    assert_eq!(visitor.claim(), &claim());
    let (outcome, ()) = tokio::join!(visitor.yielded(estate()), async {
        let predecessor = successor.await.unwrap().unwrap().unwrap();
        assert_eq!(predecessor.estate(), &estate());
        drop(predecessor.taken().unwrap());
    });
    assert_eq!(outcome, Outcome::Taken);
}

#[tokio::test]
async fn a_predecessor_that_leaves_is_followed_until_it_has_left() {
    let dir = tempfile::tempdir().unwrap();
    let admin = dir.path().join("admin.sock");
    let door = Door::open(&admin).unwrap();
    let successor = tokio::spawn(ask(admin));
    let mut visitor = door.knock().await;
    let ledger = Arc::new(Ledger::of(Counts::default()));
    let (outcome, departure) = tokio::join!(visitor.yielded(estate()), async {
        successor.await.unwrap().unwrap().unwrap().taken().unwrap()
    });
    assert_eq!(outcome, Outcome::Taken);
    let followed = {
        let ledger = Arc::clone(&ledger);
        tokio::spawn(async move { departure.follow(&ledger).await })
    };
    assert_eq!(ledger.leaving(), None, "it has not said anything");
    for connections in [7, 3] {
        visitor.draining(connections).await.unwrap();
        let heard = async {
            while ledger
                .leaving()
                .is_none_or(|leaving| leaving.connections != connections)
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), heard)
            .await
            .unwrap();
        assert_eq!(ledger.leaving().map(|leaving| leaving.pid), Some(estate().pid));
    }
    drop(visitor);
    followed.await.unwrap().unwrap();
    assert_eq!(ledger.leaving(), None);
}

#[test]
fn an_estate_of_an_older_version_counts_from_nothing() {
    let older = r#"{"version": "0.1.0", "pid": 6, "agent_cgroup": 1}"#;
    let estate: Estate = serde_json::from_str(older).unwrap();
    assert_eq!(estate.handovers, Counts::default());
}

#[tokio::test]
async fn a_successor_that_goes_without_a_word_has_failed() {
    let dir = tempfile::tempdir().unwrap();
    let admin = dir.path().join("admin.sock");
    let door = Door::open(&admin).unwrap();
    let successor = tokio::spawn(ask(admin));
    let mut visitor = door.knock().await;
    let (outcome, ()) = tokio::join!(visitor.yielded(estate()), async {
        drop(successor.await.unwrap().unwrap());
    });
    assert_eq!(outcome, Outcome::Failed);
}

#[tokio::test]
async fn an_agent_that_refuses_says_why_and_noise_is_sent_away() {
    let dir = tempfile::tempdir().unwrap();
    let admin = dir.path().join("admin.sock");
    let door = Door::open(&admin).unwrap();
    let mut noise = UnixStream::connect(path_beside(&admin)).unwrap();
    noise.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    let successor = tokio::spawn(ask(admin.clone()));
    door.knock().await.refuse("I am for n2").await;
    let refused = successor.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("I am for n2"), "{refused}");
    drop(door);
    assert!(!path_beside(&admin).exists());
}
