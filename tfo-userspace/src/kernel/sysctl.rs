//! The kernel's settings of Fast Open, of the calling thread's network namespace.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result};
use tfo_common::{
    cookie,
    keyring::{Held, Key},
};
use zeroize::Zeroizing;

use crate::model::keys::{key_text, parse_key};

/// `net.ipv4.tcp_fastopen_key`.
const KEY: &str = "/proc/sys/net/ipv4/tcp_fastopen_key";

/// More than two keys have as text, in bytes.
const KEYS: usize = 128;

/// `net.ipv4.tcp_fastopen`.
const MODE: &str = "/proc/sys/net/ipv4/tcp_fastopen";

/// Bit of `net.ipv4.tcp_fastopen`: connections from here may use Fast Open.
pub const CLIENT: u32 = 0x1;

/// Bit of `net.ipv4.tcp_fastopen`: listeners with TCP_FASTOPEN take it.
pub const SERVER: u32 = 0x2;

/// Bit of `net.ipv4.tcp_fastopen`: connections from here send data in the SYN without a cookie, too.
pub const CLIENT_NO_COOKIE: u32 = 0x4;

/// Bit of `net.ipv4.tcp_fastopen`: data in the SYN is taken without a cookie.
pub const SERVER_NO_COOKIE: u32 = 0x200;

/// Bit of `net.ipv4.tcp_fastopen`: whoever begins to listen gets Fast Open without asking for it (`inet_listen`).
pub const EVERY_LISTENER: u32 = 0x400;

/// The text of `net.ipv4.tcp_fastopen_key`: one key or, with a comma, two.
pub fn read_key() -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(KEYS));
    fs::File::open(KEY)?.read_to_string(&mut text)?;
    Ok(text)
}

/// `net.ipv4.tcp_fastopen_key` of the network namespace in which it was opened, from whichever thread.
#[derive(Debug)]
pub struct KeySysctl(fs::File);

impl KeySysctl {
    /// That of the calling thread's namespace.
    pub fn open() -> Result<Self> {
        let file = fs::OpenOptions::new().write(true).open(KEY);
        Ok(Self(file.with_context(|| format!("cannot open {KEY} for writing"))?))
    }

    /// Sets the primary and the backup key.
    pub fn write(&self, current: Key, backup: Option<Key>) -> Result<()> {
        // It is not to grow, which would leave a copy behind.
        let mut text = Zeroizing::new(String::with_capacity(KEYS));
        text.push_str(&key_text(current));
        if let Some(backup) = backup {
            text.push(',');
            text.push_str(&key_text(backup));
        }
        self.0.write_all_at(text.as_bytes(), 0).with_context(|| format!("cannot write {KEY}"))
    }
}

/// The bits of `net.ipv4.tcp_fastopen`.
pub fn read_mode() -> Result<u32> {
    // The kernel's type for it is int.
    Ok(read_sysctl(MODE)?.cast_unsigned())
}

/// Sets the bits of `net.ipv4.tcp_fastopen`.
pub fn write_mode(bits: u32) -> Result<()> {
    fs::write(MODE, bits.cast_signed().to_string()).with_context(|| format!("cannot write {MODE}"))
}

/// `net.ipv4.tcp_syncookies`: 0 never, 1 when a listener's queue is full, 2 always. With 2, Fast Open is off
/// (`tcp_conn_request`).
pub fn syncookies() -> Result<i32> {
    read_sysctl("/proc/sys/net/ipv4/tcp_syncookies")
}

/// `net.ipv4.tcp_fastopen_blackhole_timeout_sec`: how long clients go without Fast Open once it seems that its packets are
/// lost on the way, in seconds; doubled each time (`tcp_fastopen_active_should_disable`). 0 for never.
pub fn blackhole_timeout() -> Result<i32> {
    read_sysctl("/proc/sys/net/ipv4/tcp_fastopen_blackhole_timeout_sec")
}

fn read_sysctl(path: &str) -> Result<i32> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.trim_end().parse().with_context(|| format!("{path} holds no number"))
}

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
        let text = read_key().context("cannot read net.ipv4.tcp_fastopen_key")?;
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

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: &str = "a0bf63f7-ed803d81-cd641d30-cebc4a90";
    const TWO: &str = "a1a1a1a1-b2b2b2b2-c3c3c3c3-d4d4d4d4";
    const ZERO: &str = "00000000-00000000-00000000-00000000";

    #[test]
    fn the_sysctls_text_is_understood() {
        let [one, two] = [ONE, TWO].map(|text| parse_key(text).unwrap());
        let parse = |text: &str| KernelKeys::parse(text).map(|keys| (keys.current, keys.backup));
        assert!(parse(&format!("{ONE}\n")) == Some((Some(one), None)));
        assert!(parse(&format!("{ONE},{TWO}\n")) == Some((Some(one), Some(two))));
        assert!(parse(ZERO) == Some((None, None)), "zeros mean none yet");
    }

    #[test]
    fn other_text_is_refused() {
        let broken = ["", "1-2-3", &format!("{ONE},{TWO},{ONE}"), &format!("{ONE},")];
        for text in broken {
            assert!(KernelKeys::parse(text).is_none(), "{text:?}");
        }
    }
}
