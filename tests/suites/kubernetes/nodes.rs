//! Two nodes of a cluster, with an agent each and one root of certificates: what happens to the traffic between their pods while agents are
//! replaced, the API server is away or busy, and labels and addresses contradict each other.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Agent, App, LoadReport, LoadServer, wait_for};
use serde_json::{Value, json};

use crate::stage::{LATER, OUTSIDE, SHOP, SOON, Stage, answered, captured, refused, state_of, vip};

/// How long anything may take on a machine that does much else besides.
const LONG: Duration = Duration::from_secs(300);

/// A DENY of what `client` opens to pods with this label.
fn deny(app: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": format!("not-{app}"), "namespace": SHOP},
        "spec": {
            "selector": {"matchLabels": {"app": app}}, "action": "DENY",
            "rules": [{"from": [{"source": {"principals": [format!("cluster.local/ns/{SHOP}/sa/client")]}}]}],
        },
    })
}

fn strict() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": SHOP}, "spec": {"mtls": {"mode": "STRICT"}},
    })
}

/// Connections that went or came through a tunnel.
fn tunnelled(agent: &Agent) -> Result<f64> {
    Ok(agent.metrics()?.sum(
        "istio_tcp_connections_opened_total",
        &[("connection_security_policy", "mutual_tls")],
    ))
}

/// An agent that has been relieved ends by itself.
fn wait_left(mut agent: Agent) -> Result<()> {
    let status = agent.proc().wait(LONG)?;
    ensure!(status.success(), "{status}: {}", agent.log());
    Ok(())
}

/// The successor of an agent, as a rolling update makes it: it comes before the other goes.
fn replaced(agent: Agent) -> Result<Agent> {
    let next = agent.successor().start()?;
    wait_left(agent)?;
    Ok(next)
}

#[test]
fn between_two_nodes_nothing_is_lost_while_agents_are_replaced_and_the_api_server_goes_and_comes()
-> Result<()> {
    let mut stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    stage.service("web", &[&stage.far])?;
    stage.cluster.put(strict())?;
    stage.cluster.put(deny("near"))?;
    let agent = |node| {
        stage
            .agent(node)
            .env("MESH_AGENT_LOG", "info,access=off")
            .arg("--drain", "2s")
            .start()
    };
    let (a1, a2) = (agent(&stage.n1)?, agent(&stage.n2)?);
    captured(&a1, &["client", "near"])?;
    captured(&a2, &["far"])?;
    let _servers = [
        LoadServer::start(&stage.far, 8080, &[])?,
        LoadServer::start(&stage.client, 8080, &[])?,
    ];
    let _near = App::serve(&stage.near, "talk", 8080, &["--text", "near"])?;
    let web = SocketAddr::new(vip(&a1, "web")?, 80);
    let far = SocketAddr::new(stage.far.ip4(), 8080);
    let near = SocketAddr::new(stage.near.ip4(), 8080);
    let enforced = |stage: &Stage| -> Result<()> {
        refused(&stage.client, near)?;
        refused(&stage.visitor, far)
    };
    enforced(&stage)?;
    // There and back, by address and by service, far longer than what follows takes.
    let churn = |pod: &mesh_tests::harness::Pod, aims: [SocketAddr; 2]| {
        let aims = aims.map(|aim| format!("clean@{aim}"));
        let words = [
            "churn",
            &aims[0],
            &aims[1],
            "--count",
            "4000",
            "--rate",
            "40",
            "--parallel",
            "4",
        ];
        pod.load_in_background(&words)
    };
    let back = SocketAddr::new(stage.client.ip4(), 8080);
    let back6 = SocketAddr::new(stage.client.ip6(), 8080);
    let mut loads = [
        churn(&stage.client, [far, web])?,
        churn(&stage.far, [back, back6])?,
    ];

    let a1 = replaced(a1)?;
    enforced(&stage)?;
    stage.relay.cut();
    state_of(&a1, "Pod", "lost", SOON)?;
    // Without a server to ask, too: from what the state directory keeps.
    let a2 = replaced(a2)?;
    let a1 = replaced(a1)?;
    captured(&a1, &["client", "near"])?;
    captured(&a2, &["far"])?;
    enforced(&stage)?;
    for load in &mut loads {
        ensure!(
            load.is_running(),
            "the load has ended before the agents were replaced"
        );
    }
    stage.relay.mend()?;
    state_of(&a1, "Pod", "watching", LATER)?;
    state_of(&a2, "Pod", "watching", LATER)?;
    // What changes now is in force with both successors.
    stage.cluster.delete(&deny("near"))?;
    answered(&stage.client, near, "near")?;
    refused(&stage.visitor, far)?;
    for load in loads {
        let LoadReport {
            ok, failed, errors, ..
        } = load.report(LONG)?;
        ensure!(
            ok == 4000 && failed == 0,
            "{ok} went well, {failed} did not: {errors:?}\n{}\n{}",
            a1.log(),
            a2.log()
        );
    }
    ensure!(
        tunnelled(&a1)? > 0.0 && tunnelled(&a2)? > 0.0,
        "the last agents carried none of it"
    );
    Ok(())
}

