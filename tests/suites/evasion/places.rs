//! Where a socket was made, and where its process is: other cgroups, other namespaces, sockets that are passed in.

use anyhow::Result;
use mesh_tests::harness::{App, Cgroup, MESH, Scene};
use serde_json::Value;

use super::script::{Script, assert_carried, assert_nothing, assert_refused, counted, ways, ways_at};

#[test]
fn a_process_that_moves_between_the_pods_cgroups_stays_captured() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let outer = scene.client.cgroup().child("container")?;
    let inner = outer.child("session")?;
    let to = scene.far.ip4().to_string();
    let report = ways(
        &scene.client,
        &["move", &to, "8080", &inner.path().to_string_lossy()],
    )?;
    assert_carried(&report["before"], "a socket made before the move");
    assert_carried(&report["after"], "a socket made after the move");
    assert_eq!(counted(&scene.a1, "connect_captured")?, 2.0);
    Ok(())
}

/// Runs `try_it` under PERMISSIVE, where what goes around capture arrives, and under STRICT, where it does not.
fn under_both_policies(
    scene: &Scene,
    mut try_it: impl FnMut() -> Result<(Vec<Value>, Vec<Value>)>,
) -> Result<()> {
    let captured = || counted(&scene.a1, "connect_captured");
    for strict in [false, true] {
        if strict {
            scene.change(|config| config.peer_authentication(MESH, "STRICT"))?;
        }
        let before = captured()?;
        let (inside, around) = try_it()?;
        for report in &inside {
            assert_carried(report, "captured");
        }
        for report in &around {
            if strict {
                assert_nothing(report, "STRICT refuses what goes around capture");
            } else {
                assert_carried(report, "PERMISSIVE takes what goes around capture");
            }
        }
        assert_eq!(captured()? - before, inside.len() as f64, "strict: {strict}");
    }
    Ok(())
}

#[test]
fn a_process_that_left_the_pods_cgroup_is_not_captured_and_strict_refuses_it() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let outside: Cgroup = scene.n1.cgroup().child("elsewhere")?;
    let to = scene.far.ip4().to_string();
    under_both_policies(&scene, || {
        let report = ways(
            &scene.client,
            &["move", &to, "8080", &outside.path().to_string_lossy()],
        )?;
        Ok((vec![report["before"].clone()], vec![report["after"].clone()]))
    })
}

#[test]
fn a_socket_that_was_made_outside_and_passed_in_is_not_captured_and_strict_refuses_it() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let outside = scene.n1.cgroup().child("elsewhere")?;
    let mut count = 0;
    under_both_policies(&scene, || {
        let mut around = Vec::new();
        // One made in the pod's network namespace, one in the node's.
        for netns in [scene.client.netns(), scene.n1.netns()] {
            for (to, six) in [(scene.far.ip4(), false), (scene.far.ip6(), true)] {
                count += 1;
                let path = scene.world.dir().join(format!("pass-{count}.sock"));
                let path = path.to_string_lossy();
                let take = Script::start(&scene.client, &["take", &to.to_string(), "8080", &path])?;
                let hand = if six {
                    vec!["hand", &*path, "--six"]
                } else {
                    vec!["hand", &*path]
                };
                ways_at(netns, &outside, &hand)?;
                around.push(take.answer()?);
            }
        }
        Ok((Vec::new(), around))
    })
}

#[test]
fn a_process_of_the_pod_in_another_network_namespace_is_refused() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    for to in [scene.far.ip4().to_string(), scene.far.ip6().to_string()] {
        let own = ways(&scene.client, &["unshare", &to, "8080"])?;
        assert_refused(&own, "a namespace of its own");
        let nodes = ways_at(scene.n1.netns(), scene.client.cgroup(), &["dial", &to, "8080"])?;
        assert_refused(&nodes, "the node's namespace");
    }
    assert_eq!(counted(&scene.a1, "connect_refused_netns")?, 4.0);
    Ok(())
}
