//! Values: those that are refused, and what becomes of those that are not.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::stage::{
    agent_on, all_documents, everything, kinds_of_values, one, refusal, render, settings_of, text,
};

#[test]
fn values_that_the_chart_does_not_know_or_that_cannot_be_are_refused_with_the_reason() -> Result<()> {
    let table = [
        (json!({"imge": {}}), "additional properties 'imge' not allowed"),
        (json!({"image": {"tga": "x"}}), "/image"),
        (
            json!({"image": {"repository": "mesh-agent"}}),
            "/image/repository",
        ),
        (json!({"image": {"digest": "sha256:abc"}}), "/image/digest"),
        (json!({"encryptLocal": false}), "/encryptLocal"),
        (json!({"maxSurge": 0}), "/maxSurge"),
        (json!({"maxSurge": "0%"}), "/maxSurge"),
        (json!({"metrics": {"port": 70000}}), "/metrics/port"),
        (
            json!({"resources": {"limits": {"memory": "much"}}}),
            "/resources/limits/memory",
        ),
        (json!({"stateDir": "var"}), "/stateDir"),
        (json!({"criSocket": "containerd.sock"}), "/criSocket"),
        (json!({"cgroup": {"root": "/cgroup"}}), "/cgroup/root"),
        (json!({"nameOverride": "Mesh"}), "/nameOverride"),
        (json!({"tolerations": [{"operater": "Exists"}]}), "/tolerations/0"),
        (json!({"settings": []}), "/settings"),
        (json!({"cni": {"waitSeconds": 111}}), "/cni/waitSeconds"),
        (json!({"cni": {"binDir": "opt"}}), "/cni/binDir"),
        (json!({"drainSeconds": "5s"}), "/drainSeconds"),
        // Refused by the templates.
        (
            json!({"terminationGracePeriodSeconds": 13}),
            "longer than drainSeconds and 8 s",
        ),
        (json!({"drainSeconds": 60}), "longer than drainSeconds and 8 s"),
        (
            json!({"criSocket": "/var/run/containerd/containerd.sock"}),
            "say /run/",
        ),
        (
            json!({"serviceAccount": {"create": false}}),
            "serviceAccount.name",
        ),
    ];
    for (values, wanted) in table {
        let said = refusal(&values)?;
        ensure!(said.contains(wanted), "{values}: {said}");
    }
    Ok(())
}

#[test]
fn a_setting_that_a_value_decides_is_refused_among_the_settings() -> Result<()> {
    for (settings, value) in [
        (json!({"nodeName": "n"}), "node"),
        (json!({"stateDir": "/x"}), "stateDir"),
        (json!({"caSecretDir": "/x"}), "caSecretName"),
        (json!({"adminSocket": "/x"}), "meshctl"),
        (json!({"cgroupRoot": "/x"}), "cgroup.root"),
        (json!({"kubeletCgroup": "off"}), "cgroup.kubelet"),
        (json!({"metricsAddress": "[::]:1"}), "metrics.port"),
        (json!({"readinessAddress": "[::]:1"}), "readinessPort"),
        (json!({"pods": {"criSocket": "off"}}), "criSocket"),
        (json!({"pods": {"cgroup": "/x"}}), "cgroup.pods"),
        (json!({"cni": {"enabled": false}}), "cni"),
        (json!({"kubernetes": {"daemonSet": "a/b"}}), "nameOverride"),
        (
            json!({"defaultConfig": {"terminationDrainDuration": "9s"}}),
            "drainSeconds",
        ),
    ] {
        let said = refusal(&json!({"settings": settings}))?;
        ensure!(
            said.contains("is given by") && said.contains(value),
            "{settings}: {said}"
        );
    }
    Ok(())
}

