use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use mesh_core::model::{Enrolment, Owner, Pod, ServiceRef, WorkloadUid};

use super::*;
use crate::telemetry::traffic::{GRACE, SCRAPES, UNSCRAPED};

fn identity(name: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{name}")
        .parse()
        .unwrap()
}

pub(crate) fn workload(name: &str, last: u8) -> Arc<Workload> {
    let pod = Pod {
        namespace: "shop".into(),
        name: format!("{name}-1"),
        uid: "u".into(),
        service_account: name.into(),
        node: "n1".into(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(198, 18, 0, last))],
        node_addresses: Vec::new(),
        host_network: false,
        ports: Arc::default(),
        labels: Arc::new([("app".to_owned(), name.to_owned())].into()),
        wishes: Default::default(),
        obstacle: None,
        ready: true,
        terminating: false,
        finished: false,
        location: None,
        probe_ports: Default::default(),
        exclusions: Default::default(),
        owner: Arc::new(Owner {
            kind: "Deployment".into(),
            name: name.into(),
        }),
    };
    Arc::new(Workload {
        uid: WorkloadUid::new("shop", &pod.name, "u"),
        identity: identity(name),
        enrolment: Enrolment::Enrolled,
        pod: Arc::new(pod),
    })
}

pub(crate) fn info(reporter: Reporter) -> ConnectionInfo {
    ConnectionInfo {
        reporter,
        security: Security::MutualTls,
        source_address: "198.18.0.1:40000".parse().unwrap(),
        source: Some(workload("order", 1)),
        source_identity: Some(identity("order")),
        requested_address: "198.18.9.9:80".parse().unwrap(),
        destination_address: "198.18.0.2:8080".parse().unwrap(),
        destination: Some(workload("payment", 2)),
        destination_identity: Some(identity("payment")),
        service: Some(Arc::new(Service {
            name: ServiceRef {
                namespace: "shop".into(),
                name: "payment".into(),
            },
            hostname: "payment.shop.svc.cluster.local".into(),
            vips: vec!["198.18.9.9".parse().unwrap()],
            external: vec![],
            source_ranges: vec![],
            affinity: None,
            node_local: false,
            distribution: Default::default(),
            ports: vec![],
            endpoints: Default::default(),
        })),
    }
}

fn only_sample(log: &ConnectionLog) -> crate::telemetry::traffic::Sample {
    let samples = log.traffic().samples();
    assert_eq!(samples.len(), 1, "{samples:?}");
    samples.into_iter().next().unwrap()
}

#[test]
fn counts_equal_what_was_added_and_closing_counts_once() {
    let log = Arc::new(ConnectionLog::default());
    let connection = log.open(info(Reporter::Source));
    connection.counts().add_received(100);
    connection.counts().add_sent(7);
    drop(connection);
    let sample = only_sample(&log);
    assert_eq!((sample.opened, sample.received, sample.sent), (1, 100, 7));
    assert_eq!(sample.closed, [(None, 1)]);
    log.carry_bytes();
    assert_eq!(only_sample(&log), sample);
    assert!(log.is_empty());
    assert_eq!(log.opened(), 1);
}

#[test]
fn bytes_of_a_live_connection_are_carried_before_it_closes_and_not_twice() {
    let log = Arc::new(ConnectionLog::default());
    let connection = log.open(info(Reporter::Destination));
    connection.counts().add_sent(5);
    log.carry_bytes();
    assert_eq!(only_sample(&log).sent, 5);
    connection.counts().add_sent(6);
    log.carry_bytes();
    log.carry_bytes();
    assert_eq!(only_sample(&log).sent, 11);
    drop(connection);
    assert_eq!(only_sample(&log).sent, 11);
}

#[test]
fn scrapes_from_several_threads_lose_and_double_nothing() {
    let log = Arc::new(ConnectionLog::default());
    let one = info(Reporter::Source);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let connection = log.open(one.clone());
                    connection.counts().add_received(3);
                    connection.counts().add_received(4);
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| (0..200).for_each(|_| log.carry_bytes()));
        }
    });
    let sample = only_sample(&log);
    assert_eq!((sample.opened, sample.received), (2000, 14_000));
    assert_eq!(sample.closed, [(None, 2000)]);
}

#[test]
fn the_first_failure_stays_and_is_counted_by_flag_and_reason() {
    let log = Arc::new(ConnectionLog::default());
    let mut connection = log.open(info(Reporter::Source));
    connection.fail(ResponseFlag::Connect, "refused", "nobody listens".into());
    connection.fail(ResponseFlag::Reset, "reset", "gone".into());
    drop(connection);
    assert_eq!(only_sample(&log).closed, [(Some(ResponseFlag::Connect), 1)]);
    assert_eq!(
        log.failures().counts(),
        [((Reporter::Source, ResponseFlag::Connect, "refused"), 1)]
    );
}

