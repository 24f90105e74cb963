//! What is to be done with a SYN, decided from values alone.

use crate::class::Class;

named! {
    /// What happens to a packet.
    pub enum Verdict {
        /// It goes on to the stack as it came.
        Pass = "pass",
        /// It goes on with its cookie translated into one that the kernel takes.
        Rewrite = "rewrite",
    }
}

named! {
    /// What the operator allows the program to do.
    pub enum Mode {
        /// Look and count; never change or drop a packet.
        Observe = "observe",
        /// Translate the cookies of keys that the kernel does not hold.
        Accelerate = "accelerate",
        /// Besides, let the protections of a service act.
        Shield = "shield",
    }
}

impl Default for Mode {
    /// Whoever asks for nothing gets nothing changed.
    fn default() -> Self {
        Self::Observe
    }
}

/// The verdict on a SYN of `class` in `mode`, where the kernel holds a key to translate into or doesn't.
#[inline(always)]
pub const fn decide(mode: Mode, class: Class, has_translation: bool) -> Verdict {
    match (mode, class) {
        (Mode::Accelerate | Mode::Shield, Class::CookieRetired) if has_translation => Verdict::Rewrite,
        // An invalid cookie is legal: the kernel answers it with a full handshake and a fresh cookie.
        (Mode::Observe | Mode::Accelerate | Mode::Shield, _) => Verdict::Pass,
    }
}
