//! Helm, kustomize and the agent, as these tests run them.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// What a template becomes, by its file name.
pub(crate) type Rendered = BTreeMap<String, String>;

/// A file of the project.
pub(crate) fn project(path: &str) -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).join(path)
}

/// The text of a file of the project.
pub(crate) fn text(path: &str) -> Result<String> {
    let path = project(path);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// What the chart becomes with these values, or what Helm says against them.
pub(crate) fn render(values: &Value) -> Result<Rendered> {
    let answer = helm(&["render"], values)?;
    let templates: BTreeMap<String, String> = serde_json::from_str(&answer)?;
    let named = templates.into_iter().map(|(path, text)| {
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        (name, text)
    });
    Ok(named.collect())
}

/// What Helm says against these values.
pub(crate) fn refusal(values: &Value) -> Result<String> {
    match render(values) {
        Ok(_) => bail!("Helm takes {values}"),
        Err(error) => Ok(error.to_string()),
    }
}

/// What Helm's linter says.
pub(crate) fn lint(values: &Value, version: &str) -> Result<Value> {
    Ok(serde_json::from_str(&helm(
        &["lint", "--kube-version", version],
        values,
    )?)?)
}

fn helm(words: &[&str], values: &Value) -> Result<String> {
    let python = match std::env::var_os("MESH_HELM_PYTHON") {
        Some(path) => PathBuf::from(path),
        None => target_dir()?.join("helm-venv/bin/python"),
    };
    let mut command = Command::new(&python);
    command
        .arg("-B")
        .arg(project("tests/helm/helm.py"))
        .arg(words[0])
        .arg(project("deploy/helm/mesh-agent"))
        .args(&words[1..])
        .args(["--values", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("Helm needs {}: cargo xtask setup", python.display()))?;
    let mut stdin = child.stdin.take().context("a child without a standard input")?;
    stdin.write_all(values.to_string().as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What kustomize makes of a directory of the project.
pub(crate) fn kustomize(directory: &Path) -> Result<String> {
    let output = Command::new("kubectl")
        .arg("kustomize")
        .arg(directory)
        .output()
        .context("kustomize comes with kubectl: apt-get install kubernetes-client")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// What the agent says of a settings file: nothing where it takes it.
pub(crate) fn agent_on(settings: &str) -> Result<Option<String>> {
    let directory = std::env::temp_dir().join(format!(
        "mesh-chart-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("settings.yaml");
    std::fs::write(&file, settings)?;
    let output = Command::new(agent()?)
        .args(["check", "--node-name", "node-of-the-chart", "--settings"])
        .arg(&file)
        .output()
        .context("cannot run the agent");
    std::fs::remove_dir_all(&directory)?;
    let output = output?;
    match output.status.code() {
        // What it finds wrong with this host is another question.
        Some(0 | 8) => Ok(None),
        Some(3) => Ok(Some(String::from_utf8_lossy(&output.stderr).into_owned())),
        _ => bail!(
            "mesh-agent check ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}

fn agent() -> Result<PathBuf> {
    match std::env::var_os("MESH_AGENT_BIN") {
        Some(path) => Ok(path.into()),
        None => Ok(target_dir()?.join("debug/mesh-agent")),
    }
}

/// The target directory that this executable was built into.
fn target_dir() -> Result<PathBuf> {
    let me = std::env::current_exe().context("cannot find this executable")?;
    let marked = me.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file());
    marked
        .map(Path::to_owned)
        .with_context(|| format!("{} is not in a target directory", me.display()))
}

/// The documents of a YAML text, without empty ones.
pub(crate) fn documents(text: &str) -> Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text)?;
    Ok(all.into_iter().filter(|document| !document.is_null()).collect())
}

/// All documents that the chart makes.
pub(crate) fn all_documents(rendered: &Rendered) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for (name, text) in rendered {
        if name.ends_with(".yaml") {
            all.extend(documents(text).with_context(|| format!("{name}:\n{text}"))?);
        }
    }
    Ok(all)
}

/// The one document of this kind.
pub(crate) fn one(documents: &[Value], kind: &str) -> Result<Value> {
    let found: Vec<&Value> = documents.iter().filter(|d| d["kind"] == kind).collect();
    match found.as_slice() {
        [one] => Ok((*one).clone()),
        other => bail!("{} documents of kind {kind}", other.len()),
    }
}

/// The settings file in the ConfigMap.
pub(crate) fn settings_of(documents: &[Value]) -> Result<String> {
    let map = one(documents, "ConfigMap")?;
    let text = map["data"]["settings.yaml"].as_str();
    Ok(text.context("a ConfigMap without settings.yaml")?.to_owned())
}

/// Values that people are shown, and one set with everything that can be said: the tests hold for each.
pub(crate) fn kinds_of_values() -> Result<Vec<(String, Value)>> {
    let mut all = vec![("the defaults".to_owned(), json!({}))];
    let directory = project("deploy/helm/mesh-agent/examples");
    let entries =
        std::fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let values = serde_saphyr::from_str(&std::fs::read_to_string(&path)?)
            .with_context(|| format!("{}", path.display()))?;
        all.push((path.display().to_string(), values));
    }
    if all.len() < 3 {
        bail!("{} has no examples", directory.display());
    }
    all.push(("everything".to_owned(), everything()));
    Ok(all)
}

/// Each value as it is not by default.
pub(crate) fn everything() -> Value {
    json!({
        "nameOverride": "pool-a",
        "commonLabels": {"team": "platform"},
        "image": {"repository": "registry.example:5000/mesh/agent", "digest": format!("sha256:{}", "0".repeat(64)), "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "caSecretName": "root-of-the-mesh",
        "encryptLocal": true,
        "settings": {
            "trustDomain": "mesh.example", "trustDomainAliases": ["old.example"], "rootNamespace": "mesh-root", "clusterDomain": "cluster.example",
            "certificateLifetime": "12h", "accessLogFile": "", "accessLogEncoding": "JSON", "log": {"filter": "debug"},
            "defaultConfig": {"concurrency": 4}, "tcpKeepalive": {"time": "30s", "interval": "5s", "probes": 3}, "idleTimeout": "1h",
            "allowExclusions": ["outbound-ports"], "workloadBudget": {"connections": 100, "streams": 100, "bufferedBytes": "8Mi"},
            "streamWindow": "1Mi", "onStop": "release", "linger": true, "takeOver": true, "pods": {"discover": true},
        },
        "drainSeconds": 30,
        "terminationGracePeriodSeconds": 60,
        "stateDir": "/srv/mesh-agent",
        "criSocket": "/srv/runtime/containerd.sock",
        "cgroup": {"root": "/sys/fs/cgroup/unified", "pods": "/node-a", "kubelet": "system.slice/kubelet.service"},
        "cni": {"enabled": true, "confDir": "/srv/cni/net.d", "binDir": "/srv/cni/bin", "excludeNamespaces": ["kube-system", "storage"], "waitSeconds": 20},
        "bpffs": {"mount": false},
        "metrics": {"port": 9020, "scrapeAnnotations": false},
        "readinessPort": 9021,
        "podMonitor": {
            "enabled": true, "labels": {"release": "prometheus"}, "interval": "30s", "scrapeTimeout": "10s",
            "relabelings": [{"action": "labeldrop", "regex": "pod"}], "metricRelabelings": [{"action": "drop", "sourceLabels": ["__name__"], "regex": "process_.*"}],
        },
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"cpu": 2, "memory": "2Gi"}},
        "priorityClassName": "system-cluster-critical",
        "tolerations": [{"key": "dedicated", "operator": "Equal", "value": "x", "effect": "NoSchedule"}],
        "nodeSelector": {"pool": "a"},
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/arch", "operator": "In", "values": ["amd64"]}]}]}}},
        "maxSurge": "10%",
        "criticalPodsQuota": {"enabled": true, "pods": 100},
        "seLinuxOptions": {"type": "spc_t"},
        "serviceAccount": {"create": true, "name": "agents", "annotations": {"a": "b"}},
        "rbac": {"create": true},
        "podLabels": {"c": "d"},
        "podAnnotations": {"e": "f"},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy.example:3128"}],
    })
}
