//! `tfo reload`.

use anyhow::Result;

use crate::{cli::args::Reload, control::Order, dataplane::pins::Bpffs, util::output::print};

/// Has controllers read their configuration again. One of several interfaces does so for each, which changes nothing more.
pub(super) async fn run(args: &Reload, bpffs: &Bpffs) -> Result<()> {
    let show = |interface: &str, answer: &str| print(&format!("{interface}: {answer}"));
    super::tell(args.interface.as_deref(), bpffs, |_| Order::Reload, show).await
}
