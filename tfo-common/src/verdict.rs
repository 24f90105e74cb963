//! What can become of a SYN. How that is decided stands in [`policy`](crate::policy).

named! {
    /// What happens to a packet.
    pub enum Verdict {
        /// It goes on to the stack with the option that it came with.
        Pass = "pass",
        /// It goes on with its cookie translated into one that the kernel takes.
        Rewrite = "rewrite",
        /// It goes on as an ordinary SYN: no-operations stand where the Fast Open option was.
        Hide = "hide",
        /// It does not go on.
        Drop = "drop",
    }
}

named! {
    /// What the operator allows the program to do.
    pub enum Mode {
        /// Look and count; never change or drop a packet.
        Observe = "observe",
        /// Translate the cookies of keys that the kernel does not hold.
        Accelerate = "accelerate",
        /// Besides, let the protections of a service act: see [`Guard`](crate::policy::Guard).
        Shield = "shield",
    }
}

impl Default for Mode {
    /// Whoever asks for nothing gets nothing changed.
    fn default() -> Self {
        Self::Observe
    }
}
