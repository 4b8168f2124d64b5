//! Capture against the real kernel: two network namespaces joined by a veth pair, a pod's application in its own cgroup, the test as
//! the agent. Needs root; runs where `MESH_PRIVILEGED=1`, and says so where it does not.

mod facts;
mod succession;
mod world;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use mesh_common::{HBONE_PORT, Role, is_rewrite_port};
use socket2::Socket;
use world::{Agent, privileged};

use super::enroller::Trial;
use super::local::Local;
use super::{CaptureState, EnrolError, Family, unload};

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Delivers to the pod as the data path does: without binding a port.
fn deliver(agent: &Agent, source: &str, client: SocketAddr, to: SocketAddr) -> std::io::Result<Socket> {
    let pod = agent.server.pod();
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let socket = pod.sockets.stream(family)?;
    socket.set_nonblocking(false)?;
    let one: libc::c_int = 1;
    // SAFETY: the pointer is to a live int of the length given.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const one).cast(),
            size_of_val(&one) as libc::socklen_t,
        )
    };
    assert_eq!(done, 0);
    socket.bind(&addr(source).into())?;
    agent
        .capture
        .flows()
        .announce_delivery(socket.as_fd(), client)
        .unwrap();
    socket.connect(&to.into())?;
    Ok(socket)
}

#[test]
fn outbound_connections_reach_the_agent_with_their_destination_and_the_application_sees_what_it_asked_for() {
    let Some(world) = privileged("outbound") else {
        return;
    };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let pod = agent.server.pod();
    let mut app = world.app();
    let cases = [
        ("AF_INET", "198.18.77.200", 80, "198.18.77.200:80"),
        ("AF_INET", "203.0.113.9", 443, "203.0.113.9:443"),
        ("AF_INET6", "2001:db8:99::1", 8443, "[2001:db8:99::1]:8443"),
        ("AF_INET6", "::ffff:198.18.77.200", 80, "198.18.77.200:80"),
    ];
    for (family, host, port, destination) in cases {
        app.run(&format!(
            "s = socket.socket(socket.{family}); s.settimeout(5); s.connect(('{host}', {port}))"
        ));
        let (client, accepted) = agent.server.accept(Role::Outbound);
        let local = accepted.local_addr().unwrap();
        assert!(is_rewrite_port(local.port()), "{local}");
        let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        let taken = agent
            .capture
            .flows()
            .take_destination(&pod, canonical(client), canonical(local));
        assert_eq!(taken.unwrap(), Some(addr(destination)));
        let again = agent.capture.flows().take_destination(&pod, client, local);
        assert_eq!(again.unwrap(), None, "a hand-off is taken once");
        assert_eq!(app.eval("s.getpeername()[:2]"), format!("('{host}', {port})"));
        let own = if destination.starts_with('[') {
            "2001:db8:77::1"
        } else {
            "198.18.77.1"
        };
        assert!(
            app.eval("s.getsockname()[0]").contains(own),
            "getsockname stays true"
        );
        app.run("s.close()");
    }
    assert_eq!(agent.counter("connect_captured"), 4);
    agent.expect_empty_maps();
    agent.stop_clean(&world);
}

#[test]
fn a_socket_that_connects_elsewhere_later_forgets_its_old_destination() {
    let Some(world) = privileged("forget") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let mut app = world.app();
    app.run("l = socket.socket(); l.bind(('127.0.0.1', 7777)); l.listen()");
    app.run("s = socket.socket(); s.connect(('198.18.77.200', 80))");
    assert_eq!(app.eval("s.getpeername()"), "('198.18.77.200', 80)");
    // AF_UNSPEC dissolves the association; the same socket then goes to a destination that is not captured.
    app.run("ctypes.CDLL(None).connect(s.fileno(), struct.pack('16x'), 16)");
    app.run("s.connect(('127.0.0.1', 7777))");
    assert_eq!(app.eval("s.getpeername()"), "('127.0.0.1', 7777)");
    agent.stop_clean(&world);
}