#[test]
fn every_value_has_its_place_in_the_schema_and_is_tried_here() -> Result<()> {
    fn leaves(schema: &Value, path: &str, into: &mut Vec<String>) {
        let inner = schema["properties"].as_object().into_iter().flatten();
        let mut any = false;
        for (name, schema) in inner {
            any = true;
            leaves(schema, &format!("{path}/{name}"), into);
        }
        if !any {
            into.push(path.to_owned());
        }
    }
    let schema: Value = serde_json::from_str(&text("deploy/helm/mesh-agent/values.schema.json")?)?;
    let mut known = Vec::new();
    leaves(&schema, "", &mut known);
    let defaults: Value = serde_saphyr::from_str(&text("deploy/helm/mesh-agent/values.yaml")?)?;
    let tried = everything();
    for path in known {
        // Helm's own; and a tag beside a digest says nothing.
        if path == "/global" {
            continue;
        }
        // What `tolerations`, `extraEnv` and the like hold is theirs.
        ensure!(
            defaults.pointer(&path).is_some()
                || path.starts_with("/seLinuxOptions")
                || path.starts_with("/affinity"),
            "{path} has no default in values.yaml"
        );
        if path.starts_with("/affinity") || path.starts_with("/seLinuxOptions") || path == "/image/tag" {
            continue;
        }
        ensure!(tried.pointer(&path).is_some(), "{path} is tried nowhere");
        ensure!(
            tried.pointer(&path) != defaults.pointer(&path)
                || [
                    "/encryptLocal",
                    "/serviceAccount/create",
                    "/rbac/create",
                    "/cni/enabled"
                ]
                .contains(&path.as_str()),
            "{path} is tried with its default"
        );
    }
    Ok(())
}

#[test]
fn the_agent_understands_the_settings_that_the_chart_writes() -> Result<()> {
    for (name, values) in kinds_of_values()? {
        let settings = settings_of(&all_documents(&render(&values)?)?)?;
        let said = agent_on(&settings)?;
        ensure!(said.is_none(), "{name}: {said:?}\n{settings}");
    }
    Ok(())
}

#[test]
fn a_setting_that_the_agent_does_not_know_is_refused_by_the_agent_with_its_line() -> Result<()> {
    let values = json!({"settings": {"trustDomian": "mesh.example"}});
    let settings = settings_of(&all_documents(&render(&values)?)?)?;
    let line = settings
        .lines()
        .position(|line| line.starts_with("trustDomian"))
        .context("it is not passed on")?
        + 1;
    let said = agent_on(&settings)?.context("the agent takes it")?;
    ensure!(
        said.contains("trustDomian") && said.contains(&format!(":{line}:")),
        "{said}"
    );
    Ok(())
}

