//! A containerd of the tests' own: its files below the world's directory, its processes in the node's network namespace and cgroup, its mounts
//! in a mount namespace that goes with them. Its one image is made here, from busybox; nothing is fetched.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{Cgroup, JoinExt, Proc, cgroup2_mount, run, wait_for};
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};

use crate::messages as cri;
use crate::stage::Stage;

/// The one image: of the sandbox and of all containers.
const IMAGE: &str = "mesh.test/pause:1";
/// How long a question to the runtime may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a kubelet's network plugin does, as the harness does it for its own pods. The last byte of the address is in a file of the pod's name.
const PLUGIN: &str = r#"#!/bin/sh
cat > /dev/null
exec 2>> "@DIR@/plugin.log"
set -e
pod=$(echo "$CNI_ARGS" | tr ';' '\n' | sed -n 's/^K8S_POD_NAME=//p')
case "$CNI_COMMAND:$(basename "$0")" in
VERSION:*)
    echo '{"cniVersion":"0.4.0","supportedVersions":["0.3.1","0.4.0"]}' ;;
ADD:loopback)
    nsenter --net="$CNI_NETNS" ip link set lo up
    echo '{"cniVersion":"0.3.1","interfaces":[{"name":"lo","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"version":"4","address":"127.0.0.1/8","interface":0}]}' ;;
ADD:*)
    host=$(cat "@DIR@/hosts/$pod")
    ip link add "c$host" type veth peer name eth0 netns "$CNI_NETNS"
    ip address add 198.18.1.1/32 dev "c$host"
    ip link set "c$host" up
    ip route add "198.18.1.$host/32" dev "c$host"
    nsenter --net="$CNI_NETNS" ip address add "198.18.1.$host/32" dev eth0
    nsenter --net="$CNI_NETNS" ip link set eth0 up
    nsenter --net="$CNI_NETNS" ip route add 198.18.1.1 dev eth0
    nsenter --net="$CNI_NETNS" ip route add default via 198.18.1.1
    echo '{"cniVersion":"0.4.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"version":"4","address":"198.18.1.'"$host"'/32","interface":0}]}' ;;
DEL:loopback) ;;
DEL:*)
    host=$(cat "@DIR@/hosts/$pod")
    ip link delete "c$host" || true ;;
esac
"#;

/// A sandbox that runs.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    /// Its first process.
    pub(crate) pid: u32,
    config: cri::PodSandboxConfig,
}

/// The runtime.
#[derive(Debug)]
pub(crate) struct Containerd {
    proc: Proc,
    dir: PathBuf,
    runtime: tokio::runtime::Runtime,
    mounts: Proc,
    cgroup: Cgroup,
}

impl Containerd {
    /// Where its socket is, in a world with this directory.
    pub(crate) fn socket_below(dir: &Path) -> PathBuf {
        dir.join("containerd/containerd.sock")
    }

    /// Starts it on the stage's node.
    pub(crate) fn start(stage: &Stage) -> Result<Self> {
        let dir = stage.world.dir().join("containerd");
        for below in ["cni", "net.d", "hosts", "rootfs/bin"] {
            std::fs::create_dir_all(dir.join(below))?;
        }
        std::fs::write(dir.join("config.toml"), configuration(&dir))?;
        std::fs::write(
            dir.join("net.d/10-mesh.conflist"),
            r#"{"cniVersion":"0.4.0","name":"mesh","plugins":[{"type":"meshtest"}]}"#,
        )?;
        for name in ["loopback", "meshtest"] {
            let path = dir.join("cni").join(name);
            std::fs::write(&path, PLUGIN.replace("@DIR@", &dir.to_string_lossy()))?;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
        }
        let cgroup = stage.node.cgroup().child("runtime")?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mounts = mounts(stage, &dir, &cgroup)?;
        let this = Self {
            proc: spawn(stage, &dir, &mounts, &cgroup)?,
            dir,
            runtime,
            mounts,
            cgroup,
        };
        this.wait_up()?;
        this.import()?;
        Ok(this)
    }

