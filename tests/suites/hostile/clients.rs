//! Clients with a good certificate that ask for too much within the protocol: they are bounded, and what they share with others lives.

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, Place, Scene, hostile_client};
use serde_json::Value;

use super::neighbours::{MIB, Neighbour, beside, bystander, limits, visitor};

/// Runs `attack` on `far`, whose port 9090 never reads, while its neighbours exchange; gives the report.
fn attacked(attack: &str, args: &[&str], budget: u64) -> Result<(Value, Scene)> {
    let scene = Scene::start("y")?;
    let report = {
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
        let sibling = format!("{}:8080", scene.far.ip4());
        let mut all = vec!["--authority", &authority, "--sibling", &sibling];
        all.extend(args);
        beside(&scene, &neighbours, budget, || {
            hostile_client(Place::Pod(&scene.visitor), Some(&leaf), attack, &to, &all)
        })?
    };
    Ok((report, scene))
}

fn lives(attack: &str, args: &[&str], budget: u64) -> Result<Value> {
    let (report, scene) = attacked(attack, args, budget)?;
    ensure!(
        report["sibling"] == true,
        "{attack}: {report:#}\n{}",
        scene.logs()
    );
    Ok(report)
}

#[test]
fn small_writes_that_nobody_reads_cost_their_siblings_nothing() -> Result<()> {
    // 145 of them used up h2's own budget; fifty times as many are far below ours, too.
    for count in ["145", "7250"] {
        lives("tiny", &["--count", count], limits::WORK)?;
    }
    Ok(())
}

#[test]
fn data_for_a_stream_that_is_closed_costs_the_others_nothing() -> Result<()> {
    let report = lives("data-on-closed", &[], limits::WORK)?;
    let told = report["resets"]["5"].as_u64().unwrap_or_default();
    assert!(
        (1..=2).contains(&told),
        "STREAM_CLOSED, not for each frame: {report:#}"
    );
    Ok(())
}

#[test]
fn streams_beyond_the_limit_are_refused_and_the_others_live() -> Result<()> {
    let (report, _scene) = attacked("too-many-streams", &["--count", "1000"], limits::WORK)?;
    assert_eq!(report["statuses"]["200"], 64, "{report:#}");
    let refused = report["resets"]["7"].as_u64().unwrap_or_default();
    assert!(
        (936..=937).contains(&refused),
        "REFUSED_STREAM, the sibling's too: {report:#}"
    );
    Ok(())
}

#[test]
fn bodies_before_the_answer_are_held_within_their_windows() -> Result<()> {
    let report = lives(
        "bodies-first",
        &["--count", "40", "--linger", "1"],
        40 * MIB + limits::WORK,
    )?;
    assert_eq!(report["statuses"]["200"], 41, "{report:#}");
    Ok(())
}

#[test]
fn little_unread_data_does_not_keep_the_buffers_of_much_that_was_read() -> Result<()> {
    // 200 MiB go past 0.8 MiB that stay.
    lives(
        "pinned",
        &["--count", "200", "--linger", "1"],
        2 * MIB + limits::WORK,
    )?;
    Ok(())
}

#[test]
fn a_stream_that_overruns_its_window_is_reset_or_its_connection_cut() -> Result<()> {
    let (report, scene) = attacked("over-window", &[], 4 * limits::STREAM_WINDOW + limits::WORK)?;
    let reset = report["resets"]["3"].as_u64().unwrap_or(0) > 0 && report["sibling"] == true;
    ensure!(reset || report["cut"] == true, "{report:#}\n{}", scene.logs());
    Ok(())
}

#[test]
fn an_overflowing_stream_window_costs_that_stream_alone() -> Result<()> {
    let report = lives("window-overflow-stream", &[], limits::WORK)?;
    assert_eq!(report["resets"]["3"], 1, "FLOW_CONTROL_ERROR: {report:#}");
    Ok(())
}

#[test]
fn oversized_header_lists_are_answered_431_and_kept_nowhere() -> Result<()> {
    let report = lives("header-bombs-small", &["--count", "300"], 8 * MIB + limits::WORK)?;
    assert_eq!(report["statuses"]["431"], 300, "{report:#}");
    Ok(())
}

#[test]
fn thousands_of_wrong_authorities_are_each_refused_and_counted() -> Result<()> {
    let (report, scene) = attacked("wrong-authorities", &["--count", "3000"], limits::WORK)?;
    ensure!(report["sibling"] == true, "{report:#}\n{}", scene.logs());
    assert_eq!(report["statuses"]["400"], 3000, "{report:#}");
    let metrics = scene.a2().metrics()?;
    let labels = [("reporter", "destination"), ("reason", "wrong_authority")];
    assert_eq!(
        metrics.sum("mesh_agent_connection_failures_total", &labels),
        3000.0
    );
    let status = scene.a2().meshctl(&["connections"])?;
    assert_eq!(
        status["connections"].as_array().map(Vec::len),
        Some(0),
        "{status:#}"
    );
    Ok(())
}
