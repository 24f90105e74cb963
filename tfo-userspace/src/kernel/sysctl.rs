//! The kernel's Fast Open sysctls, in the calling thread's network namespace.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use procfs::process::{MountInfo, Process};
use tfo_common::{
    cookie,
    keyring::{Held, Key},
};
use zeroize::Zeroizing;

use crate::model::keys::{key_text, parse_key};

/// File of `net.ipv4.tcp_fastopen_key`.
const KEY: &str = "/proc/sys/net/ipv4/tcp_fastopen_key";

/// Capacity for the text of two keys, in bytes, with room to spare.
const KEYS: usize = 128;

/// File of `net.ipv4.tcp_fastopen`.
const MODE: &str = "/proc/sys/net/ipv4/tcp_fastopen";

/// Bit of `net.ipv4.tcp_fastopen`: outgoing connections may use Fast Open.
pub const CLIENT: u32 = 0x1;

/// Bit of `net.ipv4.tcp_fastopen`: listeners that set TCP_FASTOPEN accept Fast Open.
pub const SERVER: u32 = 0x2;

/// Bit of `net.ipv4.tcp_fastopen`: outgoing connections send data in the SYN even without a cookie.
pub const CLIENT_NO_COOKIE: u32 = 0x4;

/// Bit of `net.ipv4.tcp_fastopen`: listeners accept data in the SYN without a cookie.
pub const SERVER_NO_COOKIE: u32 = 0x200;

/// Bit of `net.ipv4.tcp_fastopen`: each new listener gets Fast Open, even without TCP_FASTOPEN (`inet_listen`).
pub const EVERY_LISTENER: u32 = 0x400;

/// Reads the text of `net.ipv4.tcp_fastopen_key`: one key, or two with a comma between them.
pub fn read_key() -> io::Result<Zeroizing<String>> {
    let mut text = Zeroizing::new(String::with_capacity(KEYS));
    fs::File::open(KEY)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Handle of `net.ipv4.tcp_fastopen_key`. It writes to the network namespace in which it was opened, from any thread.
#[derive(Debug)]
pub struct KeySysctl(fs::File);

impl KeySysctl {
    /// Opens the sysctl of the calling thread's network namespace.
    pub fn open() -> Result<Self> {
        open_for_writing(KEY).map(Self)
    }

    /// Sets the primary and the backup key.
    pub fn write(&self, current: Key, backup: Option<Key>) -> Result<()> {
        // The buffer must not grow: growing would leave a copy of the keys behind.
        let mut text = Zeroizing::new(String::with_capacity(KEYS));
        text.push_str(&key_text(current));
        if let Some(backup) = backup {
            text.push(',');
            text.push_str(&key_text(backup));
        }
        self.0.write_all_at(text.as_bytes(), 0).with_context(|| format!("cannot write {KEY}"))
    }
}

/// Opens the sysctl at `path`, below /proc/sys, for writing. Containers have /proc/sys read-only. There, another mount of
/// the same folder is searched, which has to be writable.
pub(super) fn open_for_writing(path: &str) -> Result<fs::File> {
    let open = |path: &Path| fs::OpenOptions::new().write(true).open(path);
    let error = match open(Path::new(path)) {
        Ok(file) => return Ok(file),
        Err(error) => error,
    };
    let is_read_only = error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    if is_read_only {
        let mounts = Process::myself().and_then(|myself| myself.mountinfo());
        let mounts = mounts.context("cannot read /proc/self/mountinfo")?;
        if let Some(file) = mounts.into_iter().find_map(|mount| open(&within(&mount, path)?).ok()) {
            return Ok(file);
        }
    }
    let advice =
        if is_read_only { ": in a container, mount the node's /proc/sys/net/ipv4 anywhere" } else { "" };
    Err(error).with_context(|| format!("cannot open {path} for writing{advice}"))
}

/// Returns the path at which `mount` shows the file `path` of /proc, if it does.
fn within(mount: &MountInfo, path: &str) -> Option<PathBuf> {
    let below = Path::new(path.strip_prefix("/proc")?).strip_prefix(&mount.root).ok()?;
    (mount.fs_type == "proc").then(|| mount.mount_point.join(below))
}

/// Reads the bits of `net.ipv4.tcp_fastopen`.
pub fn read_mode() -> Result<u32> {
    // The kernel stores it as an int.
    Ok(read_sysctl(MODE)?.cast_unsigned())
}

/// Sets the bits of `net.ipv4.tcp_fastopen`.
pub fn write_mode(bits: u32) -> Result<()> {
    fs::write(MODE, bits.cast_signed().to_string()).with_context(|| format!("cannot write {MODE}"))
}

/// Reads `net.ipv4.tcp_syncookies`: 0 means never, 1 when a listener's queue is full, 2 always. With 2, Fast Open is
/// off (`tcp_conn_request`).
pub fn syncookies() -> Result<i32> {
    read_sysctl("/proc/sys/net/ipv4/tcp_syncookies")
}

/// Reads `net.ipv4.tcp_fastopen_blackhole_timeout_sec`: seconds for which clients stop using Fast Open after its
/// packets seem to be lost on the way. The time doubles at each repetition (`tcp_fastopen_active_should_disable`); 0
/// means never.
pub fn blackhole_timeout() -> Result<i32> {
    read_sysctl("/proc/sys/net/ipv4/tcp_fastopen_blackhole_timeout_sec")
}

/// Reads `net.core.somaxconn`: the longest Fast Open queue that a listener can have (`fastopen_queue_tune`).
pub fn longest_queue() -> Result<u32> {
    Ok(read_sysctl("/proc/sys/net/core/somaxconn")?.cast_unsigned())
}

pub(super) fn read_sysctl(path: &str) -> Result<i32> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    text.trim_end().parse().with_context(|| format!("{path} holds no number"))
}

/// The one or two keys that `net.ipv4.tcp_fastopen_key` shows.
///
/// The type has no `Debug`, because keys are never printed.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelKeys {
    /// The primary key.
    pub current: Option<Key>,
    /// The backup key.
    pub backup: Option<Key>,
}

impl KernelKeys {
    /// Reads the keys of the calling thread's network namespace.
    pub fn read() -> Result<Self> {
        let text = read_key().context("cannot read net.ipv4.tcp_fastopen_key")?;
        Self::parse(&text).context("net.ipv4.tcp_fastopen_key is not in the form that Linux writes")
    }

    /// Parses the sysctl's text: `%08x-%08x-%08x-%08x`, then optionally `,` and the backup key.
    ///
    /// The sysctl shows a key of zeros before any key was set. It becomes `None`.
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

    /// Returns the fingerprints of both keys; 0 stands for a missing key.
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
    /// Returns the keys that the kernel shows while it has the keys of `held`.
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
        assert!(parse(ZERO) == Some((None, None)), "zeros mean no key yet");
    }

    #[test]
    fn other_text_is_refused() {
        let broken = ["", "1-2-3", &format!("{ONE},{TWO},{ONE}"), &format!("{ONE},")];
        for text in broken {
            assert!(KernelKeys::parse(text).is_none(), "{text:?}");
        }
    }
}
