//! What a controller tells the commands about the program that it attached, in a map of its own.

/// The layout of all maps. A program and a command of different layouts do not read each other's maps.
pub const LAYOUT_VERSION: u32 = 7;

/// The one entry of the info map. The program never reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Info {
    /// [`LAYOUT_VERSION`] of whoever made the maps.
    pub layout_version: u32,
    /// [`Mode`](crate::verdict::Mode) index.
    pub mode: u32,
    /// [`Attach`] index.
    pub attach: u32,
    /// The interface's index in its network namespace.
    pub ifindex: u32,
    /// The inode number of the interface's network namespace.
    pub netns: u64,
    /// When counting began, in nanoseconds since 1970 (UTC).
    pub since_unix_ns: u64,
    /// [`KeySource`] index.
    pub key_source: u64,
    /// How often the key changes, in seconds; 0 where we don't decide that.
    pub rotate_seconds: u64,
    /// How old a retired key may get, in seconds; 0 for any age.
    pub max_age_seconds: u64,
    /// The fingerprints of the primary and the backup key that the source wants the kernel to hold; 0 for none.
    pub wanted: [u64; 2],
    /// How often the kernel's keys could not be read or written, or were changed by somebody else.
    pub key_failures: u64,
    /// What [`Tag`](crate::policy::Tag)s are made with.
    pub seed: u64,
}

named! {
    /// Where keys come from.
    pub enum KeySource {
        /// The kernel's, whoever sets them.
        Kernel = "kernel",
        /// Our own, random.
        Random = "random",
        /// Derived from a secret that the fleet shares, and the time.
        Secret = "secret",
    }
}

named! {
    /// Where in the receive path the program runs.
    pub enum Attach {
        /// In the driver, before the kernel has made an sk_buff.
        Native = "native",
        /// In the stack, for drivers without XDP: correct, but no faster than the stack.
        Generic = "generic",
    }
}
