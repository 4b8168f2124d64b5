//! One change after another against the definition: whatever happens to a mesh, what is made from the snapshot before is what all the
//! objects say together.

use std::collections::{BTreeMap, BTreeSet};

use super::super::reference::Plain;
use super::*;
use crate::manifest::{self, Accepted};
use crate::model::ObjectRef;

/// What seeds are read as.
struct Seed(u64);

impl Seed {
    /// One of `many`.
    fn one(&mut self, many: u64) -> u64 {
        let one = self.0 % many;
        self.0 /= many;
        one
    }

    fn of<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        texts[self.one(texts.len() as u64) as usize]
    }
}

const SPACES: [&str; 3] = ["shop", "bank", "istio-system"];
const KINDS: u8 = 7;

/// An object of this kind, by the seed.
fn document(kind: u8, slot: u8, seed: u64) -> String {
    let (space, n) = (SPACES[usize::from(slot) % 3], slot / 3);
    let mut seed = Seed(seed);
    let created = |seed: &mut Seed| seed.of(&["", "", ", creationTimestamp: '2026-01-01T00:00:00Z'"]);
    let labels = |seed: &mut Seed| seed.of(&["app: a", "app: b", "app: a, tier: x", "", "app: ztunnel"]);
    match kind {
        0 => {
            let wish = seed.of(&[
                "mesh-agent.io/dataplane: enabled",
                "mesh-agent.io/dataplane: disabled",
                "istio.io/dataplane-mode: ambient",
                "mesh-agent.io/dataplane: none-of-these",
            ]);
            format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {space}, labels: {{{wish}}}}}}}")
        }
        1 => {
            let zone = seed.of(&[
                "",
                "labels: {topology.kubernetes.io/zone: z1}",
                "labels: {topology.kubernetes.io/zone: z2}",
            ]);
            let address = 1 + seed.one(6);
            format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: node-{}, {zone}}}, status: {{addresses: [{{type: InternalIP, address: 198.18.0.{address}}}]}}}}",
                1 + slot % 3
            )
        }
        2 => {
            let uid = seed.of(&["", ", uid: u1", ", uid: u2"]);
            let labels = labels(&mut seed);
            let wish = seed.of(&[
                "",
                ", mesh-agent.io/dataplane: enabled",
                ", mesh-agent.io/dataplane: disabled",
                ", istio.io/dataplane-mode: ambient",
                ", istio.io/dataplane-mode: none",
            ]);
            let wish = if labels.is_empty() {
                wish.trim_start_matches(", ")
            } else {
                wish
            };
            let leaving = seed.of(&["", "", ", deletionTimestamp: '2026-01-01T00:00:00Z'"]);
            let owner = seed.of(&[
                "",
                ", ownerReferences: [{apiVersion: apps/v1, kind: DaemonSet, name: d, uid: x, controller: true}]",
            ]);
            let node = seed.of(&["nodeName: node-1, ", "nodeName: node-2, ", ""]);
            let host = seed.of(&["false", "false", "false", "true"]);
            let account = seed.of(&["buyer", "seller"]);
            let address = seed.of(&[
                "",
                "podIP: 198.18.0.1",
                "podIP: 198.18.0.2",
                "podIP: 198.18.0.3",
                "podIPs: [{ip: 198.18.0.4}, {ip: '2001:db8::1'}]",
            ]);
            let host_ip = seed.of(&["", "", ", hostIP: 198.18.0.5", ", hostIP: 198.18.0.3"]);
            let phase = seed.of(&["", "", ", phase: Succeeded"]);
            let ready = seed.of(&["", ", conditions: [{type: Ready, status: 'False'}]"]);
            let status = format!("{address}{host_ip}{phase}{ready}");
            let status = status.trim_start_matches(", ");
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: p{n}, namespace: {space}{uid}{leaving}{owner}, labels: {{{labels}{wish}}}}}, \
                 spec: {{{node}hostNetwork: {host}, serviceAccountName: {account}, containers: [{{name: c, ports: [{{name: web, containerPort: 8080}}]}}]}}, \
                 status: {{{status}}}}}"
            )
        }
        3 => {
            let created = created(&mut seed);
            let ip = seed.of(&[
                "clusterIP: 198.19.0.1",
                "clusterIP: 198.19.0.2",
                "clusterIP: None",
                "clusterIP: '2001:db8:1::1'",
                "clusterIP: 198.18.0.2",
            ]);
            let external = seed.of(&[
                "",
                ", externalIPs: [198.19.0.9]",
                ", externalIPs: [198.19.0.1, 198.18.0.3]",
                ", externalIPs: [198.18.0.5]",
            ]);
            let selector = seed.of(&[", selector: {app: a}", ", selector: {app: b}", ""]);
            let ports = seed.of(&[
                "{name: w, port: 80, targetPort: web}",
                "{name: w, port: 80, targetPort: 8080}, {name: v, port: 81}",
            ]);
            let extra = seed.of(&[
                "",
                "",
                ", publishNotReadyAddresses: true",
                ", type: ExternalName, externalName: a.b",
            ]);
            let status = seed.of(&["", "", ", status: {loadBalancer: {ingress: [{ip: 198.19.0.9}]}}"]);
            format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: s{n}, namespace: {space}{created}}}, \
                 spec: {{{ip}{external}{selector}, ports: [{ports}]{extra}}}{status}}}"
            )
        }
        4 => {
            let service = seed.of(&[
                "kubernetes.io/service-name: s0",
                "kubernetes.io/service-name: s1",
                "",
            ]);
            let count = seed.one(3);
            let endpoints: Vec<String> = (0..count)
                .map(|_| {
                    let place = seed.of(&[
                        "",
                        ", nodeName: node-1",
                        ", nodeName: node-3, zone: z1",
                        ", nodeName: node-3, zone: z2",
                    ]);
                    let ready = seed.of(&["true", "false"]);
                    format!(
                        "{{addresses: [198.18.0.{}], conditions: {{ready: {ready}}}{place}}}",
                        1 + seed.one(5)
                    )
                })
                .collect();
            format!(
                "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: e{n}, namespace: {space}, \
                 labels: {{{service}}}}}, endpoints: [{}], ports: [{{name: w, port: 8080}}]}}",
                endpoints.join(", ")
            )
        }
        5 => {
            let created = created(&mut seed);
            let selector = seed.of(&[
                "",
                "selector: {matchLabels: {app: a}}, ",
                "selector: {matchLabels: {tier: x}}, ",
            ]);
            let mode = seed.of(&["STRICT", "PERMISSIVE", "UNSET"]);
            let ports = if selector.is_empty() {
                ""
            } else {
                seed.of(&["", ", portLevelMtls: {8080: {mode: STRICT}}"])
            };
            format!(
                "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{name: m{n}, namespace: {space}{created}}}, \
                 spec: {{{selector}mtls: {{mode: {mode}}}{ports}}}}}"
            )
        }
        _ => {
            let about = seed.of(&[
                "",
                "selector: {matchLabels: {app: a}}",
                "targetRefs: [{kind: Service, group: '', name: s0}]",
            ]);
            format!(
                "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{name: a{n}, namespace: {space}}}, spec: {{{about}}}}}"
            )
        }
    }
}