#[test]
fn local_traffic_of_the_pod_is_left_alone() {
    let Some(world) = privileged("local") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let mut app = world.app();
    app.run("l = socket.socket(socket.AF_INET6); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)");
    app.run("l.bind(('::', 8080)); l.listen(); l.settimeout(5)");
    for host in [
        "127.0.0.1",
        "0.0.0.0",
        "198.18.77.1",
        "::1",
        "::",
        "2001:db8:77::1",
        "::ffff:198.18.77.1",
    ] {
        app.run(&format!(
            "s = socket.create_connection(('{host}', 8080), 5); c, a = l.accept()"
        ));
        assert_eq!(
            app.eval("c.getpeername() == s.getsockname() or c.getpeername()[1] == s.getsockname()[1]"),
            "True"
        );
    }
    assert!(agent.server.try_accept(Role::Outbound).is_none());
    assert!(agent.server.try_accept(Role::Inbound).is_none());
    // Nobody captured that, so a rewrite port is a port like others.
    app.run("r = socket.socket(); r.bind(('198.18.77.1', 15110)); r.listen()");
    app.run("s = socket.create_connection(('198.18.77.1', 15110), 5)");
    agent.expect_empty_maps();
    agent.stop_clean(&world);
}

#[test]
fn connections_from_off_the_pod_reach_the_listener_of_their_role() {
    let Some(world) = privileged("inbound") else {
        return;
    };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    for (to, role) in [
        ("198.18.77.1:8080", Role::Inbound),
        ("[2001:db8:77::1]:8080", Role::Inbound),
        ("198.18.77.1:22", Role::Inbound),
        ("198.18.77.1:15008", Role::Tunnel),
        ("[2001:db8:77::1]:15008", Role::Tunnel),
    ] {
        let stream = world.peer_connect(addr(to)).unwrap();
        let (client, accepted) = agent.server.accept(role);
        let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        assert_eq!(canonical(client), stream.local_addr().unwrap(), "the real client");
        assert_eq!(
            canonical(accepted.local_addr().unwrap()),
            addr(to),
            "the original destination"
        );
    }
    for port in [15001, 15006, 15053, 15104, 15167] {
        let refused = world.peer_connect(SocketAddr::new("198.18.77.1".parse().unwrap(), port));
        assert_eq!(
            refused.unwrap_err().kind(),
            std::io::ErrorKind::ConnectionRefused,
            "{port}"
        );
    }
    assert_eq!(agent.counter("dropped_agent_port"), 5);
    agent.expect_empty_maps();
    agent.stop_clean(&world);
}

#[test]
fn an_application_sees_the_real_client_of_a_delivery() {
    let Some(world) = privileged("delivery") else {
        return;
    };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let mut app = world.app();
    app.run("l4 = socket.socket(); l4.bind(('0.0.0.0', 8080)); l4.listen()");
    app.run(
        "l6 = socket.socket(socket.AF_INET6); l6.setsockopt(41, 26, 0); l6.bind(('::', 8081)); l6.listen()",
    );
    for (listener, to, source, client, seen) in [
        (
            "l4",
            "198.18.77.1:8080",
            "127.1.2.3:0",
            "198.18.9.9:4321",
            "('198.18.9.9', 4321)",
        ),
        (
            "l6",
            "198.18.77.1:8081",
            "127.1.2.3:0",
            "198.18.9.9:4322",
            "('::ffff:198.18.9.9', 4322)",
        ),
        (
            "l6",
            "[2001:db8:77::1]:8081",
            "[::1]:0",
            "[2001:db8:9::9]:4323",
            "('2001:db8:9::9', 4323)",
        ),
    ] {
        let mut socket = deliver(&agent, source, addr(client), addr(to)).unwrap();
        app.run(&format!("c, a = {listener}.accept()"));
        assert_eq!(app.eval("a[:2]"), seen, "accept()");
        assert_eq!(app.eval("c.getpeername()[:2]"), seen, "getpeername()");
        socket.write_all(b"ping").unwrap();
        assert_eq!(app.eval("c.recv(4)"), "b'ping'");
        app.run("c.sendall(b'pong'); c.close()");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "pong");
    }
    let refused = deliver(
        &agent,
        "127.1.2.3:0",
        addr("198.18.9.9:1"),
        addr("198.18.77.1:9999"),
    );
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    assert_eq!(agent.counter("clients_shown"), 3);
    agent.expect_empty_maps();
    agent.stop_clean(&world);
}

