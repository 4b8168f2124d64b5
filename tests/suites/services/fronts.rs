//! The addresses that a service has, and what becomes of connections to services that lead nowhere or outside the mesh.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use mesh_tests::harness::{Agent, App, MESH, Scene, id};

use crate::lines;

const EXTERNAL4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));
const EXTERNAL6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xfffe, 0, 0, 0, 0, 1));
const BALANCER: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2));
const PROXIED: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 3));
const GUARDED: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 4));
const EMPTY: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 0, 40));
const MANUAL: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 0, 41));

fn failures(agent: &Agent, reason: &str) -> Result<f64> {
    Ok(agent
        .metrics()?
        .sum("mesh_agent_connection_failures_total", &[("reason", reason)]))
}

/// `far` behind all kinds of addresses; IPv4 and IPv6.
fn fronts(scene: &Scene) -> Result<()> {
    scene.config.write(
        "svc-fronts",
        &format!(
            "apiVersion: v1
kind: Service
metadata: {{name: fronts, namespace: {MESH}}}
spec:
  type: LoadBalancer
  clusterIPs: [198.19.0.45, '2001:db8:ffff::45']
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  externalIPs: [{EXTERNAL4}, '{EXTERNAL6}']
  selector: {{app: far}}
  ports: [{{name: web, port: 80, targetPort: 8080}}]
status:
  loadBalancer:
    ingress: [{{ip: {BALANCER}, ipMode: VIP}}, {{ip: {PROXIED}, ipMode: Proxy}}]
---
apiVersion: v1
kind: Service
metadata: {{name: guarded, namespace: {MESH}}}
spec:
  type: LoadBalancer
  clusterIP: 198.19.0.46
  loadBalancerSourceRanges: [{}/32]
  selector: {{app: far}}
  ports: [{{name: web, port: 80, targetPort: 8080}}]
status:
  loadBalancer: {{ingress: [{{ip: {GUARDED}}}]}}
",
            scene.near.ip4()
        ),
    )
}

#[test]
fn external_and_load_balancer_addresses_lead_where_the_cluster_ip_leads_under_mutual_tls() -> Result<()> {
    let scene = Scene::start("f")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    scene.change(|_| fronts(&scene))?;
    for to in [EXTERNAL4, EXTERNAL6, BALANCER] {
        let report = scene.client.connect(to, 80, "exchange", &[])?;
        assert_eq!(
            (report.text.as_str(), report.end.as_str()),
            ("ping\n", "eof"),
            "{to}: {report:?}\n{}",
            scene.logs()
        );
        assert_eq!(
            report.peer.map(|peer| peer.ip().to_canonical()),
            Some(to),
            "getpeername() stays true"
        );
        let line = lines(&scene.a1, &report)?;
        for part in [id(MESH, "far").as_str(), "fronts.mesh.svc.cluster.local"] {
            assert!(line.contains(part), "{to}: {part}: {line}");
        }
        // Through the service back into the pod that asks.
        let own = scene.far.connect(to, 80, "exchange", &[])?;
        assert_eq!(
            (own.text.as_str(), own.end.as_str()),
            ("ping\n", "eof"),
            "{to}: {own:?}"
        );
    }
    // The ClusterIP of the same service keeps to internalTrafficPolicy, the others do not.
    let local = scene
        .client
        .connect(Ipv4Addr::new(198, 19, 0, 45).into(), 80, "exchange", &[])?;
    assert!(local.text.is_empty(), "{local:?}");
    assert_eq!(failures(&scene.a1, "no_endpoints")?, 1.0);
    Ok(())
}

