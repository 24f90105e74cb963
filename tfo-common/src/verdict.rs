//! What is to be done with a SYN, decided from values alone.

use crate::class::Class;

named! {
    /// What happens to a packet.
    pub enum Verdict {
        /// It goes on to the stack as it came.
        Pass = "pass",
    }
}

named! {
    /// What the operator allows the program to do.
    pub enum Mode {
        /// Look and count; never change or drop a packet.
        Observe = "observe",
    }
}

/// The verdict on a SYN of `class` in `mode`.
#[inline(always)]
pub const fn decide(mode: Mode, class: Class) -> Verdict {
    match (mode, class) {
        // An invalid cookie is legal: the kernel answers it with a full handshake and a fresh cookie.
        (Mode::Observe, _) => Verdict::Pass,
    }
}
