//! `tfo reload`.

use anyhow::Result;

use crate::{cli::args::Reload, control::Request, dataplane::pins::Bpffs, util::output::print};

/// Requests that controllers read their configuration again. The controller of several interfaces gets one request for
/// each; those after the first change nothing.
pub(super) async fn run(args: &Reload, bpffs: &Bpffs) -> Result<()> {
    let show = |interface: &str, answer: &str| print(&format!("{interface}: {answer}"));
    super::send(args.interface.as_deref(), bpffs, |_| Request::Reload, show).await
}
