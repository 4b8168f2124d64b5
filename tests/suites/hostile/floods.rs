//! A client with a good certificate floods the tunnel of a pod with frames that flow control does not slow down.

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, Place, Scene, hostile_client};

use super::neighbours::{MIB, Neighbour, beside, bystander, cut, limits, visitor};

/// Runs `attacks` on `far` one after another while two clients of its node exchange with it and with another pod. Each attack must end
/// with the connection cut, counted under one of its reasons.
fn each_is_cut(attacks: &[(&str, &[&str])], extra: &[&str]) -> Result<()> {
    let scene = Scene::start("x")?;
    let _echo = App::serve(&scene.far, "echo", 8080, &[])?;
    let _stall = App::serve(&scene.far, "stall", 9090, &[])?;
    let (other, _app) = bystander(&scene)?;
    let leaf = visitor(&scene)?;
    let neighbours = [
        Neighbour {
            from: &scene.client,
            to: scene.far.ip4(),
            port: 8080,
        },
        Neighbour {
            from: &scene.near,
            to: other.ip4(),
            port: 8080,
        },
    ];
    let to = format!("{}:15008", scene.far.ip4());
    let authority = format!("{}:9090", scene.far.ip4());
    let mut args = vec!["--authority", authority.as_str()];
    args.extend(extra);
    // One connection's window, and what a worker reads before others have their turn.
    let budget = limits::WORK + 16 * MIB;
    beside(&scene, &neighbours, budget, || {
        for (attack, reasons) in attacks {
            let before: f64 = reasons
                .iter()
                .map(|reason| cut(scene.a2(), "server", reason))
                .sum::<Result<f64>>()?;
            let report = hostile_client(Place::Pod(&scene.visitor), Some(&leaf), attack, &to, &args)?;
            let after: f64 = reasons
                .iter()
                .map(|reason| cut(scene.a2(), "server", reason))
                .sum::<Result<f64>>()?;
            ensure!(
                report["cut"] == true && after == before + 1.0,
                "{attack}: {report:#}\n{}\n{}",
                scene.a2().metrics()?.show("mesh_agent_tunnels"),
                scene.logs()
            );
        }
        Ok(())
    })
}

#[test]
fn floods_of_pings_settings_and_other_frames_are_cut() -> Result<()> {
    each_is_cut(
        &[
            ("ping", &["frame_flood"]),
            ("settings", &["frame_flood"]),
            ("priority", &["frame_flood"]),
            ("unknown", &["frame_flood"]),
            ("window-flood", &["frame_flood"]),
            ("window-of-closed", &["frame_flood"]),
            ("reset-flood", &["frame_flood"]),
        ],
        &[],
    )
}

#[test]
fn rapid_resets_empty_frames_and_endless_headers_are_cut() -> Result<()> {
    each_is_cut(
        &[
            ("rapid-reset", &["enhance_your_calm"]),
            ("empty-data", &["enhance_your_calm"]),
            (
                "continuation",
                &["enhance_your_calm", "compression_error", "protocol_error"],
            ),
            ("continuation-small", &["enhance_your_calm", "frame_flood"]),
            ("header-bomb", &["enhance_your_calm"]),
        ],
        &[],
    )
}

#[test]
fn frames_against_the_protocol_are_cut() -> Result<()> {
    each_is_cut(
        &[
            ("settings-acks", &["protocol_error"]),
            ("settings-overflow", &["protocol_error", "flow_control_error"]),
            ("window-overflow", &["flow_control_error"]),
            ("window-zero", &["protocol_error"]),
            ("big-frame", &["frame_size_error"]),
            ("big-unknown", &["frame_too_large"]),
            ("data-on-idle", &["protocol_error"]),
            ("even-stream", &["protocol_error"]),
            ("push", &["protocol_error"]),
        ],
        &[],
    )
}
