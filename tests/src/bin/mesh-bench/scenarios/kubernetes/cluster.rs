//! The documents of a large cluster, with what a real API server's have and nobody here reads.

use serde_json::{Value, json};

/// How many pods a service has.
const BEHIND: usize = 10;
/// How many services a namespace has.
const SERVICES: usize = 20;

/// How large a cluster is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) pods: usize,
}

impl Size {
    pub(crate) fn services(self) -> usize {
        self.pods / BEHIND
    }

    fn spaces(self) -> usize {
        self.services() / SERVICES
    }

    fn nodes(self) -> usize {
        self.pods / 100
    }

    /// All objects. Every second namespace is enrolled; each has policies of its own.
    pub(crate) fn objects(self) -> impl Iterator<Item = Value> {
        let nodes = (0..self.nodes()).map(node);
        let spaces = (0..self.spaces()).flat_map(|n| [namespace(n), peers(n), policy(n)]);
        let services = (0..self.services()).flat_map(move |n| [service(n), slice(self, n, true)]);
        let pods = (0..self.pods).map(move |n| pod(self, n));
        nodes.chain(spaces).chain(services).chain(pods)
    }
}

fn space(service: usize) -> String {
    format!("team-{:03}", service / SERVICES)
}

fn node_name(n: usize) -> String {
    format!("worker-{n:03}.example.internal")
}

fn zone(node: usize) -> String {
    format!("region-1{}", ["a", "b", "c"][node % 3])
}

/// The node of a pod: those of a service are spread.
fn node_of(size: Size, pod: usize) -> usize {
    (pod * 7 + pod / BEHIND) % size.nodes()
}

fn address(pod: usize) -> String {
    format!("10.{}.{}.{}", 128 + pod / 62_500, pod / 250 % 250, pod % 250 + 1)
}

fn node_address(node: usize) -> String {
    format!("10.64.{}.{}", node / 250, node % 250 + 1)
}

fn namespace(n: usize) -> Value {
    let wish = if n.is_multiple_of(2) {
        "enabled"
    } else {
        "disabled"
    };
    let name = format!("team-{n:03}");
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, "mesh-agent.io/dataplane": wish}},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    })
}

fn peers(n: usize) -> Value {
    let mode = if n.is_multiple_of(4) {
        "STRICT"
    } else {
        "PERMISSIVE"
    };
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": format!("team-{n:03}")}, "spec": {"mtls": {"mode": mode}},
    })
}

fn policy(n: usize) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "from-neighbours", "namespace": format!("team-{n:03}")},
        "spec": {"rules": [{"from": [{"source": {"namespaces": [format!("team-{n:03}"), "ingress"]}}]}]},
    })
}

fn node(n: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": node_name(n), "labels": {"topology.kubernetes.io/zone": zone(n), "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": format!("10.{}.{}.0/24", 128 + n / 250, n % 250)},
        "status": {"addresses": [
            {"type": "InternalIP", "address": node_address(n)}, {"type": "Hostname", "address": node_name(n)},
        ], "images": [{"names": ["registry.example/library/app:1.0"], "sizeBytes": 1}]},
    })
}

fn service(n: usize) -> Value {
    let ip = format!("10.96.{}.{}", n / 250, n % 250 + 1);
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("service-{n:04}"), "namespace": space(n), "labels": {"app": format!("service-{n:04}")}},
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None", "selector": {"app": format!("service-{n:04}")},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// The EndpointSlice of a service; its first endpoint is ready or not.
pub(crate) fn slice(size: Size, n: usize, first: bool) -> Value {
    let endpoint = |i: usize| {
        let pod = n * BEHIND + i;
        let ready = first || i > 0;
        let node = node_of(size, pod);
        json!({
            "addresses": [address(pod)], "nodeName": node_name(node), "zone": zone(node),
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
            "targetRef": {"kind": "Pod", "name": pod_name(pod), "namespace": space(n), "uid": uid(pod)},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("service-{n:04}-x7k2p"), "namespace": space(n),
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-21T02:33:46Z"},
            "labels": {
                "app": format!("service-{n:04}"), "kubernetes.io/service-name": format!("service-{n:04}"),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "endpoints": (0..BEHIND).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn pod_name(pod: usize) -> String {
    let n = pod / BEHIND;
    format!("service-{n:04}-7d9c5b6f4{}-{pod:05}", n % 10)
}

fn uid(pod: usize) -> String {
    format!("7f3c9a52-1b7e-4c1d-9a55-{pod:012x}")
}

fn pod(size: Size, n: usize) -> Value {
    let service = n / BEHIND;
    let (app, hash) = (
        format!("service-{service:04}"),
        format!("7d9c5b6f4{}", service % 10),
    );
    let node = node_of(size, n);
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod_name(n), "generateName": format!("{app}-{hash}-"), "namespace": space(service),
            "labels": {
                "app": app, "version": "v1", "pod-template-hash": hash, "app.kubernetes.io/name": app,
                "app.kubernetes.io/part-of": space(service), "app.kubernetes.io/managed-by": "Helm",
            },
            "annotations": {"prometheus.io/scrape": "true", "checksum/config": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-{hash}"), "uid": uid(service), "controller": true}],
        },
        "spec": {
            "nodeName": node_name(node), "serviceAccountName": app, "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "containers": [{
                "name": "app", "image": "registry.example/library/app:1.0", "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "env": [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}, {"name": "LEVEL", "value": "info"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": probe, "livenessProbe": probe,
                "volumeMounts": [{"name": "token", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}],
            }],
            "volumes": [{"name": "token", "projected": {"sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
        },
        "status": {
            "phase": "Running", "podIP": address(n), "podIPs": [{"ip": address(n)}], "hostIP": node_address(node),
            "hostIPs": [{"ip": node_address(node)}], "qosClass": "Burstable", "startTime": "2026-11-21T02:33:46Z",
            "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-21T02:33:50Z"},
                {"type": "ContainersReady", "status": "True", "lastTransitionTime": "2026-11-21T02:33:50Z"},
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-21T02:33:46Z"},
            ],
            "containerStatuses": [{
                "name": "app", "ready": true, "restartCount": 0, "image": "registry.example/library/app:1.0",
                "containerID": format!("containerd://{n:064x}"), "state": {"running": {"startedAt": "2026-11-21T02:33:49Z"}},
            }],
        },
    })
}
