//! The limit on open files. Maps, programs and connections count against it.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Open files for any number of interfaces: eleven, and a margin for requests and for files that are read.
const ALWAYS: u64 = 40;
/// Open files for each interface: 31, twice that while its program is replaced, and a margin.
const PER_INTERFACE: u64 = 90;
/// Open files for metrics: 128 connections, and the maps from which 16 answers are read.
const METRICS: u64 = 470;

/// Raises the limit on open files to the hard limit. Fails if that is too low for `tfo run` on `interfaces`.
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