    /// Starts it again after it was killed: what ran goes on.
    pub(crate) fn restart(&mut self, stage: &Stage) -> Result<()> {
        self.proc = spawn(stage, &self.dir, &self.mounts, &self.cgroup)?;
        self.wait_up()
    }

    /// SIGKILL: containers and their shims go on.
    pub(crate) fn kill(&mut self) {
        self.proc.kill();
    }

    fn wait_up(&self) -> Result<()> {
        wait_for("containerd answers", PATIENCE, || {
            let ask = cri::VersionRequest {
                version: "v1".to_owned(),
            };
            let version: cri::VersionResponse =
                self.call("RuntimeService/Version", ask).with_context(|| {
                    let log = self.proc.stderr();
                    log.lines().rev().take(5).collect::<Vec<_>>().join("\n")
                })?;
            if version.runtime_name.is_empty() {
                bail!("no name")
            } else {
                Ok(())
            }
        })
    }

    /// Makes the image and gives it to the runtime.
    fn import(&self) -> Result<()> {
        let dir = &self.dir;
        let bin = dir.join("rootfs/bin");
        std::fs::copy("/bin/busybox", bin.join("busybox")).context("is busybox-static installed?")?;
        std::os::unix::fs::symlink("busybox", bin.join("sleep"))?;
        let tar = |args: &[&str]| -> Result<()> {
            run(Command::new("tar").current_dir(dir).args(args), PATIENCE)?
                .success()
                .map(drop)
        };
        tar(&["-C", "rootfs", "-cf", "layer.tar", "."])?;
        let sum = run(Command::new("sha256sum").arg(dir.join("layer.tar")), PATIENCE)?.success()?;
        let digest = sum.split_whitespace().next().context("no digest")?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        std::fs::write(
            dir.join("config.json"),
            format!(
                r#"{{"architecture":"{architecture}","os":"linux","config":{{"Entrypoint":["/bin/sleep","600"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{digest}"]}}}}"#
            ),
        )?;
        std::fs::write(
            dir.join("manifest.json"),
            format!(r#"[{{"Config":"config.json","RepoTags":["{IMAGE}"],"Layers":["layer.tar"]}}]"#),
        )?;
        tar(&["-cf", "image.tar", "manifest.json", "config.json", "layer.tar"])?;
        let mut ctr = Command::new("ctr");
        ctr.arg("-a")
            .arg(dir.join("containerd.sock"))
            .args(["-n", "k8s.io", "images", "import", "--snapshotter", "native"])
            .arg(dir.join("image.tar"));
        run(&mut ctr, PATIENCE)?.success().map(drop)
    }

    /// What a kubelet asks for first: the sandbox of a pod, below this cgroup.
    pub(crate) fn run_sandbox(
        &self,
        name: &str,
        uid: &str,
        attempt: u32,
        host: u8,
        cgroup: &Path,
        host_network: bool,
    ) -> Result<Sandbox> {
        std::fs::write(self.dir.join("hosts").join(name), host.to_string())?;
        let parent = Path::new("/").join(cgroup.strip_prefix(cgroup2_mount()?)?);
        let network = if host_network { cri::NODE } else { cri::POD };
        let config = cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.to_owned(),
                namespace: "mesh".to_owned(),
                attempt,
            }),
            hostname: if host_network {
                String::new()
            } else {
                name.to_owned()
            },
            log_directory: self.dir.join("logs").to_string_lossy().into_owned(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: parent.to_string_lossy().into_owned(),
                security_context: Some(cri::LinuxSandboxSecurityContext {
                    namespace_options: Some(cri::NamespaceOption {
                        network,
                        pid: cri::CONTAINER,
                        ipc: cri::POD,
                    }),
                }),
            }),
        };
        let request = cri::RunPodSandboxRequest {
            config: Some(config.clone()),
        };
        let answer: cri::RunPodSandboxResponse = self.call("RuntimeService/RunPodSandbox", request)?;
        let request = cri::PodSandboxStatusRequest {
            pod_sandbox_id: answer.pod_sandbox_id.clone(),
            verbose: true,
        };
        let status: cri::PodSandboxStatusResponse = self.call("RuntimeService/PodSandboxStatus", request)?;
        let info = status.info.get("info").context("no details of the sandbox")?;
        let info: serde_json::Value = serde_json::from_str(info)?;
        let pid = info["pid"].as_u64().context("no pid")?;
        Ok(Sandbox {
            id: answer.pod_sandbox_id,
            pid: u32::try_from(pid)?,
            config,
        })
    }

    /// A container of the sandbox, that sleeps.
    pub(crate) fn run_container(&self, sandbox: &Sandbox, name: &str) -> Result<()> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(cri::ContainerConfig {
                metadata: Some(cri::ContainerMetadata {
                    name: name.to_owned(),
                    attempt: 0,
                }),
                image: Some(cri::ImageSpec {
                    image: IMAGE.to_owned(),
                }),
                command: vec!["/bin/sleep".to_owned(), "600".to_owned()],
                log_path: format!("{name}.log"),
            }),
            sandbox_config: Some(sandbox.config.clone()),
        };
        let made: cri::CreateContainerResponse = self.call("RuntimeService/CreateContainer", request)?;
        let request = cri::StartContainerRequest {
            container_id: made.container_id,
        };
        let _: cri::Empty = self.call("RuntimeService/StartContainer", request)?;
        Ok(())
    }

    /// Ends a sandbox and all that is in it, as a kubelet does with a pod that has ended.
    pub(crate) fn stop_sandbox(&self, sandbox: &Sandbox) -> Result<()> {
        let request = cri::SandboxId {
            pod_sandbox_id: sandbox.id.clone(),
        };
        let _: cri::Empty = self.call("RuntimeService/StopPodSandbox", request.clone())?;
        let _: cri::Empty = self.call("RuntimeService/RemovePodSandbox", request)?;
        Ok(())
    }

    fn call<Q, A>(&self, method: &str, request: Q) -> Result<A>
    where
        Q: prost::Message + Send + Sync + 'static,
        A: prost::Message + Default + Send + Sync + 'static,
    {
        let socket = self.dir.join("containerd.sock");
        let path = format!("/runtime.v1.{method}");
        self.runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?.timeout(PATIENCE);
            let channel: Channel = endpoint.connect().await?;
            let mut grpc = Grpc::new(channel);
            grpc.ready().await?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            let answer = grpc
                .unary(tonic::Request::new(request), path.parse()?, codec)
                .await;
            let answer = answer.map_err(|status| anyhow::anyhow!("{method}: {status}"))?;
            Ok(answer.into_inner())
        })
    }
}