fn accepted(file: &str, kind: u8, slot: u8, seed: u64) -> Accepted {
    let text = document(kind, slot, seed);
    let mut contents = manifest::parse(file, text.as_bytes());
    assert_eq!(
        (contents.rejections.as_slice(), contents.accepted.len()),
        ([].as_slice(), 1),
        "{text}"
    );
    contents.accepted.remove(0)
}

/// What happens to one object: its kind and slot, and the seeds of its versions from now on, of which the first holds.
type Change = (u8, u8, Vec<u64>);

fn change() -> impl Strategy<Value = Change> {
    let versions = prop_oneof![
        1 => Just(Vec::new()),
        6 => proptest::collection::vec(any::<u64>(), 1),
        1 => proptest::collection::vec(any::<u64>(), 2),
    ];
    (0..KINDS, 0..9u8, versions)
}

/// Applies batches of changes to a builder and compares each snapshot with the definition.
fn follow(batches: &[Vec<Change>]) -> Result<(), TestCaseError> {
    let mut builder = Builder::new(settings());
    let mut world: BTreeMap<ObjectRef, Vec<Accepted>> = BTreeMap::new();
    let mut before = Plain::of(&Snapshot::empty(settings()));
    let mut snapshots = vec![Snapshot::empty(settings())];
    for (version, batch) in (1..).zip(batches) {
        for (kind, slot, seeds) in batch {
            let name = accepted("a", *kind, *slot, 0).object.name();
            let files = ["a", "b"].into_iter();
            let versions: Vec<_> = files
                .zip(seeds)
                .map(|(file, seed)| accepted(file, *kind, *slot, *seed))
                .collect();
            builder.set(&Arc::new(name.clone()), &versions);
            world.insert(name, versions);
        }
        let (snapshot, changed) = builder.next(version);
        let now = Plain::of(&snapshot);
        let all = || world.values().flatten();
        prop_assert_eq!(
            &now,
            &Plain::by_definition(&settings(), all(), Diagnostics::default())
        );
        let at_once = Snapshot::build(settings(), version, all(), Diagnostics::default());
        prop_assert_eq!(&now, &Plain::of(&at_once));
        prop_assert!(changed || now == before, "a change that is not told");
        let enrolled: BTreeSet<_> = snapshot.enrolled_addresses().collect();
        prop_assert_eq!(enrolled.len(), snapshot.enrolled_count());
        for old in &snapshots {
            let was: BTreeSet<_> = old.enrolled_addresses().collect();
            let told = snapshot.enrolled_since(old.version()).unwrap();
            prop_assert!(told.is_superset(&was.symmetric_difference(&enrolled).copied().collect()));
        }
        before = now;
        snapshots.push(snapshot);
    }
    // Snapshots that are in use do not change any more.
    prop_assert_eq!(Plain::of(&snapshots[0]), Plain::of(&Snapshot::empty(settings())));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn what_is_made_change_by_change_is_what_all_objects_say(
        first in proptest::collection::vec(change(), 0..40),
        batches in proptest::collection::vec(proptest::collection::vec(change(), 1..5), 1..12),
    ) {
        let mut all = vec![first];
        all.extend(batches);
        follow(&all)?;
    }
}

