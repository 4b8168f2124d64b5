//! Networks: an address and how many of its leading bits count.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};
use thiserror::Error;

/// What is wrong with the text of a network.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CidrError {
    /// The part before the slash is no address.
    #[error("{0:?} is no network: expected one such as 10.0.0.0/8 or fd00::/8")]
    Address(String),
    /// The part behind the slash is no length.
    #[error("{text:?} is no network: expected a prefix length from 0 to {most} behind the slash")]
    Prefix {
        /// As written.
        text: String,
        /// The longest of its family.
        most: u8,
    },
    /// Bits behind the prefix are set: it is not clear what was meant.
    #[error("{text} has bits set behind its prefix: is {network} meant?")]
    HostBits {
        /// As written.
        text: String,
        /// Without them.
        network: Cidr,
    },
}

/// A network (RFC 4632, RFC 4291). Never a v4-mapped one: that is held as IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// Its first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits count: up to 32 for IPv4, up to 128 for IPv6.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether `address` is in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && network(address, self.prefix) == self.address
    }
}

/// `address` with all bits behind the first `prefix` cleared.
fn network(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - prefix.min(128)).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// Reads `ADDRESS/PREFIX`, or an address alone, which stands for itself.
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| CidrError::Address(text.to_owned()))?;
        let most = if written.is_ipv4() { 32 } else { 128 };
        let wrong = || CidrError::Prefix {
            text: text.to_owned(),
            most,
        };
        let length: u8 = match prefix {
            None => most,
            Some(digits) if digits.bytes().all(|c| c.is_ascii_digit()) => {
                digits.parse().map_err(|_| wrong())?
            }
            Some(_) => return Err(wrong()),
        };
        if length > most {
            return Err(wrong());
        }
        let canonical = written.to_canonical();
        let mapped = canonical.is_ipv4() && written.is_ipv6();
        // A v4-mapped network shorter than its prefix would be half IPv4 and half nothing.
        let prefix = if mapped {
            length.checked_sub(96).ok_or_else(wrong)?
        } else {
            length
        };
        let cidr = Self {
            address: network(canonical, prefix),
            prefix,
        };
        if cidr.address == canonical {
            Ok(cidr)
        } else {
            Err(CidrError::HostBits {
                text: text.to_owned(),
                network: cidr,
            })
        }
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_and_single_addresses_are_read() {
        for (text, expected) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("fd00::/8", "fd00::/8"),
            ("::/0", "::/0"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ] {
            assert_eq!(text.parse::<Cidr>().unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_network_is_told_so() {
        for text in [
            "",
            "/",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "fd00::/129",
            "host/8",
            "10.0.0/8",
            "::ffff:0.0.0.0/90",
            "10.0.0.1/8",
            "fd00::1/8",
            "10.0.0.0/8/8",
            " 10.0.0.0/8",
        ] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
        let error = "10.1.2.3/8".parse::<Cidr>().unwrap_err();
        assert!(error.to_string().contains("is 10.0.0.0/8 meant?"), "{error}");
    }

    #[test]
    fn a_network_holds_its_own_family_only() {
        let all6: Cidr = "::/0".parse().unwrap();
        assert!(all6.contains("2001:db8::1".parse().unwrap()));
        assert!(!all6.contains("10.0.0.1".parse().unwrap()));
        assert!(!all6.contains("::ffff:10.0.0.1".parse().unwrap()));
        let ten: Cidr = "10.0.0.0/8".parse().unwrap();
        assert!(ten.contains("::ffff:10.9.9.9".parse().unwrap()));
        assert!(!ten.contains("11.0.0.0".parse().unwrap()));
    }
}
