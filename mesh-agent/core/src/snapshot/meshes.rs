//! Other meshes on the nodes, as the pods of their data planes show them, and whether Istio's enrolment label is left to Istio there.
//!
//! Whoever can have a pod taken for a part of Istio takes other pods out of this mesh. So a pod counts only in namespaces that belong to
//! the cluster's owner: `kube-system` and the mesh's root namespace. Every agent decides alike about every node, for a destination
//! that its own node's agent has let go must not be dialled by tunnel.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::MeshSettings;
use super::mtls::Remark;
use crate::manifest::NoticeKind;
use crate::model::{ObjectRef, Pod};

/// A namespace that is the cluster's owner's, beside the mesh's root namespace.
const SYSTEM: &str = "kube-system";

/// Whose the label `istio.io/dataplane-mode` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IstioLabel {
    /// Istio's on nodes on which a part of Istio's data plane runs, ours on others.
    #[default]
    Auto,
    /// Ours: it enrols, whoever else is there.
    Enrol,
    /// Istio's on all nodes: it means nothing here.
    Leave,
}

/// A part of another mesh's data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Istio's CNI plugin and its node agent.
    IstioCni,
    /// The node proxy of Istio ambient.
    Ztunnel,
    /// Linkerd's CNI plugin. Pods with its proxies are refused one by one.
    LinkerdCni,
}

impl Part {
    /// What it is called.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IstioCni => "istio-cni",
            Self::Ztunnel => "ztunnel",
            Self::LinkerdCni => "linkerd-cni",
        }
    }

    /// Whether it is Istio's.
    pub fn is_istio(self) -> bool {
        matches!(self, Self::IstioCni | Self::Ztunnel)
    }

    /// What `pod` is, by the labels with which these are installed.
    fn of(pod: &Pod) -> Option<Self> {
        let label = |key: &str| pod.labels.get(key).map(String::as_str);
        match (label("k8s-app"), label("app")) {
            (Some("istio-cni-node"), _) => Some(Self::IstioCni),
            (Some("linkerd-cni"), _) => Some(Self::LinkerdCni),
            (_, Some("ztunnel")) => Some(Self::Ztunnel),
            _ => None,
        }
    }
}

/// A part of another mesh on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct OtherMesh {
    /// What it is.
    pub part: Part,
    /// The pod that shows it.
    pub pod: ObjectRef,
}

/// Other meshes by node.
#[derive(Debug, Default)]
pub(crate) struct Meshes {
    label: IstioLabel,
    root_namespace: String,
    nodes: HashMap<String, Vec<OtherMesh>>,
}

impl Meshes {
    /// None yet.
    pub(super) fn new(settings: &MeshSettings) -> Self {
        Self {
            label: settings.istio_label,
            root_namespace: settings.root_namespace.clone(),
            nodes: HashMap::new(),
        }
    }

