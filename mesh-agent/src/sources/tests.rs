//! Real files in a real directory, through to the published snapshot.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::model::MtlsMode;
use mesh_core::snapshot::{MeshSettings, Snapshot};
use tempfile::TempDir;

use super::*;

/// What the issue allows between a change and its effect.
const SOON: Duration = Duration::from_secs(1);

fn mesh() -> MeshSettings {
    MeshSettings {
        node_name: "node-1".into(),
        ..MeshSettings::default()
    }
}

fn start(directory: &Path) -> Publisher {
    Publisher::start(mesh(), vec![Box::new(FileSource::new(directory))]).unwrap()
}

fn pod(name: &str, address: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{nodeName: node-1}}\nstatus:\n  podIPs:\n  - ip: {address}\n"
    )
}

/// Waits until the snapshot in force is as it must be, at most as long as a change may take.
#[track_caller]
fn soon(publisher: &Publisher, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let since = Instant::now();
    loop {
        let snapshot = publisher.cell().load();
        if holds(&snapshot) {
            return snapshot;
        }
        assert!(
            since.elapsed() < SOON,
            "after {SOON:?} still not: {what}; {:?}",
            publisher.status().read()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    let mut names: Vec<String> = snapshot
        .workloads()
        .map(|workload| workload.name.clone())
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_there_at_the_start_is_in_force_at_once() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("a.yaml"), pod("order", "198.18.0.1")).unwrap();
    fs::create_dir(directory.path().join("more")).unwrap();
    fs::write(directory.path().join("more/b.yml"), pod("payment", "198.18.0.2")).unwrap();
    fs::write(directory.path().join("README.md"), "kind: [").unwrap();
    let publisher = start(directory.path());
    let snapshot = publisher.cell().load();
    assert_eq!(
        (snapshot.version(), names(&snapshot)),
        (1, vec!["order".to_owned(), "payment".to_owned()])
    );
    let status = publisher.status().read();
    assert_eq!(
        (
            status.version,
            status.sources[0].files.len(),
            status.sources[0].objects
        ),
        (1, 2, 2)
    );
    assert!(serde_json::to_string(&status).unwrap().contains("a.yaml"));
}

#[test]
fn a_directory_that_is_not_there_is_an_error_that_names_it() {
    let error = Publisher::start(mesh(), vec![Box::new(FileSource::new("/nowhere/at/all"))]).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

#[test]
fn files_that_are_written_replaced_renamed_and_removed_are_followed() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("a.yaml");
    let publisher = start(directory.path());
    assert_eq!(names(&publisher.cell().load()).len(), 0);

    fs::write(&file, pod("order", "198.18.0.1")).unwrap();
    soon(&publisher, "written", |s| names(s) == ["order"]);

    // As editors do: a scratch file, then a rename over the old one.
    fs::write(directory.path().join(".a.yaml.swp"), pod("scratch", "198.18.0.9")).unwrap();
    fs::write(directory.path().join("a.yaml~"), pod("payment", "198.18.0.1")).unwrap();
    fs::rename(directory.path().join("a.yaml~"), &file).unwrap();
    soon(&publisher, "replaced", |s| names(s) == ["payment"]);

    fs::rename(&file, directory.path().join("b.yaml")).unwrap();
    fs::create_dir(directory.path().join("sub")).unwrap();
    fs::write(directory.path().join("sub/c.yaml"), pod("late", "198.18.0.3")).unwrap();
    soon(&publisher, "renamed, and one in a new subdirectory", |s| {
        names(s) == ["late", "payment"]
    });

    fs::remove_dir_all(directory.path().join("sub")).unwrap();
    fs::remove_file(directory.path().join("b.yaml")).unwrap();
    soon(&publisher, "removed", |s| names(s).is_empty());
}

#[test]
fn a_configmaps_swap_of_links_is_followed() {
    let directory = TempDir::new().unwrap();
    let root = directory.path();
    for (generation, name) in [("..1", "order"), ("..2", "payment")] {
        fs::create_dir(root.join(generation)).unwrap();
        fs::write(root.join(generation).join("mesh.yaml"), pod(name, "198.18.0.1")).unwrap();
    }
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/mesh.yaml", root.join("mesh.yaml")).unwrap();
    let publisher = start(root);
    assert_eq!(names(&publisher.cell().load()), ["order"]);
    symlink("..2", root.join("..data_tmp")).unwrap();
    fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    soon(&publisher, "swapped", |s| names(s) == ["payment"]);
}

#[test]
fn a_directory_replaced_under_its_name_is_followed_and_while_it_is_gone_everything_stays() {
    let parent = TempDir::new().unwrap();
    let root = parent.path().join("mesh.d");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), pod("order", "198.18.0.1")).unwrap();
    let publisher = start(&root);
    fs::rename(&root, parent.path().join("old")).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    let snapshot = publisher.cell().load();
    assert_eq!(names(&snapshot), ["order"]);
    assert!(
        snapshot.diagnostics().rejections[0]
            .message
            .contains("cannot be listed")
    );
    fs::create_dir(&root).unwrap();
    fs::write(root.join("a.yaml"), pod("payment", "198.18.0.1")).unwrap();
    let since = Instant::now();
    while names(&publisher.cell().load()) != ["payment"] {
        assert!(since.elapsed() < 2 * SOON);
        std::thread::sleep(Duration::from_millis(10));
    }
    // And it is watched again, not only looked at.
    fs::write(root.join("b.yaml"), pod("late", "198.18.0.3")).unwrap();
    soon(&publisher, "another file", |s| {
        names(s) == ["late", "payment"] && s.diagnostics().rejections.is_empty()
    });
}

