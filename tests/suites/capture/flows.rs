//! What a byte stream must keep on its way: order, every byte, both ends' ends, resets and backpressure.

use std::time::Duration;

use anyhow::Result;
use mesh_tests::harness::{App, Scene, WEB4, WEB6};

const MIB: u64 = 1 << 20;

#[test]
fn a_server_that_speaks_first_is_heard() -> Result<()> {
    let scene = Scene::start("f")?;
    let _far = App::serve(&scene.far, "banner", 8080, &["--text", "220 ready\n"])?;
    let _near = App::serve(&scene.near, "banner", 8080, &["--text", "220 ready\n"])?;
    for to in [scene.far.ip4(), scene.far.ip6(), scene.near.ip4()] {
        let report = scene.client.connect(to, 8080, "listen", &["--text", "HELO"])?;
        assert_eq!(
            (report.text.as_str(), report.end.as_str()),
            ("220 ready\nHELO", "eof"),
            "{report:?}\n{}",
            scene.logs()
        );
    }
    Ok(())
}

#[test]
fn the_client_may_end_first_and_still_hear_the_answer() -> Result<()> {
    let scene = Scene::start("f")?;
    let far = App::serve(&scene.far, "sink", 8080, &[])?;
    let text = "x".repeat(100_000);
    let report = scene.client.connect(WEB4, 80, "exchange", &["--text", &text])?;
    assert_eq!(
        (report.text.as_str(), report.end.as_str()),
        ("100000", "eof"),
        "{report:?}\n{}",
        scene.logs()
    );
    let closed = &far.wait_events("closed", 1)?[0];
    assert_eq!((closed.received, closed.end.as_str()), (100_000, "eof"));
    Ok(())
}

#[test]
fn the_server_may_end_first_and_still_hear_the_client() -> Result<()> {
    let scene = Scene::start("f")?;
    let far = App::serve(&scene.far, "talk", 8080, &["--text", "that is all"])?;
    for (n, to) in [scene.far.ip4(), scene.far.ip6()].into_iter().enumerate() {
        let report = scene
            .client
            .connect(to, 8080, "late", &["--text", "but I go on"])?;
        assert_eq!(
            (report.text.as_str(), report.end.as_str()),
            ("that is all", "eof"),
            "{report:?}\n{}",
            scene.logs()
        );
        let closed = &far.wait_events("closed", n + 1)?[n];
        assert_eq!((closed.received, closed.end.as_str()), (11, "eof"));
    }
    Ok(())
}

#[test]
fn a_reset_by_the_client_reaches_the_server_as_a_reset() -> Result<()> {
    let scene = Scene::start("f")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let near = App::serve(&scene.near, "echo", 8080, &[])?;
    for (server, to) in [(&far, scene.far.ip4()), (&near, scene.near.ip6())] {
        scene.client.connect(to, 8080, "reset", &[])?;
        assert_eq!(
            server.wait_events("closed", 1)?[0].end,
            "reset",
            "{to}: {}",
            scene.logs()
        );
    }
    Ok(())
}

#[test]
fn a_reset_by_the_server_reaches_the_client_as_a_reset() -> Result<()> {
    let scene = Scene::start("f")?;
    let _far = App::serve(&scene.far, "reset", 8080, &[])?;
    let _near = App::serve(&scene.near, "reset", 8080, &[])?;
    for to in [scene.far.ip4(), scene.near.ip6()] {
        let report = scene.client.connect(to, 8080, "await", &[])?;
        assert_eq!(
            (report.connected, report.end.as_str()),
            (true, "reset"),
            "{to}: {report:?}\n{}",
            scene.logs()
        );
    }
    Ok(())
}

#[test]
fn bulk_both_ways_at_once_between_nodes_is_byte_exact() -> Result<()> {
    let scene = Scene::start("f")?;
    let bytes = (256 * MIB).to_string();
    let far = App::serve(&scene.far, "bulk", 8080, &["--bytes", &bytes])?;
    let limit = Duration::from_secs(90);
    let report = scene.client.connect_within(
        limit,
        WEB4,
        80,
        "bulk",
        &["--bytes", &bytes, "--timeout", "20000"],
    )?;
    assert_eq!(
        (report.error.as_deref(), report.sent, report.received),
        (None, 256 * MIB, 256 * MIB),
        "{report:?}\n{}",
        scene.logs()
    );
    let closed = &far.wait_events("closed", 1)?[0];
    assert_eq!((closed.received, closed.end.as_str()), (256 * MIB, "eof"));
    Ok(())
}

#[test]
fn bulk_within_a_node_and_over_ipv6_is_byte_exact() -> Result<()> {
    let scene = Scene::start("f")?;
    let bytes = (32 * MIB).to_string();
    let near = App::serve(&scene.near, "bulk", 8080, &["--bytes", &bytes])?;
    let far = App::serve(&scene.far, "bulk", 8080, &["--bytes", &bytes])?;
    for (server, to, port) in [(&near, scene.near.ip4(), 8080), (&far, WEB6, 80)] {
        let args = ["--bytes", &bytes, "--timeout", "20000"];
        let report = scene
            .client
            .connect_within(Duration::from_secs(60), to, port, "bulk", &args)?;
        assert_eq!(
            (report.error.as_deref(), report.sent, report.received),
            (None, 32 * MIB, 32 * MIB),
            "{report:?}\n{}",
            scene.logs()
        );
        assert_eq!(server.wait_events("closed", 1)?[0].received, 32 * MIB);
    }
    Ok(())
}

#[test]
fn a_reader_that_stalls_stops_the_writer_within_bounded_memory() -> Result<()> {
    let scene = Scene::start("f")?;
    let _stalled = App::serve(&scene.far, "stall", 8080, &[])?;
    let report = scene
        .client
        .connect(WEB4, 80, "flood", &["--bytes", &(512 * MIB).to_string()])?;
    assert_eq!(report.end, "timeout", "the writer was never stopped: {report:?}");
    assert!(report.sent < 48 * MIB, "{} MiB in flight", report.sent / MIB);
    assert!(report.sent > 64 << 10, "{report:?}");
    Ok(())
}

#[test]
fn stalled_readers_do_not_stop_their_siblings() -> Result<()> {
    let scene = Scene::start("f")?;
    let _stalled = App::serve(&scene.far, "stall", 9000, &[])?;
    let _echo = App::serve(&scene.far, "echo", 8080, &[])?;
    let mut floods = Vec::new();
    for _ in 0..12 {
        floods.push(
            scene
                .client
                .connect_in_background(scene.far.ip4(), 9000, "flood", &[])?,
        );
    }
    std::thread::sleep(Duration::from_millis(1200));
    for _ in 0..20 {
        let report = scene
            .client
            .connect(WEB4, 80, "exchange", &["--timeout", "3000"])?;
        assert_eq!(
            (report.text.as_str(), report.end.as_str()),
            ("ping\n", "eof"),
            "{report:?}\n{}",
            scene.logs()
        );
    }
    for flood in floods {
        let report = flood.report(Duration::from_secs(20))?;
        assert_eq!(report.end, "timeout", "{report:?}");
        assert!(report.sent < 48 * MIB, "{report:?}");
    }
    Ok(())
}

#[test]
fn many_connections_at_once_are_all_served() -> Result<()> {
    let scene = Scene::start("f")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let args = ["--count", "20", "--parallel", "100"];
    let report = scene
        .client
        .connect_within(Duration::from_secs(60), WEB4, 80, "many", &args)?;
    assert_eq!(
        (report.ok, report.failed),
        (2000, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    Ok(())
}
