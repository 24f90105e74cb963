//! Keys in user space: their text form, and following the kernel's.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Context as _, Result, bail};
use tfo_common::{
    cookie,
    keyring::{Held, Key, KeyRing},
    segment::Addresses,
};
use zeroize::Zeroizing;

use crate::kernel;

pub mod attestation;
pub mod keeper;
pub mod listing;
pub mod schedule;
pub mod secret;
pub mod state;

/// The one or two keys that `net.ipv4.tcp_fastopen_key` shows.
///
/// It has no `Debug`: keys are never printed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelKeys {
    /// The primary key.
    pub current: Option<Key>,
    /// The backup key.
    pub backup: Option<Key>,
}

impl KernelKeys {
    /// Those of the calling thread's network namespace, now.
    pub fn read() -> Result<Self> {
        let text = kernel::read_key().context("cannot read net.ipv4.tcp_fastopen_key")?;
        Self::parse(&text).context("net.ipv4.tcp_fastopen_key is not in the form that Linux writes")
    }

    /// Reads what the sysctl shows: `%08x-%08x-%08x-%08x`, then optionally `,` and the backup key.
    ///
    /// A key of zeros is what it shows before any key was set, and is taken as none.
    pub fn parse(text: &str) -> Option<Self> {
        let mut keys = text.trim_end().split(',').map(parse_key);
        let current = keys.next()??;
        let backup = match keys.next() {
            Some(backup) => Some(backup?),
            None => None,
        };
        if keys.next().is_some() {
            return None;
        }
        let set = |key: Key| (!key.is_zero()).then_some(key);
        Some(Self { current: set(current), backup: backup.and_then(set) })
    }

    /// The fingerprints of both keys; 0 for none.
    pub fn fingerprints(&self) -> [u64; 2] {
        [&self.current, &self.backup].map(|key| key.as_ref().map_or(0, cookie::fingerprint))
    }
}

impl From<KernelKeys> for Held {
    fn from(KernelKeys { current, backup }: KernelKeys) -> Self {
        Self { current, backup, next: None }
    }
}

impl From<Held> for KernelKeys {
    /// What the kernel shows once it has the keys of `held`.
    fn from(Held { current, backup, next: _ }: Held) -> Self {
        Self { current, backup }
    }
}

/// The key written as four groups of eight hexadecimal digits.
///
/// The kernel's own parser (`proc_tcp_fastopen_key`: sscanf `%x-%x-%x-%x`) also takes fewer digits, so do we.
pub fn parse_key(text: &str) -> Option<Key> {
    let mut words = text.split('-').map(|word| {
        let digits = !word.is_empty() && word.len() <= 8 && word.bytes().all(|b| b.is_ascii_hexdigit());
        if digits { u32::from_str_radix(word, 16).ok() } else { None }
    });
    let key = Key::from_words([words.next()??, words.next()??, words.next()??, words.next()??]);
    words.next().is_none().then_some(key)
}

/// The key as the sysctl takes it. A secret: for the kernel only.
pub fn key_text(key: Key) -> Zeroizing<String> {
    let [a, b, c, d] = key.to_words();
    // It is not to grow, which would leave a copy behind.
    let mut text = Zeroizing::new(String::with_capacity(4 * 9));
    write!(text, "{a:08x}-{b:08x}-{c:08x}-{d:08x}").expect("writing to a String cannot fail");
    text
}

/// The two addresses from which a cookie is made; an error where they are of different families.
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

/// What may be shown of a key: sixteen hexadecimal digits that tell it from others and say nothing about it.
pub fn fingerprint(key: Key) -> String {
    format!("{:016x}", cookie::fingerprint(&key))
}

/// One line about the keys of `ring`, by their fingerprints.
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
    const ZERO: &str = "00000000-00000000-00000000-00000000";

    #[test]
    fn the_sysctls_text_is_understood() {
        let one = parse_key(ONE).unwrap();
        let two = parse_key(TWO).unwrap();
        assert_eq!(*key_text(one), ONE);
        assert_eq!(one.to_words(), [0xa0bf_63f7, 0xed80_3d81, 0xcd64_1d30, 0xcebc_4a90]);

        let parse = |text: &str| KernelKeys::parse(text).map(|keys| (keys.current, keys.backup));
        assert!(parse(&format!("{ONE}\n")) == Some((Some(one), None)));
        assert!(parse(&format!("{ONE},{TWO}\n")) == Some((Some(one), Some(two))));
        assert!(parse(ZERO) == Some((None, None)), "zeros mean none yet");
    }

    #[test]
    fn other_text_is_refused() {
        let broken = ["", "-", "1-2-3", "1-2-3-4-5", "1-2-3-g", "1-2-3-+4", "1-2-3-123456789"];
        for text in broken {
            assert!(parse_key(text).is_none(), "{text:?}");
            assert!(KernelKeys::parse(text).is_none(), "{text:?}");
        }
        assert!(KernelKeys::parse(&format!("{ONE},{TWO},{ONE}")).is_none());
        assert!(KernelKeys::parse(&format!("{ONE},")).is_none());
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
