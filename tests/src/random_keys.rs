//! The real `tfo run` with keys that it makes, and the kernel's keys beside them.

use std::path::Path;

use tfo_userspace::kernel::sysctl::KernelKeys;

use crate::netns::{IFACE, Running, eventually, keys_status};

/// Starts `tfo run` on [`IFACE`] with keys that it makes and keeps in `state`, and waits until they are in force.
pub fn with_random_keys(state: &Path, more: &[&str]) -> Running {
    let state = state.to_str().expect("a path that is text");
    let running = Running::start(
        &[&["-i", IFACE, "--keys", "random", "--rotate", "1w", "--key-state", state], more].concat(),
    );
    wait_until_in_step(IFACE, "random");
    running
}

/// Waits until the keys of `source` are in the kernel and in the map of `interface`.
pub fn wait_until_in_step(interface: &str, source: &str) {
    eventually("kernel and map are in step", || {
        let status = keys_status(interface);
        status["source"] == source && status["in_step"] == true
    });
}

/// Returns the keys of the kernel in the calling thread's network namespace.
pub fn kernel_keys() -> KernelKeys {
    KernelKeys::read().expect("the sysctl can be read")
}
