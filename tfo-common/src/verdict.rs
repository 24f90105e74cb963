//! Verdicts on SYNs, and modes. The decision for a verdict is made in [`policy`](crate::policy).

named! {
    /// Verdict on a packet.
    pub enum Verdict {
        /// The packet goes on to the stack with the option that it came with.
        Pass = "pass",
        /// The packet goes on with its cookie translated into one that the kernel accepts.
        Rewrite = "rewrite",
        /// The packet goes on as an ordinary SYN: no-operations replace the Fast Open option.
        Hide = "hide",
        /// The packet is dropped.
        Drop = "drop",
        /// The kernel does not see the packet: the program answers it by a SYN-ACK with a SYN cookie.
        Answer = "answer",
    }
}

named! {
    /// Mode, which says what the operator allows the program to do.
    pub enum Mode {
        /// Looks and counts, and never changes or drops a packet.
        Observe = "observe",
        /// Translates the cookies of keys that the kernel does not hold.
        Accelerate = "accelerate",
        /// Translates cookies, and lets the guards of a service act: see [`Guard`](crate::policy::Guard).
        Shield = "shield",
    }
}

impl Default for Mode {
    /// Returns the mode that changes nothing.
    fn default() -> Self {
        Self::Observe
    }
}
