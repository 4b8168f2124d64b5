//! Facts of the kernel that capture stands on and that no other test would show.

use std::collections::BTreeSet;

use mesh_common::{REWRITE_PORTS, Role, is_rewrite_port};

use super::addr;
use super::world::privileged;

#[test]
fn an_application_can_bind_its_port_while_a_steered_connection_to_it_lives() {
    let Some(world) = privileged("rebind") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let _client = world.peer_connect(addr("198.18.77.1:8080")).unwrap();
    let (_, steered) = agent.server.accept(Role::Inbound);
    assert_eq!(steered.local_addr().unwrap().port(), 8080);
    let mut app = world.app();
    for host in ["198.18.77.1", "0.0.0.0"] {
        app.run(&format!(
            "err = None\nl = socket.socket(); l.setsockopt(1, 2, 1)\n\
             try:\n l.bind(('{host}', 8080)); l.listen()\nexcept OSError as e:\n err = e"
        ));
        assert_eq!(
            app.eval("err"),
            "None",
            "the application cannot have its own port at {host}"
        );
        app.run("l.close()");
    }
    drop(steered);
    agent.stop_clean(&world);
}

#[test]
fn captured_connections_are_spread_over_the_rewrite_ports() {
    let Some(world) = privileged("spread") else { return };
    let agent = world.agent();
    agent.enrol(&world).unwrap();
    let mut app = world.app();
    let mut ports = BTreeSet::new();
    for _ in 0..400 {
        app.run("s = socket.create_connection(('198.18.77.200', 80), 5)");
        let (_, accepted) = agent.server.accept(Role::Outbound);
        ports.insert(accepted.local_addr().unwrap().port());
        app.run("s.close()");
    }
    assert!(ports.iter().all(|port| is_rewrite_port(*port)), "{ports:?}");
    // Of 64 ports, 400 draws leave more than a quarter out once in far more runs than there will ever be.
    assert!(
        ports.len() >= usize::from(REWRITE_PORTS) * 3 / 4,
        "only {} ports are used",
        ports.len()
    );
    agent.stop_clean(&world);
}
