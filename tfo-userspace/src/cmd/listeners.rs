//! `tfo listeners`.

use anyhow::Result;

use crate::{cli, listeners::Listeners, output::print};

/// Prints every listening socket.
pub(super) fn run(args: &cli::Listeners) -> Result<()> {
    let listeners = Listeners::read()?;
    print(&if args.json { serde_json::to_string(&listeners)? } else { listeners.text() })
}
