//! What keeps keys from swap, from core files, and from memory that is done with them.

use std::{hint::black_box, io};

use anyhow::{Context as _, Result};
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior},
    thread::{CapabilitySet, capabilities},
};
use tracing::debug;

/// How much of the stack is wiped, in bytes: several times what any work with keys takes.
const STACK: usize = 256 * 1024;

/// Keeps the process out of core files, and its memory, now and later, from swap where that is allowed.
pub fn protect_process() -> Result<()> {
    let undumpable = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    undumpable.context("cannot keep core files from being written")?;
    if let Err(error) = lock_memory() {
        debug!("keys may be swapped out, memory cannot be locked: {error}");
    }
    Ok(())
}

fn lock_memory() -> io::Result<()> {
    if !may_lock_memory()? {
        return Err(rustix::io::Errno::PERM.into());
    }
    // Pages are locked as they come into use: what is never used costs nothing.
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}

/// Whether memory may be kept from swap. Under a limit, allocations would fail later. CAP_IPC_LOCK lifts it.
pub fn may_lock_memory() -> io::Result<bool> {
    let is_limited = getrlimit(Resource::Memlock).current.is_some();
    Ok(!is_limited || capabilities(None)?.effective.contains(CapabilitySet::IPC_LOCK))
}

/// Does `work`, which handles keys, and zeroes the stack that it has used.
///
/// A key is copied wherever it is moved, and by the compiler wherever that pleases it: no type wipes all of those. So keys
/// are handled on the stack, below a call of this. What is on the heap wipes itself ([`zeroize`]), and what is returned
/// must hold none.
pub fn leaving_no_trace<T>(work: impl FnOnce() -> T) -> T {
    let result = call(work);
    wipe_stack();
    result
}

/// Both have a frame of their own, which begins at the same place.
#[inline(never)]
fn call<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe_stack() {
    black_box(&mut [0_u8; STACK]);
}
