//! security.istio.io PeerAuthentication, v1 and v1beta1 (they have the same fields).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;

use super::check;
use super::report::{Invalid, NoticeKind, Path, Remarks};
use crate::model::{MtlsMode, PeerAuthentication, Scope};

/// The document as written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// Checked when the kind is found.
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: ObjectMeta,
    spec: Option<Spec>,
    /// Written by Istio's control plane; means nothing here.
    #[serde(rename = "status")]
    _status: Option<serde_json::Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    selector: Option<Selector>,
    mtls: Option<MutualTls>,
    port_level_mtls: Option<BTreeMap<String, Option<MutualTls>>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    match_labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct MutualTls {
    mode: Option<String>,
}

/// A PeerAuthentication from the document. Its scope is `Namespace` or `Workload`; which namespace is the mesh's root is a setting.
///
/// # Errors
/// When a mode or port is unknown, or `portLevelMtls` stands without a selector.
pub fn peer_authentication(
    document: &Document,
    remarks: &mut Remarks,
) -> Result<PeerAuthentication, Invalid> {
    let empty = Spec::default();
    let spec = document.spec.as_ref().unwrap_or(&empty);
    let labels = spec
        .selector
        .as_ref()
        .and_then(|s| s.match_labels.clone())
        .unwrap_or_default();
    if labels.is_empty() && spec.port_level_mtls.is_some() {
        let message = "spec.portLevelMtls stands without a selector: its ports are those of workloads, so spec.selector.matchLabels \
                       must say of which";
        return Err(Invalid::at(Path::of("spec.portLevelMtls"), message));
    }
    let mut ports = BTreeMap::new();
    for (text, mtls) in spec.port_level_mtls.iter().flatten() {
        let path = Path::of("spec.portLevelMtls").key(text);
        let Some(port) = text.parse::<u16>().ok().filter(|port| *port > 0) else {
            let message =
                format!("spec.portLevelMtls names port {text:?}: expected a workload's port from 1 to 65535");
            return Err(Invalid::at(path, message));
        };
        ports.insert(port, mode(mtls.as_ref(), path, remarks)?);
    }
    let meta = &document.metadata;
    Ok(PeerAuthentication {
        namespace: check::namespace(meta)?,
        name: check::name(meta)?,
        created: meta
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
        mode: mode(spec.mtls.as_ref(), Path::of("spec.mtls"), remarks)?,
        scope: if labels.is_empty() {
            Scope::Namespace
        } else {
            Scope::Workload(labels)
        },
        ports,
    })
}

fn mode(mtls: Option<&MutualTls>, path: Path, remarks: &mut Remarks) -> Result<Option<MtlsMode>, Invalid> {
    match mtls.and_then(|mtls| mtls.mode.as_deref()) {
        None | Some("UNSET") => Ok(None),
        Some("PERMISSIVE") => Ok(Some(MtlsMode::Permissive)),
        Some("STRICT") => Ok(Some(MtlsMode::Strict)),
        Some("DISABLE") => {
            remarks.add(
                path.key("mode"),
                NoticeKind::Changed,
                "mode DISABLE is applied as PERMISSIVE: the node's agent always offers mutual TLS to those who bring it",
            );
            Ok(Some(MtlsMode::Permissive))
        }
        Some(other) => {
            let path = path.key("mode");
            let message = format!("{path} is {other:?}: expected STRICT, PERMISSIVE, DISABLE or UNSET");
            Err(Invalid::at(path, message))
        }
    }
}
