//! One pod's flood is not its neighbours' failure.

use anyhow::Result;
use mesh_tests::harness::{LoadServer, MESH, WEB4, id};

use crate::remains::{LONG, expect_nothing, quiet_scene, settled};

#[test]
fn a_flood_of_connections_and_handshakes_fails_none_of_a_neighbours_requests() -> Result<()> {
    let mut scene = quiet_scene()?;
    let mut server = LoadServer::start(&scene.far, 8080, &[])?;
    // The pods behind the flood have identities of their own; so has who only shakes hands.
    let leaf = scene
        .ca()?
        .leaf(scene.world.dir(), "flood", &[&id(MESH, "client")])?;
    let (cert, key) = (leaf.cert.to_string_lossy(), leaf.key.to_string_lossy());
    let gates = [scene.far.ip4(), scene.near.ip4()].map(|ip| format!("{ip}:15008"));
    let shakes = gates
        .iter()
        .map(|gate| {
            let args = [
                "shake",
                gate,
                "--cert",
                &cert,
                "--key",
                &key,
                "--rate",
                "250",
                "--seconds",
                "12",
            ];
            scene.visitor.load_in_background(&args)
        })
        .collect::<Result<Vec<_>>>()?;
    let flood = format!("clean@{WEB4}:80");
    let flood = scene
        .client
        .load_in_background(&["churn", &flood, "--seconds", "12", "--parallel", "64"])?;
    let to = format!("{WEB4}:80");
    let kept = scene.near.load_in_background(&[
        "ask",
        &to,
        "--parallel",
        "4",
        "--pause",
        "2000",
        "--seconds",
        "10",
    ])?;
    let new = scene.near.load_in_background(&[
        "ask",
        &to,
        "--parallel",
        "2",
        "--new",
        "--pause",
        "2000",
        "--seconds",
        "10",
    ])?;
    for neighbour in [kept, new] {
        let report = neighbour.report(LONG)?;
        assert_eq!(
            (report.failed, report.wrong_names),
            (0, 0),
            "{report:?}\n{}",
            scene.logs()
        );
        assert!(report.ok > 10, "{report:?}");
    }
    // A flood that was none would show nothing. How fast it was on this machine is not the question.
    let flood = flood.report(LONG)?;
    assert_eq!(flood.failed, 0, "{flood:?}");
    assert!(flood.ok > 200, "{flood:?}");
    for shake in shakes {
        let report = shake.report(LONG)?;
        assert!(report.ok > 200, "{report:?}\n{}", scene.logs());
    }
    settled(&mut server)?;
    expect_nothing(&mut scene)
}
