//! While the API server is away: what is known goes on, over a restart too.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, attached_to, wait_for};
use serde_json::json;

use crate::stage::{LATER, OUTSIDE, SHOP, SOON, Stage, answered, captured, kind, refused, state_of, vip};

#[test]
fn what_is_known_stays_while_the_server_is_away_and_a_restart_serves_as_before() -> Result<()> {
    let mut stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    stage.service("web", &[&stage.far])?;
    let a1 = stage.agent(&stage.n1).start()?;
    let _a2 = stage.agent(&stage.n2).start()?;
    captured(&a1, &["client", "near"])?;
    let _far = App::serve(&stage.far, "talk", 8080, &["--text", "far"])?;
    let web = SocketAddr::new(vip(&a1, "web")?, 80);
    answered(&stage.client, web, "far")?;
    let near = SocketAddr::new(stage.near.ip4(), 8080);
    let _near = App::serve(&stage.near, "talk", 8080, &["--text", "near"])?;
    stage.cluster.put(serde_json::json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "not-the-client", "namespace": SHOP},
        "spec": {
            "selector": {"matchLabels": {"app": "near"}}, "action": "DENY",
            "rules": [{"from": [{"source": {"principals": [format!("cluster.local/ns/{SHOP}/sa/client")]}}]}],
        },
    }))?;
    refused(&stage.client, near)?;

    stage.relay.cut();
    state_of(&a1, "Pod", "lost", SOON)?;
    let pod = kind(&a1, "Pod")?;
    let problem = pod["problem"].as_str().unwrap_or_default();
    ensure!(problem.contains("cannot be reached"), "{pod:#}");
    answered(&stage.client, web, "far")?;
    refused(&stage.client, near)?;
    ensure!(a1.ready()?.0, "an agent that knows what it needs is ready");

    // Whoever starts now has only what was kept.
    let mut a1 = a1.restart()?;
    captured(&a1, &["client", "near"])?;
    answered(&stage.client, web, "far")?;
    refused(&stage.client, near)?;
    let kept = state_of(&a1, "AuthorizationPolicy", "stored", SOON)?;
    ensure!(kept["age_seconds"].is_u64(), "{kept:#}");

    // What happens meanwhile counts once the server is back.
    stage.endpoints("web", &[&stage.near])?;
    stage.cluster.delete(&serde_json::json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "not-the-client", "namespace": SHOP},
    }))?;
    stage.relay.mend()?;
    state_of(&a1, "Pod", "watching", LATER)?;
    answered(&stage.client, near, "near")?;
    answered(&stage.client, web, "near")?;
    a1.stop()
}

#[test]
fn an_agent_that_knows_nothing_is_not_ready_and_captures_nothing_before_the_server_is_there() -> Result<()> {
    let mut stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    stage.relay.cut();
    let mut a1 = stage.agent(&stage.n1).spawn()?;
    let waits = wait_for("the agent says what it waits for", SOON, || {
        let (ready, why) = a1.ready()?;
        ensure!(!ready && why.contains("cannot be reached"), "{ready} {why}");
        Ok(why)
    })?;
    ensure!(waits.contains("AuthorizationPolicy is not known yet"), "{waits}");
    std::thread::sleep(Duration::from_secs(3));
    captured(&a1, &[])?;
    stage.relay.mend()?;
    wait_for("the agent is ready", LATER, || {
        let (ready, why) = a1.ready()?;
        ensure!(ready, "{why}");
        Ok(())
    })?;
    captured(&a1, &["client", "near"])?;
    a1.stop()
}

#[test]
fn a_server_that_moves_is_followed_where_the_kubeconfig_leads() -> Result<()> {
    let mut stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let mut a1 = stage.agent(&stage.n1).start()?;
    captured(&a1, &["client", "near"])?;
    stage.relay.cut();
    state_of(&a1, "Pod", "lost", SOON)?;
    let elsewhere = SocketAddr::new(stage.n1.address(), 6444);
    let elsewhere = stage.cluster.relay(stage.n1.netns(), elsewhere)?;
    stage.lead_over(&elsewhere)?;
    state_of(&a1, "Pod", "watching", LATER)?;
    let late = stage.n1.pod(SHOP, "late")?;
    stage.cluster.pod(&late.spec())?;
    captured(&a1, &["client", "late", "near"])?;
    a1.stop()
}

#[test]
fn an_agent_whose_daemonset_is_deleted_takes_everything_with_it_and_one_that_is_only_stopped_leaves_it()
-> Result<()> {
    let stage = Stage::set("k-ds", &[])?;
    let daemon_set = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "mesh-agent", "namespace": OUTSIDE},
        "spec": {
            "selector": {"matchLabels": {"app": "mesh-agent"}},
            "template": {
                "metadata": {"labels": {"app": "mesh-agent"}},
                "spec": {"nodeSelector": {"none": "such"}, "containers": [{"name": "agent", "image": "none"}]},
            },
        },
    });
    stage.cluster.put(daemon_set.clone())?;
    let (conf, bin) = (stage.world.dir().join("net.d"), stage.world.dir().join("bin"));
    std::fs::create_dir_all(&conf)?;
    std::fs::create_dir_all(&bin)?;
    let bridge = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"}]}"#;
    std::fs::write(conf.join("10-n.conflist"), bridge)?;
    let ours = conf.join("10-n-mesh-agent.conflist");
    let builder = stage.agent(&stage.n1);
    let builder = builder
        .env("MESH_AGENT_CNI", "true")
        .arg("--cni-conf-dir", &conf.to_string_lossy())
        .arg("--cni-bin-dir", &bin.to_string_lossy())
        .arg("--on-stop", "keep")
        .arg("--daemon-set", &format!("{OUTSIDE}/mesh-agent"));
    let mut agent = builder.start()?;
    let installed = || -> Result<()> {
        wait_for("the plugin is installed", SOON, || {
            Ok(std::fs::metadata(&ours).map(drop)?)
        })
    };
    let captured = || attached_to(stage.near.cgroup().path());
    installed()?;
    assert!(!captured()?.is_empty());
    agent.stop()?;
    assert!(!captured()?.is_empty(), "{}", agent.log());
    installed()?;

    let mut agent = agent.restart()?;
    stage.cluster.delete(&daemon_set)?;
    wait_for("the agent hears of it", SOON, || {
        ensure!(
            agent.log().contains("the DaemonSet is being deleted"),
            "{}",
            agent.log()
        );
        Ok(())
    })?;
    assert!(!captured()?.is_empty(), "until it is ended it does its work");
    agent.stop()?;
    assert!(captured()?.is_empty(), "{}", agent.log());
    assert!(!ours.exists() && std::fs::read_dir(&bin)?.next().is_none());
    assert!(conf.join("10-n.conflist").exists());
    Ok(())
}
