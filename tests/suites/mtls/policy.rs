//! STRICT and PERMISSIVE on plaintext inbound.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, MESH, Pod, Scene, wait_for};

fn reaches(from: &Pod, to: &Pod, port: u16) -> Result<bool> {
    let report = from.connect(to.ip4(), port, "exchange", &["--timeout", "3000"])?;
    if report.text == "ping\n" {
        return Ok(true);
    }
    ensure!(
        report.error.is_some() || report.end == "reset",
        "refused without a clear end: {report:?}"
    );
    Ok(false)
}

#[test]
fn strict_refuses_plaintext_and_still_lets_the_mesh_in() -> Result<()> {
    let scene = Scene::start("s")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    assert!(
        reaches(&scene.visitor, &scene.far, 8080)?,
        "PERMISSIVE is the default"
    );
    scene.change(|config| config.peer_authentication(MESH, "STRICT"))?;
    let before = far.events_of("accepted").len();
    assert!(!reaches(&scene.visitor, &scene.far, 8080)?);
    assert_eq!(
        far.events_of("accepted").len(),
        before,
        "not one byte, not even a connection, reached the application"
    );
    assert!(reaches(&scene.client, &scene.far, 8080)?);
    let refused = scene.a2().metrics()?;
    let failures = [("reason", "plaintext_refused")];
    assert_eq!(
        refused.sum("mesh_agent_connection_failures_total", &failures),
        1.0,
        "{}",
        refused.show("mesh_agent_conn")
    );
    assert!(
        scene.a2().log().contains("plaintext"),
        "the refusal is logged with its reason"
    );
    scene.change(|config| config.peer_authentication(MESH, "PERMISSIVE"))?;
    assert!(reaches(&scene.visitor, &scene.far, 8080)?);
    Ok(())
}

#[test]
fn a_connection_within_the_mesh_lives_through_a_switch_to_strict() -> Result<()> {
    let scene = Scene::start("s")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let load = scene.client.connect_in_background(
        scene.far.ip4(),
        8080,
        "load",
        &["--seconds", "3", "--pause", "5"],
    )?;
    for mode in ["STRICT", "PERMISSIVE", "STRICT"] {
        std::thread::sleep(Duration::from_millis(700));
        scene.config.peer_authentication(MESH, mode)?;
    }
    let report = load.report(Duration::from_secs(10))?;
    assert_eq!((report.failed, report.error), (0, None));
    Ok(())
}

#[test]
fn a_port_may_be_more_permissive_than_its_workload() -> Result<()> {
    let scene = Scene::start("s")?;
    let _a = App::serve(&scene.far, "echo", 8080, &[])?;
    let _b = App::serve(&scene.far, "echo", 9090, &[])?;
    scene.change(|config| {
        config.write(
            "pa-far",
            "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata:\n  name: far\n  namespace: mesh\n\
             spec:\n  selector:\n    matchLabels:\n      app: far\n  mtls:\n    mode: STRICT\n  portLevelMtls:\n    \
             9090:\n      mode: PERMISSIVE\n",
        )
    })?;
    assert!(!reaches(&scene.visitor, &scene.far, 8080)?);
    assert!(reaches(&scene.visitor, &scene.far, 9090)?);
    Ok(())
}

#[test]
fn an_unenrolled_pod_is_no_way_around_strict_even_on_the_same_node() -> Result<()> {
    let scene = Scene::start("s")?;
    let _near = App::serve(&scene.near, "echo", 8080, &[])?;
    wait_for("plaintext is let in at first", Duration::from_secs(2), || {
        ensure!(reaches(&scene.visitor, &scene.near, 8080)?);
        Ok(())
    })?;
    scene.change(|config| config.peer_authentication(MESH, "STRICT"))?;
    assert!(!reaches(&scene.visitor, &scene.near, 8080)?);
    let report = scene
        .visitor
        .connect(scene.near.ip6(), 8080, "exchange", &["--timeout", "3000"])?;
    assert!(report.text.is_empty(), "{report:?}");
    Ok(())
}
