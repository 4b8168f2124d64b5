//! Status conditions: one agent of the cluster writes them, and only what is not there yet.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::harness::{Agent, wait_for};
use serde_json::{Value, json};

use crate::stage::{OUTSIDE, SHOP, SOON, Stage, captured};

/// For a Lease to run out, and for who takes it over to write.
const TAKEN_OVER: Duration = Duration::from_secs(60);

fn policy(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": SHOP}, "spec": spec,
    })
}

/// Two agents that follow one cluster, and whose Lease is in the namespace of this stage.
fn agents(stage: &Stage) -> Result<[Agent; 2]> {
    let agent = |node| stage.agent(node).arg("--kubernetes-status", OUTSIDE).start();
    Ok([agent(&stage.n1)?, agent(&stage.n2)?])
}

/// The `Accepted` condition of an object, once it is of this status, reason and generation.
fn accepted(stage: &Stage, object: &Value, status: &str, reason: &str, generation: u64) -> Result<Value> {
    wait_for(&format!("{status} {reason}"), TAKEN_OVER, || {
        let object = stage.cluster.get(object)?;
        let conditions = object["status"]["conditions"]
            .as_array()
            .context("no conditions")?;
        let found = conditions
            .iter()
            .find(|condition| condition["type"] == "Accepted");
        let found = found.context("not among them")?;
        ensure!(
            found["status"] == status
                && found["reason"] == reason
                && found["observedGeneration"] == generation,
            "{object:#}"
        );
        ensure!(found["lastTransitionTime"].is_string(), "{object:#}");
        Ok(found.clone())
    })
}

fn writer(agent: &Agent) -> Result<Value> {
    Ok(agent.meshctl(&["status"])?["status_writer"].clone())
}

/// Which of them holds the Lease: all agree, and one says that it is itself.
fn leader(agents: &[&Agent]) -> Result<usize> {
    wait_for("one agent writes", TAKEN_OVER, || {
        let all: Vec<Value> = agents.iter().map(|agent| writer(agent)).collect::<Result<_>>()?;
        let leads: Vec<usize> = (0..all.len()).filter(|i| all[*i]["leads"] == true).collect();
        let [one] = leads[..] else {
            bail!("{all:#?}");
        };
        let names = all.iter().all(|said| said["leader"] == all[one]["leader"]);
        ensure!(names && all[one]["leader"].is_string(), "{all:#?}");
        Ok(one)
    })
}

fn written(agent: &Agent) -> Result<f64> {
    let metrics = agent.metrics()?;
    Ok(metrics.sum("mesh_agent_status_writes_total", &[("result", "written")]))
}

/// Waits until an agent has written so many conditions.
fn has_written(agent: &Agent, wanted: f64) -> Result<()> {
    wait_for(&format!("{wanted} written"), SOON, || {
        let written = written(agent)?;
        ensure!(written == wanted, "{written}: {:#}", writer(agent)?);
        Ok(())
    })
}

#[test]
fn one_agent_tells_at_policies_whether_they_are_in_force_and_says_nothing_twice() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let theirs = json!({
        "type": "ZtunnelAccepted", "status": "True", "reason": "Accepted", "message": "attached to ztunnel",
        "lastTransitionTime": "2026-11-21T02:33:46Z",
    });
    let mut good = policy("AuthorizationPolicy", "good", json!({"rules": [{}]}));
    good["status"] = json!({"conditions": [theirs.clone()]});
    let bad = policy(
        "PeerAuthentication",
        "default",
        json!({"mtls": {"mode": "STRICKT"}}),
    );
    stage.cluster.put(good.clone())?;
    stage.cluster.put(bad.clone())?;
    let [a1, a2] = agents(&stage)?;
    accepted(&stage, &good, "True", "Accepted", 1)?;
    let said = accepted(&stage, &bad, "False", "Invalid", 1)?;
    ensure!(
        said["message"]
            .as_str()
            .is_some_and(|text| text.contains("STRICKT")),
        "{said:#}"
    );
    let conditions = stage.cluster.get(&good)?["status"]["conditions"].clone();
    ensure!(
        conditions[0] == theirs,
        "the condition of another writer: {conditions:#}"
    );

    let leads = leader(&[&a1, &a2])?;
    let agents = [&a1, &a2];
    let (one, other) = (agents[leads], agents[1 - leads]);
    has_written(one, 2.0)?;
    ensure!(written(other)? == 0.0, "{:#}", writer(other)?);
    ensure!(one.metrics()?.sum("mesh_agent_status_leader", &[]) == 1.0);
    ensure!(other.metrics()?.sum("mesh_agent_status_leader", &[]) == 0.0);
    let shown = other.meshctl_text(&["status"])?.success()?;
    ensure!(shown.contains("writes them (Lease"), "{shown}");

    // What is set right is told, with the generation that it is about.
    stage.cluster.put(policy(
        "PeerAuthentication",
        "default",
        json!({"mtls": {"mode": "STRICT"}}),
    ))?;
    accepted(&stage, &bad, "True", "Accepted", 2)?;
    // Two of a kind that cannot both hold.
    let second = policy(
        "PeerAuthentication",
        "second",
        json!({"mtls": {"mode": "PERMISSIVE"}}),
    );
    stage.cluster.put(second.clone())?;
    let said = wait_for("one of the two is told", TAKEN_OVER, || {
        let of = |object| accepted_now(&stage, object);
        let both = [of(&bad)?, of(&second)?];
        let found = both
            .iter()
            .find(|condition| condition["reason"] == "Conflicted")
            .cloned();
        found.with_context(|| format!("{both:#?}"))
    })?;
    ensure!(said["status"] == "False", "{said:#}");

    // Nothing has changed that a condition says: neither a label nor another's condition has it written again.
    std::thread::sleep(Duration::from_secs(7));
    let before = written(one)?;
    let mut labelled = good.clone();
    labelled["metadata"]["labels"] = json!({"team": "shop"});
    labelled["status"]["conditions"] = json!([theirs, conditions[1], {"type": "Other", "status": "True"}]);
    stage.cluster.put(labelled)?;
    let version = stage.cluster.get(&good)?["metadata"]["resourceVersion"].clone();
    std::thread::sleep(Duration::from_secs(12));
    let after = stage.cluster.get(&good)?;
    ensure!(after["metadata"]["resourceVersion"] == version, "{after:#}");
    ensure!(
        written(one)? == before && written(other)? == 0.0,
        "{:#}",
        writer(one)?
    );
    // Who takes our condition away gets it again, beside the others.
    labelled_away(&stage, &good)?;
    accepted(&stage, &good, "True", "Accepted", 1)?;
    let conditions = stage.cluster.get(&good)?["status"]["conditions"].clone();
    ensure!(conditions[0]["type"] == "Other", "{conditions:#}");
    Ok(())
}