#[test]
fn a_bad_change_keeps_the_last_good_version_and_says_where_it_is_bad() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("mtls.yaml");
    let strict = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: default, namespace: shop}\nspec:\n  mtls:\n    mode: STRICT\n";
    fs::write(directory.path().join("pod.yaml"), pod("order", "198.18.0.1")).unwrap();
    fs::write(&file, strict).unwrap();
    let publisher = start(directory.path());
    let mode = |s: &Snapshot| s.workloads().next().map(|workload| s.mtls_mode(workload, 80));
    assert_eq!(mode(&publisher.cell().load()), Some(MtlsMode::Strict));

    fs::write(&file, strict.replace("STRICT", "STRICKT")).unwrap();
    let snapshot = soon(&publisher, "rejected", |s| !s.diagnostics().rejections.is_empty());
    assert_eq!(mode(&snapshot), Some(MtlsMode::Strict));
    let rejection = snapshot.diagnostics().rejections[0].to_string();
    assert!(
        rejection.contains("mtls.yaml:6:5: PeerAuthentication shop/default rejected:"),
        "{rejection}"
    );

    fs::write(&file, strict.replace("STRICT", "PERMISSIVE")).unwrap();
    soon(&publisher, "good again", |s| {
        mode(s) == Some(MtlsMode::Permissive) && s.diagnostics().rejections.is_empty()
    });
    fs::write(&file, strict).unwrap();
    soon(&publisher, "strict again", |s| mode(s) == Some(MtlsMode::Strict));
    fs::remove_file(&file).unwrap();
    soon(&publisher, "gone", |s| mode(s) == Some(MtlsMode::Permissive));
}

#[test]
fn a_file_that_is_emptied_before_it_is_written_takes_nothing_away_meanwhile() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, pod("order", "198.18.0.1")).unwrap();
    let publisher = start(directory.path());
    for round in 0..3 {
        fs::write(&file, "").unwrap();
        let since = Instant::now();
        while since.elapsed() < Duration::from_millis(300) {
            assert_eq!(names(&publisher.cell().load()).len(), 1, "round {round}");
            std::thread::sleep(Duration::from_millis(5));
        }
        let name = format!("order-{round}");
        fs::write(&file, pod(&name, "198.18.0.1")).unwrap();
        soon(&publisher, "written", |s| names(s) == [name.as_str()]);
    }
    fs::write(&file, "").unwrap();
    let since = Instant::now();
    while !names(&publisher.cell().load()).is_empty() {
        assert!(
            since.elapsed() < 2 * SOON,
            "a file that stays empty gives nothing"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn what_changes_nothing_publishes_nothing() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, pod("order", "198.18.0.1")).unwrap();
    let publisher = start(directory.path());
    fs::write(&file, format!("# a comment\n{}", pod("order", "198.18.0.1"))).unwrap();
    fs::write(directory.path().join("notes.txt"), "nothing of ours").unwrap();
    std::thread::sleep(SOON + Duration::from_millis(200));
    assert_eq!(publisher.cell().load().version(), 1);
    fs::write(&file, pod("order", "198.18.0.2")).unwrap();
    assert_eq!(soon(&publisher, "changed", |s| s.version() > 1).version(), 2);
}

