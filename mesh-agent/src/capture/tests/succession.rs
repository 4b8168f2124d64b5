//! What one agent leaves to the next, against the real kernel.

use std::fs;
use std::time::Duration;

use mesh_common::{ABI_VERSION, Role};

use super::world::{Agent, World, privileged};
use super::{Local, Trial, addr};
use crate::capture::pod::Rules;

fn connect(world: &World) -> std::io::Result<std::net::TcpStream> {
    world.peer_connect(addr("198.18.77.1:8080"))
}

/// One inbound connection, which must come to this agent.
fn expect_served(world: &World, agent: &Agent) {
    let _client = connect(world).unwrap();
    agent.server.accept(Role::Inbound);
}

fn link_ids(agent: &Agent) -> Vec<(&'static str, u32)> {
    let status = agent.capture.status();
    status.pods[0]
        .links
        .iter()
        .map(|link| (link.hook, link.id))
        .collect()
}

#[test]
fn a_successor_keeps_links_and_maps_and_exchanges_the_programs() {
    let Some(world) = privileged("adopt") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    expect_served(&world, &agent);
    let (links, pins) = (link_ids(&agent), world.pins());
    let programs: Vec<u32> = agent.capture.status().pods[0]
        .links
        .iter()
        .map(|link| link.program)
        .collect();
    drop(agent);
    let next = world.agent();
    assert!(next.capture.is_adopted());
    next.enrol(&world).unwrap();
    next.capture.drop_leftovers();
    assert_eq!(link_ids(&next), links, "the same links");
    let pod = next.capture.status().pods.remove(0);
    assert!(
        pod.links.iter().all(|link| !programs.contains(&link.program)),
        "other programs"
    );
    assert_eq!(world.pins(), pins);
    assert_eq!(world.links().len(), 7);
    expect_served(&world, &next);
    next.expect_empty_maps();
    next.stop_clean(&world);
}

#[test]
fn ten_crashes_in_a_row_leave_no_pin_more_than_one() {
    let Some(world) = privileged("crashes") else {
        return;
    };
    let first = world.agent();
    first.enrol(&world).unwrap();
    let pins = world.pins();
    drop(first);
    for round in 0..10 {
        let agent = world.agent();
        if round % 2 == 0 {
            agent.enrol(&world).unwrap();
        }
        drop(agent);
        assert_eq!(world.pins(), pins, "round {round}");
        assert_eq!(
            connect(&world).unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused,
            "round {round}"
        );
    }
    let last = world.agent();
    last.enrol(&world).unwrap();
    expect_served(&world, &last);
    last.stop_clean(&world);
}

#[test]
fn pins_of_another_abi_or_with_other_maps_are_replaced_and_not_adopted() {
    let Some(world) = privileged("abi") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    drop(agent);
    let seal = world.bpffs().join(format!("run-1/abi-{ABI_VERSION}"));
    fs::rename(&seal, seal.with_file_name("abi-1")).unwrap();
    let next = world.agent();
    assert!(!next.capture.is_adopted(), "another ABI");
    next.enrol(&world).unwrap();
    next.capture.drop_leftovers();
    assert!(
        world.pins().iter().all(|pin| pin.starts_with("run-2/")),
        "{:?}",
        world.pins()
    );
    assert_eq!(world.links().len(), 7);
    expect_served(&world, &next);
    drop(next);
    // A map that is not what it is called.
    let maps = world.bpffs().join("run-2/maps");
    fs::remove_file(maps.join("OWN")).unwrap();
    fs::rename(maps.join("PODS"), maps.join("OWN")).unwrap();
    fs::rename(maps.join("PORTS"), maps.join("PODS")).unwrap();
    let last = world.agent();
    assert!(!last.capture.is_adopted(), "maps of other kinds");
    last.enrol(&world).unwrap();
    last.capture.drop_leftovers();
    expect_served(&world, &last);
    last.stop_clean(&world);
}

