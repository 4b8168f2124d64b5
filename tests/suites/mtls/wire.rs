//! What packets show: no plaintext anywhere outside the pods, and a post-quantum key exchange.

use anyhow::{Context, Result};
use mesh_tests::harness::{App, Capture, Captured, NEAR4, Scene, WEB4, WEB6};

const CANARY: &str = "canary-7d1f5c-only-the-pods-may-see-this";

/// Captures at every place outside the pods.
fn everywhere(scene: &Scene) -> Result<Vec<(String, Capture)>> {
    let mut places = vec![
        (scene.world.fabric(), "br0".to_owned()),
        (scene.n1.netns(), "eth0".to_owned()),
        (scene.n2.netns(), "eth0".to_owned()),
    ];
    for (node, pod) in [
        (&scene.n1, &scene.client),
        (&scene.n1, &scene.near),
        (&scene.n2, &scene.far),
    ] {
        places.push((node.netns(), pod.veth().to_owned()));
    }
    places
        .into_iter()
        .map(|(netns, interface)| {
            let capture = Capture::start(&scene.world, netns, &interface)?;
            Ok((format!("{} {interface}", netns.name()), capture))
        })
        .collect()
}

fn finish(captures: Vec<(String, Capture)>) -> Result<Vec<(String, Captured)>> {
    captures
        .into_iter()
        .map(|(place, capture)| Ok((place, capture.finish()?)))
        .collect()
}

#[test]
fn between_enrolled_pods_no_wire_ever_carries_plaintext() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let _near = App::serve(&scene.near, "echo", 8080, &[])?;
    let captures = everywhere(&scene)?;
    let (far, near) = (&scene.far, &scene.near);
    let ways = [
        (WEB4, 80),
        (WEB6, 80),
        (NEAR4, 80),
        (far.ip4(), 8080),
        (far.ip6(), 8080),
        (near.ip4(), 8080),
        (near.ip6(), 8080),
    ];
    for (to, port) in ways {
        let report = scene.client.connect(to, port, "exchange", &["--text", CANARY])?;
        assert_eq!(report.text, CANARY, "{to}: {report:?}\n{}", scene.logs());
    }
    for (place, captured) in finish(captures)? {
        assert!(!captured.contains(CANARY.as_bytes()), "plaintext at {place}");
        let segments = captured.segments();
        let data: Vec<_> = segments
            .iter()
            .filter(|segment| !segment.payload.is_empty())
            .collect();
        if place.contains("br0") || place.contains("p-") {
            assert!(
                !data.is_empty(),
                "the capture at {place} saw nothing: it proves nothing"
            );
        }
        let strange = data
            .iter()
            .find(|segment| segment.to.port() != 15008 && segment.from.port() != 15008);
        assert!(strange.is_none(), "{place}: {strange:?}");
    }
    Ok(())
}

#[test]
fn the_captures_would_see_plaintext_if_there_were_any() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let captures = everywhere(&scene)?;
    let report = scene
        .visitor
        .connect(scene.far.ip4(), 8080, "exchange", &["--text", CANARY])?;
    assert_eq!(report.text, CANARY, "{report:?}");
    let seen: Vec<_> = finish(captures)?
        .into_iter()
        .filter(|(_, captured)| captured.contains(CANARY.as_bytes()))
        .collect();
    assert_eq!(
        seen.len(),
        4,
        "fabric, both nodes and the pod: {:?}",
        seen.iter().map(|(p, _)| p).collect::<Vec<_>>()
    );
    Ok(())
}

/// The group of the key share in a ServerHello (RFC 8446, 4.1.3 and 4.2.8), if these bytes begin with one.
fn server_hello_group(bytes: &[u8]) -> Option<u16> {
    let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    // Record: type 22, version, length. Handshake: type 2, length; version, random, session id, cipher suite, compression.
    if *bytes.first()? != 22 || *bytes.get(5)? != 2 {
        return None;
    }
    let mut at = 9 + 2 + 32;
    at += 1 + usize::from(*bytes.get(at)?) + 2 + 1;
    let end = at + 2 + usize::from(word(at)?);
    at += 2;
    while at + 4 <= end {
        let (kind, length) = (word(at)?, usize::from(word(at + 2)?));
        if kind == 51 {
            return word(at + 4);
        }
        at += 4 + length;
    }
    None
}

#[test]
fn agents_agree_on_a_post_quantum_key_exchange() -> Result<()> {
    const X25519_MLKEM768: u16 = 0x11ec;
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let wire = Capture::start(&scene.world, scene.world.fabric(), "br0")?;
    for to in [scene.far.ip4(), scene.far.ip6()] {
        assert_eq!(
            scene.client.connect(to, 8080, "exchange", &[])?.text,
            "ping\n",
            "{}",
            scene.logs()
        );
    }
    let segments = wire.finish()?.segments();
    let groups: Vec<u16> = segments
        .iter()
        .filter(|segment| segment.from.port() == 15008)
        .filter_map(|segment| server_hello_group(&segment.payload))
        .collect();
    groups.first().context("no ServerHello was seen")?;
    assert!(
        groups.iter().all(|group| *group == X25519_MLKEM768),
        "{groups:04x?}"
    );
    Ok(())
}