#[test]
fn a_proxying_load_balancer_is_dialled_as_it_is_and_source_ranges_hold() -> Result<()> {
    let scene = Scene::start("f")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    scene.change(|_| fronts(&scene))?;
    // The visitor plays the load balancer.
    scene
        .visitor
        .netns()
        .ip(&["address", "add", &format!("{PROXIED}/32"), "dev", "lo"])?;
    let route = format!("{PROXIED}/32");
    scene.n1.netns().ip(&[
        "route",
        "add",
        &route,
        "via",
        &scene.visitor.ip4().to_string(),
        "dev",
        scene.visitor.veth(),
    ])?;
    let balancer = App::serve(&scene.visitor, "echo", 80, &[])?;
    let report = scene.client.connect(PROXIED, 80, "exchange", &[])?;
    assert_eq!(report.text, "ping\n", "{report:?}\n{}", scene.logs());
    assert_eq!(
        balancer.wait_events("accepted", 1)?[0]
            .local
            .map(|local| local.ip()),
        Some(PROXIED)
    );
    assert!(far.events_of("accepted").is_empty());
    // near is within the ranges, client is not.
    assert_eq!(
        scene.near.connect(GUARDED, 80, "exchange", &[])?.text,
        "ping\n",
        "{}",
        scene.logs()
    );
    let refused = scene.client.connect(GUARDED, 80, "exchange", &[])?;
    assert!(refused.text.is_empty(), "{refused:?}");
    assert_eq!(failures(&scene.a1, "source_range")?, 1.0);
    assert!(scene.a1.log().contains("spec.loadBalancerSourceRanges"));
    Ok(())
}

#[test]
fn a_service_without_endpoints_is_refused_at_once_with_the_reason() -> Result<()> {
    let scene = Scene::start("f")?;
    scene.change(|config| config.service(MESH, "empty", "nobody", &[EMPTY], &[("web", 80, 8080)]))?;
    let report = scene
        .client
        .connect(EMPTY, 80, "await", &["--timeout", "20000"])?;
    let said = format!("{:?} {}", report.error, report.end);
    assert!(
        report.text.is_empty() && (said.contains("refused") || said.contains("reset")),
        "{report:?}"
    );
    assert_eq!(failures(&scene.a1, "no_endpoints")?, 1.0);
    let log = scene.a1.log();
    assert!(log.contains("Service mesh/empty has no endpoint for it"), "{log}");
    Ok(())
}

#[test]
fn endpoints_by_hand_lead_out_of_the_mesh_and_a_headless_service_to_its_pods() -> Result<()> {
    let scene = Scene::start("f")?;
    let _far = App::serve(&scene.far, "talk", 8080, &["--text", "inside\n"])?;
    let _visitor = App::serve(&scene.visitor, "talk", 9000, &["--text", "outside\n"])?;
    let slice = |name: &str, port: u16, address: IpAddr| {
        format!(
            "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{port: {port}}}], \
             metadata: {{name: {name}, namespace: {MESH}, labels: {{kubernetes.io/service-name: manual}}}}, endpoints: [{{addresses: ['{address}']}}]}}\n"
        )
    };
    scene.change(|config| {
        config.service(MESH, "headless", "far", &[], &[("web", 8080, 8080)])?;
        config.write(
            "svc-manual",
            &(format!("{{apiVersion: v1, kind: Service, metadata: {{name: manual, namespace: {MESH}}}, spec: {{clusterIP: {MANUAL}, ports: [{{port: 80}}]}}}}\n")
                + &slice("inside", 8080, scene.far.ip4())
                + &slice("outside", 9000, scene.visitor.ip4())),
        )
    })?;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..30 {
        let report = scene.client.connect(MANUAL, 80, "exchange", &[])?;
        let line = lines(&scene.a1, &report)?;
        let tunnelled = line.contains(&id(MESH, "far"));
        ensure!(tunnelled == (report.text == "inside\n"), "{report:?} {line}");
        seen.insert(report.text);
    }
    assert_eq!(seen, ["inside\n".to_owned(), "outside\n".to_owned()].into());
    // What a headless name resolves to is the pod itself.
    let report = scene.client.connect(scene.far.ip4(), 8080, "exchange", &[])?;
    assert_eq!(report.text, "inside\n");
    assert!(lines(&scene.a1, &report)?.contains(&id(MESH, "far")));
    Ok(())
}