#[test]
fn values_get_where_they_belong() -> Result<()> {
    let documents = all_documents(&render(&everything())?)?;
    let settings: Value = serde_saphyr::from_str(&settings_of(&documents)?)?;
    for (path, wanted) in [
        ("/trustDomain", json!("mesh.example")),
        (
            "/defaultConfig",
            json!({"concurrency": 4, "terminationDrainDuration": "30s"}),
        ),
        ("/stateDir", json!("/srv/mesh-agent")),
        ("/cgroupRoot", json!("/sys/fs/cgroup/unified")),
        ("/kubeletCgroup", json!("system.slice/kubelet.service")),
        (
            "/pods",
            json!({"discover": true, "cgroup": "/node-a", "criSocket": "/srv/runtime/containerd.sock"}),
        ),
        ("/metricsAddress", json!("[::]:9020")),
        ("/readinessAddress", json!("[::]:9021")),
        ("/onStop", json!("release")),
        (
            "/kubernetes",
            json!({"enabled": true, "daemonSet": "mesh-system/pool-a"}),
        ),
        (
            "/cni",
            json!({"enabled": true, "confDir": "/srv/cni/net.d", "binDir": "/srv/cni/bin", "wait": "20s",
                "excludeNamespaces": ["kube-system", "mesh-system", "storage"]}),
        ),
    ] {
        ensure!(settings.pointer(path) == Some(&wanted), "{path}: {settings:#}");
    }
    let daemonset = one(&documents, "DaemonSet")?;
    let pod = &daemonset["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    ensure!(
        container["image"] == format!("registry.example:5000/mesh/agent@sha256:{}", "0".repeat(64)),
        "{container:#}"
    );
    ensure!(
        pod["terminationGracePeriodSeconds"] == 60
            && daemonset["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"] == "10%"
    );
    ensure!(
        pod["serviceAccountName"] == "agents"
            && one(&documents, "ServiceAccount")?["metadata"]["name"] == "agents"
    );
    let mounted = |path: &str| {
        let mounts = container["volumeMounts"].as_array().into_iter().flatten();
        mounts.filter(|mount| mount["mountPath"] == path).count() == 1
    };
    ensure!(
        mounted("/srv/mesh-agent")
            && mounted("/srv/runtime")
            && mounted("/srv/cni/net.d")
            && mounted("/srv/cni/bin"),
        "{container:#}"
    );
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    ensure!(
        volumes
            .iter()
            .any(|v| v["secret"]["secretName"] == "root-of-the-mesh")
    );
    let annotations = &daemonset["spec"]["template"]["metadata"]["annotations"];
    ensure!(
        annotations["prometheus.io/scrape"].is_null() && annotations["e"] == "f",
        "{annotations}"
    );
    let monitor = one(&documents, "PodMonitor")?;
    ensure!(
        monitor.to_string().contains("$1:9020") && monitor.to_string().contains("[$1]:9020"),
        "{monitor:#}"
    );
    Ok(())
}

#[test]
fn other_settings_exchange_the_agents_and_the_same_do_not() -> Result<()> {
    let hash = |values: Value| -> Result<Value> {
        let daemonset = one(&all_documents(&render(&values)?)?, "DaemonSet")?;
        Ok(daemonset["spec"]["template"]["metadata"]["annotations"]["mesh-agent.io/settings"].clone())
    };
    let usual = hash(json!({}))?;
    ensure!(usual.is_string());
    ensure!(usual == hash(json!({"resources": {"limits": {"memory": "2Gi"}}}))?);
    ensure!(usual != hash(json!({"settings": {"trustDomain": "mesh.example"}}))?);
    ensure!(usual != hash(json!({"drainSeconds": 6}))?);
    Ok(())
}

#[test]
fn the_notes_say_what_to_do_next_in_the_releases_own_words() -> Result<()> {
    let notes = render(&json!({"nameOverride": "pool-a", "settings": {"trustDomain": "mesh.example"}}))?;
    let notes = notes.get("NOTES.txt").context("no notes")?;
    for part in [
        "mesh-agent ca init --trust-domain mesh.example --secret mesh-system/mesh-agent-ca | kubectl apply -f -",
        "daemonset/pool-a",
        "mesh-agent.io/dataplane=enabled",
    ] {
        ensure!(notes.contains(part), "{part}: {notes}");
    }
    Ok(())
}

#[test]
fn without_the_cni_plugin_neither_its_directories_nor_its_rights_are_asked_for() -> Result<()> {
    let documents = all_documents(&render(
        &json!({"cni": {"enabled": false}, "bpffs": {"mount": false}}),
    )?)?;
    let settings: Value = serde_saphyr::from_str(&settings_of(&documents)?)?;
    ensure!(settings["cni"].is_null(), "{settings:#}");
    let pod = &one(&documents, "DaemonSet")?["spec"]["template"]["spec"];
    ensure!(
        pod["initContainers"].is_null() && !pod.to_string().contains("cni"),
        "{pod:#}"
    );
    let role = one(&documents, "ClusterRole")?;
    let rules = role["rules"].as_array().context("no rules")?;
    let mut core = rules.iter().filter(|rule| rule["apiGroups"] == json!([""]));
    let gets = core.any(|rule| rule["verbs"].to_string().contains("get"));
    ensure!(!gets, "{role:#}");
    Ok(())
}
