//! Settings of the kernel, and programs of others beside ours.

use std::net::IpAddr;

use anyhow::{Context, Result};
use mesh_tests::harness::{App, Netns, Pod, Scene, WEB4, WEB6};

use super::script::{Script, counted};

fn exchange(scene: &Scene, from: &Pod, to: IpAddr, port: u16, what: &str) -> Result<()> {
    let report = from.connect(to, port, "exchange", &[])?;
    assert_eq!(
        (report.text.as_str(), report.end.as_str()),
        ("ping\n", "eof"),
        "{what}: {} → {to}: {report:?}\n{}",
        from.name(),
        scene.logs()
    );
    assert_eq!(report.peer.map(|peer| peer.ip()), Some(to), "{what}");
    Ok(())
}

#[test]
fn connections_work_under_all_settings_of_syn_cookies_and_reverse_path_filters() -> Result<()> {
    let scene = Scene::start("y")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let namespaces: [&Netns; 5] = [
        scene.n1.netns(),
        scene.n2.netns(),
        scene.client.netns(),
        scene.far.netns(),
        scene.visitor.netns(),
    ];
    for cookies in ["0", "1", "2"] {
        for filter in ["0", "1", "2"] {
            for netns in namespaces {
                netns.sysctl("ipv4/tcp_syncookies", cookies)?;
                // The stricter of both counts.
                for device in ["all", "default", "eth0", "lo"] {
                    netns.sysctl(&format!("ipv4/conf/{device}/rp_filter"), filter)?;
                }
            }
            for pod in [&scene.client, &scene.visitor] {
                let key = format!("ipv4/conf/{}/rp_filter", pod.veth());
                scene.n1.netns().sysctl(&key, filter)?;
            }
            let key = format!("ipv4/conf/{}/rp_filter", scene.far.veth());
            scene.n2.netns().sysctl(&key, filter)?;
            let what = format!("tcp_syncookies={cookies} rp_filter={filter}");
            for (from, to, port) in [
                (&scene.client, WEB4, 80),
                (&scene.client, WEB6, 80),
                (&scene.visitor, scene.far.ip4(), 8080),
                (&scene.visitor, scene.far.ip6(), 8080),
            ] {
                exchange(&scene, from, to, port, &what)?;
            }
        }
    }
    let accepted = far.wait_events("accepted", 36)?;
    let clients = [
        scene.client.ip4(),
        scene.client.ip6(),
        scene.visitor.ip4(),
        scene.visitor.ip6(),
    ];
    for (event, client) in accepted.iter().zip(clients.iter().cycle()) {
        assert_eq!(event.peer.map(|peer| peer.ip()), Some(*client), "{event:?}");
    }
    Ok(())
}

#[test]
fn a_load_balancer_on_an_ancestor_cgroup_does_not_come_before_capture_and_is_reported() -> Result<()> {
    let scene = Scene::start("y")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let decoy = App::serve(&scene.visitor, "echo", 8080, &[])?;
    // It sends clients of the service to somebody outside the mesh.
    let path = scene.world.cgroup().path().to_string_lossy().into_owned();
    let (web4, web6) = (WEB4.to_string(), WEB6.to_string());
    let (to4, to6) = (scene.visitor.ip4().to_string(), scene.visitor.ip6().to_string());
    let args = [
        "balance",
        &path,
        "80",
        "8080",
        "--services",
        &web4,
        &web6,
        "--backends",
        &to4,
        &to6,
    ];
    let mut balancer = Script::start_at(&scene, scene.n1.netns(), scene.n1.cgroup(), &args)?;
    balancer.wait("ready", 1)?;
    // It works: a pod outside the mesh is led to the decoy, under the service's name.
    for to in [WEB4, WEB6] {
        exchange(&scene, &scene.visitor, to, 80, "outside the mesh")?;
    }
    assert_eq!(decoy.wait_events("accepted", 2)?.len(), 2);
    // In the mesh the agent sees the service first.
    for to in [WEB4, WEB6] {
        exchange(&scene, &scene.client, to, 80, "in the mesh")?;
    }
    let accepted = far.wait_events("accepted", 2)?;
    for (event, client) in accepted.iter().zip([scene.client.ip4(), scene.client.ip6()]) {
        assert_eq!(event.peer.map(|peer| peer.ip()), Some(client), "{event:?}");
    }
    assert_eq!(decoy.events_of("accepted").len(), 2);
    assert_eq!(counted(&scene.a1, "connect_captured")?, 2.0);
    let metrics = scene.a1.metrics()?;
    let labels = [("destination_service_name", "web"), ("reporter", "source")];
    let opened = metrics.sum("istio_tcp_connections_opened_total", &labels);
    assert_eq!(opened, 2.0, "{}", metrics.show("istio_tcp_connections_opened"));

    let mut watcher = Script::start(&scene.near, &["look"])?;
    watcher.wait("ready", 1)?;
    let answer = scene.a1.meshctl(&["check"])?;
    let checks = answer["checks"].as_array().context("no checks")?;
    let check = checks
        .iter()
        .find(|check| check["name"] == "foreign programs")
        .context("no such check")?;
    let detail = check["detail"].as_str().unwrap_or_default();
    assert_eq!(check["level"], "warn", "{check:#}");
    for expected in [
        "connect4 balance_connect",
        "connect6 balance_connect",
        "getpeername4 balance_getpeer",
        "sk_lookup look_on",
    ] {
        assert!(detail.contains(expected), "{expected} is not in: {detail}");
    }
    let mine = detail.lines().find(|line| line.contains("sk_lookup look_on"));
    assert!(mine.is_some_and(|line| line.contains("1 pods")), "{detail}");
    Ok(())
}
