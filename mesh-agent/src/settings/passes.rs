//! Settings of what may pass uncaptured: the kubelet's probes, and what pods' annotations exclude.

use std::path::PathBuf;

use mesh_core::plan::AllowedExclusions;
use serde::Serialize;

/// Which cgroup is the kubelet's: the setting `kubelet-cgroup`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KubeletCgroup {
    /// Look in the usual places.
    #[default]
    Auto,
    /// No connection passes as a probe.
    Off,
    /// This one: absolute, or relative to the cgroup2 mount.
    At(PathBuf),
}

impl std::str::FromStr for KubeletCgroup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            "" => Err("expected auto, off, or the path of a cgroup".to_owned()),
            path if path.split('/').any(|part| part == ".." || part == ".") => Err(format!(
                "{path:?}: expected the path of a cgroup without . and .."
            )),
            path => Ok(Self::At(path.into())),
        }
    }
}

/// A kind of exclusion that the setting `allow-exclusions` can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum ExclusionKind {
    /// Annotation `mesh-agent.io/exclude-outbound-ports`.
    OutboundPorts,
    /// Annotation `mesh-agent.io/exclude-outbound-cidrs`.
    OutboundCidrs,
    /// Annotation `mesh-agent.io/exclude-inbound-ports`.
    InboundPorts,
    /// Annotation `mesh-agent.io/on-agent-down: allow`.
    InboundWhenDown,
}

/// What a list of kinds allows.
pub(super) fn allowed(kinds: &[ExclusionKind]) -> AllowedExclusions {
    AllowedExclusions {
        outbound_ports: kinds.contains(&ExclusionKind::OutboundPorts),
        outbound_cidrs: kinds.contains(&ExclusionKind::OutboundCidrs),
        inbound_ports: kinds.contains(&ExclusionKind::InboundPorts),
        inbound_when_down: kinds.contains(&ExclusionKind::InboundWhenDown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_is_a_word_or_a_path_that_does_not_climb() {
        assert_eq!("auto".parse(), Ok(KubeletCgroup::Auto));
        assert_eq!("off".parse(), Ok(KubeletCgroup::Off));
        let path = "system.slice/kubelet.service";
        assert_eq!(path.parse(), Ok(KubeletCgroup::At(path.into())));
        assert!("".parse::<KubeletCgroup>().is_err());
        assert!("a/../b".parse::<KubeletCgroup>().is_err());
    }
}
