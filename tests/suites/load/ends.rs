//! The many orders in which two ends can end a connection, each of them many times at once.

use anyhow::{Result, ensure};
use mesh_tests::harness::{LoadServer, LoadTally, WEB4, wait_for};

use crate::remains::{LONG, expect_nothing, quiet_scene, settled};

#[test]
fn connections_that_carry_next_to_nothing_end_in_order_at_both_ends() -> Result<()> {
    let mut scene = quiet_scene()?;
    let mut server = LoadServer::start(&scene.far, 8080, &[])?;
    // Not a byte and an end; not a byte and gone; both ends at once; the server's first.
    for manner in ["silent", "dropped", "both", "server-first"] {
        let before = settled(&mut server)?;
        let aim = format!("{manner}@{WEB4}:80");
        let report = scene
            .client
            .load(LONG, &["churn", &aim, "--count", "2000", "--parallel", "64"])?;
        assert_eq!(
            (report.ok, report.failed),
            (2000, 0),
            "{manner}: {report:?}\n{}",
            scene.logs()
        );
        let after = arrived(&mut server, before.accepted + 2000)?;
        assert_eq!(
            after.ended,
            before.ended + 2000,
            "{manner}: {before:?} → {after:?}"
        );
        assert!(after.errors.is_empty(), "{manner}: {after:?}");
    }
    expect_nothing(&mut scene)
}

#[test]
fn clients_that_end_first_still_have_all_their_answers() -> Result<()> {
    let mut scene = quiet_scene()?;
    let mut server = LoadServer::start(&scene.far, 8080, &[])?;
    let (v4, v6) = (scene.far.ip4(), scene.far.ip6());
    let aims = [format!("half@{v4}:8080"), format!("half@[{v6}]:8080")];
    let args = ["churn", &aims[0], &aims[1], "--count", "6000", "--parallel", "64"];
    let report = scene.client.load(LONG, &args)?;
    assert_eq!(
        (report.ok, report.failed),
        (6000, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    let tally = settled(&mut server)?;
    assert_eq!((tally.accepted, tally.ended), (6000, 6000), "{tally:?}");
    assert_eq!(tally.received, 6000 * 4 * 64, "{tally:?}");
    expect_nothing(&mut scene)
}

#[test]
fn servers_that_end_before_a_byte_was_said_hear_what_clients_say_after() -> Result<()> {
    let mut scene = quiet_scene()?;
    let mut server = LoadServer::start(&scene.far, 8080, &["--end-first"])?;
    let aims = ["server-first", "silent", "both"].map(|manner| format!("{manner}@{WEB4}:80"));
    let args = [
        "churn",
        &aims[0],
        &aims[1],
        &aims[2],
        "--count",
        "6000",
        "--parallel",
        "64",
    ];
    let report = scene.client.load(LONG, &args)?;
    assert_eq!(
        (report.ok, report.failed),
        (6000, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    let tally = arrived(&mut server, 6000)?;
    assert_eq!(tally.ended, 6000, "{tally:?}");
    // 101 bytes behind the server's end from each that goes on, one from each that ends in the same breath.
    assert_eq!(tally.received, 2000 * 101 + 2000, "{tally:?}");
    expect_nothing(&mut scene)
}

#[test]
fn clients_that_reset_while_they_are_flooded_reset_their_servers() -> Result<()> {
    let mut scene = quiet_scene()?;
    let mut server = LoadServer::start(&scene.far, 8080, &[])?;
    let aim = format!("abort-flooded@{WEB4}:80");
    let report = scene
        .client
        .load(LONG, &["churn", &aim, "--count", "500", "--parallel", "16"])?;
    assert_eq!(
        (report.ok, report.failed),
        (500, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    let tally = settled(&mut server)?;
    assert_eq!((tally.accepted, tally.ended), (500, 0), "{tally:?}");
    expect_nothing(&mut scene)
}

/// Two programs that connect to each other at once need no listener, without a mesh. Through one they are refused, since each one's SYN
/// ends at its own node: that is documented, and must be clean.
#[test]
fn ends_that_open_towards_each_other_are_refused_and_nothing_is_left() -> Result<()> {
    let mut scene = quiet_scene()?;
    let here = format!("refused@{}:7002", scene.far.ip4());
    let there = format!("refused@{}:7001", scene.client.ip4());
    let shared = ["--count", "300", "--parallel", "1"];
    let run = |aim, from| [&["churn", aim, "--from", from], &shared[..]].concat();
    let one = scene.client.load_in_background(&run(&here, "7001"))?;
    let other = scene.far.load_in_background(&run(&there, "7002"))?;
    for end in [one, other] {
        let report = end.report(LONG)?;
        assert_eq!(
            (report.ok, report.failed),
            (300, 0),
            "{report:?}\n{}",
            scene.logs()
        );
    }
    expect_nothing(&mut scene)
}

/// Waits until the server has accepted this many connections and has none any more: clients that do not wait for the server's end are
/// done before it is.
fn arrived(server: &mut LoadServer, accepted: u64) -> Result<LoadTally> {
    wait_for("all connections arrive", LONG, || {
        let tally = settled(server)?;
        ensure!(tally.accepted >= accepted, "{tally:?}");
        Ok(tally)
    })
}
