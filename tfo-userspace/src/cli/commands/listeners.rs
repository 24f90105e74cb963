//! `tfo listeners`.

use anyhow::Result;

use crate::{cli::args, kernel::listeners::Listeners, util::output::print, view::listeners::text};

/// Prints every listening socket.
pub(super) fn run(args: &args::Listeners) -> Result<()> {
    let listeners = Listeners::read_with_queues()?;
    print(&if args.json { serde_json::to_string(&listeners)? } else { text(&listeners) })
}
