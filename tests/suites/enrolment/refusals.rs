//! Who is not captured although it is asked for, and what the labels of enrolment mean.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{MESH, Pod, wait_for};
use serde_json::Value;

use crate::stage::{Stage, rewrite};

const LABELS: &str = "  labels:\n";
const SPEC: &str = "spec:\n";

/// Waits until `meshctl workloads` shows `name` as `probe` wants it.
fn wait(stage: &Stage, name: &str, probe: impl Fn(&Value) -> bool) -> Result<Value> {
    wait_for(&format!("workload {name}"), Duration::from_secs(10), || {
        let workload = stage.workload(name)?;
        if probe(&workload) {
            Ok(workload)
        } else {
            bail!("{workload:#}")
        }
    })
}

fn says(workload: &Value, key: &str, part: &str) -> bool {
    workload[key].as_str().is_some_and(|why| why.contains(part))
}

/// Pods on the stage's node, by name.
fn pod(stage: &Stage, name: &str, change: impl Fn(&str) -> String) -> Result<Pod> {
    let pod = stage.node.pod(MESH, name)?;
    stage.config.pod(&pod.spec())?;
    rewrite(&stage.config, &format!("pod-{name}"), change)?;
    Ok(pod)
}

#[test]
fn pods_whose_capture_would_be_a_pretence_are_refused_with_the_reason() -> Result<()> {
    let stage = Stage::start(true, |agent, _| agent, str::to_owned)?;
    type Change = fn(&str) -> String;
    let refused: [(&str, Change, &str); 6] = [
        (
            "kata",
            |t| t.replace(SPEC, "spec:\n  runtimeClassName: kata-qemu\n"),
            "sandbox",
        ),
        (
            "gvisor",
            |t| t.replace(SPEC, "spec:\n  runtimeClassName: gvisor\n"),
            "sandbox",
        ),
        (
            "vm",
            |t| t.replace(LABELS, "  labels:\n    kubevirt.io: virt-launcher\n"),
            "KubeVirt",
        ),
        (
            "sidecar",
            |t| t.replace("- name: app", "- name: istio-proxy"),
            "sidecar",
        ),
        (
            "injected",
            |t| {
                t.replace(
                    "  annotations:\n",
                    "  annotations:\n    sidecar.istio.io/status: '{}'\n",
                )
            },
            "sidecar",
        ),
        (
            "onhost",
            |t| t.replace(SPEC, "spec:\n  hostNetwork: true\n"),
            "hostNetwork",
        ),
    ];
    let mut pods = Vec::new();
    for (name, change, _) in &refused {
        pods.push(pod(&stage, name, change)?);
    }
    for (name, _, part) in refused {
        let shown = wait(&stage, name, |w| w["enrolment"] == "refused")?;
        assert!(says(&shown, "enrolment_reason", part), "{name}: {shown:#}");
        assert_eq!(shown["capture"], "none", "{name}: {shown:#}");
    }
    let text = stage.agent.meshctl_text(&["workloads"])?.success()?;
    assert!(
        text.contains("mesh/kata is refused: runtimeClassName kata-qemu"),
        "{text}"
    );
    Ok(())
}

#[test]
fn pods_whose_place_cannot_be_captured_are_refused_with_the_reason() -> Result<()> {
    let stage = Stage::start(true, |agent, _| agent, str::to_owned)?;
    // It routes between two interfaces.
    let router = stage.node.pod(MESH, "router")?;
    router.netns().sysctl("ipv4/ip_forward", "1")?;
    router
        .netns()
        .ip(&["link", "add", "tap0", "type", "veth", "peer", "name", "tap1"])?;
    router.netns().ip(&["link", "set", "tap0", "up"])?;
    stage.config.pod(&router.spec())?;
    // Its processes are somewhere else than its cgroup.
    let stray = stage.node.pod(MESH, "stray")?;
    let elsewhere = stage.node.cgroup().child("elsewhere")?;
    let mut process = stage.sleeper("stray", &elsewhere, stray.netns())?;
    stage.config.pod(&stray.spec())?;
    // Its cgroup is none of cgroup2.
    let v1 = stage.node.pod(MESH, "other")?;
    let plain = stage.world.dir().join("plain");
    std::fs::create_dir(&plain)?;
    let mut spec = v1.spec();
    spec.cgroup = plain;
    stage.config.pod(&spec)?;
    // Its network namespace is the host's.
    let host = stage.node.pod(MESH, "host")?;
    let mut spec = host.spec();
    spec.netns = stage.node.netns().path().to_owned();
    stage.config.pod(&spec)?;
    for (name, part) in [
        ("router", "forwards packets between eth0, tap0"),
        ("stray", "not below its cgroup"),
        ("other", "not in the cgroup2 hierarchy"),
        ("host", "agent's own"),
    ] {
        let shown = wait(&stage, name, |w| w["capture"] == "failed")?;
        assert!(says(&shown, "capture_reason", part), "{name}: {shown:#}");
    }
    let check = stage.check("pods")?;
    assert_eq!(check["level"], "fail", "{check:#}");
    // What was wrong is set right: it is tried again by itself.
    process.kill();
    wait_for("the stray pod is captured", Duration::from_secs(25), || {
        let shown = stage.workload("stray")?;
        if shown["capture"] == "captured" {
            Ok(())
        } else {
            bail!("{shown:#}")
        }
    })
}

#[test]
fn istios_labels_enrol_and_exempt_and_ours_win() -> Result<()> {
    let stage = Stage::start(true, |agent, _| agent, str::to_owned)?;
    let none = pod(&stage, "none", |t| {
        t.replace(LABELS, "  labels:\n    istio.io/dataplane-mode: none\n")
    })?;
    let both = pod(&stage, "both", |t| {
        t.replace(
            LABELS,
            "  labels:\n    istio.io/dataplane-mode: none\n    mesh-agent.io/dataplane: enabled\n",
        )
    })?;
    let ambient = stage.node.pod("ambient", "ambient")?;
    stage.config.write(
        "ns-ambient",
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: ambient\n  labels:\n    istio.io/dataplane-mode: ambient\n",
    )?;
    stage.config.pod(&ambient.spec())?;
    wait(&stage, "both", |w| w["capture"] == "captured")?;
    wait(&stage, "ambient", |w| w["capture"] == "captured")?;
    let shown = wait(&stage, "none", |w| w["enrolment"] == "not-enrolled")?;
    assert_eq!(shown["capture"], "none", "{shown:#}");
    let attached = |pod: &Pod| {
        mesh_tests::harness::attached_to(pod.cgroup().path())
            .map(|programs| programs.len())
            .context("bpftool")
    };
    assert_eq!(
        (attached(&none)?, attached(&both)? > 0, attached(&ambient)? > 0),
        (0, true, true)
    );
    Ok(())
}