/// A cluster of `spaces` namespaces with two pods and a service with a slice each; every second one is enrolled.
fn cluster(builder: &mut Builder, spaces: usize) {
    for n in 0..spaces {
        let wish = if n % 2 == 0 { "enabled" } else { "disabled" };
        let text = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: n{n}, labels: {{mesh-agent.io/dataplane: {wish}}}}}}}\n---\n{}\n---\n{}\n---\n{}\n---\n{}\n",
            cluster_pod(n, 0, true),
            cluster_pod(n, 1, true),
            format_args!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: n{n}}}, spec: {{clusterIP: 198.19.{}.{}, selector: {{app: a}}, ports: [{{name: w, port: 80}}]}}}}",
                n / 250,
                n % 250
            ),
            cluster_slice(n, true),
        );
        set(builder, &text);
    }
}

fn address(n: usize, pod: usize) -> String {
    format!("198.18.{}.{}", 2 * (n / 250) + pod, n % 250)
}

fn cluster_pod(n: usize, pod: usize, ready: bool) -> String {
    let ready = if ready { "True" } else { "False" };
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: p{pod}, namespace: n{n}, labels: {{app: a}}}}, spec: {{nodeName: node-{}}}, \
         status: {{podIP: {}, conditions: [{{type: Ready, status: '{ready}'}}]}}}}",
        n % 10,
        address(n, pod)
    )
}

fn cluster_slice(n: usize, ready: bool) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {{name: s-1, namespace: n{n}, labels: {{kubernetes.io/service-name: s}}}}, \
         endpoints: [{{addresses: [{}], conditions: {{ready: {ready}}}}}, {{addresses: [{}]}}], ports: [{{name: w, port: 8080}}]}}",
        address(n, 0),
        address(n, 1)
    )
}

fn set(builder: &mut Builder, text: &str) {
    let contents = manifest::parse("-", text.as_bytes());
    assert_eq!(contents.rejections, []);
    for one in &contents.accepted {
        builder.set(&Arc::new(one.object.name()), [one]);
    }
}

/// How many workloads and services of `now` are other values than in `before`.
fn made_anew(before: &Snapshot, now: &Snapshot) -> (usize, usize) {
    let workloads = now
        .workloads()
        .filter(|one| before.workload(&one.uid).is_none_or(|old| !Arc::ptr_eq(old, one)));
    let services = now
        .services()
        .filter(|one| before.service(&one.name).is_none_or(|old| !Arc::ptr_eq(old, one)));
    (workloads.count(), services.count())
}

#[test]
fn a_change_makes_anew_what_rests_on_it_however_large_the_cluster() {
    for spaces in [10, 300] {
        let mut builder = Builder::new(settings());
        cluster(&mut builder, spaces);
        let mut before = builder.next(1).0;
        assert_eq!(
            (before.workload_count(), before.service_count()),
            (2 * spaces, spaces)
        );
        let steps: [(&str, String, (usize, usize)); 6] = [
            ("an endpoint is not ready any more", cluster_slice(4, false), (0, 1)),
            ("a pod is not ready any more", cluster_pod(4, 0, false), (1, 0)),
            ("nothing", cluster_pod(4, 0, false), (0, 0)),
            (
                "a namespace is enrolled",
                "{apiVersion: v1, kind: Namespace, metadata: {name: n5, labels: {mesh-agent.io/dataplane: enabled}}}".into(),
                (2, 0),
            ),
            (
                "a policy of one namespace",
                "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: n5}, spec: {}}".into(),
                (0, 0),
            ),
            (
                "a node without endpoints of its own",
                "{apiVersion: v1, kind: Node, metadata: {name: node-99, labels: {topology.kubernetes.io/zone: z}}}".into(),
                (0, 0),
            ),
        ];
        for (version, (what, text, expected)) in (2..).zip(steps) {
            set(&mut builder, &text);
            let (now, changed) = builder.next(version);
            assert_eq!(
                (made_anew(&before, &now), changed),
                (expected, what != "nothing"),
                "{what}, {spaces} namespaces"
            );
            before = now;
        }
        let enrolled = before.enrolled_since(4).unwrap();
        let expected = [address(5, 0), address(5, 1), "198.19.0.5".into()];
        assert_eq!(
            enrolled,
            expected.iter().map(|text| text.parse().unwrap()).collect()
        );
    }
}