#[test]
fn a_client_that_sends_and_closes_before_the_agent_accepts_is_not_lost() {
    let Some(world) = privileged("hasty") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let pod = agent.server.pod();
    let mut app = world.app();
    app.run("s = socket.create_connection(('198.18.77.200', 514)); s.sendall(b'line'); s.close()");
    std::thread::sleep(Duration::from_millis(200));
    let (client, mut accepted) = agent.server.accept(Role::Outbound);
    let local = accepted.local_addr().unwrap();
    let taken = agent
        .capture
        .flows()
        .take_destination(&pod, client, local)
        .unwrap();
    assert_eq!(taken, Some(addr("198.18.77.200:514")));
    let mut text = String::new();
    accepted.set_nonblocking(false).unwrap();
    accepted.read_to_string(&mut text).unwrap();
    assert_eq!(text, "line");
    drop(accepted);
    agent.expect_empty_maps();
    agent.stop_clean(&world);
}

#[test]
fn failed_and_reset_connections_leave_no_entries() {
    let Some(world) = privileged("mixed") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let mut app = world.app();
    app.run("rst = struct.pack('ii', 1, 0)");
    // Reset by the application, some before and some after the agent has accepted.
    for _ in 0..50 {
        app.run(
            "s = socket.create_connection(('198.18.77.200', 80)); \
             s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, rst); s.close()",
        );
        let _ = agent.server.try_accept(Role::Outbound);
    }
    // Closed in good order, accepted and taken or not; then the pod goes.
    for _ in 0..50 {
        app.run("s = socket.create_connection(('198.18.77.200', 80)); s.close()");
    }
    for _ in 0..50 {
        let _ = deliver(
            &agent,
            "127.0.0.9:0",
            addr("198.18.9.9:1"),
            addr("198.18.77.1:9999"),
        );
    }
    agent.capture.release(&world.spec().uid, &*agent.server);
    agent.expect_empty_maps();
    agent.stop_clean(&world);
}

/// `MESH_SOAK=<n>` connections of each kind; a few without.
#[test]
fn thousands_of_connections_of_all_kinds_leave_the_flow_maps_empty() {
    let Some(world) = privileged("soak") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let pod = agent.server.pod();
    let rounds: usize = std::env::var("MESH_SOAK")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(500);
    let mut app = world.app();
    app.run("rst = struct.pack('ii', 1, 0)");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (taken, missed) = std::thread::scope(|scope| {
        let agent_side = scope.spawn(|| {
            let (mut taken, mut missed) = (0, 0);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let Some((client, accepted)) = agent.server.try_accept(Role::Outbound) else {
                    std::thread::sleep(Duration::from_micros(200));
                    continue;
                };
                // A connection that was reset in the queue has no local port any more.
                let Ok(local) = accepted.local_addr() else {
                    continue;
                };
                match agent
                    .capture
                    .flows()
                    .take_destination(&pod, client, local)
                    .unwrap()
                {
                    Some(_) => taken += 1,
                    None => missed += 1,
                }
            }
            (taken, missed)
        });
        let done = app.attempt(&format!(
            "for i in range({rounds}):
  s = socket.create_connection(('198.18.77.200', 80)); s.close()
  s = socket.create_connection(('203.0.113.7', 80)); s.setsockopt(1, 13, rst); s.close()
  s = socket.create_connection(('2001:db8:99::1', 80)); s.shutdown(1); s.recv(1); s.close()"
        ));
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(done, "None");
        agent_side.join().unwrap()
    });
    println!("{taken} taken, {missed} reset before they were taken");
    assert!(
        taken >= 2 * rounds,
        "every connection that was not reset is taken: {taken}"
    );
    assert!(missed <= rounds);
    agent.expect_empty_maps();
    agent.stop_clean(&world);
}

#[test]
fn what_cannot_be_captured_is_refused_and_udp_passes() {
    let Some(world) = privileged("refused") else {
        return;
    };
    let agent = world.agent();
    let mut v4_only = world.spec();
    v4_only.addresses.retain(|ip| ip.is_ipv4());
    agent.capture.enrol(&v4_only, &*agent.server).unwrap();
    let mut app = world.app();
    let eperm = "PermissionError(1, 'Operation not permitted')";
    let attempt = |app: &mut world::App, code: &str| {
        app.run(&format!(
            "err = None\ntry:\n {code}\nexcept OSError as e:\n err = e"
        ));
        app.eval("err")
    };
    let code = "socket.create_connection(('2001:db8:99::1', 80), 5)";
    assert_eq!(attempt(&mut app, code), eperm);
    assert_eq!(agent.counter("connect_refused_family"), 1);
    // A process of the pod's cgroup in another namespace: here, the peer's.
    let code = format!(
        "other = os.open('{}', os.O_RDONLY); libc.setns(other, 0); ",
        world.peer_path()
    ) + "s = socket.socket(); libc.setns(home, 0); s.connect(('198.18.77.200', 80))";
    assert_eq!(attempt(&mut app, &code), eperm);
    assert_eq!(agent.counter("connect_refused_netns"), 1);
    if app.eval("mptcp") == "True" {
        let code = "socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).connect(('198.18.77.200', 80))";
        let outcome = attempt(&mut app, code);
        let captured = agent.server.try_accept(Role::Outbound).is_some();
        assert!(
            outcome != "None" || captured,
            "MPTCP neither refused nor captured: {outcome}"
        );
    }
    app.run("u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('198.18.77.2', 53))");
    assert_eq!(agent.counter("udp_passed"), 1);
    agent.stop_clean(&world);
}