#[test]
fn a_half_made_start_is_swept_away_and_a_half_captured_pod_is_made_whole() {
    let Some(world) = privileged("half") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    drop(agent);
    let pod = fs::read_dir(world.bpffs().join("run-1/pods"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    fs::remove_file(pod.join("connect4")).unwrap();
    fs::remove_file(pod.join("sock_ops")).unwrap();
    // A link has another's name; another was about to be replaced.
    fs::rename(pod.join("connect6"), pod.join("setsockopt")).unwrap();
    fs::rename(pod.join("getpeername6"), pod.join("getpeername6_new")).unwrap();
    let begun = world.bpffs().join("run-7/maps");
    fs::create_dir_all(&begun).unwrap();
    fs::rename(pod.join("getpeername4"), begun.join("PODS")).unwrap();
    let next = world.agent();
    next.enrol(&world).unwrap();
    next.capture.drop_leftovers();
    assert_eq!(world.links().len(), 7, "{:?}", world.links());
    assert!(!world.bpffs().join("run-7").exists());
    assert!(
        world.pins().iter().all(|pin| pin.starts_with("run-1/")),
        "{:?}",
        world.pins()
    );
    assert!(
        !world.pins().iter().any(|pin| pin.ends_with("_new")),
        "{:?}",
        world.pins()
    );
    expect_served(&world, &next);
    next.stop_clean(&world);
}

#[test]
fn a_link_on_a_cgroup_that_is_not_the_pods_any_more_is_not_adopted() {
    let Some(world) = privileged("moved") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    drop(agent);
    // The old cgroup lives on, so that its links could be taken for good.
    let spec = world.spec_in_new_cgroup();
    let next = world.agent();
    next.capture.enrol(&spec, &*next.server).unwrap();
    let mut app = world.app_in(&spec.cgroup);
    app.run("s = socket.create_connection(('203.0.113.1', 80), 5)");
    let (_, accepted) = next.server.accept(Role::Outbound);
    assert!(mesh_common::is_rewrite_port(
        accepted.local_addr().unwrap().port()
    ));
    assert_eq!(
        world.links().len(),
        1,
        "sk_lookup, and nothing on the old cgroup: {:?}",
        world.links()
    );
    next.stop_clean(&world);
}

#[test]
fn what_a_dead_agent_let_pass_is_compared_with_what_may_pass_now() {
    let Some(world) = privileged("rules") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let uid = world.spec().uid;
    let mut rules = Rules::default();
    rules.probe_ports.extend([8080, 9090]);
    rules.exclusions.outbound_ports.insert(25);
    rules.exclusions.inbound_ports.insert(7070);
    rules.exclusions.inbound_when_down = true;
    for cidr in ["203.0.113.0/24", "2001:db8:5::/48", "0.0.0.0/0"] {
        rules.exclusions.outbound_cidrs.insert(cidr.parse().unwrap());
    }
    agent.capture.set_rules(&uid, &rules);
    assert_eq!(agent.capture.rules(&uid), Some(rules.clone()));
    drop(agent);
    let next = world.agent();
    next.enrol(&world).unwrap();
    assert_eq!(next.capture.rules(&uid), Some(rules), "as the kernel has it");
    next.capture.set_rules(&uid, &Rules::default());
    let left = |name: &str| {
        let fill = next.capture.map_fill();
        fill.iter().find(|map| map.name == name).unwrap().entries
    };
    assert_eq!(
        (left("PORTS"), left("CIDRS")),
        (0, 0),
        "what may not pass any more is gone from the kernel"
    );
    let mut app = world.app();
    app.run("s = socket.create_connection(('203.0.113.1', 25), 5)");
    next.server.accept(Role::Outbound);
    next.stop_clean(&world);
}

#[test]
fn pods_that_nobody_wants_any_more_are_released_by_the_successor() {
    let Some(world) = privileged("unwanted") else {
        return;
    };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    drop(agent);
    let next = world.agent();
    let mut trial = Trial::new(&next.capture, next.server.clone());
    trial.pass(&Local::of_specs([]), std::time::Instant::now());
    assert_eq!(world.links(), Vec::<String>::new(), "nothing captures it");
    let pods = next
        .capture
        .map_fill()
        .into_iter()
        .find(|map| map.name == "PODS")
        .unwrap();
    assert_eq!(pods.entries, 0);
    next.stop_clean(&world);
}

#[test]
fn a_successor_takes_every_new_connection_while_the_predecessor_keeps_what_it_has() {
    let Some(world) = privileged("beside") else { return };
    let old = world.agent();
    old.enrol(&world).unwrap();
    let mut app = world.app();
    app.run("s = socket.create_connection(('203.0.113.1', 80), 5)");
    let next = world.agent_beside(&old);
    assert!(next.capture.is_adopted());
    // The hand-off of a connection that waits in the old agent's queue is not swept away.
    next.enrol(&world).unwrap();
    let (client, accepted) = old.server.accept(Role::Outbound);
    let local = accepted.local_addr().unwrap();
    let taken = next
        .capture
        .flows()
        .take_destination(&next.server.pod(), client, local);
    assert_eq!(
        taken.unwrap(),
        Some(addr("203.0.113.1:80")),
        "both read the same maps"
    );
    next.capture.took_over();
    old.capture.stop_sending();
    for _ in 0..20 {
        let _client = connect(&world).unwrap();
        next.server.accept(Role::Inbound);
        assert!(old.server.try_accept(Role::Inbound).is_none());
    }
    // What the new agent lets go is let go at once, although the old one has it open, too.
    next.stop_clean(&world);
    drop(old);
}

#[test]
fn a_predecessor_takes_back_what_a_failed_successor_had() {
    for same_abi in [true, false] {
        let Some(world) = privileged("back") else { return };
        let old = world.agent();
        old.enrol(&world).unwrap();
        if !same_abi {
            let seal = world.bpffs().join(format!("run-1/abi-{ABI_VERSION}"));
            fs::rename(&seal, seal.with_file_name("abi-1")).unwrap();
        }
        let next = world.agent_beside(&old);
        assert_eq!(next.capture.is_adopted(), same_abi);
        next.enrol(&world).unwrap();
        expect_served(&world, &next);
        assert!(old.capture.take_back().is_err(), "the new one has it");
        drop(next);
        old.capture.take_back().unwrap();
        expect_served(&world, &old);
        let mut app = world.app();
        app.run("s = socket.create_connection(('203.0.113.1', 80), 5)");
        let (client, accepted) = old.server.accept(Role::Outbound);
        let local = accepted.local_addr().unwrap();
        let taken = old
            .capture
            .flows()
            .take_destination(&old.server.pod(), client, local);
        assert_eq!(taken.unwrap(), Some(addr("203.0.113.1:80")));
        old.capture.drop_leftovers();
        assert_eq!(world.links().len(), 7, "{:?}", world.links());
        std::thread::sleep(Duration::from_millis(50));
        old.stop_clean(&world);
    }
}