#[test]
fn files_that_cannot_be_read_are_reported_and_spoil_nothing() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("a.yaml"), pod("order", "198.18.0.1")).unwrap();
    fs::write(directory.path().join("b.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    symlink("nowhere", directory.path().join("c.yaml")).unwrap();
    let locked = directory.path().join("d.yaml");
    fs::write(&locked, pod("payment", "198.18.0.2")).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    let fifo = directory.path().join("e.yaml");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let publisher = start(directory.path());
    let snapshot = publisher.cell().load();
    assert!(names(&snapshot).contains(&"order".to_owned()));
    let rejected: Vec<String> = snapshot
        .diagnostics()
        .rejections
        .iter()
        .map(ToString::to_string)
        .collect();
    for (file, why) in [
        ("b.yaml", "not UTF-8"),
        ("c.yaml", "cannot be read"),
        ("e.yaml", "no regular file"),
    ] {
        assert!(
            rejected.iter().any(|r| r.contains(file) && r.contains(why)),
            "{file}: {rejected:?}"
        );
    }
}

/// A source that says what a test has it say.
struct Scripted(std::sync::mpsc::Sender<ReportSink>);

struct Idle;

impl RunningSource for Idle {
    fn look_now(&self) {}
}

impl ConfigurationSource for Scripted {
    fn name(&self) -> String {
        "script".into()
    }

    fn start(self: Box<Self>, sink: ReportSink) -> Result<Box<dyn RunningSource>, SourceError> {
        drop(self.0.send(sink));
        Ok(Box::new(Idle))
    }
}

/// The object in `yaml`, as in force.
fn held(yaml: &str) -> (Arc<ObjectRef>, Held) {
    let accepted = mesh_core::manifest::parse("script", yaml.as_bytes())
        .accepted
        .remove(0);
    let held = Held {
        accepted: Some(accepted.clone()),
        rejection: None,
    };
    (Arc::new(accepted.object.name()), held)
}

#[test]
fn nothing_is_in_force_before_every_source_has_said_all_that_it_holds() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("a.yaml"), pod("order", "198.18.0.1")).unwrap();
    let (to, from) = std::sync::mpsc::channel();
    let sources: Vec<Box<dyn ConfigurationSource>> = vec![
        Box::new(FileSource::new(directory.path())),
        Box::new(Scripted(to)),
    ];
    let publisher = Publisher::start(mesh(), sources).unwrap();
    let sink = from.recv().unwrap();
    sink.change(Changes {
        objects: vec![held(&pod("payment", "198.18.0.2"))],
        ..Changes::default()
    });
    std::thread::sleep(Duration::from_millis(200));
    let snapshot = publisher.cell().load();
    assert_eq!((snapshot.version(), names(&snapshot).len()), (0, 0));
    assert!(!publisher.status().read().sources[1].synced);

    sink.change(Changes {
        complete: true,
        ..Changes::default()
    });
    let first = soon(&publisher, "both", |s| names(s) == ["order", "payment"]);
    assert_eq!(first.version(), 1);

    // From here on each change is one, and what is no change is none.
    sink.change(Changes {
        objects: vec![held(&pod("payment", "198.18.0.2"))],
        ..Changes::default()
    });
    let (name, _) = held(&pod("payment", "198.18.0.2"));
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(publisher.cell().load().version(), 1);
    sink.change(Changes {
        objects: vec![(name, Held::default()), held(&pod("late", "198.18.0.3"))],
        ..Changes::default()
    });
    assert_eq!(
        soon(&publisher, "another", |s| names(s) == ["late", "order"]).version(),
        2
    );
}

#[test]
fn of_two_sources_the_first_holds_and_the_second_when_it_lets_go() {
    let (to, from) = std::sync::mpsc::channel();
    let sources: Vec<Box<dyn ConfigurationSource>> =
        vec![Box::new(Scripted(to.clone())), Box::new(Scripted(to))];
    let publisher = Publisher::start(mesh(), sources).unwrap();
    let sinks: Vec<ReportSink> = from.iter().take(2).collect();
    let say = |source: usize, objects: Vec<(Arc<ObjectRef>, Held)>| {
        sinks[source].change(Changes {
            objects,
            complete: true,
            ..Changes::default()
        });
    };
    let address = |s: &Snapshot| {
        s.workloads()
            .next()
            .map(|workload| workload.addresses[0].to_string())
    };
    let conflicts = |s: &Snapshot| s.diagnostics().notices.len();
    say(0, Vec::new());
    say(1, vec![held(&pod("order", "198.18.0.2"))]);
    soon(&publisher, "the second's", |s| {
        address(s).as_deref() == Some("198.18.0.2")
    });
    say(0, vec![held(&pod("order", "198.18.0.1"))]);
    soon(&publisher, "the first's, and the conflict is told", |s| {
        address(s).as_deref() == Some("198.18.0.1") && conflicts(s) == 1
    });
    // What does not hold may change without a word.
    let version = publisher.cell().load().version();
    say(1, vec![held(&pod("order", "198.18.0.3"))]);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(publisher.cell().load().version(), version);
    let (name, mut bad) = held(&pod("order", "198.18.0.1"));
    bad.rejection = Some(Box::new(Rejection {
        origin: bad.accepted.as_ref().unwrap().origin.clone(),
        object: Some((*name).clone()),
        message: "no good".into(),
    }));
    say(0, vec![(Arc::clone(&name), bad)]);
    soon(&publisher, "a later version is rejected", |s| {
        s.diagnostics().rejections.len() == 1 && address(s).as_deref() == Some("198.18.0.1")
    });
    assert_eq!(publisher.status().read().rejections.len(), 1);
    say(0, vec![(name, Held::default())]);
    let last = soon(&publisher, "the second's again", |s| {
        address(s).as_deref() == Some("198.18.0.3")
    });
    assert_eq!((conflicts(&last), last.diagnostics().rejections.len()), (0, 0));
    assert!(publisher.status().building() > Duration::ZERO);
}
