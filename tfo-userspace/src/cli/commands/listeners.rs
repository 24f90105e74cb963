//! `tfo listeners`.

use anyhow::Result;

use crate::{
    cli::args,
    kernel::{listeners::Listeners, route},
    util::output::{json, print},
    view::listeners::text,
};

/// Prints every listening socket.
pub(super) async fn run(args: &args::Listeners) -> Result<()> {
    // Without routes, the rest is still worth showing. `tfo check` says why they can't be read.
    let routes = route::without_cookie().await.unwrap_or_default();
    let listeners = Listeners::read_with_queues()?.add_routes(&routes);
    print(&if args.json { json(&listeners)? } else { text(&listeners) })
}
