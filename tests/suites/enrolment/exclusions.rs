//! Exclusions by annotation: only where a setting allows them, never into a STRICT port, live.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use mesh_tests::harness::{App, MESH, wait_for};
use serde_json::json;

use crate::stage::{Stage, annotated};

const ALL: &str = "outbound-ports,outbound-cidrs,inbound-ports";

fn stage(allowed: &str, annotations: &[(&str, &str)]) -> Result<Stage> {
    Stage::start(
        true,
        |agent, _| {
            if allowed.is_empty() {
                agent
            } else {
                agent.arg("--allow-exclusions", allowed)
            }
        },
        |text| annotated(text, annotations),
    )
}

/// Connects from the server to the visitor; returns how many connections more the agent has carried since.
fn carried_by(stage: &Stage, ip: IpAddr, port: u16) -> Result<f64> {
    let before = stage.carried()?;
    let report = stage.server.connect(ip, port, "exchange", &[])?;
    assert_eq!(
        report.text,
        "ping\n",
        "{ip}:{port}: {report:?}\n{}",
        stage.agent.log()
    );
    Ok(stage.carried()? - before)
}

#[test]
fn excluded_ports_and_networks_are_reached_uncaptured_and_a_change_counts_at_once() -> Result<()> {
    let stage = stage(ALL, &[("exclude-outbound-ports", "9000, 9001")])?;
    let apps = [9000, 9001, 9002].map(|port| App::serve(&stage.visitor, "echo", port, &[]));
    let [_a, _b, last] = apps;
    let last = last?;
    let (ip4, ip6) = (stage.visitor.ip4(), stage.visitor.ip6());
    stage.wait_workload("ports are excluded", |w| {
        w["uncaptured"]["outbound_ports"] == json!([9000, 9001])
    })?;
    for ip in [ip4, ip6] {
        assert_eq!(carried_by(&stage, ip, 9000)?, 0.0, "{ip}");
        assert_eq!(carried_by(&stage, ip, 9001)?, 0.0, "{ip}");
        assert_eq!(carried_by(&stage, ip, 9002)?, 1.0, "{ip}");
    }
    assert_eq!(stage.event("connect_excluded")?, 4.0);
    let text = stage.agent.meshctl_text(&["workloads"])?.success()?;
    assert!(
        text.contains("mesh/server is not captured on outbound ports 9000, 9001"),
        "{text}"
    );

    // IPv4 and IPv6 are told apart, whatever form the kernel's map holds them in.
    let all6 = [("exclude-outbound-cidrs", "::/0")];
    stage.change_server(|text| annotated(text, &all6))?;
    stage.wait_workload("a network is excluded", |w| {
        w["uncaptured"]["outbound_cidrs"] == json!(["::/0"])
    })?;
    assert_eq!(carried_by(&stage, ip6, 9000)?, 0.0);
    assert_eq!(carried_by(&stage, ip4, 9000)?, 1.0);
    let narrow = format!("{ip4}/32, 198.51.100.0/24");
    let annotation = [("exclude-outbound-cidrs", narrow.as_str())];
    stage.change_server(|text| annotated(text, &annotation))?;
    stage.wait_workload("another one is", |w| {
        w["uncaptured"]["outbound_cidrs"]
            .as_array()
            .is_some_and(|a| a.len() == 2)
    })?;
    assert_eq!(carried_by(&stage, ip4, 9002)?, 0.0);
    assert_eq!(carried_by(&stage, ip6, 9002)?, 1.0);

    stage.change_server(str::to_owned)?;
    stage.wait_workload("none is", |w| w["uncaptured"]["outbound_cidrs"] == json!([]))?;
    assert_eq!(carried_by(&stage, ip4, 9000)?, 1.0);
    last.wait_events("accepted", 4)?;
    for map in ["PORTS", "CIDRS"] {
        let left = stage
            .agent
            .metrics()?
            .sum("mesh_agent_bpf_map_entries", &[("map", map)]);
        assert_eq!(left, 0.0, "{map}");
    }
    Ok(())
}