#[test]
fn a_crashed_agent_leaves_its_pods_refusing_and_its_successor_takes_over() {
    let Some(world) = privileged("crash") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let mut app = world.app();
    // Once it answers it has closed what it inherited between fork and exec.
    app.run("None");
    // Whatever the process held is closed; the pins stay.
    drop(agent);
    let refused = world.peer_connect(addr("198.18.77.1:8080"));
    assert_eq!(
        refused.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused,
        "inbound"
    );
    app.run(
        "err = None\ntry:\n socket.create_connection(('198.18.77.2', 80), 5)\nexcept OSError as e:\n err = e",
    );
    assert_eq!(app.eval("err.errno == 111"), "True", "outbound");

    let next = world.agent();
    next.enrol(&world).unwrap();
    next.capture.drop_leftovers();
    world.peer_connect(addr("198.18.77.1:8080")).unwrap();
    next.server.accept(Role::Inbound);
    app.run("s = socket.create_connection(('203.0.113.1', 80), 5)");
    let (client, accepted) = next.server.accept(Role::Outbound);
    let local = accepted.local_addr().unwrap();
    let taken = next
        .capture
        .flows()
        .take_destination(&next.server.pod(), client, local)
        .unwrap();
    assert_eq!(taken, Some(addr("203.0.113.1:80")));
    assert_eq!(
        world.links().len(),
        7,
        "the old links are gone: {:?}",
        world.links()
    );
    next.stop_clean(&world);
}

#[test]
fn unload_removes_what_a_crashed_agent_has_left_but_not_under_a_running_one() {
    let Some(world) = privileged("unload") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let options = agent.capture.options().clone();
    assert!(unload(&options).is_err(), "an agent is running");
    drop(agent);
    assert_eq!(world.links().len(), 7);
    assert!(unload(&options).unwrap() > 6);
    assert_eq!(world.links(), Vec::<String>::new());
    assert!(!options.bpffs_dir.exists());
    assert!(
        world.peer_connect(addr("198.18.77.1:8080")).is_err(),
        "nobody listens there any more"
    );
}

#[test]
fn addresses_that_come_and_go_are_followed() {
    let Some(world) = privileged("addresses") else {
        return;
    };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let own = || agent.capture.status().pods[0].own.clone();
    assert!(own().contains(&"198.18.77.1".parse().unwrap()));
    world.pod_ip(&["addr", "add", "198.18.77.50/24", "dev", "eth0"]);
    agent.capture.refresh_addresses(&world.spec().uid).unwrap();
    assert!(own().contains(&"198.18.77.50".parse().unwrap()));
    let mut app = world.app();
    app.run("l = socket.socket(); l.bind(('198.18.77.50', 8080)); l.listen()");
    app.run("s = socket.create_connection(('198.18.77.50', 8080), 5)");
    world.pod_ip(&["addr", "del", "198.18.77.50/24", "dev", "eth0"]);
    agent.capture.refresh_addresses(&world.spec().uid).unwrap();
    assert!(!own().contains(&"198.18.77.50".parse().unwrap()));
    agent.stop_clean(&world);
}

#[test]
fn a_changed_pod_is_updated_without_a_moment_of_plaintext() {
    let Some(world) = privileged("update") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let links = world.links();
    let mut changed = world.spec();
    changed.addresses.retain(|ip| ip.is_ipv4());
    agent.capture.enrol(&changed, &*agent.server).unwrap();
    assert_eq!(world.links(), links, "the links stay");
    assert_eq!(agent.server.pod().addresses, changed.addresses);
    world.peer_connect(addr("198.18.77.1:8080")).unwrap();
    agent.server.accept(Role::Inbound);
    agent.stop_clean(&world);
}

