//! Facts about an attached program, which its controller leaves to the commands in a map.

/// Version of the layout of all maps. A program and a command of different versions do not read each other's maps.
pub const LAYOUT_VERSION: u32 = RELEASED_LAYOUT + cfg!(feature = "next-layout") as u32;

/// [`LAYOUT_VERSION`] without the feature `next-layout`. With it, the maps are of a layout with another number and the same
/// contents, and those of this one have to be carried over.
pub const RELEASED_LAYOUT: u32 = 7;

/// The only entry of the info map. The program never reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Info {
    /// [`LAYOUT_VERSION`] of the tfo that made the maps.
    pub layout_version: u32,
    /// [`Mode`](crate::verdict::Mode) index.
    pub mode: u32,
    /// [`Attach`] index.
    pub attach: u32,
    /// The interface's index in its network namespace.
    pub ifindex: u32,
    /// The inode number of the interface's network namespace.
    pub netns: u64,
    /// Time at which counting began, in nanoseconds since 1970 (UTC).
    pub since_unix_ns: u64,
    /// [`KeySource`] index.
    pub key_source: u64,
    /// Interval of key changes, in seconds; 0 if tfo does not decide it.
    pub rotate_seconds: u64,
    /// Greatest age of a retired key, in seconds; 0 for no limit.
    pub max_age_seconds: u64,
    /// Fingerprints of the primary and the backup key that the source wants the kernel to hold; 0 for no key.
    pub wanted: [u64; 2],
    /// Number of times that the kernel's keys could not be read or written, or were changed by somebody else.
    pub key_failures: u64,
    /// Seed of [`Tag`](crate::table::Tag)s.
    pub seed: u64,
    /// Time from which a secret that is known will be in force, in seconds since 1970; 0 for none, [`u64::MAX`] if it waits
    /// for a word.
    pub next_secret: u64,
}

named! {
    /// Source of the keys.
    pub enum KeySource {
        /// The kernel's keys, whoever sets them.
        Kernel = "kernel",
        /// Random keys that tfo makes.
        Random = "random",
        /// Keys derived from the time and a secret that the fleet shares.
        Secret = "secret",
    }
}

named! {
    /// Place in the receive path where the program runs.
    pub enum Attach {
        /// The driver, before the kernel has made an sk_buff.
        Native = "native",
        /// The stack, for drivers without XDP. It is correct, but no faster than the stack itself.
        Generic = "generic",
        /// The stack, behind XDP and before netfilter. It goes beside any XDP program of others.
        Tcx = "tcx",
    }
}
