use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Barrier};

use super::*;
use crate::identity::Leaf;

fn td(name: &str) -> TrustDomain {
    name.parse().unwrap()
}

fn open(dir: &Path) -> Result<EmbeddedCa, CaError> {
    EmbeddedCa::open(dir, &td("cluster.local"))
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A directory with a root in it.
fn made() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("ca");
    open(&dir).unwrap();
    (temp, dir)
}

#[test]
fn a_root_is_made_once_and_found_again() {
    let (_temp, dir) = made();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join("root.key"))), (0o700, 0o600));
    assert_eq!(open(&dir).unwrap().root, open(&dir).unwrap().root);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "no drafts are left");
}

#[test]
fn agents_that_start_at_once_share_one_root() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("state/ca");
    let barrier = Arc::new(Barrier::new(16));
    let threads: Vec<_> = (0..16)
        .map(|_| {
            let (dir, barrier) = (dir.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                open(&dir).unwrap().root.clone()
            })
        })
        .collect();
    let roots: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(roots.iter().all(|root| *root == roots[0]));
}

#[test]
fn a_run_that_ended_between_key_and_certificate_is_completed() {
    let (_temp, dir) = made();
    std::fs::remove_file(dir.join("root.crt")).unwrap();
    std::fs::write(dir.join(".root.crt.new"), "half").unwrap();
    open(&dir).unwrap();
}

#[test]
fn wide_permissions_are_refused_with_the_remedy() {
    let (_temp, dir) = made();
    let key = dir.join("root.key");
    chmod(&key, 0o640);
    let message = open(&dir).unwrap_err().to_string();
    assert!(message.contains("chmod 600"), "{message}");
    chmod(&key, 0o600);
    chmod(&dir, 0o755);
    let message = open(&dir).unwrap_err().to_string();
    assert!(message.contains("chmod 700"), "{message}");
}

#[test]
fn a_key_behind_a_symbolic_link_is_refused() {
    let (_temp, dir) = made();
    std::fs::rename(dir.join("root.key"), dir.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink("elsewhere", dir.join("root.key")).unwrap();
    assert!(matches!(open(&dir), Err(CaError::Io { .. })));
}

#[test]
fn damaged_files_are_refused_and_never_replaced() {
    let (temp, dir) = made();
    let (key, certificate) = (dir.join("root.key"), dir.join("root.crt"));
    let good = std::fs::read(&certificate).unwrap();

    std::fs::write(&certificate, "nonsense").unwrap();
    assert!(matches!(open(&dir), Err(CaError::Damaged { .. })));
    assert_eq!(std::fs::read(&certificate).unwrap(), b"nonsense");

    let other = temp.path().join("other");
    open(&other).unwrap();
    std::fs::copy(other.join("root.crt"), &certificate).unwrap();
    let message = open(&dir).unwrap_err().to_string();
    assert!(message.contains("key beside it"), "{message}");

    std::fs::write(&certificate, good).unwrap();
    std::fs::write(&key, "nonsense").unwrap();
    assert!(matches!(open(&dir), Err(CaError::Damaged { .. })));
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(open(&dir), Err(CaError::Damaged { .. })));
}

#[test]
fn a_root_of_another_trust_domain_is_refused() {
    let (_temp, dir) = made();
    let error = EmbeddedCa::open(&dir, &td("other.test")).unwrap_err();
    assert!(matches!(error, CaError::TrustDomain { .. }), "{error}");
}

#[test]
fn a_root_that_is_not_valid_now_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    for (case, made_at) in [
        ("past", SystemTime::UNIX_EPOCH),
        ("future", SystemTime::now() + ENDS_SOON),
    ] {
        let dir = temp.path().join(case);
        let store = store::Store::open(&dir).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        store.write_key(&key).unwrap();
        let root = make_root(&key, &td("cluster.local"), made_at + BACKDATE * 2).unwrap();
        store.write_certificate(&root).unwrap();
        drop(store);
        assert!(matches!(open(&dir), Err(CaError::NotValid { .. })), "{case}");
    }
}

