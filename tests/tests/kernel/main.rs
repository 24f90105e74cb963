//! Tier 2: the eBPF program in the kernel, under BPF_PROG_TEST_RUN. Needs root.

mod cases;
mod flood;
mod limits;
mod portable;
mod protect;
mod rewrite;
mod special;
mod tcx;
mod unfollowed;
