//! With network namespaces where they can be made, which needs root.

use nix::sched::{CloneFlags, unshare};

use super::*;

/// A network namespace of its own; `None`, with a word, where none can be made.
fn netns() -> Option<File> {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
        File::open("/proc/thread-self/ns/net")
    });
    match made.join().unwrap() {
        Ok(file) => Some(file),
        Err(error) if std::env::var_os("MESH_PRIVILEGED").is_some_and(|value| value == "1") => {
            panic!("no network namespace could be made, and MESH_PRIVILEGED=1 says that it must: {error}")
        }
        Err(error) => {
            eprintln!("NOT RUN: no network namespace could be made: {error}");
            None
        }
    }
}

fn said(pod: &str, container: &str, netns: &File) -> Announcement {
    use std::os::fd::AsRawFd;
    Announcement {
        pod: pod.to_owned(),
        container: container.to_owned(),
        // Leads there for as long as the file is open.
        netns: format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd()).into(),
        addresses: vec!["10.1.0.9".parse().unwrap()],
    }
}

#[test]
fn what_was_announced_is_awaited_until_a_process_shows_it_and_its_addresses_stay() {
    let Some(file) = netns() else { return };
    let (all, now) = (Announcements::default(), Instant::now());
    let inode = all
        .announce(said("u", "c", &file), file.try_clone().unwrap(), now)
        .unwrap();
    let awaited = all.of("u").unwrap();
    assert_eq!(
        (awaited.inode, awaited.netns.is_some(), all.awaited()),
        (inode, true, 1)
    );
    all.confirm("u", inode + 1);
    assert_eq!(all.awaited(), 1, "another namespace proves nothing");
    all.confirm("u", inode);
    assert!(all.of("u").unwrap().netns.is_none());
    assert_eq!(all.addresses("u"), ["10.1.0.9".parse::<IpAddr>().unwrap()]);
    all.expire(|_| true, now + 2 * LIFETIME);
    assert!(all.of("u").is_some(), "its pod is there");
    all.expire(|_| false, now);
    assert!(all.of("u").is_none() && all.addresses("u").is_empty());
}

#[test]
fn what_never_comes_is_given_up_and_what_goes_is_forgotten() {
    let Some(file) = netns() else { return };
    let (all, now) = (Announcements::default(), Instant::now());
    for (pod, container) in [("u1", "c1"), ("u2", "c2"), ("u3", "c3")] {
        all.announce(said(pod, container, &file), file.try_clone().unwrap(), now)
            .unwrap();
    }
    all.withdraw("c1");
    assert!(all.of("u1").is_none() && all.of("u2").is_some());
    all.keep_only(&["c3".to_owned()].into());
    assert!(all.of("u2").is_none() && all.of("u3").is_some());
    all.expire(|_| true, now + LIFETIME / 2);
    assert!(all.of("u3").is_some());
    all.expire(|_| true, now + LIFETIME);
    assert!(all.of("u3").is_none());
}

#[test]
fn announcements_outlive_the_agent_for_as_long_as_their_namespaces() {
    let Some(file) = netns() else { return };
    let (dir, now) = (tempfile::tempdir().unwrap(), Instant::now());
    let kept = || Announcements::kept_in(dir.path().join("kept"), now);
    let inode = {
        let first = kept();
        first
            .announce(said("u", "old", &file), file.try_clone().unwrap(), now)
            .unwrap();
        // The sandbox was made anew.
        first
            .announce(said("u", "new", &file), file.try_clone().unwrap(), now)
            .unwrap()
    };
    fs::write(dir.path().join("kept/broken.json"), "{").unwrap();
    let second = kept();
    assert_eq!(second.of("u").unwrap().inode, inode);
    assert_eq!(fs::read_dir(dir.path().join("kept")).unwrap().count(), 1);
    drop(second);
    drop(file);
    let third = kept();
    assert!(third.of("u").unwrap().netns.is_none());
    assert_eq!(
        third.addresses("u").len(),
        1,
        "a pod that came from it still has its addresses"
    );
    third.expire(|_| false, now);
    assert!(third.of("u").is_none());
    assert_eq!(fs::read_dir(dir.path().join("kept")).unwrap().count(), 0);
}

#[test]
fn what_is_no_sandbox_of_a_pod_is_refused() {
    let all = Announcements::default();
    let announce = |container: &str, path: &str| {
        let file = File::open(path).unwrap();
        let said = said("u", container, &file);
        all.announce(said, file, Instant::now())
    };
    assert!(matches!(
        announce("c", "/etc/passwd"),
        Err(AnnounceError::NotANetns { .. })
    ));
    assert!(matches!(
        announce("c", "/proc/self/ns/net"),
        Err(AnnounceError::Host(_))
    ));
    for container in ["", "../c", ".", "a/b", "a b"] {
        let told = announce(container, "/proc/self/ns/net");
        assert!(matches!(told, Err(AnnounceError::Container(_))), "{container:?}");
    }
    assert_eq!(all.awaited(), 0);
}
