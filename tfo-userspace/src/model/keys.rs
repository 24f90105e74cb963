//! Keys as text, and their fingerprints.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Result, bail};
use tfo_common::{
    cookie,
    keyring::{Held, Key, KeyRing},
    segment::Addresses,
};
use zeroize::{Zeroize, Zeroizing};

/// A key and the time at which it was made.
///
/// The type has no `Debug`, because keys are never printed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DatedKey {
    /// The key.
    pub key: Key,
    /// Time at which it was made, in seconds since 1970 (UTC).
    pub made: u64,
}

impl Zeroize for DatedKey {
    fn zeroize(&mut self) {
        self.key.k0.zeroize();
        self.key.k1.zeroize();
        self.made.zeroize();
    }
}

/// Number of further keys that [`PortKeys`] have room for.
const OTHERS: usize = 6;

/// Keys of the listeners on one port, which have Fast Open keys of their own. They are secret, so the type has no `Debug`.
#[derive(Clone, Copy)]
pub struct PortKeys {
    /// Local port.
    pub port: u16,
    /// Primary and backup key of the first listener.
    pub held: Held,
    /// Keys of listeners that have others than the first one.
    others: [Option<Key>; OTHERS],
    /// Whether all listeners on the port have the same keys.
    pub is_uniform: bool,
}

impl PortKeys {
    /// Makes the keys of the first listener on `port`.
    pub const fn new(port: u16, primary: Option<Key>, backup: Option<Key>) -> Self {
        let held = Held { current: primary, backup, next: None };
        Self { port, held, others: [None; OTHERS], is_uniform: true }
    }

    /// Adds the keys of another listener on the port.
    pub fn add(&mut self, primary: Option<Key>, backup: Option<Key>) {
        if (self.held.current, self.held.backup) == (primary, backup) {
            return;
        }
        self.is_uniform = false;
        for key in [primary, backup].into_iter().flatten() {
            let is_known = [self.held.current, self.held.backup].contains(&Some(key))
                || self.others.contains(&Some(key));
            if !is_known && let Some(free) = self.others.iter_mut().find(|other| other.is_none()) {
                *free = Some(key);
            }
        }
    }

    /// Returns the keys that only listeners after the first one have.
    pub fn others(&self) -> impl Iterator<Item = Key> {
        self.others.into_iter().flatten()
    }
}

impl Zeroize for PortKeys {
    fn zeroize(&mut self) {
        let Self { port: _, held: Held { current, backup, next }, others, is_uniform: _ } = self;
        let keys = [current, backup, next].into_iter().chain(others).flatten();
        keys.for_each(|Key { k0, k1 }| {
            k0.zeroize();
            k1.zeroize();
        });
    }
}

/// Parses a key of four groups of eight hexadecimal digits.
///
/// Groups may be shorter, as for the kernel's parser (`proc_tcp_fastopen_key`: sscanf `%x-%x-%x-%x`).
pub fn parse_key(text: &str) -> Option<Key> {
    let mut words = text.split('-').map(|word| {
        let digits = !word.is_empty() && word.len() <= 8 && word.bytes().all(|b| b.is_ascii_hexdigit());
        if digits { u32::from_str_radix(word, 16).ok() } else { None }
    });
    let key = Key::from_words([words.next()??, words.next()??, words.next()??, words.next()??]);
    words.next().is_none().then_some(key)
}

/// Returns the key in the sysctl's form. The text is secret: only the kernel and the state file may get it.
pub fn key_text(key: Key) -> Zeroizing<String> {
    let [a, b, c, d] = key.to_words();
    // The buffer must not grow: growing would leave a copy of the key behind.
    let mut text = Zeroizing::new(String::with_capacity(4 * 9));
    write!(text, "{a:08x}-{b:08x}-{c:08x}-{d:08x}").expect("writing to a String cannot fail");
    text
}

/// Returns the two addresses from which a cookie is made. Fails if they are of different families.
pub fn addresses(src: IpAddr, dst: IpAddr) -> Result<Addresses> {
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut bytes = [0; 8];
            bytes[..4].copy_from_slice(&src.octets());
            bytes[4..].copy_from_slice(&dst.octets());
            Ok(Addresses::from_ipv4(bytes))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut bytes = [0; 32];
            bytes[..16].copy_from_slice(&src.octets());
            bytes[16..].copy_from_slice(&dst.octets());
            Ok(Addresses::from_ipv6(bytes))
        }
        _ => bail!("{src} and {dst} are of different families"),
    }
}

/// Returns the fingerprint of a key: sixteen hexadecimal digits that identify the key without revealing it.
pub fn fingerprint(key: Key) -> String {
    format!("{:016x}", cookie::fingerprint(&key))
}

/// Describes the keys of `ring` in one line, by their fingerprints.
pub fn describe(ring: &KeyRing) -> String {
    let show = |slot| ring.get(slot).map_or_else(|| "none".to_owned(), fingerprint);
    let mut line = format!("current {}, backup {}", show(0), show(1));
    match ring.retired().count() {
        0 => {}
        retired => write!(line, ", {retired} retired").expect("writing to a String cannot fail"),
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "a0bf63f7-ed803d81-cd641d30-cebc4a90";
    const TWO: &str = "a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4";

    #[test]
    fn a_key_has_four_groups() {
        let one = parse_key(ONE).unwrap();
        assert_eq!(*key_text(one), ONE);
        assert_eq!(one.to_words(), [0xa0bf_63f7, 0xed80_3d81, 0xcd64_1d30, 0xcebc_4a90]);
        let broken = ["", "-", "1-2-3", "1-2-3-4-5", "1-2-3-g", "1-2-3-+4", "1-2-3-123456789"];
        for text in broken {
            assert!(parse_key(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_fingerprint_shows_nothing_of_the_key() {
        let shown = fingerprint(parse_key(ONE).unwrap());
        assert_eq!(shown.len(), 16);
        for group in ONE.split('-') {
            assert!(!shown.contains(group));
        }
        assert_ne!(shown, fingerprint(parse_key(TWO).unwrap()));
    }
}
