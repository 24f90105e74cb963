//! SYN cookies of the calling thread's network namespace: the sysctls that decide on them, and `tcp_syncookies` at 2 for
//! some microseconds at a time.
//!
//! Only with 2 does the kernel make a SYN cookie for a listener whose SYN queue is not full, and so mark it. But with 2 the
//! kernel has no Fast Open at all (`tcp_conn_request`). So the value before is written to a [`Journal`] first. If the
//! process dies meanwhile, its [`Guardian`] writes the value back, and if that has died, too, the next start does.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::signal::{SigHandler, Signal, signal},
};
use tfo_common::answer::Host;

use super::{
    listeners::makes_cookies,
    netns::netns_cookie,
    sysctl::{SERVER, SERVER_NO_COOKIE, open_for_writing, read_mode, read_sysctl, syncookies},
};

const SYNCOOKIES: &str = "/proc/sys/net/ipv4/tcp_syncookies";

/// Checks that SYNs can be answered in the kernel's place. The error says why not, and what to do.
pub fn support() -> Result<()> {
    ensure!(makes_cookies()?, "this kernel makes no SYN cookies for XDP: `answer` needs Linux 6.0");
    let value = syncookies().context("this kernel has no SYN cookies (CONFIG_SYN_COOKIES)")?;
    ensure!(
        value != 0,
        "net.ipv4.tcp_syncookies is 0, so the kernel takes no SYN cookies: `sysctl -w net.ipv4.tcp_syncookies=1`"
    );
    Ok(())
}

/// Reads the facts about the host that decide on answers. What can't be read counts as off.
pub fn host() -> Host {
    let mut flags = 0;
    if syncookies().is_ok_and(|value| value != 0) {
        flags |= Host::COOKIES;
    }
    let fast_open = read_mode().unwrap_or(0);
    if fast_open & SERVER != 0 {
        flags |= Host::FAST_OPEN;
    }
    if fast_open & SERVER_NO_COOKIE != 0 {
        flags |= Host::NO_COOKIE;
    }
    match window_scale() {
        Some(scale) if read_sysctl("/proc/sys/net/ipv4/tcp_timestamps").is_ok_and(|value| value == 2) => {
            Host::new(flags | Host::TIMESTAMPS, scale)
        }
        _ => Host::new(flags, 0),
    }
}

/// Returns the scale of the receive window that the kernel offers (`tcp_select_initial_window`).
fn window_scale() -> Option<u8> {
    const UNSCALED_BITS: u32 = 15;
    const MOST: u32 = 14;

    let rmem = fs::read_to_string("/proc/sys/net/ipv4/tcp_rmem").ok()?;
    let most: u32 = rmem.split_ascii_whitespace().nth(2)?.parse().ok()?;
    let core: u32 = read_sysctl("/proc/sys/net/core/rmem_max").ok()?.cast_unsigned();
    let bits = most.max(core).checked_ilog2()?;
    u8::try_from(bits.saturating_sub(UNSCALED_BITS).min(MOST)).ok()
}

/// File with the value of `tcp_syncookies` before it was changed to 2. Without a file, it is not changed.
///
/// It lies in a folder that does not outlive a reboot, like the sysctl itself. Its name has the cookie of the network
/// namespace, which no later namespace has.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
}

impl Journal {
    /// Returns the journal of the calling thread's network namespace, in `folder`.
    pub fn new(folder: &Path) -> Result<Self> {
        let cookie =
            netns_cookie().context("no cookie of the network namespace: `answer` needs Linux 6.0")?;
        Ok(Self { path: folder.join(format!("syncookies-{cookie}")) })
    }

    /// Returns the path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `work` while `tcp_syncookies` is 2. That should take microseconds only. Returns `None`, and does nothing, while
    /// another process uses the journal.
    pub fn forced<T>(&self, work: impl FnOnce() -> T) -> Result<Option<T>> {
        let Some(_lock) = self.lock(FlockArg::LockExclusiveNonblock)? else { return Ok(None) };
        self.restore_locked()?;
        let before = syncookies()?;
        if before == 2 {
            return Ok(Some(work()));
        }
        if before == 0 {
            bail!("{SYNCOOKIES} is 0");
        }
        let sysctl = open_for_writing(SYNCOOKIES)?;
        let mut file = OpenOptions::new();
        file.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let written =
            file.open(&self.path).and_then(|mut file| file.write_all(before.to_string().as_bytes()));
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        let set = |value: i32| {
            let written = sysctl.write_all_at(value.to_string().as_bytes(), 0);
            written.with_context(|| format!("cannot write {SYNCOOKIES}"))
        };
        set(2)?;
        let result = work();
        set(before)?;
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
        Ok(Some(result))
    }

    /// Writes the value back that a process which died had changed. Returns whether there was one.
    pub fn restore(&self) -> Result<bool> {
        if !self.path.exists() {
            return Ok(false);
        }
        let _lock = self.lock(FlockArg::LockExclusive)?;
        self.restore_locked()
    }

    fn restore_locked(&self) -> Result<bool> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        };
        // An empty file was made just before the sysctl would have been changed.
        let is_changed = text.parse().is_ok_and(|before: u8| before != 2) && syncookies()? == 2;
        if is_changed {
            let written = open_for_writing(SYNCOOKIES)?.write_all_at(text.as_bytes(), 0);
            written.with_context(|| format!("cannot write {SYNCOOKIES}"))?;
        }
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
        Ok(is_changed)
    }

    /// Locks the journal. Returns `None` if `how` does not wait and another process uses it.
    fn lock(&self, how: FlockArg) -> Result<Option<Flock<File>>> {
        if let Some(folder) = self.path.parent() {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
            made.with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let path = self.path.with_extension("lock");
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        match Flock::lock(file, how) {
            Ok(locked) => Ok(Some(locked)),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// Name of the subcommand that a [`Guardian`] runs.
pub const GUARD: &str = "guard-syncookies";

/// Process that waits for the death of this one, and then writes the value in the journal back. It sleeps until then.
#[derive(Debug)]
pub struct Guardian(Child);

impl Guardian {
    /// Starts it for the journal in `folder`. It is this program, and a pipe tells it of our end.
    pub fn start(folder: &Path) -> Result<Self> {
        let mut command = Command::new("/proc/self/exe");
        command.arg(GUARD).arg(folder).stdin(Stdio::piped()).stdout(Stdio::null());
        Ok(Self(command.spawn().context("cannot start the process that guards net.ipv4.tcp_syncookies")?))
    }

    /// Whether it is still there.
    pub fn is_there(&mut self) -> bool {
        self.0.try_wait().is_ok_and(|ended| ended.is_none())
    }
}

impl Drop for Guardian {
    /// Ends it and waits for its end.
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.wait());
    }
}

/// Does the work of a [`Guardian`], whose end of the pipe is standard input.
pub fn guard(folder: &Path) -> Result<()> {
    // A service manager sends its signals to all processes of a service. The guardian must outlive the other.
    for name in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: no handler is installed, so none can do anything wrong.
        unsafe { signal(name, SigHandler::SigIgn) }.context("cannot ignore a signal")?;
    }
    let mut nothing = Vec::new();
    // A failure is the end of the pipe, too.
    drop(io::stdin().read_to_end(&mut nothing));
    Journal::new(folder)?.restore().map(drop)
}
