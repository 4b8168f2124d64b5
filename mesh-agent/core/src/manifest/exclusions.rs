//! The annotations of a Pod that ask for exclusions. What cannot be read is ignored and reported: those connections stay captured.

use std::collections::{BTreeMap, BTreeSet};

use mesh_common::is_agent_port;

use super::report::{NoticeKind, Path, Remarks};
use crate::model::{Cidr, Exclusions};

/// Ports that the pod connects to.
const OUTBOUND_PORTS: &str = "mesh-agent.io/exclude-outbound-ports";
/// Networks that the pod connects to.
const OUTBOUND_CIDRS: &str = "mesh-agent.io/exclude-outbound-cidrs";
/// Ports of the pod that others connect to.
const INBOUND_PORTS: &str = "mesh-agent.io/exclude-inbound-ports";
/// What becomes of connections to the pod while no agent is there.
const WHEN_DOWN: &str = "mesh-agent.io/on-agent-down";
/// Entries of one annotation that are read: they fill maps that all pods of a node share.
const MOST: usize = 64;

/// What the annotations ask for.
pub(super) fn asked(annotations: Option<&BTreeMap<String, String>>, remarks: &mut Remarks) -> Exclusions {
    let Some(annotations) = annotations else {
        return Exclusions::default();
    };
    Exclusions {
        outbound_ports: entries(annotations, OUTBOUND_PORTS, remarks, port),
        outbound_cidrs: entries(annotations, OUTBOUND_CIDRS, remarks, |text| {
            text.parse::<Cidr>().map_err(|error| error.to_string())
        }),
        inbound_ports: entries(annotations, INBOUND_PORTS, remarks, port),
        inbound_when_down: when_down(annotations, remarks),
    }
}

/// `allow`, or what is the default, `refuse`.
fn when_down(annotations: &BTreeMap<String, String>, remarks: &mut Remarks) -> bool {
    match annotations.get(WHEN_DOWN).map(|text| text.trim()) {
        Some("allow") => true,
        None | Some("refuse") => false,
        Some(other) => {
            let path = Path::of("metadata.annotations").key(WHEN_DOWN);
            let message = format!("annotation {WHEN_DOWN} is {other:?}: expected allow or refuse; refused");
            remarks.add(path, NoticeKind::Ignored, message);
            false
        }
    }
}

fn entries<T: Ord>(
    annotations: &BTreeMap<String, String>,
    name: &str,
    remarks: &mut Remarks,
    read: impl Fn(&str) -> Result<T, String>,
) -> BTreeSet<T> {
    let mut found = BTreeSet::new();
    let Some(text) = annotations.get(name) else {
        return found;
    };
    let mut ignored = |number: usize, why: String| {
        let path = Path::of("metadata.annotations").key(name);
        let message =
            format!("annotation {name}, entry {number}: {why}; what it was to exclude stays captured");
        remarks.add(path, NoticeKind::Ignored, message);
    };
    // An empty annotation excludes nothing, and so does a comma at the end.
    let parts = text.split(',').map(str::trim).enumerate();
    for (i, part) in parts.filter(|(_, part)| !part.is_empty()) {
        if found.len() == MOST {
            ignored(
                i + 1,
                format!("no more than {MOST} entries count: ignored from here on"),
            );
            break;
        }
        match read(part) {
            Ok(value) => drop(found.insert(value)),
            Err(why) => ignored(i + 1, why),
        }
    }
    found
}

fn port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|c| c.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if port > 0 && digits => {
            if is_agent_port(port) {
                return Err(format!("port {port} is the mesh agent's and is never excluded"));
            }
            Ok(port)
        }
        _ => Err(format!("{text:?} is no port: expected a number from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Exclusions, Vec<String>) {
        let annotations = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        let mut remarks = Remarks::default();
        let asked = asked(Some(&annotations), &mut remarks);
        (
            asked,
            remarks.0.into_iter().map(|(.., message)| message).collect(),
        )
    }

    #[test]
    fn lists_with_blanks_are_read() {
        let (asked, remarks) = read(&[
            (OUTBOUND_PORTS, "3306, 5432,"),
            (OUTBOUND_CIDRS, " 10.0.0.0/8,fd00::/8 , 192.0.2.1"),
            (INBOUND_PORTS, "9090"),
        ]);
        assert_eq!(asked.outbound_ports, [3306, 5432].into());
        let cidrs: Vec<String> = asked.outbound_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(cidrs, ["10.0.0.0/8", "192.0.2.1/32", "fd00::/8"]);
        assert_eq!(asked.inbound_ports, [9090].into());
        assert!(remarks.is_empty(), "{remarks:?}");
    }

    #[test]
    fn a_bad_entry_is_reported_and_its_neighbours_count() {
        let (asked, remarks) = read(&[
            (OUTBOUND_PORTS, "80,http,0,65536,-1,+2,81"),
            (OUTBOUND_CIDRS, "10.0.0.1/8,10.0.0.0/8"),
        ]);
        assert_eq!(asked.outbound_ports, [80, 81].into());
        assert_eq!(asked.outbound_cidrs.len(), 1);
        assert_eq!(remarks.len(), 6, "{remarks:?}");
        assert!(
            remarks[0].contains("entry 2") && remarks[0].contains("\"http\""),
            "{remarks:?}"
        );
    }

    #[test]
    fn agent_ports_are_never_excluded() {
        let (asked, remarks) = read(&[(INBOUND_PORTS, "15001,15006,15008,15053,15104,15167,15168")]);
        assert_eq!(asked.inbound_ports, [15168].into());
        assert_eq!(remarks.len(), 6, "{remarks:?}");
    }

    #[test]
    fn no_more_than_a_bounded_number_counts() {
        let many: Vec<String> = (1000..1100).map(|port| port.to_string()).collect();
        let (asked, remarks) = read(&[(OUTBOUND_PORTS, &many.join(","))]);
        assert_eq!((asked.outbound_ports.len(), remarks.len()), (MOST, 1));
    }
}