#[test]
fn the_table_holds_a_connection_for_as_long_as_its_guard_lives() {
    let log = Arc::new(ConnectionLog::default());
    let first = log.open(info(Reporter::Source));
    let second = log.open(info(Reporter::Destination));
    let mut ids: Vec<u64> = log.live().iter().map(|live| live.id).collect();
    ids.dedup();
    assert_eq!((ids.len(), log.len()), (2, 2));
    drop(first);
    assert_eq!(log.live()[0].info.reporter, Reporter::Destination);
    drop(second);
    assert!(log.is_empty());
}

#[test]
fn pods_of_one_deployment_share_a_label_set() {
    let log = Arc::new(ConnectionLog::default());
    drop(log.open(info(Reporter::Source)));
    drop(log.open(info(Reporter::Source)));
    assert_eq!(only_sample(&log).opened, 2);
}

/// Lets `n` scrapes see the values.
fn scrape(log: &ConnectionLog, n: u64) {
    (0..n).for_each(|_| drop(log.scrape()));
}

#[test]
fn label_sets_of_gone_workloads_expire_after_the_grace_time_and_not_while_connections_live() {
    let log = Arc::new(ConnectionLog::default());
    let connection = log.open(info(Reporter::Source));
    let start = Instant::now();
    let nobody = Present::default();
    log.forget_gone(&nobody, start);
    scrape(&log, SCRAPES);
    log.forget_gone(&nobody, start + GRACE);
    assert_eq!(
        log.traffic().samples().len(),
        1,
        "a live connection keeps its labels"
    );
    drop(connection);
    log.forget_gone(&nobody, start + GRACE);
    scrape(&log, SCRAPES);
    log.forget_gone(&nobody, start + GRACE + GRACE - Duration::from_secs(1));
    assert_eq!(log.traffic().samples().len(), 1, "within the grace time");
    log.forget_gone(&nobody, start + GRACE + GRACE);
    assert!(log.traffic().samples().is_empty());
}

#[test]
fn last_values_wait_for_two_scrapes_but_not_for_ever() {
    for (scrapes, after, left) in [
        (SCRAPES - 1, GRACE, 1),
        (SCRAPES, GRACE, 0),
        (0, UNSCRAPED - Duration::from_secs(1), 1),
        (0, UNSCRAPED, 0),
    ] {
        let log = Arc::new(ConnectionLog::default());
        drop(log.open(info(Reporter::Source)));
        scrape(&log, 7);
        let start = Instant::now();
        log.forget_gone(&Present::default(), start);
        scrape(&log, scrapes);
        log.forget_gone(&Present::default(), start + after);
        let kept = log.traffic().samples().len();
        assert_eq!(kept, left, "{scrapes} scrapes, {after:?}");
    }
}

#[test]
fn label_sets_of_present_workloads_never_expire_also_when_these_are_other_values_of_the_same_labels() {
    let log = Arc::new(ConnectionLog::default());
    let one = info(Reporter::Source);
    drop(log.open(one.clone()));
    let start = Instant::now();
    let (order, payment) = (workload("order", 7), workload("payment", 8));
    for workloads in [[&one.source, &one.destination], [&Some(order), &Some(payment)]] {
        let present = Present::among(workloads.into_iter().flatten(), &one.service);
        log.forget_gone(&present, start);
        scrape(&log, SCRAPES);
        log.forget_gone(&present, start + UNSCRAPED * 2);
        assert_eq!(log.traffic().samples().len(), 1);
    }
}

#[test]
fn a_label_set_leaves_with_either_of_its_workloads_and_with_its_service() {
    let one = info(Reporter::Source);
    let none: Option<Arc<Service>> = None;
    for (workloads, service) in [
        (vec![&one.source], &one.service),
        (vec![&one.destination], &one.service),
        (vec![&one.source, &one.destination], &none),
    ] {
        let log = Arc::new(ConnectionLog::default());
        drop(log.open(one.clone()));
        let present = Present::among(workloads.into_iter().flatten(), service);
        let start = Instant::now();
        log.forget_gone(&present, start);
        log.forget_gone(&present, start + UNSCRAPED);
        assert!(log.traffic().samples().is_empty());
    }
}

#[test]
fn a_workload_that_comes_back_within_the_grace_time_goes_on_counting() {
    let log = Arc::new(ConnectionLog::default());
    let start = Instant::now();
    drop(log.open(info(Reporter::Source)));
    log.forget_gone(&Present::default(), start);
    drop(log.open(info(Reporter::Source)));
    scrape(&log, SCRAPES);
    log.forget_gone(&Present::default(), start + GRACE);
    assert_eq!(only_sample(&log).opened, 2);
}

