//! What a controller tells the commands about the program that it attached, in a map of its own.

/// The layout of all maps. A program and a command of different layouts do not read each other's maps.
pub const LAYOUT_VERSION: u32 = 1;

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
