//! Poor lines between the nodes: what is carried stays whole, however segments are lost, late, doubled, out of order or small.

use anyhow::Result;
use mesh_tests::harness::{Impairment, Link, LinkTally, LoadServer, LoadTally, Scene};

use crate::remains::{LONG, expect_nothing, quiet_scene, settled};

/// Bytes of a transfer.
const BULK: u64 = 3 << 20;
/// Connections of each manner.
const EACH: u64 = 40;

#[test]
fn what_is_carried_survives_one_percent_of_loss() -> Result<()> {
    let line = Impairment {
        loss_per_mille: 10,
        ..Impairment::default()
    };
    let tally = over(line)?;
    assert!(tally.lost > 20, "{tally:?}");
    Ok(())
}

#[test]
fn what_is_carried_survives_five_percent_of_loss() -> Result<()> {
    let line = Impairment {
        loss_per_mille: 50,
        ..Impairment::default()
    };
    let tally = over(line)?;
    assert!(tally.lost > 100, "{tally:?}");
    Ok(())
}

#[test]
fn what_is_carried_survives_a_long_line() -> Result<()> {
    let line = Impairment {
        delay_millis: 100,
        ..Impairment::default()
    };
    over(line).map(drop)
}

#[test]
fn what_is_carried_survives_segments_that_come_twice_or_out_of_order() -> Result<()> {
    let line = Impairment {
        delay_millis: 2,
        repeat_per_mille: 50,
        reorder_per_mille: 50,
        ..Impairment::default()
    };
    let tally = over(line)?;
    assert!(tally.repeated > 100 && tally.reordered > 100, "{tally:?}");
    Ok(())
}

#[test]
fn what_is_carried_survives_a_line_with_everything_wrong() -> Result<()> {
    let line = Impairment {
        delay_millis: 20,
        loss_per_mille: 20,
        repeat_per_mille: 20,
        reorder_per_mille: 20,
    };
    let tally = over(line)?;
    assert!(
        tally.lost > 20 && tally.repeated > 20 && tally.reordered > 20,
        "{tally:?}"
    );
    Ok(())
}

#[test]
fn what_is_carried_fits_through_small_packets() -> Result<()> {
    for (mtu, both) in [("1280", true), ("576", false)] {
        let mut scene = quiet_scene()?;
        // Between the nodes alone: the pods have to find out, by ICMP.
        for node in [&scene.n1, &scene.n2] {
            node.netns().ip(&["link", "set", "eth0", "mtu", mtu])?;
        }
        transfers(&mut scene, both)?;
    }
    Ok(())
}

/// Transfers of all kinds over a line; what the line did.
fn over(line: Impairment) -> Result<LinkTally> {
    let mut scene = quiet_scene()?;
    let link = Link::between(&scene.world, &scene.n2, line)?;
    transfers(&mut scene, true)?;
    link.finish()
}

/// Bulk in both directions, byte for byte, over IPv4 and (where `both`) IPv6; small exchanges; ends and resets as they were made.
fn transfers(scene: &mut Scene, both: bool) -> Result<()> {
    let mut server = LoadServer::start(&scene.far, 8080, &[])?;
    let mut to = vec![format!("{}:8080", scene.far.ip4())];
    if both {
        to.push(format!("[{}]:8080", scene.far.ip6()));
    }
    let bytes = BULK.to_string();
    for to in &to {
        for way in ["up", "down"] {
            let args = ["stream", to, way, "--bytes", &bytes, "--parallel", "2"];
            let report = scene.client.load(LONG, &args)?;
            assert_eq!(
                (report.ok, report.failed, report.bytes),
                (2, 0, 2 * BULK),
                "{to} {way}: {report:?}\n{}",
                scene.logs()
            );
        }
    }
    let manners = [
        "clean",
        "half",
        "server-first",
        "both",
        "server-reset",
        "abort-answered",
    ];
    let before = settled(&mut server)?;
    let aims: Vec<String> = manners
        .iter()
        .map(|manner| format!("{manner}@{}", to[0]))
        .collect();
    let count = (EACH * aims.len() as u64).to_string();
    let mut args = vec![
        "churn",
        "--count",
        &count,
        "--parallel",
        "16",
        "--timeout",
        "60000",
    ];
    args.extend(aims.iter().map(String::as_str));
    let report = scene.client.load(LONG, &args)?;
    assert_eq!(
        (report.ok, report.failed, report.wrong_names),
        (EACH * aims.len() as u64, 0, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    // Over the tunnel a reset is as sure to arrive as a byte, which a line without one cannot say.
    let after = settled(&mut server)?;
    let resets = |tally: &LoadTally| tally.errors.get("reset").copied().unwrap_or(0);
    assert_eq!(resets(&after) - resets(&before), EACH, "{before:?} → {after:?}");
    assert_eq!(after.ended - before.ended, EACH * 5, "{before:?} → {after:?}");
    let args = [
        "ask",
        &to[0],
        "--parallel",
        "8",
        "--seconds",
        "2",
        "--timeout",
        "60000",
    ];
    let asked = scene.client.load(LONG, &args)?;
    assert_eq!((asked.failed, asked.wrong_names), (0, 0), "{asked:?}");
    assert!(asked.ok > 8, "{asked:?}");
    settled(&mut server)?;
    expect_nothing(scene)
}
