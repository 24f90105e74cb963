//! `tfo version`.

use std::env::consts::ARCH;

use anyhow::Result;
use serde::Serialize;

use crate::{
    cli::args::Version,
    control::protocol,
    daemon::order_file,
    dataplane::LAYOUTS,
    fleet::document,
    kernel::release,
    keys::state,
    util::output::{JSON_VERSION, json, print},
};

/// Versions of this program and of what it reads and writes. docs/versions.md says what each promises.
#[derive(Serialize)]
struct Versions {
    /// Version of the program.
    tfo: &'static str,
    /// Layout of the maps that it makes.
    map_layout: u32,
    /// Other layouts, whose contents it takes over.
    other_map_layouts: &'static [u32],
    /// Requests to a running `tfo run`.
    control: u32,
    /// File of `--keys random`.
    key_file: u64,
    /// Files of `tfo hide`.
    order_file: u64,
    /// Values of a fleet in etcd, and what a host keeps of them.
    fleet: u64,
    /// Whether this build knows etcd.
    etcd: bool,
    /// Oldest kernel on which it is known to run.
    oldest_kernel: String,
    /// Release of the running kernel.
    kernel: String,
    architecture: &'static str,
}

/// Prints the versions. It needs neither root nor a running program.
pub(super) fn run(args: &Version) -> Result<()> {
    let (major, minor) = release::OLDEST;
    let (map_layout, other_map_layouts) = LAYOUTS.split_first().expect("it has our own layout");
    let versions = Versions {
        tfo: env!("CARGO_PKG_VERSION"),
        map_layout: *map_layout,
        other_map_layouts,
        control: protocol::VERSION,
        key_file: state::VERSION,
        order_file: order_file::VERSION,
        fleet: document::VERSION,
        etcd: cfg!(feature = "etcd"),
        oldest_kernel: format!("{major}.{minor}"),
        kernel: release::running()?,
        architecture: ARCH,
    };
    print(&if args.json { json(&versions)? } else { text(&versions) })
}

fn text(versions: &Versions) -> String {
    let Versions { tfo, map_layout, other_map_layouts, control, key_file, order_file, .. } = versions;
    let Versions { fleet, etcd, oldest_kernel, kernel, architecture, .. } = versions;
    let etcd = if *etcd { "" } else { ", but this build has no etcd" };
    let others: Vec<_> = other_map_layouts.iter().map(u32::to_string).collect();
    format!(
        "tfo {tfo}\n  maps         layout {map_layout}, and takes over {}\n  JSON         {JSON_VERSION}\n  \
         control      {control}\n  key file     {key_file}\n  order files  {order_file}\n  fleet        \
         {fleet}{etcd}\n  \
         kernel       Linux {kernel}, {architecture}; it takes {oldest_kernel} or later",
        others.join(", ")
    )
}