#[test]
fn without_the_setting_nothing_is_excluded_and_the_reason_is_shown() -> Result<()> {
    let annotations = [
        ("exclude-outbound-ports", "9000"),
        ("exclude-outbound-cidrs", "0.0.0.0/0"),
        ("exclude-inbound-ports", "8080"),
    ];
    let stage = stage("", &annotations)?;
    let _there = App::serve(&stage.visitor, "echo", 9000, &[])?;
    let _here = App::serve(&stage.server, "echo", 8080, &[])?;
    assert_eq!(carried_by(&stage, stage.visitor.ip4(), 9000)?, 1.0);
    let report = stage.visitor.connect(stage.server.ip4(), 8080, "exchange", &[])?;
    assert_eq!(report.text, "ping\n", "{report:?}");
    assert_eq!(stage.carried()?, 2.0);
    let server = stage.workload("server")?;
    let refused = server["uncaptured"]["refused"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    assert_eq!(refused.len(), 3, "{server:#}");
    let named = |one: &serde_json::Value| {
        one["why"]
            .as_str()
            .is_some_and(|why| why.contains("allow-exclusions"))
    };
    assert!(refused.iter().all(named), "{server:#}");
    assert_eq!(
        (stage.event("connect_excluded")?, stage.event("inbound_excluded")?),
        (0.0, 0.0)
    );
    Ok(())
}

#[test]
fn an_excluded_inbound_port_ends_with_strict_and_so_do_the_connections_that_it_let_in() -> Result<()> {
    let stage = stage(ALL, &[("exclude-inbound-ports", "8080")])?;
    let app = App::serve(&stage.server, "echo", 8080, &[])?;
    stage.wait_workload("a port is excluded", |w| {
        w["uncaptured"]["inbound_ports"] == json!([8080])
    })?;
    let ip = stage.server.ip4();
    let report = stage.visitor.connect(ip, 8080, "exchange", &[])?;
    assert_eq!(report.text, "ping\n", "{report:?}");
    assert_eq!(app.wait_events("accepted", 1)?[0].peer, report.local);
    assert_eq!((stage.carried()?, stage.event("inbound_excluded")?), (0.0, 1.0));
    let _held = stage
        .visitor
        .connect_in_background(ip, 8080, "idle", &["--seconds", "8"])?;
    app.wait_events("accepted", 2)?;
    assert_eq!(
        stage.workload("server")?["uncaptured"]["older_connections"],
        0,
        "it is excluded, not older"
    );

    stage.config.peer_authentication(MESH, "STRICT")?;
    let server = stage.wait_workload("the exclusion ends", |w| {
        w["uncaptured"]["inbound_ports"] == json!([])
    })?;
    assert!(
        server["uncaptured"]["refused"][0]["why"]
            .as_str()
            .is_some_and(|why| why.contains("STRICT")),
        "{server:#}"
    );
    let report = stage
        .visitor
        .connect(ip, 8080, "exchange", &["--timeout", "3000"])?;
    assert!(report.text.is_empty(), "{report:?}");
    let closed = app.wait_events("closed", 2)?;
    assert!(
        closed.iter().any(|event| event.end != "eof"),
        "{closed:?}\n{}",
        stage.agent.log()
    );
    stage.config.peer_authentication(MESH, "PERMISSIVE")?;
    stage.wait_workload("it begins again", |w| {
        w["uncaptured"]["inbound_ports"] == json!([8080])
    })?;
    Ok(())
}

#[test]
fn bad_entries_are_named_with_their_place_and_agent_ports_are_never_excluded() -> Result<()> {
    let annotations = [
        ("exclude-inbound-ports", "15008,15104,http"),
        ("exclude-outbound-ports", "15008"),
        ("exclude-outbound-cidrs", "10.0.0.1/8"),
    ];
    let stage = stage(ALL, &annotations)?;
    let path = stage.config.dir().join("pod-server.yaml");
    let text = std::fs::read_to_string(path)?;
    let line = 1 + text
        .lines()
        .position(|line| line.contains("exclude-inbound-ports"))
        .unwrap_or_default();
    let config = stage.agent.meshctl(&["config"])?;
    let notices: Vec<_> = config["notices"].as_array().into_iter().flatten().collect();
    let said = |part: &str| {
        let mut all = notices.iter();
        all.find(|notice| notice["message"].as_str().is_some_and(|said| said.contains(part)))
    };
    for part in [
        "port 15008 is the mesh agent's",
        "port 15104 is",
        "\"http\" is no port",
        "is 10.0.0.0/8 meant?",
    ] {
        assert!(said(part).is_some(), "{part}: {config:#}");
    }
    let http = said("\"http\"").map(|notice| notice["origin"]["line"].clone());
    assert_eq!(http, Some(json!(line)), "{config:#}");
    let server = stage.workload("server")?;
    assert_eq!(server["uncaptured"]["inbound_ports"], json!([]));
    let report = stage
        .visitor
        .connect(stage.server.ip4(), 15_104, "exchange", &["--timeout", "3000"])?;
    assert!(!report.connected, "{report:?}");
    // A network that holds every address does not open the agent's ports either.
    stage.change_server(|text| annotated(text, &[("exclude-outbound-cidrs", "0.0.0.0/0")]))?;
    stage.wait_workload("all of IPv4 is excluded", |w| {
        w["uncaptured"]["outbound_cidrs"] == json!(["0.0.0.0/0"])
    })?;
    let captured = stage.event("connect_captured")?;
    let _there = App::serve(&stage.visitor, "echo", 15_008, &[])?;
    stage
        .server
        .connect(stage.visitor.ip4(), 15_008, "exchange", &["--timeout", "3000"])?;
    wait_for("it was captured", Duration::from_secs(3), || {
        match stage.event("connect_captured")? - captured {
            1.0 => Ok(()),
            more => bail!("{more}"),
        }
    })
}