    /// Those that `pods` show.
    pub(crate) fn of<'a>(pods: impl Iterator<Item = &'a Pod>, settings: &MeshSettings) -> Self {
        let mut meshes = Self::new(settings);
        for pod in pods {
            meshes.add(pod);
        }
        meshes
    }

    fn add(&mut self, pod: &Pod) {
        if let Some(other) = self.shown_by(pod) {
            let all = self.nodes.entry(pod.node.clone()).or_default();
            let at = all.partition_point(|known| *known < other);
            all.insert(at, other);
        }
    }

    /// One pod is `after` now, no longer `before`. Returns the nodes on which that makes a difference.
    pub(super) fn replace(&mut self, before: Option<&Pod>, after: Option<&Pod>) -> Vec<String> {
        let shown = |pod: Option<&Pod>| pod.and_then(|pod| Some((self.shown_by(pod)?, pod.node.clone())));
        let (old, new) = (shown(before), shown(after));
        if old == new {
            return Vec::new();
        }
        if let Some((other, node)) = &old
            && let Some(all) = self.nodes.get_mut(node)
        {
            all.retain(|known| known != other);
            if all.is_empty() {
                self.nodes.remove(node);
            }
        }
        after.into_iter().for_each(|pod| self.add(pod));
        old.into_iter().chain(new).map(|(_, node)| node).collect()
    }

    /// The part of another mesh that `pod` is.
    fn shown_by(&self, pod: &Pod) -> Option<OtherMesh> {
        let part = Part::of(pod).filter(|_| !pod.node.is_empty() && !pod.finished)?;
        let of_the_owner = pod.namespace == SYSTEM || pod.namespace == self.root_namespace;
        // Istio's word moves other pods; Linkerd's is only shown.
        if part.is_istio() && !(of_the_owner && pod.owner.kind == "DaemonSet") {
            return None;
        }
        Some(OtherMesh {
            part,
            pod: ObjectRef::new("Pod", &pod.namespace, &pod.name),
        })
    }

    /// Those on `node`, sorted.
    pub(crate) fn on(&self, node: &str) -> &[OtherMesh] {
        self.nodes.get(node).map_or(&[], Vec::as_slice)
    }

    /// Whether a part of Istio is on any node.
    pub(crate) fn has_istio(&self) -> bool {
        self.nodes.values().flatten().any(|other| other.part.is_istio())
    }

    /// What there is to say about them on `node`.
    pub(super) fn remarks(&self, node: &str) -> Vec<Remark> {
        let istio = self.on(node).iter().filter(|other| other.part.is_istio());
        let remark = |other: &OtherMesh| {
            let part = other.part.as_str();
            let (kind, message) = match self.label {
                IstioLabel::Enrol => (
                    NoticeKind::Conflict,
                    format!(
                        "Istio's {part} runs on this node, and label istio.io/dataplane-mode enrols here all the same (setting \
                         istioLabel): both meshes may take the same pods"
                    ),
                ),
                IstioLabel::Auto | IstioLabel::Leave => (
                    NoticeKind::Ignored,
                    format!(
                        "Istio's {part} runs on this node: label istio.io/dataplane-mode is left to it there, and only \
                         mesh-agent.io/dataplane enrols (setting istioLabel)"
                    ),
                ),
            };
            (other.pod.clone(), kind, message)
        };
        istio.map(remark).collect()
    }

    /// Why Istio's label is left to Istio on `node`; `None` where it counts here.
    pub(super) fn istio_label_left(&self, node: &str) -> Option<String> {
        let why = "label istio.io/dataplane-mode is left to Istio";
        match self.label {
            IstioLabel::Enrol => None,
            IstioLabel::Leave => Some(format!("{why} (setting istioLabel)")),
            IstioLabel::Auto => {
                let istio = self.on(node).iter().find(|other| other.part.is_istio())?;
                Some(format!("{why}, whose {} runs on its node", istio.part.as_str()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Enrolment;
    use crate::snapshot::Snapshot;

    fn snapshot(label: IstioLabel, yaml: &str) -> Snapshot {
        let settings = MeshSettings {
            node_name: "n1".into(),
            istio_label: label,
            ..MeshSettings::default()
        };
        let snapshot = Snapshot::from_yaml(settings, yaml);
        assert_eq!(snapshot.diagnostics().rejections, []);
        snapshot
    }

    fn part(namespace: &str, labels: &str, owner: &str, rest: &str) -> String {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: part, namespace: {namespace}, labels: {{{labels}}}, ownerReferences: \
             [{{apiVersion: apps/v1, kind: {owner}, name: part, uid: u, controller: true}}]}}, {rest}}}\n"
        )
    }

    fn pod(namespace_labels: &str, labels: &str) -> String {
        format!(
            "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, labels: {{{namespace_labels}}}}}}}\n---\n{{apiVersion: v1, \
             kind: Pod, metadata: {{name: p, namespace: shop, labels: {{{labels}}}}}, spec: {{nodeName: n1}}}}\n"
        )
    }

    fn enrolment(snapshot: &Snapshot) -> &Enrolment {
        let mut all = snapshot.workloads();
        &all.find(|workload| workload.name == "p").unwrap().enrolment
    }

    const ZTUNNEL: &str = "app: ztunnel";
    const HERE: &str = "spec: {nodeName: n1}";
    const ISTIO: &str = "istio.io/dataplane-mode: ambient";
    const OURS: &str = "mesh-agent.io/dataplane: enabled";

    #[test]
    fn istios_label_is_left_to_it_where_a_part_of_it_lives_and_nowhere_else() {
        let table = [
            (part("istio-system", ZTUNNEL, "DaemonSet", HERE), "left"),
            (
                part("kube-system", "k8s-app: istio-cni-node", "DaemonSet", HERE),
                "left",
            ),
            (String::new(), "enrolled"),
            // Elsewhere, not placed, finished, of another owner, or by whoever may make pods in a namespace.
            (
                part("istio-system", ZTUNNEL, "DaemonSet", "spec: {nodeName: n2}"),
                "enrolled",
            ),
            (part("istio-system", ZTUNNEL, "DaemonSet", "spec: {}"), "enrolled"),
            (
                part(
                    "istio-system",
                    ZTUNNEL,
                    "DaemonSet",
                    "spec: {nodeName: n1}, status: {phase: Failed}",
                ),
                "enrolled",
            ),
            (part("istio-system", ZTUNNEL, "ReplicaSet", HERE), "enrolled"),
            (part("shop", ZTUNNEL, "DaemonSet", HERE), "enrolled"),
            (part("istio-system", "app: istiod", "DaemonSet", HERE), "enrolled"),
            (
                part("linkerd-cni", "k8s-app: linkerd-cni", "DaemonSet", HERE),
                "enrolled",
            ),
        ];
        for (others, expected) in table {
            for labels in [(ISTIO, ""), ("", ISTIO)] {
                let snapshot = snapshot(IstioLabel::Auto, &(pod(labels.0, labels.1) + &others));
                let got = match enrolment(&snapshot) {
                    Enrolment::Left(why) if why.contains("left to Istio") => "left",
                    other if other.is_enrolled() => "enrolled",
                    other => panic!("{others}: {other:?}"),
                };
                assert_eq!(got, expected, "{others}");
            }
        }
    }

    #[test]
    fn our_label_enrols_beside_istio_and_istios_says_nothing_there() {
        let istio = part("istio-system", ZTUNNEL, "DaemonSet", HERE);
        let none = "istio.io/dataplane-mode: none";
        let both = format!("{OURS}, {ISTIO}");
        let off = format!("mesh-agent.io/dataplane: disabled, {ISTIO}");
        for (namespace, labels, expected) in [
            (OURS, "", "enrolled"),
            ("", OURS, "enrolled"),
            (ISTIO, OURS, "enrolled"),
            (OURS, ISTIO, "enrolled"),
            ("", &both, "enrolled"),
            (OURS, none, "enrolled"),
            ("", "", "not"),
            (none, "", "not"),
            (ISTIO, none, "not"),
            ("", &off, "not"),
            (ISTIO, "mesh-agent.io/dataplane: disabled", "not"),
            (ISTIO, "", "left"),
        ] {
            let snapshot = snapshot(IstioLabel::Auto, &(pod(namespace, labels) + &istio));
            let got = match enrolment(&snapshot) {
                Enrolment::Enrolled => "enrolled",
                Enrolment::NotEnrolled => "not",
                Enrolment::Left(_) => "left",
                Enrolment::Refused(why) => why,
            };
            assert_eq!(got, expected, "{namespace} / {labels}");
        }
    }

    #[test]
    fn the_setting_overrides_what_is_seen() {
        let istio = part("istio-system", ZTUNNEL, "DaemonSet", HERE);
        let beside = pod(ISTIO, "") + &istio;
        assert!(enrolment(&snapshot(IstioLabel::Enrol, &beside)).is_enrolled());
        let left = snapshot(IstioLabel::Leave, &pod(ISTIO, ""));
        assert!(matches!(enrolment(&left), Enrolment::Left(why) if why.contains("istioLabel")));
        assert!(enrolment(&snapshot(IstioLabel::Leave, &pod(OURS, ""))).is_enrolled());
    }

    #[test]
    fn what_runs_on_the_own_node_is_shown_and_told_once() {
        let others = part("istio-system", ZTUNNEL, "DaemonSet", HERE)
            + &part("linkerd-cni", "k8s-app: linkerd-cni", "DaemonSet", HERE)
            + &part(
                "kube-system",
                "k8s-app: istio-cni-node",
                "DaemonSet",
                "spec: {nodeName: n2}",
            );
        let snapshot = snapshot(IstioLabel::Auto, &(pod(ISTIO, "") + &others));
        let shown: Vec<_> = snapshot
            .other_meshes()
            .iter()
            .map(|other| (other.part.as_str(), other.pod.to_string()))
            .collect();
        assert_eq!(
            shown,
            [
                ("ztunnel", "Pod istio-system/part".to_owned()),
                ("linkerd-cni", "Pod linkerd-cni/part".to_owned()),
            ]
        );
        let [notice] = &snapshot.diagnostics().notices[..] else {
            panic!("{:?}", snapshot.diagnostics())
        };
        assert_eq!(notice.kind, NoticeKind::Ignored);
        assert!(notice.message.contains("left to it"), "{notice}");
    }
}
