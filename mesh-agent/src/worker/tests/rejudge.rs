//! Connections that stand while what decides about them changes.

use std::net::SocketAddr;

use mesh_core::authz::Word;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::world::{World, application, in_namespace, ip, uid, version_of};
use super::{STRICT, assert_reset, eventually, pair, plaintext};

/// A policy over payment; `rest` is what stands below `spec`, in flow style.
fn policy(name: &str, rest: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{{rest}}}\n---\n"
    )
}

fn publish(world: &World, version: u64, extra: &str) {
    let next = version_of(version, "payment", "payment", extra);
    world.snapshots.publish(next.into());
}

async fn still_carries(client: &mut TcpStream, server: &mut TcpStream) {
    client.write_all(b"y").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'y');
}

const ORDER: &str = "rules: [{from: [{source: {serviceAccounts: [order]}}]}]";

#[test]
fn a_change_resets_whom_it_denies_on_both_sides_and_touches_nobody_else() {
    in_namespace(
        "rejudge::a_change_resets_whom_it_denies_on_both_sides_and_touches_nobody_else",
        || async {
            let world = World::new().await;
            let (listener, _) = application("payment", false).await;
            let (mut client, mut server) = pair(&world, &listener).await;
            let (plain, application) = plaintext(&world).await;
            let (delivered, _) = application.accept().await.unwrap();
            publish(&world, 2, &policy("order", ORDER));
            assert_reset(plain).await;
            assert_reset(delivered).await;
            still_carries(&mut client, &mut server).await;
            let deny = policy("order", ORDER) + &policy("none", "action: DENY, rules: [{}]");
            publish(&world, 3, &deny);
            assert_reset(client).await;
            assert_reset(server).await;
            let rejudged = world.log.policies().rejudgings();
            assert_eq!((rejudged.closed, rejudged.kept), (2, 1));
            eventually("both are counted", || world.log.policies().recent().len() == 2).await;
            let stood = world.log.policies().recent();
            assert!(stood.iter().all(|refused| refused.stood.is_some()), "{stood:?}");
        },
    );
}

#[test]
fn strict_turned_on_resets_plaintext_that_stands_and_no_tunnel() {
    in_namespace(
        "rejudge::strict_turned_on_resets_plaintext_that_stands_and_no_tunnel",
        || async {
            let world = World::new().await;
            let (listener, _) = application("payment", false).await;
            let (mut client, mut server) = pair(&world, &listener).await;
            let (plain, application) = plaintext(&world).await;
            let _delivered = application.accept().await.unwrap();
            publish(&world, 2, STRICT);
            assert_reset(plain).await;
            still_carries(&mut client, &mut server).await;
        },
    );
}

#[test]
fn changes_that_decide_nothing_about_a_pod_ask_about_none_of_its_connections() {
    in_namespace(
        "rejudge::changes_that_decide_nothing_about_a_pod_ask_about_none_of_its_connections",
        || async {
            let world = World::new().await;
            let (listener, _) = application("payment", false).await;
            let (mut client, mut server) = pair(&world, &listener).await;
            for version in 2..6 {
                let elsewhere = policy("elsewhere", "selector: {matchLabels: {app: other}}");
                publish(&world, version, &elsewhere);
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            still_carries(&mut client, &mut server).await;
            assert_eq!(world.log.policies().rejudgings(), Default::default());
        },
    );
}

#[test]
fn a_connection_ends_when_the_change_that_let_it_in_is_taken_back() {
    in_namespace(
        "rejudge::a_connection_ends_when_the_change_that_let_it_in_is_taken_back",
        || async {
            let world = World::with(crate::tunnel::Limits::default(), &policy("none", "")).await;
            world.enrol("order");
            world.enrol("payment");
            let (listener, _) = application("payment", false).await;
            publish(&world, 2, "");
            let (client, _server) = pair(&world, &listener).await;
            // What decides is the same as at first, and differs from what let it in.
            publish(&world, 3, &policy("none", ""));
            assert_reset(client).await;
        },
    );
}

/// An application in payment whose accept queue is full: what is delivered to it waits. With what fills the queue.
fn overwhelmed(address: SocketAddr) -> (Socket, Vec<Socket>) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.set_reuse_address(true).unwrap();
    listener.bind(&address.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let fill = (0..4).map(|_| {
        let client = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        // Under way; those that come first take the room that there is.
        let _ = client.connect(&address);
        client
    });
    let fill = fill.collect();
    (listener, fill)
}

#[test]
fn a_connection_that_is_denied_while_it_is_delivered_counts_as_denied_and_not_as_let_in() {
    in_namespace(
        "rejudge::a_connection_that_is_denied_while_it_is_delivered_counts_as_denied_and_not_as_let_in",
        || async {
            let allow = policy("all", "rules: [{}]");
            let world = World::with(crate::tunnel::Limits::default(), &allow).await;
            world.enrol("order");
            world.enrol("payment");
            let (listener, fill) = overwhelmed(SocketAddr::new(ip("payment", false), 0));
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            let through = world.connect("order", address).await;
            let standing = || world.workers.workers[0].pods()[&uid("payment")].standing.len();
            eventually("it is being delivered", || standing() == 1).await;
            let agent = std::net::TcpListener::bind(SocketAddr::new(ip("payment", false), 0)).unwrap();
            let plain = TcpStream::connect(agent.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = agent.accept().unwrap();
            accepted.set_nonblocking(true).unwrap();
            drop(agent);
            let behind = overwhelmed(accepted.local_addr().unwrap());
            world.take_plaintext("payment", accepted);
            eventually("both are being delivered", || standing() == 2).await;
            publish(&world, 2, &(allow + &policy("none", "action: DENY, rules: [{}]")));
            assert_reset(through).await;
            assert_reset(plain).await;
            eventually("both are counted", || world.log.policies().recent().len() == 2).await;
            let counts = world.log.policies().counts();
            let counts: Vec<_> = counts
                .iter()
                .map(|(tally, n)| (tally.policy.name.as_str(), tally.word, *n))
                .collect();
            assert_eq!(counts, [("none", Word::Denied, 2)]);
            let refused = world.log.policies().recent();
            assert!(
                refused.iter().all(|refused| refused.stood.is_none()),
                "{refused:?}"
            );
            drop((listener, fill, behind));
        },
    );
}
