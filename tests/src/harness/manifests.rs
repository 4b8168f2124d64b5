//! The documents that agents read, written the way an editor or a deployment tool does: a new file, renamed into place.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::node::PodSpec;

/// A directory of YAML documents. Each agent of a world may have its own, or they share one.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
}

impl Manifests {
    /// The directory `dir`, made if absent.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(dir: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Its path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes `FILE`.yaml at once: no reader sees a half of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let to = self.dir.join(format!("{file}.yaml"));
        let from = self.dir.join(format!(".{file}.tmp"));
        std::fs::write(&from, text)
            .and_then(|()| std::fs::rename(&from, &to))
            .with_context(|| format!("cannot write {}", to.display()))
    }

    /// Removes `FILE`.yaml.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove(&self, file: &str) -> Result<()> {
        let path = self.dir.join(format!("{file}.yaml"));
        std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// A Namespace whose pods are enrolled (or not).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn namespace(&self, name: &str, enrolled: bool) -> Result<()> {
        let state = if enrolled { "enabled" } else { "disabled" };
        self.write(
            &format!("ns-{name}"),
            &format!(
                "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    \
                 mesh-agent.io/dataplane: {state}\n"
            ),
        )
    }

    /// A Pod.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn pod(&self, pod: &PodSpec) -> Result<()> {
        self.write(&format!("pod-{}", pod.name), &pod_yaml(pod)?)
    }

    /// A Service over the pods labelled `app: APP`. `ports` are (name, port, target port).
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn service(
        &self,
        namespace: &str,
        name: &str,
        app: &str,
        ips: &[IpAddr],
        ports: &[(&str, u16, u16)],
    ) -> Result<()> {
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\nspec:\n  selector:\n    \
             app: {app}\n"
        );
        match ips {
            [] => text.push_str("  clusterIP: None\n"),
            [first, ..] => {
                let all: Vec<String> = ips.iter().map(|ip| format!("\"{ip}\"")).collect();
                write!(
                    text,
                    "  clusterIP: \"{first}\"\n  clusterIPs: [{}]\n",
                    all.join(", ")
                )?;
                if ips.len() > 1 {
                    text.push_str("  ipFamilyPolicy: RequireDualStack\n");
                }
            }
        }
        text.push_str("  ports:\n");
        for (name, port, target) in ports {
            write!(
                text,
                "    - name: {name}\n      port: {port}\n      targetPort: {target}\n      protocol: TCP\n"
            )?;
        }
        self.write(&format!("svc-{name}"), &text)
    }

    /// An AuthorizationPolicy, as `authz-NAME`.yaml; `spec` in YAML's flow style.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn authorization(&self, namespace: &str, name: &str, spec: &str) -> Result<()> {
        self.write(
            &format!("authz-{name}"),
            &authorization_yaml(namespace, name, "", spec),
        )
    }

    /// As [`Manifests::authorization`], as a dry run.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn dry_run(&self, namespace: &str, name: &str, spec: &str) -> Result<()> {
        let dry = "\n  annotations: {istio.io/dry-run: 'true'}";
        self.write(
            &format!("authz-{name}"),
            &authorization_yaml(namespace, name, dry, spec),
        )
    }

    /// A PeerAuthentication for a whole namespace: `mode` is `STRICT` or `PERMISSIVE`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn peer_authentication(&self, namespace: &str, mode: &str) -> Result<()> {
        self.write(
            &format!("peerauth-{namespace}"),
            &format!(
                "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: default\n  \
                 namespace: {namespace}\nspec:\n  mtls:\n    mode: {mode}\n"
            ),
        )
    }
}

/// An AuthorizationPolicy's document; `more` are lines below its metadata.
pub fn authorization_yaml(namespace: &str, name: &str, more: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: {name}\n  namespace: {namespace}{more}\n\
         spec: {spec}\n"
    )
}

fn pod_yaml(pod: &PodSpec) -> Result<String> {
    let PodSpec {
        namespace,
        name,
        service_account,
        labels,
        node,
        addresses,
        netns,
        cgroup,
        uid,
        annotations,
    } = pod;
    let mut text =
        format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n");
    if !uid.is_empty() {
        writeln!(text, "  uid: {uid}")?;
    }
    if !labels.is_empty() {
        text.push_str("  labels:\n");
        for (key, value) in labels {
            writeln!(text, "    {key}: \"{value}\"")?;
        }
    }
    let is_placed = !netns.as_os_str().is_empty();
    if is_placed || !annotations.is_empty() {
        text.push_str("  annotations:\n");
    }
    for (key, value) in annotations {
        writeln!(text, "    {key}: \"{value}\"")?;
    }
    if is_placed {
        write!(
            text,
            "    mesh-agent.io/netns: {}\n    mesh-agent.io/cgroup: {}\n",
            netns.display(),
            cgroup.display(),
        )?;
    }
    write!(
        text,
        "spec:\n  nodeName: {node}\n  serviceAccountName: {service_account}\n  containers:\n    - name: app\n      \
         image: none\nstatus:\n  phase: Running\n",
    )?;
    if let [first, ..] = addresses.as_slice() {
        writeln!(text, "  podIP: \"{first}\"\n  podIPs:")?;
        for ip in addresses {
            writeln!(text, "    - ip: \"{ip}\"")?;
        }
    }
    Ok(text)
}
