//! The addresses of sandboxes and of the services they publish: which there are, and who gets which. Pure.
//!
//! A place in the IPv4 range is a number; the same number counts in the IPv6 range. Of the range's lower half 1 is the host's, the rest
//! the sandboxes'; the upper half is the services'. A name gets the same place each time, if it is free.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The place of the host.
const HOST: u32 = 1;

/// Why networks are no ranges for sandboxes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RangeError {
    /// The IPv4 network is missing, or there are two.
    #[error("a sandbox range is one IPv4 network, and one IPv6 network if wanted: got {0:?}")]
    Shape(String),
    /// Too small or too large.
    #[error("{0} cannot be the range of sandboxes: expected /8 to /28, and /64 to /100 for IPv6")]
    Length(IpNet),
}

/// The networks of sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxRanges {
    /// IPv4.
    pub v4: Ipv4Net,
    /// IPv6, where wanted.
    pub v6: Option<Ipv6Net>,
}

impl Default for SandboxRanges {
    /// 198.19.192.0/20 of the range for tests (RFC 2544), and a unique local network (RFC 4193).
    fn default() -> Self {
        Self {
            v4: Ipv4Net::new_assert(Ipv4Addr::new(198, 19, 192, 0), 20),
            v6: Some(Ipv6Net::new_assert(
                Ipv6Addr::new(0xfd6d, 0x6573, 0x6800, 0, 0, 0, 0, 0),
                64,
            )),
        }
    }
}

/// Who an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// Sandboxes.
    Sandboxes,
    /// The services that they publish.
    Services,
}

impl SandboxRanges {
    /// The ranges that these networks make.
    ///
    /// # Errors
    /// See [`RangeError`].
    pub fn new(networks: &[IpNet]) -> Result<Self, RangeError> {
        let (v4, v6) = match networks {
            [IpNet::V4(v4)] => (v4, None),
            [IpNet::V4(v4), IpNet::V6(v6)] | [IpNet::V6(v6), IpNet::V4(v4)] => (v4, Some(v6)),
            _ => {
                let shown: Vec<String> = networks.iter().map(ToString::to_string).collect();
                return Err(RangeError::Shape(shown.join(",")));
            }
        };
        if !(8..=28).contains(&v4.prefix_len()) {
            return Err(RangeError::Length(IpNet::V4(*v4)));
        }
        if let Some(v6) = v6.filter(|v6| !(64..=100).contains(&v6.prefix_len())) {
            return Err(RangeError::Length(IpNet::V6(*v6)));
        }
        Ok(Self {
            v4: v4.trunc(),
            v6: v6.map(Ipv6Net::trunc),
        })
    }

    /// Without IPv6, for a host that has none.
    pub fn only_v4(self) -> Self {
        Self { v6: None, ..self }
    }

    /// The addresses of a place.
    pub fn addresses(&self, place: u32) -> Vec<IpAddr> {
        let v4 = Ipv4Addr::from(u32::from(self.v4.network()).wrapping_add(place));
        let v6 = |net: Ipv6Net| Ipv6Addr::from(u128::from(net.network()).wrapping_add(place.into()));
        let v6 = self.v6.map(|net| IpAddr::V6(v6(net)));
        std::iter::once(IpAddr::V4(v4)).chain(v6).collect()
    }

    /// The addresses of the host.
    pub fn host(&self) -> Vec<IpAddr> {
        self.addresses(HOST)
    }

    /// The length of the network that `address` is in.
    pub fn prefix_len(&self, address: IpAddr) -> u8 {
        match (address, self.v6) {
            (IpAddr::V6(_), Some(v6)) => v6.prefix_len(),
            (IpAddr::V6(_), None) => 128,
            (IpAddr::V4(_), _) => self.v4.prefix_len(),
        }
    }

    /// A free place for `name`: neither in `taken` nor with an address that `used` knows. `None` when there is none.
    pub fn place(
        &self,
        half: Half,
        name: &str,
        taken: &BTreeSet<u32>,
        used: impl Fn(IpAddr) -> bool,
    ) -> Option<u32> {
        let middle = 1u32 << (31 - self.v4.prefix_len());
        let (first, count) = match half {
            Half::Sandboxes => (HOST + 1, middle - HOST - 1),
            // The last one is the broadcast address.
            Half::Services => (middle, middle - 1),
        };
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let begin = u32::try_from(hasher.finish() % u64::from(count)).unwrap_or(0);
        let places = (0..count).map(|step| first + (begin + step) % count);
        let free = |place: &u32| !taken.contains(place) && !self.addresses(*place).into_iter().any(&used);
        places.into_iter().find(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(text: &str) -> Result<SandboxRanges, RangeError> {
        let networks: Vec<IpNet> = text.split(',').map(|net| net.parse().unwrap()).collect();
        SandboxRanges::new(&networks)
    }

    #[test]
    fn a_range_is_one_network_of_ipv4_and_perhaps_one_of_ipv6() {
        let both = ranges("fd00::1/64,198.18.3.7/24").unwrap();
        assert_eq!(
            both.host(),
            [
                "198.18.3.1".parse::<IpAddr>().unwrap(),
                "fd00::1".parse().unwrap()
            ]
        );
        assert_eq!(both.only_v4().host().len(), 1);
        for bad in [
            "fd00::/64",
            "198.18.0.0/24,198.19.0.0/24",
            "198.18.0.0/29",
            "198.0.0.0/7",
            "198.18.0.0/24,fd00::/120",
            "198.18.0.0/24,fd00::/48",
        ] {
            assert!(ranges(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_place_is_given_once_and_none_outside_its_half() {
        let small = ranges("198.18.0.0/28,fd00::/64").unwrap();
        for (half, expected) in [(Half::Sandboxes, 2..8), (Half::Services, 8..15)] {
            let mut taken = BTreeSet::new();
            while let Some(place) = small.place(half, &format!("n{}", taken.len()), &taken, |_| false) {
                assert!(taken.insert(place));
            }
            assert_eq!(taken, expected.collect::<BTreeSet<u32>>(), "{half:?}");
        }
    }

    #[test]
    fn a_name_gets_the_same_place_again_and_used_addresses_are_left_alone() {
        let ranges = SandboxRanges::default();
        let free = BTreeSet::new();
        let place = ranges.place(Half::Sandboxes, "order", &free, |_| false).unwrap();
        assert_eq!(
            ranges.place(Half::Sandboxes, "order", &free, |_| false),
            Some(place)
        );
        let used = ranges.addresses(place)[1];
        let other = ranges.place(Half::Sandboxes, "order", &free, |ip| ip == used);
        assert!(other.is_some() && other != Some(place));
    }
}