#[test]
fn a_leaf_is_a_certificate_of_its_workload_alone() {
    let (_temp, dir) = made();
    let ca = open(&dir).unwrap();
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/order".parse().unwrap();
    let before = SystemTime::now();
    let issued = ca.issue(&id, Duration::from_secs(10)).unwrap();
    let leaf = Leaf::parse(&issued.chain[0]).unwrap();
    assert_eq!(leaf.identity, id);
    assert_eq!(
        (leaf.not_before, leaf.not_after),
        (issued.not_before, issued.not_after)
    );
    assert!(leaf.not_before < before && leaf.not_after <= before + Duration::from_secs(11));
    assert_eq!(leaf.serial.len(), 32);
    let again = ca.issue(&id, Duration::from_secs(10)).unwrap();
    assert_ne!(leaf.serial, Leaf::parse(&again.chain[0]).unwrap().serial);
    assert_ne!(issued.key.secret_pkcs8_der(), again.key.secret_pkcs8_der());
}

#[test]
fn a_leaf_never_outlives_the_root() {
    let (_temp, dir) = made();
    let ca = open(&dir).unwrap();
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/order".parse().unwrap();
    assert_eq!(ca.issue(&id, Duration::MAX).unwrap().not_after, ca.not_after());
}

#[test]
fn a_foreign_identity_is_not_certified() {
    let (_temp, dir) = made();
    let id: SpiffeId = "spiffe://other.test/ns/shop/sa/order".parse().unwrap();
    let outcome = open(&dir).unwrap().issue(&id, Duration::from_secs(10));
    assert!(matches!(outcome, Err(IssueError::Refused { .. })));
}

#[test]
fn no_key_shows_in_debug_output() {
    let (_temp, dir) = made();
    let ca = open(&dir).unwrap();
    let pem = std::fs::read_to_string(dir.join("root.key")).unwrap();
    let secret = pem.lines().nth(1).unwrap();
    let shown = format!("{ca:?}");
    assert!(shown.contains("embedded CA") && !shown.contains(secret) && !shown.contains("KeyPair"));
}

/// A Secret's volume as the kubelet lays it out: links to a directory that is exchanged, in one that anybody may read.
fn secret(root: &NewRoot, mode: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("..2026_01_01");
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink("..2026_01_01", dir.path().join("..data")).unwrap();
    for (name, content) in [("root.crt", &root.certificate), ("root.key", &*root.key)] {
        std::fs::write(data.join(name), content).unwrap();
        chmod(&data.join(name), mode);
        std::os::unix::fs::symlink(format!("..data/{name}"), dir.path().join(name)).unwrap();
    }
    chmod(dir.path(), 0o1777);
    dir
}

#[test]
fn agents_that_are_given_a_secret_trust_each_other() {
    let root = NewRoot::make(&td("cluster.local")).unwrap();
    let (one, other) = (secret(&root, 0o400), secret(&root, 0o400));
    let one = EmbeddedCa::given(one.path(), &td("cluster.local")).unwrap();
    let other = EmbeddedCa::given(other.path(), &td("cluster.local")).unwrap();
    assert_eq!(one.trust_bundle(), other.trust_bundle());
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/order".parse().unwrap();
    let issued = one.issue(&id, Duration::from_secs(60)).unwrap();
    assert_eq!(Leaf::parse(&issued.chain[0]).unwrap().identity, id);
}

#[test]
fn a_given_root_is_never_made_or_mended() {
    let empty = tempfile::tempdir().unwrap();
    let given = |dir: &Path, domain: &str| EmbeddedCa::given(dir, &td(domain)).unwrap_err();
    let error = given(empty.path(), "cluster.local");
    assert!(error.to_string().contains("mesh-agent ca init"), "{error}");
    assert_eq!(std::fs::read_dir(empty.path()).unwrap().count(), 0);

    let root = NewRoot::make(&td("cluster.local")).unwrap();
    let dir = secret(&root, 0o400);
    let error = given(dir.path(), "other.test");
    assert!(matches!(error, CaError::TrustDomain { .. }), "{error}");
    std::fs::remove_file(dir.path().join("root.crt")).unwrap();
    let error = given(dir.path(), "cluster.local");
    assert!(matches!(error, CaError::Given { .. }), "{error}");

    let strangers = NewRoot {
        certificate: NewRoot::make(&td("cluster.local")).unwrap().certificate,
        key: root.key,
    };
    let error = given(secret(&strangers, 0o400).path(), "cluster.local");
    assert!(error.to_string().contains("key beside it"), "{error}");
}

#[test]
fn a_given_key_that_others_may_read_is_refused_with_the_remedy() {
    let root = NewRoot::make(&td("cluster.local")).unwrap();
    let dir = secret(&root, 0o444);
    let message = EmbeddedCa::given(dir.path(), &td("cluster.local"))
        .unwrap_err()
        .to_string();
    assert!(message.contains("chmod 400"), "{message}");
}