#[test]
fn places_that_would_not_do_are_refused_with_a_reason() {
    let Some(world) = privileged("places") else { return };
    let agent = world.agent();
    let refused = |change: &dyn Fn(&mut super::PodSpec)| {
        let mut spec = world.spec();
        change(&mut spec);
        agent.capture.enrol(&spec, &*agent.server).unwrap_err()
    };
    assert!(matches!(refused(&|s| s.netns += "-no"), EnrolError::Netns { .. }));
    assert!(matches!(
        refused(&|s| s.cgroup += "-no"),
        EnrolError::Cgroup { .. }
    ));
    assert!(matches!(
        refused(&|s| s.cgroup = "/tmp".into()),
        EnrolError::CgroupUnfit { .. }
    ));
    assert!(matches!(
        refused(&|s| s.cgroup = ".".into()),
        EnrolError::CgroupUnfit { .. }
    ));
    assert!(matches!(
        refused(&|s| s.netns = "/proc/self/ns/net".into()),
        EnrolError::HostNetns
    ));
    assert!(matches!(
        refused(&|s| s.addresses = vec!["198.18.77.99".parse().unwrap()]),
        EnrolError::AddressMissing(_)
    ));
    let own = agent.capture.status().agent_cgroup.display().to_string();
    assert!(matches!(
        refused(&|s| s.cgroup = own.clone()),
        EnrolError::CgroupUnfit { .. }
    ));
    agent.expect_empty_maps();
    agent.stop_clean(&world);
}

#[test]
fn the_enroller_picks_up_a_namespace_that_appears_later_and_releases_one_that_goes() {
    let Some(world) = privileged("enroller") else {
        return;
    };
    let agent = world.agent();
    let mut trial = Trial::new(&agent.capture, agent.server.clone());
    let mut spec = world.spec();
    spec.netns = world.late_path();
    let wanted = Local::of_specs([spec.clone()]);
    trial.pass(&wanted, Instant::now());
    let state = agent.capture.states()[&spec.uid].clone();
    assert!(matches!(state, CaptureState::Pending(_)), "{state:?}");
    world.link_late();
    trial.pass(&wanted, Instant::now() + Duration::from_secs(1));
    assert_eq!(agent.capture.states()[&spec.uid], CaptureState::Captured);
    world.unlink_late();
    trial.pass(&wanted, Instant::now() + Duration::from_secs(2));
    assert!(matches!(
        agent.capture.states()[&spec.uid],
        CaptureState::Pending(_)
    ));
    assert_eq!(world.links(), Vec::<String>::new());
    trial.pass(&Local::of_specs([]), Instant::now() + Duration::from_secs(3));
    assert!(agent.capture.states().is_empty());
    agent.stop_clean(&world);
}

#[test]
fn nothing_of_ours_joins_a_reuseport_group_and_sockets_are_made_as_promised() {
    let Some(world) = privileged("options") else {
        return;
    };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    agent.server.each_listener(|listener| {
        let socket = socket2::SockRef::from(&listener.socket);
        assert!(socket.reuse_address().unwrap());
        assert!(!socket.reuse_port().unwrap());
    });
    // A root process in the pod that binds where a listener is, with every option it has.
    let ports: Vec<u16> = agent.server.ports();
    let mut app = world.app();
    for port in ports {
        app.run(&format!(
            "t = socket.socket(); t.setsockopt(1, 2, 1); t.setsockopt(1, 15, 1); err = None\n\
             try:\n t.bind(('127.0.0.1', {port})); t.listen()\nexcept OSError as e:\n err = e"
        ));
        assert_ne!(app.eval("err"), "None", "stole port {port}");
    }
    let pod = agent.server.pod();
    for family in [Family::V4, Family::V6] {
        for _ in 0..40 {
            let socket = pod.sockets.stream(family).unwrap();
            assert!(socket.reuse_address().unwrap() && socket.tcp_nodelay().unwrap());
            assert!(socket.nonblocking().unwrap());
            assert_eq!(super::sys::netns_cookie(socket.as_fd()).unwrap(), pod.netns);
        }
    }
    assert_eq!(agent.capture.status().pods[0].links.len(), 7);
    assert_eq!(HBONE_PORT, 15008);
    agent.stop_clean(&world);
}
