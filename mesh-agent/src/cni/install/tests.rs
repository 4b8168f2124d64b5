use super::*;

struct Host {
    dir: tempfile::TempDir,
    installation: Installation,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let below = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let cni = Cni {
            conf_dir: below("net.d"),
            bin_dir: below("bin"),
            ..Cni::default()
        };
        let installation = Installation {
            cni,
            socket: "/run/s".into(),
            directory: dir.path().join("state/cni"),
            kubeconfig: None,
            in_cluster: false,
            status: Arc::new(Mutex::new(InstallationStatus::Unknown)),
            binary: Arc::default(),
            told: Arc::default(),
        };
        Self { dir, installation }
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = ["net.d", "bin"]
            .iter()
            .flat_map(|name| fs::read_dir(self.dir.path().join(name)).unwrap())
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn conf(&self, name: &str, text: &str) {
        fs::write(self.dir.path().join("net.d").join(name), text).unwrap();
    }
}

const PRIMARY: &str = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;

#[test]
fn the_plugin_is_installed_once_kept_and_removed_without_a_trace() {
    let host = Host::new();
    assert!(matches!(
        host.installation.ensure(),
        Err(InstallError::Nothing(_))
    ));
    host.conf("10-n.conflist", PRIMARY);
    let path = host.installation.ensure().unwrap();
    assert_eq!(path.file_name().unwrap(), "10-n-mesh-agent.conflist");
    assert_eq!(
        host.names(),
        ["10-n-mesh-agent.conflist", "10-n.conflist", PLUGIN]
    );
    let inode = || fs::metadata(&path).unwrap().ino();
    let before = inode();
    host.installation.ensure().unwrap();
    assert_eq!(inode(), before, "what is right is not written again");
    fs::remove_file(host.dir.path().join("bin").join(PLUGIN)).unwrap();
    host.installation.ensure().unwrap();
    assert!(host.names().contains(&PLUGIN.to_owned()));
    let table = Table::default();
    assert_eq!(host.installation.write(table.clone()), Some(table));
    let state = host.dir.path().join("state");
    let removed = uninstall(&host.installation.cni, &state).unwrap();
    assert_eq!(
        removed.first(),
        Some(&path),
        "what names the binary goes before it"
    );
    assert_eq!(removed.len(), 3);
    assert_eq!(host.names(), ["10-n.conflist"]);
    assert!(!state.join("cni").exists());
    assert!(uninstall(&host.installation.cni, &state).unwrap().is_empty());
}

#[test]
fn files_of_others_are_never_touched() {
    let host = Host::new();
    host.conf("00-theirs-mesh-agent.conflist", PRIMARY);
    host.conf("10-n.conflist", PRIMARY);
    host.installation.ensure().unwrap();
    uninstall(&host.installation.cni, host.dir.path()).unwrap();
    assert_eq!(host.names(), ["00-theirs-mesh-agent.conflist", "10-n.conflist"]);
}

#[test]
fn what_cannot_be_is_told_with_its_path() {
    let host = Host::new();
    host.conf(
        "10-n.conflist",
        r#"{"cniVersion":"0.1.0","name":"n","type":"old"}"#,
    );
    let error = host.installation.ensure().unwrap_err().to_string();
    assert!(
        error.contains("10-n.conflist") && error.contains("0.1.0"),
        "{error}"
    );
    let mut nowhere = host.installation.clone();
    nowhere.cni.conf_dir = host.dir.path().join("none");
    assert!(nowhere.ensure().unwrap_err().to_string().contains("none"));
}