fn accepted_now(stage: &Stage, object: &Value) -> Result<Value> {
    let object = stage.cluster.get(object)?;
    let conditions = object["status"]["conditions"]
        .as_array()
        .context("no conditions")?;
    let found = conditions
        .iter()
        .find(|condition| condition["type"] == "Accepted")
        .cloned();
    found.context("not among them")
}

fn labelled_away(stage: &Stage, object: &Value) -> Result<()> {
    let mut bare = object.clone();
    bare["status"] = json!({"conditions": [{"type": "Other", "status": "True"}]});
    stage.cluster.put(bare)
}

#[test]
fn when_the_writer_dies_another_takes_over_and_writes_only_what_is_new() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let first = policy("AuthorizationPolicy", "first", json!({"rules": [{}]}));
    stage.cluster.put(first.clone())?;
    let [a1, a2] = agents(&stage)?;
    accepted(&stage, &first, "True", "Accepted", 1)?;
    let leads = leader(&[&a1, &a2])?;
    let (mut dies, lives) = if leads == 0 { (a1, a2) } else { (a2, a1) };
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "mesh-agent-status", "namespace": OUTSIDE},
    });
    let before = stage.cluster.get(&lease)?;
    dies.kill();
    let second = policy("AuthorizationPolicy", "second", json!({"rules": [{}]}));
    stage.cluster.put(second.clone())?;
    accepted(&stage, &second, "True", "Accepted", 1)?;
    ensure!(writer(&lives)?["leads"] == true);
    has_written(&lives, 1.0)?;
    let after = stage.cluster.get(&lease)?;
    let transitions = |lease: &Value| lease["spec"]["leaseTransitions"].as_i64().unwrap_or_default();
    ensure!(
        transitions(&after) == transitions(&before) + 1,
        "{before:#} {after:#}"
    );
    ensure!(
        after["spec"]["holderIdentity"] != before["spec"]["holderIdentity"],
        "{after:#}"
    );
    // Who comes back finds the place taken.
    let back = dies.restart()?;
    std::thread::sleep(Duration::from_secs(8));
    ensure!(
        leader(&[&back, &lives])? == 1,
        "the Lease has changed hands without need"
    );
    Ok(())
}

#[test]
fn without_the_right_to_the_lease_or_to_status_nothing_is_written_and_it_is_told_once() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let Some(server) = stage.cluster.own() else {
        return Ok(());
    };
    let first = policy("AuthorizationPolicy", "first", json!({"rules": [{}]}));
    stage.cluster.put(first.clone())?;
    server.forbid(&["leases"]);
    let start = || stage.agent(&stage.n1).arg("--kubernetes-status", OUTSIDE).start();
    let problem = |agent: &Agent, part: &str| -> Result<()> {
        wait_for("what is in the way is shown", SOON, || {
            let writer = writer(agent)?;
            let said = writer["problem"].as_str().unwrap_or_default();
            ensure!(said.contains(part) && said.contains("rbac.yaml"), "{writer:#}");
            Ok(())
        })
    };
    let mut agent = start()?;
    captured(&agent, &["client", "near"])?;
    problem(&agent, "leases")?;
    ensure!(
        agent.log().matches("no status conditions are written").count() == 1,
        "{}",
        agent.log()
    );
    agent.stop()?;
    server.forbid(&["authorizationpolicies/status"]);
    let mut agent = start()?;
    problem(&agent, "authorizationpolicies/status")?;
    ensure!(
        agent
            .metrics()?
            .sum("mesh_agent_status_writes_total", &[("result", "forbidden")])
            == 1.0
    );
    ensure!(
        agent
            .log()
            .matches("a status condition cannot be written")
            .count()
            == 1,
        "{}",
        agent.log()
    );
    ensure!(stage.cluster.get(&first)?["status"].is_null());
    ensure!(agent.ready()?.0, "nothing else depends on it");
    agent.stop()
}
