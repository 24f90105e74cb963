//! `tfo reload`.

use anyhow::Result;

use crate::{cli::Reload, control::Order, output::print, pins::Bpffs};

/// Has controllers read their configuration again. One of several interfaces does so for each, which changes nothing more.
pub(super) async fn run(args: &Reload, bpffs: &Bpffs) -> Result<()> {
    let show = |interface: &str, answer: &str| print(&format!("{interface}: {answer}"));
    super::tell(args.interface.as_deref(), bpffs, |_| Order::Reload, show).await
}
