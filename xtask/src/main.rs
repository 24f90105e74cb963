//! `cargo xtask`: every task of this project that is more than one plain cargo command.
//!
//! Each task has its own module. [`workspace`] has what they share: paths, and running of commands.

mod agree;
mod apt;
mod bench;
mod build;
mod dist;
mod fuzz;
mod image;
mod kernels;
mod libraries;
mod lint;
mod packages;
mod pictures;
mod rfc;
mod run;
mod servers;
mod setup;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Builds, runs and tests the project, and fetches what that needs.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Fetch what the eBPF build needs: rust-src, and bpf-linker under target/tools (the other tasks call this)
    Setup,
    /// Build the `tfo` binary
    Build(build::Args),
    /// Build and run `tfo`: its lab, or with `-i INTERFACE` on that interface
    Run(run::Args),
    /// Run every test, tier by tier
    Test(test::Args),
    /// Measure what the XDP program costs, class by class (needs root)
    Bench(bench::Args),
    /// Run the fuzz targets for a while
    Fuzz(fuzz::Args),
    /// Compare the program in the kernel with the host's parser on ten million frames (needs root)
    Agree(agree::Args),
    /// Run the in-kernel and namespace tests on other kernels, in QEMU
    Kernels(kernels::Args),
    /// Visit servers from Debian with Fast Open, observed and protected by `tfo` (needs root)
    Servers(servers::Args),
    /// Make a container image of `tfo`, without a container engine
    Image(image::Args),
    /// Make the pictures of the README from a real run of nginx, curl and `tfo` (needs root)
    Pictures(pictures::Args),
    /// Make what is installed: binary, packages, tarball, checksums, a bill of materials
    Dist(dist::Args),
    /// Hold RFC 7413 against the quotes in code and tests, and write docs/rfc7413.md
    Rfc(rfc::Args),
    /// Check formatting, layers, links, the table of RFC 7413, spelling and the crates that are used, and run clippy and rustdoc
    Lint,
}

fn main() -> ExitCode {
    let done = match Task::parse() {
        Task::Setup => setup::ensure().map(|()| ExitCode::SUCCESS),
        Task::Build(args) => build::build(&args).map(|_| ExitCode::SUCCESS),
        Task::Run(args) => run::run(&args).map(|never| match never {}),
        Task::Test(args) => test::test(&args),
        Task::Bench(args) => bench::bench(&args).map(|never| match never {}),
        Task::Fuzz(args) => fuzz::fuzz(&args),
        Task::Agree(args) => agree::agree(&args).map(|()| ExitCode::SUCCESS),
        Task::Kernels(args) => kernels::kernels(&args),
        Task::Servers(args) => servers::servers(&args).map(|never| match never {}),
        Task::Image(args) => image::image(&args).map(|()| ExitCode::SUCCESS),
        Task::Pictures(args) => pictures::pictures(&args).map(|()| ExitCode::SUCCESS),
        Task::Dist(args) => dist::dist(&args).map(|()| ExitCode::SUCCESS),
        Task::Rfc(args) => rfc::rfc(&args).map(|()| ExitCode::SUCCESS),
        Task::Lint => lint::lint().map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|err| {
        eprintln!("error: {err:#}");
        ExitCode::FAILURE
    })
}