/// A process whose mount namespace is the runtime's: its mounts, and what it leaves at places of its own choice, go with that.
fn mounts(stage: &Stage, dir: &Path, cgroup: &Cgroup) -> Result<Proc> {
    let script =
        "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && echo ready && exec sleep 1000";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
    command.in_cgroup(cgroup)?;
    let holder = Proc::start("containerd-mounts", &mut command, &stage.world.log_dir())?;
    wait_for("the mounts are there", PATIENCE, || {
        if holder.stdout().contains("ready") {
            Ok(())
        } else {
            bail!("{} has said {}", dir.display(), holder.stderr())
        }
    })?;
    Ok(holder)
}

fn spawn(stage: &Stage, dir: &Path, mounts: &Proc, cgroup: &Cgroup) -> Result<Proc> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--mount=/proc/{}/ns/mnt", mounts.pid()))
        .args(["containerd", "--config"])
        .arg(dir.join("config.toml"))
        .in_cgroup(cgroup)?
        .in_netns(stage.node.netns())?;
    Proc::start("containerd", &mut command, &stage.world.log_dir())
        .context("is containerd installed? `cargo xtask setup` installs it")
}

fn configuration(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.overlayfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
[grpc]
address = "{dir}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{IMAGE}"
netns_mounts_under_state_dir = true
restrict_oom_score_adj = true
disable_tcp_service = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{dir}/runc"
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{dir}/cni"
conf_dir = "{dir}/net.d"
"#
    )
}
