//! `cargo xtask servers`: servers from Debian with Fast Open, each visited by a real client while tfo observes and while all
//! protections are on. The task unpacks the packages, and starts this.
//!
//! Each server runs in network namespaces of its own. /usr and /etc there have the files of its package above those of
//! the host: nothing is installed.

mod list;
mod visit;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use comfy_table::CellAlignment::{Left, Right};
use tfo_userspace::view::table::table;

use self::{
    list::{KDIG, SERVERS, Server},
    visit::{Service, VISITS},
};

/// Visits servers from Debian with Fast Open, observed and protected by tfo.
#[derive(Parser)]
#[command(name = "cargo xtask servers", bin_name = "cargo xtask servers")]
struct Args {
    /// Visits only servers with this in the name of their package
    filter: Option<String>,
    /// Prints the packages that are needed, and ends
    #[arg(long, hide = true)]
    list: bool,
    /// Folder with the unpacked packages
    #[arg(long, value_name = "DIR", hide = true, default_value = "target/servers")]
    packages: PathBuf,
}

fn main() -> ExitCode {
    let Args { filter, list, packages } = Args::parse();
    let is_chosen = |server: &&Server| filter.as_ref().is_none_or(|filter| server.package.contains(filter));
    let chosen: Vec<_> = SERVERS.iter().filter(is_chosen).collect();
    if list {
        chosen.iter().map(|server| server.package).chain([KDIG]).for_each(|package| println!("{package}"));
        return ExitCode::SUCCESS;
    }
    let rows: Vec<_> = chosen.into_iter().map(|server| Row::of(server, &packages)).collect();
    let columns = [
        ("server", Left),
        ("version", Left),
        ("queue by default", Right),
        ("queue", Right),
        ("at 0-RTT, observed", Right),
        ("at 0-RTT, protected", Right),
    ];
    print!("{}", table(&columns, rows.iter().map(|row| row.cells.clone())));
    let failures: Vec<_> = rows.iter().flat_map(|row| &row.failures).collect();
    failures.iter().for_each(|failure| println!("FAILED: {failure}"));
    if failures.is_empty() && !rows.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Row of the table.
struct Row {
    cells: Vec<String>,
    failures: Vec<String>,
}

impl Row {
    fn of(server: &Server, packages: &Path) -> Self {
        eprintln!("{} …", server.package);
        let mut failures = Vec::new();
        let mut attempt = |what: &str, work: &dyn Fn() -> String| {
            catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
                failures.push(format!("{}, {what}: {}", server.package, message(panic.as_ref())));
                "failed".to_owned()
            })
        };
        let queue = |line: &str| match visit::queue(server, line, packages) {
            0 => "off".to_owned(),
            queue => queue.to_string(),
        };
        let at_0_rtt = |service| format!("{} of {VISITS}", visit::at_0_rtt(server, service, packages));
        let cells = vec![
            server.package.to_owned(),
            visit::version(server, packages),
            attempt("by default", &|| queue(server.without)),
            attempt("with its line", &|| queue(server.line)),
            attempt("observed", &|| at_0_rtt(Service::Observed)),
            attempt("protected", &|| at_0_rtt(Service::Protected)),
        ];
        Self { cells, failures }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}
