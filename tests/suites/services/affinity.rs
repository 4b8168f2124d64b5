//! sessionAffinity: ClientIP.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, MESH, Pod, Scene, sockets};

const STICKY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 0, 30));
const OUTSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 30));
const LOOSE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 0, 31));

/// Who answers there.
fn answer(client: &Pod, to: IpAddr) -> Result<String> {
    let report = client.connect(to, 80, "exchange", &[])?;
    ensure!(report.end == "eof" && !report.text.is_empty(), "{report:?}");
    Ok(report.text.trim().to_owned())
}

/// Those who answer `times` connections in a row.
fn answers(client: &Pod, to: IpAddr, times: usize) -> Result<BTreeSet<String>> {
    (0..times).map(|_| answer(client, to)).collect()
}

fn services(scene: &Scene) -> Result<()> {
    let spec = |name: &str, ip: IpAddr, more: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {MESH}}}\n\
             spec: {{clusterIP: {ip}, selector: {{group: backends}}, ports: [{{name: web, port: 80, targetPort: 8080}}]{more}}}\n"
        )
    };
    let sticky = format!(", sessionAffinity: ClientIP, externalIPs: [{OUTSIDE}]");
    scene
        .config
        .write("svc-sticky", &spec("sticky", STICKY, &sticky))?;
    scene.config.write("svc-loose", &spec("loose", LOOSE, ""))
}

#[test]
fn a_client_keeps_its_endpoint_over_all_workers_and_addresses_until_it_goes() -> Result<()> {
    let scene = Scene::start("a")?;
    let mut backends = Vec::new();
    for name in ["one", "two", "three"] {
        let pod = scene.n2.pod(MESH, name)?;
        let app = App::serve(&pod, "talk", 8080, &["--text", name])?;
        let mut spec = pod.spec();
        spec.labels.push(("group".to_owned(), "backends".to_owned()));
        scene.config.pod(&spec)?;
        backends.push((pod, app));
    }
    scene.change(|_| services(&scene))?;
    scene.wait_captured()?;
    // Without affinity they come to more than one, so what follows is no accident.
    let loose = answers(&scene.client, LOOSE, 30)?;
    assert!(loose.len() > 1, "{loose:?}");
    let kept = answer(&scene.client, STICKY)?;
    assert_eq!(
        answers(&scene.client, STICKY, 25)?,
        [kept.clone()].into(),
        "a client keeps its endpoint"
    );
    assert_eq!(
        answers(&scene.client, OUTSIDE, 5)?,
        [kept.clone()].into(),
        "at another address of the service"
    );
    // Each worker of the agent has tunnels of its own: there were two at work.
    let (pod, _) = backends
        .iter()
        .find(|(pod, _)| pod.name() == kept)
        .expect("one of them answered");
    let from = scene.client.ip4().to_string();
    let tunnels = sockets(pod.netns())?
        .into_iter()
        .filter(|line| line.starts_with("ESTAB") && line.contains(":15008") && line.contains(&from))
        .count();
    assert!(tunnels >= 2, "{:?}", sockets(pod.netns())?);
    // Another pod has a session of its own.
    let neighbours = answer(&scene.near, STICKY)?;
    assert_eq!(answers(&scene.near, STICKY, 10)?, [neighbours].into());
    let status = scene.a1.meshctl(&["status"])?;
    assert_eq!(
        (&status["sessions"]["live"], &status["sessions"]["evicted"]),
        (&2.into(), &0.into()),
        "{status:#}"
    );
    assert_eq!(scene.a1.metrics()?.sum("mesh_agent_affinity_sessions", &[]), 2.0);
    let shown = scene.a1.meshctl_text(&["status"])?.success()?;
    assert!(shown.contains("2 clients keep to an endpoint"), "{shown}");
    // Without its endpoint the client goes to another one, and stays there.
    scene.change(|config| config.remove(&format!("pod-{kept}")))?;
    let next = answer(&scene.client, STICKY)?;
    assert_ne!(next, kept);
    assert_eq!(answers(&scene.client, STICKY, 15)?, [next].into());
    Ok(())
}
