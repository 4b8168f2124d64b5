//! A process in the pod that binds and joins every port.

use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::harness::{App, Pod, Scene, WEB4};
use serde_json::Value;

use super::script::Script;

/// Starts a thief in `pod` that leaves the application's port alone, and those of which clients take theirs. Two of them, for the sake of
/// descriptors.
fn thieves(pod: &Pod) -> Result<[(Script, Value); 2]> {
    let (ip4, ip6) = (format!("::ffff:{}", pod.ip4()), pod.ip6().to_string());
    let start = |first: &str, last: &str| -> Result<(Script, Value)> {
        let args = [
            "steal",
            "--spare",
            "8080",
            "--address",
            &ip4,
            "--address",
            &ip6,
            "--first",
            first,
            "--last",
            last,
        ];
        let mut script = Script::start(pod, &args)?;
        let ready = script.wait("ready", 1)?.remove(0);
        Ok((script, ready))
    };
    Ok([start("1", "16383")?, start("16384", "32767")?])
}

#[test]
fn a_process_that_binds_and_joins_every_port_gets_no_connection_in_or_out() -> Result<()> {
    let scene = Scene::start("t")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let _own = App::serve(&scene.client, "echo", 8080, &[])?;
    let thieves: Vec<_> = [thieves(&scene.client)?, thieves(&scene.far)?]
        .into_iter()
        .flatten()
        .collect();
    for (_, ready) in &thieves {
        let count = |field: &str| ready[field].as_array().map_or(0, Vec::len);
        assert_eq!(
            count("agents"),
            6,
            "the agent's listeners, three roles by two workers: {ready}"
        );
        assert_eq!(count("joined"), 0, "nobody joins the agent's listeners: {ready}");
        let bound = ready["bound"].as_u64().context("no count")?;
        assert!(bound > 16_000, "the thief is not worth its name: {ready}");
    }
    let limit = Duration::from_secs(120);
    let many = ["--count", "250", "--parallel", "2"];
    let cases = [
        ("out, to a service", &scene.client, WEB4, 80),
        ("in, through a tunnel", &scene.near, scene.far.ip4(), 8080),
        ("in, in plaintext", &scene.visitor, scene.far.ip6(), 8080),
        ("in, in plaintext", &scene.visitor, scene.client.ip4(), 8080),
    ];
    for (what, from, to, port) in cases {
        let report = from.connect_within(limit, to, port, "many", &many)?;
        assert_eq!(
            (report.ok, report.failed),
            (500, 0),
            "{what}: {report:?}\n{}",
            scene.logs()
        );
    }
    assert_eq!(far.events_of("accepted").len(), 1500);
    for (script, _) in &thieves {
        let stolen = script.events("stolen");
        assert!(stolen.is_empty(), "{} stolen: {:?}", stolen.len(), stolen.first());
    }
    Ok(())
}
