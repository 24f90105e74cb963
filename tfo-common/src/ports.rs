//! Flags of local ports, by which the controller tells the program what their listeners make of a SYN. They are kept in
//! the map [`LISTENING`](crate::names::LISTENING), in words of eight ports.

use crate::{keyring::STORES, service::PORTS};

/// Flag: some listener on the port has Fast Open keys of its own (TCP_FASTOPEN_KEY). [`domain`] says where they are.
pub const OWN_KEYS: u64 = 1;
/// Flag: some listener on the port serves SYNs without a good cookie (`tcp_fastopen_no_cookie`).
pub const NO_COOKIE: u64 = 2;

/// Number of bits for each port.
const BITS: u32 = 8;
/// Position of the key domain among the bits of a port.
const DOMAIN: u32 = 2;
/// Number of ports in a word.
const PER_WORD: u32 = u64::BITS / BITS;
/// Number of words.
pub const WORDS: usize = PORTS / PER_WORD as usize;

/// Returns the index of the word that has the flags of `port`.
#[inline(always)]
pub const fn word(port: u16) -> u32 {
    port as u32 / PER_WORD
}

/// Returns `flags` of `port` at their place in the word.
pub const fn set(port: u16, flags: u64) -> u64 {
    flags << shift(port)
}

/// Returns the flags of a port whose key domain is `domain`. The domain is below [`STORES`]; 0 is that of the sysctl's keys.
pub const fn with_domain(flags: u64, domain: u32) -> u64 {
    flags | (domain as u64) << DOMAIN
}

/// Returns the key domain in the flags of a port.
#[inline(always)]
pub const fn domain(flags: u64) -> u32 {
    (flags >> DOMAIN) as u32 & (STORES as u32 - 1)
}

const _: () = assert!(STORES.is_power_of_two() && STORES <= 1 << (BITS - DOMAIN));

/// Returns the flags of `port` in its word.
#[inline(always)]
pub const fn get(port: u16, word: u64) -> u64 {
    word >> shift(port) & ((1 << BITS) - 1)
}

#[inline(always)]
const fn shift(port: u16) -> u32 {
    port as u32 % PER_WORD * BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_has_bits_of_its_own() {
        let mut words = [0; WORDS];
        for port in 0..=u16::MAX {
            let flags = u64::from(port) * 7 % (1 << BITS);
            assert_eq!(get(port, words[word(port) as usize]), 0, "{port}");
            words[word(port) as usize] |= set(port, flags);
        }
        for port in 0..=u16::MAX {
            assert_eq!(get(port, words[word(port) as usize]), u64::from(port) * 7 % (1 << BITS), "{port}");
        }
    }

    #[test]
    fn a_domain_and_flags_leave_each_other_alone() {
        for (flags, domain_of) in (0..4).flat_map(|flags| (0..STORES as u32).map(move |it| (flags, it))) {
            let both = with_domain(flags, domain_of);
            assert_eq!((both & (OWN_KEYS | NO_COOKIE), domain(both)), (flags, domain_of));
            assert!(both < 1 << BITS);
        }
    }
}
