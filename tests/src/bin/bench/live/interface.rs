//! Receiving interface, with its thread and the CPU time that the thread uses.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

use crate::measure::pin;

/// End of the veth pair.
pub(super) struct Interface {
    name: String,
    /// Thread that receives.
    thread: Pid,
    clock: ClockId,
}

impl Interface {
    /// Makes `name`, which must have an XDP program, receive in a thread on `cpu`.
    pub(super) fn new(name: &str, cpu: usize) -> Result<Self> {
        let path = format!("/sys/class/net/{name}/threaded");
        fs::write(&path, "1")
            .with_context(|| format!("cannot write {path}, which is there since Linux 5.12"))?;
        let prefix = format!("napi/{name}-");
        let is_it = |entry: &fs::DirEntry| {
            fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.starts_with(&prefix))
        };
        let found = fs::read_dir("/proc")?.flatten().find(is_it);
        let found = found.with_context(|| {
            format!("there is no thread {prefix}: live floods need the kernel's threads, which a PID namespace hides")
        })?;
        let thread = found.file_name().to_str().and_then(|id| id.parse().ok()).context("no process id")?;
        let thread = Pid::from_raw(thread);
        pin(thread, cpu).with_context(|| format!("cannot have {prefix} run on CPU {cpu} only"))?;
        Ok(Self { name: name.to_owned(), thread, clock: clock_getcpuclockid(thread)? })
    }

    /// Returns the number of received packets, and of those that the other end dropped because the queue was full.
    pub(super) fn packets(&self) -> Result<(u64, u64)> {
        let read = |name| {
            let path = format!("/sys/class/net/{}/statistics/{name}", self.name);
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            Ok::<u64, anyhow::Error>(text.trim().parse()?)
        };
        Ok((read("rx_packets")?, read("rx_dropped")?))
    }

    /// Returns the CPU time that the thread has used.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        Ok(clock_gettime(self.clock)?.into())
    }

    pub(super) fn is_asleep(&self) -> Result<bool> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.thread))?;
        let (_, state) = stat.rsplit_once(") ").context("no state in a thread's stat")?;
        Ok(state.starts_with('S'))
    }
}
