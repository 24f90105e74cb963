//! Protection of keys from swap, from core files, and from leftovers in memory.

use std::{hint::black_box, io};

use anyhow::{Context as _, Result};
use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{DumpableBehavior, Resource, getrlimit, set_dumpable_behavior},
    thread::{CapabilitySet, capabilities},
};
use tracing::debug;

/// Size of the part of the stack that is wiped, in bytes: several times as much as any work with keys uses.
const STACK: usize = 256 * 1024;

/// Disables core files of the process, and locks its present and future memory against swapping if that is allowed.
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
    // MCL_ONFAULT locks pages at their first use, so unused memory costs nothing.
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}

/// Whether the process may lock all its memory. Under RLIMIT_MEMLOCK, later allocations would fail. CAP_IPC_LOCK lifts
/// it.
pub fn may_lock_memory() -> io::Result<bool> {
    let is_limited = getrlimit(Resource::Memlock).current.is_some();
    Ok(!is_limited || capabilities(None)?.effective.contains(CapabilitySet::IPC_LOCK))
}

/// Runs `work`, which handles keys, and zeroes the stack that it has used.
///
/// Each move of a key may leave a copy on the stack, and the compiler adds copies. No type wipes all of them. So keys
/// are handled only below a call of this function. Keys on the heap are wiped by [`zeroize`]. The result must contain
/// no key.
pub fn leaving_no_trace<T>(work: impl FnOnce() -> T) -> T {
    let result = call(work);
    wipe_stack();
    result
}

/// Runs `work` in a stack frame of its own, which begins where the frame of [`wipe_stack`] begins.
#[inline(never)]
fn call<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe_stack() {
    black_box(&mut [0_u8; STACK]);
}
