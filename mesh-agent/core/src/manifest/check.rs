//! Checks that several kinds share: names, addresses, ports, labels.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::report::{Invalid, NoticeKind, Path, Remarks};
use crate::model::{Wish, Wishes};

/// Our enrolment label.
const DATAPLANE: &str = "mesh-agent.io/dataplane";
/// Istio's enrolment label.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";

/// `metadata.name`, checked.
pub(super) fn name(meta: &ObjectMeta) -> Result<String, Invalid> {
    match meta.name.as_deref() {
        Some(name) => kubernetes_name(name, "metadata.name"),
        None => Err(Invalid::at(
            Path::of("metadata.name"),
            "metadata.name is missing: every object needs a name",
        )),
    }
}

/// `metadata.namespace`, checked; `default` where absent, as for kubectl.
pub(super) fn namespace(meta: &ObjectMeta) -> Result<String, Invalid> {
    match meta.namespace.as_deref() {
        None | Some("") => Ok("default".to_owned()),
        Some(namespace) => kubernetes_name(namespace, "metadata.namespace"),
    }
}

/// A name that may become part of an identity.
pub(super) fn kubernetes_name(name: &str, path: &str) -> Result<String, Invalid> {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(good) {
        let message = format!(
            "{path} {name:?} is no Kubernetes name: expected 1 to 253 of the characters a-z, 0-9, '.', '-'"
        );
        return Err(Invalid::at(Path::of(path), message));
    }
    Ok(name.to_owned())
}

/// An address at which a pod or service may be: v4-mapped ones become IPv4; those that mean something else on every host are refused.
pub(super) fn address(text: &str, path: Path) -> Result<IpAddr, Invalid> {
    let Ok(parsed) = text.parse::<IpAddr>() else {
        let message = format!("{path} {text:?} is no IP address: expected one such as 10.1.2.3 or fd00::1");
        return Err(Invalid::at(path, message));
    };
    let address = parsed.to_canonical();
    match special(address) {
        None => Ok(address),
        Some(what) => {
            let message = format!(
                "{path} {text} is {what} address: it would lead every client somewhere else; expected an address that is \
                 reachable over the network"
            );
            Err(Invalid::at(path, message))
        }
    }
}

/// What kind of address this is, if it is one that names no host on the network.
pub(crate) fn special(address: IpAddr) -> Option<&'static str> {
    let address = address.to_canonical();
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let zero_net = matches!(address, IpAddr::V4(v4) if v4.octets().first() == Some(&0) || v4.is_broadcast());
    if address.is_loopback() {
        Some("a loopback")
    } else if address.is_unspecified() || zero_net {
        Some("an unspecified or broadcast")
    } else if address.is_multicast() {
        Some("a multicast")
    } else if link_local {
        Some("a link-local")
    } else {
        None
    }
}

/// A port from 1 to 65535.
pub(super) fn port(number: i64, path: Path) -> Result<u16, Invalid> {
    match u16::try_from(number) {
        Ok(port) if port > 0 => Ok(port),
        _ => {
            let message = format!("{path} is {number}: expected a port from 1 to 65535");
            Err(Invalid::at(path, message))
        }
    }
}

/// Whether a `protocol` field means TCP, which is the default.
pub(super) fn is_tcp(protocol: Option<&str>) -> bool {
    protocol.is_none_or(|protocol| protocol.eq_ignore_ascii_case("TCP") || protocol.is_empty())
}

/// What enrolment labels ask for.
pub(super) fn wishes(labels: Option<&BTreeMap<String, String>>, remarks: &mut Remarks) -> Wishes {
    let Some(labels) = labels else {
        return Wishes::default();
    };
    let mut read = |label: &str, enabled: &str, disabled: &str| {
        let value = labels.get(label)?;
        if value == enabled {
            return Some(Wish::Enabled);
        }
        if value == disabled {
            return Some(Wish::Disabled);
        }
        remarks.add(
            Path::of("metadata.labels").key(label),
            NoticeKind::Ignored,
            format!("label {label} is {value:?}, which means nothing here: expected {enabled} or {disabled}"),
        );
        None
    };
    Wishes {
        ours: read(DATAPLANE, "enabled", "disabled"),
        istio: read(DATAPLANE_MODE, "ambient", "none"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_name_no_host_are_refused() {
        for text in [
            "127.0.0.1",
            "::1",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "::",
            "169.254.169.254",
            "fe80::1",
            "224.0.0.1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "10.0.0",
            "10.0.0.1:80",
            "host",
            "",
            "fe80::1%eth0",
        ] {
            assert!(address(text, Path::of("status.podIP")).is_err(), "{text}");
        }
        for (text, expected) in [
            ("10.0.0.1", "10.0.0.1"),
            ("2001:db8::1", "2001:db8::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
        ] {
            assert_eq!(
                address(text, Path::default()).unwrap(),
                expected.parse::<IpAddr>().unwrap()
            );
        }
    }

    type Labels = &'static [(&'static str, &'static str)];

    #[test]
    fn our_label_wins_over_istios_and_strange_values_are_named() {
        let table: &[(Labels, Option<Wish>, usize)] = &[
            (&[], None, 0),
            (&[(DATAPLANE, "enabled")], Some(Wish::Enabled), 0),
            (&[(DATAPLANE_MODE, "ambient")], Some(Wish::Enabled), 0),
            (&[(DATAPLANE_MODE, "none")], Some(Wish::Disabled), 0),
            (
                &[(DATAPLANE, "disabled"), (DATAPLANE_MODE, "ambient")],
                Some(Wish::Disabled),
                0,
            ),
            (
                &[(DATAPLANE, "enabled"), (DATAPLANE_MODE, "none")],
                Some(Wish::Enabled),
                0,
            ),
            (&[(DATAPLANE, "Enabled")], None, 1),
            (&[(DATAPLANE, "on"), (DATAPLANE_MODE, "kmesh")], None, 2),
        ];
        for (labels, expected, remarked) in table {
            let labels = labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect();
            let mut remarks = Remarks::default();
            assert_eq!(
                wishes(Some(&labels), &mut remarks).wish(true),
                *expected,
                "{labels:?}"
            );
            assert_eq!(remarks.0.len(), *remarked, "{labels:?}");
        }
    }
}