#[test]
fn label_sets_without_room_share_one_per_reporter_and_nothing_is_lost() {
    let log = Arc::new(ConnectionLog::with_label_sets(3));
    let of = |n: u8| ConnectionInfo {
        source: Some(workload(&format!("order-{n}"), n)),
        ..info(Reporter::Source)
    };
    for n in 0..10 {
        let connection = log.open(of(n));
        connection.counts().add_sent(5);
    }
    // Those that have room keep it, and those without do not take it later.
    drop(log.open(of(0)));
    drop(log.open(of(9)));
    let samples = log.scrape();
    let opened = |workload: &str| {
        let mine = samples.iter().filter(|sample| {
            sample
                .labels
                .pairs()
                .any(|pair| pair == ("source_workload", workload))
        });
        mine.map(|sample| sample.opened).collect::<Vec<_>>()
    };
    assert_eq!(samples.len(), 4, "{samples:?}");
    assert_eq!((opened("order-0"), opened("other")), (vec![2], vec![8]));
    assert_eq!(samples.iter().map(|sample| sample.sent).sum::<u64>(), 50);
    let room = log.traffic().room();
    assert_eq!((room.used, room.capacity), (3, 3));
    assert!(room.overflows >= 7, "{room:?}");
    // Room that others leave is taken.
    let start = Instant::now();
    log.forget_gone(&Present::default(), start);
    log.forget_gone(&Present::default(), start + UNSCRAPED);
    drop(log.open(of(9)));
    let room = log.traffic().room();
    assert_eq!(room.used, 1, "the shared ones stay beside it: {room:?}");
    assert_eq!(log.traffic().samples().len(), 2);
}

#[test]
fn threads_count_in_numbers_of_their_own_which_a_scrape_adds_up() {
    let log = Arc::new(ConnectionLog::default());
    let one = info(Reporter::Source);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let connection = log.open(one.clone());
                connection.counts().add_received(7);
                log.retried("goaway");
            });
        }
    });
    let shards = log.shards.iter().filter(|shard| !shard.lock().series.is_empty());
    let mut places: Vec<_> = shards
        .flat_map(|shard| shard.lock().series.values().map(Arc::as_ptr).collect::<Vec<_>>())
        .collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), 3, "each thread has its own");
    let sample = only_sample(&log);
    assert_eq!((sample.opened, sample.received), (3, 21));
    assert_eq!(log.retries().counts(), [("goaway", 3)]);
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn logged(act: impl FnOnce()) -> Vec<serde_json::Value> {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let bytes = lines.0.lock().unwrap();
    String::from_utf8_lossy(&bytes)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_closed_connection_writes_one_access_line_in_the_known_shape() {
    let log = Arc::new(ConnectionLog::default());
    let lines = logged(|| {
        let connection = log.open(info(Reporter::Source));
        connection.counts().add_received(10);
        connection.counts().add_sent(20);
    });
    let [line] = &lines[..] else { panic!("{lines:?}") };
    for (key, value) in [
        ("target", "access"),
        ("level", "INFO"),
        ("src.addr", "198.18.0.1:40000"),
        ("src.workload", "order-1"),
        ("src.namespace", "shop"),
        ("src.identity", "spiffe://cluster.local/ns/shop/sa/order"),
        ("dst.addr", "198.18.0.2:15008"),
        ("dst.hbone_addr", "198.18.0.2:8080"),
        ("dst.service", "payment.shop.svc.cluster.local"),
        ("dst.workload", "payment-1"),
        ("dst.namespace", "shop"),
        ("dst.identity", "spiffe://cluster.local/ns/shop/sa/payment"),
        ("direction", "outbound"),
    ] {
        assert_eq!(line[key], value, "{key}");
    }
    assert_eq!(
        (&line["bytes_sent"], &line["bytes_recv"]),
        (&20.into(), &10.into())
    );
    assert!(line["duration"].as_str().unwrap().ends_with("ms"));
    assert!(line.get("error").is_none() && line.get("response_flags").is_none());
}

#[test]
fn a_failed_plaintext_connection_says_why_and_leaves_out_what_is_unknown() {
    let log = Arc::new(ConnectionLog::default());
    let lines = logged(|| {
        let mut connection = log.open(ConnectionInfo {
            security: Security::None,
            source: None,
            source_identity: None,
            service: None,
            ..info(Reporter::Destination)
        });
        connection.fail(
            ResponseFlag::Deny,
            "plaintext_refused",
            "shop/payment is STRICT".into(),
        );
    });
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(line["level"], "WARN");
    assert_eq!(line["error"], "shop/payment is STRICT");
    assert_eq!(line["response_flags"], "DENY");
    assert_eq!(line["reason"], "plaintext_refused");
    assert_eq!(line["dst.addr"], "198.18.0.2:8080");
    assert_eq!(line["direction"], "inbound");
    for key in [
        "src.workload",
        "src.namespace",
        "src.identity",
        "dst.hbone_addr",
        "dst.service",
    ] {
        assert!(line.get(key).is_none(), "{key}");
    }
}
