//! The limit on open files, which maps, programs and connections count against.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Whatever the number of interfaces: eleven, and a few for orders and files that are read.
const ALWAYS: u64 = 40;
/// For each interface: 31, twice while its program is replaced, and a margin.
const PER_INTERFACE: u64 = 90;
/// For metrics: 128 connections, and the maps that 16 answers are read from.
const METRICS: u64 = 470;

/// Raises the limit on open files as far as it may be, which has to be enough for a `tfo run` on `interfaces`.
pub fn raise_limit(interfaces: &[String], has_metrics: bool) -> Result<()> {
    let count = interfaces.iter().collect::<BTreeSet<_>>().len();
    let needed = needed(count as u64, has_metrics);
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit on open files")?;
    if hard < needed {
        let metrics = if has_metrics { " with metrics" } else { "" };
        bail!(
            "tfo may have to open {needed} files at once for {count} interface{}{metrics}, and its limit is {hard}: raise \
             that, by LimitNOFILE={needed} in a systemd unit or `ulimit -n {needed}` in root's shell",
            if count == 1 { "" } else { "s" },
        );
    }
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit on open files")?;
    }
    Ok(())
}

fn needed(interfaces: u64, has_metrics: bool) -> u64 {
    ALWAYS + PER_INTERFACE * interfaces + if has_metrics { METRICS } else { 0 }
}
