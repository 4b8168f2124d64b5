//! What a change does to connections that stand.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, MESH, Pod, Running, Scene, wait_for};

/// How soon a denied connection must be gone: a second, and much room for a busy machine.
const PROMPT: Duration = Duration::from_secs(10);

/// A connection that asks, is answered, and then waits for what comes: it ends only when somebody ends it.
fn standing(from: &Pod, to: &Pod) -> Result<Running> {
    from.connect_in_background(to.ip4(), 8080, "await", &["--timeout", "30000"])
}

/// A connection that is idle for `seconds` and then asks: it succeeds only if nobody touched it meanwhile.
fn idle(from: &Pod, to: &Pod, seconds: u32) -> Result<Running> {
    from.connect_in_background(to.ip4(), 8080, "idle", &["--seconds", &seconds.to_string()])
}

/// Waits until `count` connections are carried to `far`.
fn carried(scene: &Scene, count: usize) -> Result<()> {
    wait_for("the connections stand", Duration::from_secs(10), || {
        let shown = scene.a2().meshctl(&["connections"])?;
        let inbound = shown["connections"].as_array().map_or(0, Vec::len);
        ensure!(inbound == count, "{inbound} of {count}: {shown:#}");
        Ok(())
    })
}

fn rejudged(scene: &Scene, result: &str) -> Result<f64> {
    let metrics = scene.a2().metrics()?;
    Ok(metrics.sum("mesh_agent_connections_rejudged_total", &[("result", result)]))
}

#[test]
fn a_change_of_policy_closes_the_connections_that_it_denies_and_leaves_the_others() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let kept = idle(&scene.client, &scene.far, 15)?;
    let (near, visitor) = (
        standing(&scene.near, &scene.far)?,
        standing(&scene.visitor, &scene.far)?,
    );
    carried(&scene, 3)?;
    let allow =
        "{selector: {matchLabels: {app: far}}, rules: [{from: [{source: {serviceAccounts: [client]}}]}]}";
    let start = Instant::now();
    scene.config.authorization(MESH, "far", allow)?;
    for (who, connection) in [("near", near), ("visitor", visitor)] {
        let report = connection.report(PROMPT)?;
        ensure!(
            report.text == "ping\n" && report.end == "reset",
            "{who}: {report:?}\n{}",
            scene.logs()
        );
    }
    println!("closed {:?} after the file was written", start.elapsed());
    carried(&scene, 1)?;
    let report = kept.report(Duration::from_secs(30))?;
    assert_eq!((report.ok, report.failed), (1, 0), "{report:?}\n{}", scene.logs());
    assert_eq!(
        (rejudged(&scene, "closed")?, rejudged(&scene, "kept")?),
        (2.0, 1.0)
    );
    let metrics = scene.a2().metrics()?;
    let closed = [
        ("policy", "far"),
        ("verdict", "closed"),
        ("namespace", MESH),
        ("action", "ALLOW"),
    ];
    assert_eq!(metrics.sum("mesh_agent_policy_decisions_total", &closed), 2.0);
    let reason = [("reason", "policy_changed"), ("flag", "DENY")];
    assert_eq!(metrics.sum("mesh_agent_connection_failures_total", &reason), 2.0);
    let refusals = scene.a2().meshctl(&["refusals"])?;
    let refusals = refusals["refusals"].as_array().map_or(&[][..], Vec::as_slice);
    assert_eq!(refusals.len(), 2, "{refusals:#?}");
    for refusal in refusals {
        assert!(refusal["stood_seconds"].as_f64().is_some(), "{refusal:#}");
        assert_eq!(refusal["policy"], "AuthorizationPolicy mesh/far");
        let id = refusal["id"].as_str().unwrap_or_default();
        let log = scene.a2().log();
        assert!(
            log.contains("a connection that stood is closed") && log.contains(id),
            "{log}"
        );
    }
    Ok(())
}

#[test]
fn strict_turned_on_closes_the_plaintext_connections_that_stand() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let kept = idle(&scene.client, &scene.far, 6)?;
    let visitor = standing(&scene.visitor, &scene.far)?;
    carried(&scene, 2)?;
    scene.config.peer_authentication(MESH, "STRICT")?;
    let report = visitor.report(PROMPT)?;
    ensure!(report.end == "reset", "{report:?}\n{}", scene.logs());
    let report = kept.report(Duration::from_secs(30))?;
    assert_eq!((report.ok, report.failed), (1, 0), "{report:?}");
    let refusals = scene.a2().meshctl(&["refusals"])?;
    assert_eq!(
        refusals["refusals"][0]["reason"], "plaintext_refused",
        "{refusals:#}"
    );
    Ok(())
}

#[test]
fn a_change_that_decides_nothing_about_a_workload_asks_about_none_of_its_connections() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let _kept = standing(&scene.client, &scene.far)?;
    carried(&scene, 1)?;
    scene.change(|config| config.authorization(MESH, "near", "{selector: {matchLabels: {app: near}}}"))?;
    scene.change(|config| config.authorization("outside", "all", "{}"))?;
    scene.change(|config| config.namespace("another", true))?;
    assert_eq!(
        (rejudged(&scene, "closed")?, rejudged(&scene, "kept")?),
        (0.0, 0.0)
    );
    let far = "{selector: {matchLabels: {app: far}}, rules: [{}]}";
    scene.change(|config| config.authorization(MESH, "far", far))?;
    wait_for("it is asked about at last", PROMPT, || {
        ensure!(rejudged(&scene, "kept")? == 1.0, "{}", scene.logs());
        Ok(())
    })?;
    carried(&scene, 1)
}

#[test]
fn a_connection_that_was_let_in_by_a_policy_ends_when_that_policy_is_gone() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    scene.change(|config| {
        config.authorization(MESH, "nobody", "{}")?;
        config.authorization(
            MESH,
            "near",
            "{rules: [{from: [{source: {serviceAccounts: [near]}}]}]}",
        )
    })?;
    let near = standing(&scene.near, &scene.far)?;
    carried(&scene, 1)?;
    scene.config.remove("authz-near")?;
    let report = near.report(PROMPT)?;
    ensure!(
        report.text == "ping\n" && report.end == "reset",
        "{report:?}\n{}",
        scene.logs()
    );
    Ok(())
}