#[test]
fn a_storm_of_changes_to_other_pods_holds_up_neither_traffic_nor_a_change_of_policy() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let (a1, a2) = (stage.agent(&stage.n1).start()?, stage.agent(&stage.n2).start()?);
    captured(&a1, &["client", "near"])?;
    captured(&a2, &["far"])?;
    let _far = App::serve(&stage.far, "talk", 8080, &["--text", "far"])?;
    let far = SocketAddr::new(stage.far.ip4(), 8080);
    answered(&stage.client, far, "far")?;
    let others: Vec<Value> = (0..120).map(other_pod).collect();
    for pod in &others {
        stage.cluster.put(pod.clone())?;
    }
    let is_over = AtomicBool::new(false);
    let storm = || {
        // Something that is looked at changes with each turn.
        let done = stage.cluster.storm(
            &others,
            40,
            |turn| json!({"metadata": {"labels": {"turn": turn.to_string()}}}),
        );
        is_over.store(true, Ordering::Release);
        done
    };
    let policies = || -> Result<usize> {
        let mut rounds = 0;
        while !is_over.load(Ordering::Acquire) {
            stage.cluster.put(deny("far"))?;
            refused(&stage.client, far)?;
            stage.cluster.delete(&deny("far"))?;
            answered(&stage.client, far, "far")?;
            rounds += 1;
        }
        Ok(rounds)
    };
    let rounds = std::thread::scope(|scope| {
        let storm = scope.spawn(storm);
        let rounds = policies();
        match storm.join() {
            Ok(done) => done.context("the storm")?,
            Err(panic) => std::panic::resume_unwind(panic),
        }
        rounds
    })?;
    ensure!(rounds > 0, "the storm was over before a policy changed");
    // All of it has arrived at both, and nothing besides.
    for agent in [&a1, &a2] {
        wait_for("the last turn is known", LATER, || {
            let pods = crate::stage::kind(agent, "Pod")?;
            ensure!(pods["state"] == "watching", "{pods:#}");
            let answer = agent.meshctl(&["workloads"])?;
            let all = answer["workloads"].as_array().into_iter().flatten();
            let names = all.filter_map(|workload| workload["name"].as_str());
            let known = names.filter(|name| name.starts_with("other-")).count();
            ensure!(known == others.len(), "{known} of the storm's pods");
            Ok(())
        })?;
    }
    answered(&stage.client, far, "far")
}

/// A pod of a third node, of which nobody here has an agent.
fn other_pod(n: usize) -> Value {
    let address = format!("10.77.{}.{}", n / 200, n % 200 + 1);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("other-{n}"), "namespace": OUTSIDE, "labels": {"turn": "none"}},
        "spec": {"nodeName": "n3", "serviceAccountName": "default", "containers": [{"name": "app", "image": "none"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

#[test]
fn a_pods_own_label_wins_over_its_namespaces_and_both_nodes_see_it_alike() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let (a1, a2) = (stage.agent(&stage.n1).start()?, stage.agent(&stage.n2).start()?);
    captured(&a1, &["client", "near"])?;
    captured(&a2, &["far"])?;
    stage.cluster.put(strict())?;
    let _far = App::serve(&stage.far, "talk", 8080, &["--text", "far"])?;
    let _near = App::serve(&stage.near, "talk", 8080, &["--text", "near"])?;
    let (far, near) = (
        SocketAddr::new(stage.far.ip4(), 8080),
        SocketAddr::new(stage.near.ip4(), 8080),
    );
    refused(&stage.visitor, far)?;
    answered(&stage.client, far, "far")?;
    let label = |pod: &mesh_tests::harness::Pod, labels: Value| {
        let spec = pod.spec();
        let named = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": spec.name, "namespace": spec.namespace},
        });
        stage
            .cluster
            .storm(&[named], 1, |_| json!({"metadata": {"labels": labels}}))
    };
    // Out, in a namespace that is in: it answers anybody in plaintext, and a STRICT pod does not let it in.
    label(&stage.near, json!({"mesh-agent.io/dataplane": "disabled"}))?;
    // In, in a namespace that is out.
    label(&stage.visitor, json!({"mesh-agent.io/dataplane": "enabled"}))?;
    captured(&a1, &["client", "visitor"])?;
    answered(&stage.visitor, far, "far")?;
    answered(&stage.far, near, "near")?;
    refused(&stage.near, far)?;
    // Ours wins over Istio's; and what says nothing leaves it to the namespace.
    label(
        &stage.visitor,
        json!({"mesh-agent.io/dataplane": "disabled", "istio.io/dataplane-mode": "ambient"}),
    )?;
    label(
        &stage.near,
        json!({"mesh-agent.io/dataplane": null, "istio.io/dataplane-mode": ""}),
    )?;
    captured(&a1, &["client", "near"])?;
    refused(&stage.visitor, far)?;
    answered(&stage.near, far, "far")
}

#[test]
fn an_address_that_two_pods_claim_is_nobodys_on_either_node_until_one_of_them_is_gone() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let (a1, a2) = (stage.agent(&stage.n1).start()?, stage.agent(&stage.n2).start()?);
    captured(&a1, &["client", "near"])?;
    captured(&a2, &["far"])?;
    let _far = App::serve(&stage.far, "talk", 8080, &["--text", "far"])?;
    let far = SocketAddr::new(stage.far.ip4(), 8080);
    answered(&stage.client, far, "far")?;
    // Of a node of which nobody here has an agent, and not enrolled: dialled for it, the address would be reached in plaintext.
    let mut claimant = other_pod(0);
    claimant["status"] =
        json!({"phase": "Running", "podIP": stage.far.ip4(), "podIPs": [{"ip": stage.far.ip4()}]});
    stage.cluster.put(claimant.clone())?;
    for agent in [&a1, &a2] {
        wait_for("the conflict is told", SOON, || {
            let config = agent.meshctl_text(&["config"])?.success()?;
            let bare: String = config.split_whitespace().collect();
            ensure!(bare.contains("issharedwith"), "{config}");
            Ok(())
        })?;
    }
    refused(&stage.client, far)?;
    refused(&stage.near, far)?;
    stage.cluster.delete(&claimant)?;
    answered(&stage.client, far, "far")
}
