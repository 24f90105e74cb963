//! Networks as people write them.

use std::net::{Ipv4Addr, Ipv6Addr};

use tfo_common::{observed::Prefix, segment::Family};

/// Writes the prefix of a source as an address and a length.
pub fn of_prefix(prefix: Prefix) -> String {
    of(prefix.family as u32, prefix.bytes, Prefix::BITS)
}

/// Writes a network as an address and a length. `family` is a [`Family`] index, `bytes` the first eight bytes of the address in
/// the order of a little-endian word, with zeros behind the prefix, and `bits` the length of the prefix by family.
pub fn of(family: u32, bytes: u64, bits: [u8; Family::COUNT]) -> String {
    let bytes = bytes.to_le_bytes();
    if family == Family::Ipv4.index() as u32 {
        let [a, b, c, ..] = bytes;
        format!("{}/{}", Ipv4Addr::new(a, b, c, 0), bits[Family::Ipv4.index()])
    } else {
        let address = u128::from(u64::from_be_bytes(bytes)) << 64;
        format!("{}/{}", Ipv6Addr::from_bits(address), bits[Family::Ipv6.index()])
    }
}

#[cfg(test)]
mod tests {
    use tfo_common::{client::Network, observed::Connection};

    use super::*;
    use crate::model::keys::addresses;

    #[test]
    fn networks_are_written_as_people_do() {
        for (remote, here, prefix, network) in [
            ("192.0.2.77", "198.18.0.1", "192.0.2.0/24", "192.0.2.0/24"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8::1", "2001:db8:1:2::/64", "2001:db8:1::/48"),
        ] {
            let addresses = addresses(remote.parse().unwrap(), here.parse().unwrap()).unwrap();
            assert_eq!(of_prefix(Prefix::of(&Connection::new(&addresses, [0; 4]))), prefix);
            let found = Network::of(&addresses, 443);
            assert_eq!(of(found.family, found.bytes, Network::BITS), network);
        }
    }
}
