//! Flags of local ports, by which the controller tells the program what their listeners make of a SYN. They are kept in
//! the map [`LISTENING`](crate::names::LISTENING), in words of 32 ports.

use crate::service::PORTS;

/// Flag: some listener on the port has Fast Open keys of its own (TCP_FASTOPEN_KEY), so its cookies are unknown here.
pub const OWN_KEYS: u64 = 1;
/// Flag: some listener on the port serves SYNs without a good cookie (`tcp_fastopen_no_cookie`).
pub const NO_COOKIE: u64 = 2;

/// Number of bits for each port.
const BITS: u32 = 2;
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
            let flags = u64::from(port) * 7 % 4;
            assert_eq!(get(port, words[word(port) as usize]), 0, "{port}");
            words[word(port) as usize] |= set(port, flags);
        }
        for port in 0..=u16::MAX {
            assert_eq!(get(port, words[word(port) as usize]), u64::from(port) * 7 % 4, "{port}");
        }
    }
}
