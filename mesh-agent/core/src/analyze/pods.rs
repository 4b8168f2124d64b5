//! Pods and Namespaces: enrolment that cannot be, labels and annotations that come to nothing.

use super::world::{Member, Mesh, World};
use super::{Code, Found, Named};
use crate::manifest::Path;
use crate::model::{Enrolment, Exclusions, Wish, Wishes};
use crate::plan;

pub(super) fn look(world: &World<'_>, say: &mut dyn FnMut(Found<'_>)) {
    for (named, namespace) in world.namespaces.values() {
        contradiction(world, named, namespace.wishes, say);
    }
    for member in &world.members {
        contradiction(world, &member.named, member.pod.wishes, say);
        enrolment(member, say);
        two_meshes(world, member, say);
        exclusions(world, member, say);
    }
}

/// Beside Istio the two labels say different things to different meshes.
fn contradiction(world: &World<'_>, named: &Named<'_>, wishes: Wishes, say: &mut dyn FnMut(Found<'_>)) {
    let (Some(ours), Some(istio)) = (wishes.ours, wishes.istio) else {
        return;
    };
    if ours == istio || world.meshes.has_istio() {
        return;
    }
    let what = match ours {
        Wish::Enabled => "it is part of the mesh",
        Wish::Disabled => "it is not part of the mesh",
    };
    say(Found {
        code: Code::LabelsContradict,
        object: named,
        path: Path::of("metadata.labels"),
        message: format!(
            "labels mesh-agent.io/dataplane and istio.io/dataplane-mode contradict each other: the former counts, so {what}"
        ),
        advice: "leave one of them, unless the other one is for Istio".to_owned(),
    });
}

fn enrolment(member: &Member<'_>, say: &mut dyn FnMut(Found<'_>)) {
    let (code, message, advice) = match &member.workload.enrolment {
        Enrolment::Refused(why) => (
            Code::CannotEnrol,
            format!("it asks for the mesh and cannot be enrolled: {why}"),
            "label its pods mesh-agent.io/dataplane=disabled, or remove what stands in the way",
        ),
        Enrolment::Left(why) => (
            Code::LeftToOther,
            format!("it is not enrolled: {why}"),
            "nothing, if Istio is to have it; else label it mesh-agent.io/dataplane=enabled, and take Istio's label out",
        ),
        Enrolment::Enrolled | Enrolment::NotEnrolled => return,
    };
    say(Found {
        code,
        object: &member.named,
        path: Path::of("metadata"),
        message,
        advice: advice.to_owned(),
    });
}

fn two_meshes(world: &World<'_>, member: &Member<'_>, say: &mut dyn FnMut(Found<'_>)) {
    let namespace = world.namespaces.get(member.pod.namespace.as_str());
    let namespace = namespace.map(|(_, namespace)| namespace.wishes.istio);
    let istio = member.pod.wishes.istio.or(namespace.flatten());
    let mut others = world.meshes.on(&member.pod.node).iter();
    let Some(other) = others.find(|other| other.part.is_istio()) else {
        return;
    };
    if member.mesh != Mesh::In || istio != Some(Wish::Enabled) {
        return;
    }
    say(Found {
        code: Code::TwoMeshes,
        object: &member.named,
        path: Path::of("metadata.labels"),
        message: format!(
            "it is enrolled here, and label istio.io/dataplane-mode asks Istio for it, whose {} runs on its node: both take it",
            other.part.as_str()
        ),
        advice: "take one of the two labels out".to_owned(),
    });
}

fn exclusions(world: &World<'_>, member: &Member<'_>, say: &mut dyn FnMut(Found<'_>)) {
    let path = Path::of("metadata.annotations");
    if member.mesh == Mesh::Out && member.pod.exclusions != Exclusions::default() {
        say(Found {
            code: Code::AnnotationWithoutEffect,
            object: &member.named,
            path: path.clone(),
            message: "its annotations ask for connections to be left uncaptured, and it is not enrolled: they have no effect"
                .to_owned(),
            advice: "take them out, or enrol it".to_owned(),
        });
    }
    if member.mesh != Mesh::In {
        return;
    }
    for refused in plan::exclusions(&world.snapshot, &member.workload, world.allowed).refused {
        say(Found {
            code: Code::ExclusionRefused,
            object: &member.named,
            path: path.clone(),
            message: format!("{} stays captured: {}", refused.what, refused.why),
            advice: "take it out of the annotation, or change what stands against it".to_owned(),
        });
    }
}
