//! Architectures of the guests, and what differs between them.

/// Architecture of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Architecture {
    X86_64,
}

impl Architecture {
    /// Returns Debian's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
        }
    }
}
