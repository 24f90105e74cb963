//! `cargo xtask bench`: measures the cost of the XDP program, class by class. The task builds this and the yardsticks,
//! and starts it.
//!
//! BPF_PROG_TEST_RUN runs a program again and again on one frame. Each sample is taken between two samples of a program
//! that does nothing but pass. The difference is the net cost. The CPU time of the thread is measured, not wall time.
//! With `--live`, an interface receives floods of SYNs: see [`live`]. With `--scrape`, scrapes of the metrics are
//! timed: see [`scrape`].

mod live;
mod measure;
mod report;
mod scenarios;
mod scrape;

use std::{fs::File, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use self::{
    measure::{Bench, Measured, Plan},
    report::Report,
};

/// Measures the cost of the XDP program, class by class.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Args {
    /// Measures only scenarios with this in their names
    filter: Option<String>,
    /// Sends floods of SYNs to an interface, and measures the program with the stack behind it (Linux 5.18)
    #[arg(long, conflicts_with = "compare")]
    live: bool,
    /// Measures how long a scrape of `tfo run --metrics` takes, by the number of services
    #[arg(long, conflicts_with_all = ["live", "compare", "filter"])]
    scrape: bool,
    /// Samples of each scenario, taken in turns; with --scrape, a tenth of the scrapes
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Number of times to load the programs; rounds are divided among them, since the place in memory affects the cost
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    loads: u32,
    /// Runs of the program in a sample; with --live, SYNs that are sent
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
    /// Prints JSON
    #[arg(long)]
    json: bool,
    /// Shows the --json output of an earlier run beside this one
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Object file with the yardsticks
    #[arg(long, value_name = "FILE", hide = true)]
    yardsticks: PathBuf,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let plan = Plan { rounds: args.rounds, loads: args.loads.min(args.rounds), repeat: args.repeat };
    if args.live {
        let report = live::run(&args.yardsticks, args.filter.as_deref().unwrap_or_default(), &plan)?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&report)?);
        } else {
            report.print();
        }
        return Ok(());
    }
    if args.scrape {
        let measured = scrape::run(10 * args.rounds)?;
        if args.json {
            println!("{}", serde_json::to_string_pretty(&measured)?);
        } else {
            scrape::print(&measured);
        }
        return Ok(());
    }
    // This comes first: an unreadable file should not cost a minute.
    let earlier = args.compare.as_ref().map(|path| {
        let read = || Ok::<Report, anyhow::Error>(serde_json::from_reader(File::open(path)?)?);
        read().with_context(|| format!("cannot compare with {}", path.display()))
    });
    let earlier = earlier.transpose()?;

    let filter = args.filter.unwrap_or_default();
    let mut measured = Vec::new();
    for load in 0..plan.loads {
        let mut scenarios = scenarios::all();
        scenarios.retain(|scenario| scenario.name.contains(&filter));
        ensure!(!scenarios.is_empty(), "no scenario has {filter:?} in its name");
        merge(&mut measured, Bench::new(&args.yardsticks, scenarios)?.run(&plan, load)?);
    }
    let report = Report::new(&plan, measured)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print(earlier.as_ref());
    }
    Ok(())
}

/// Adds the samples of another load of the same scenarios.
fn merge(measured: &mut Vec<Measured>, more: Vec<Measured>) {
    if measured.is_empty() {
        *measured = more;
    } else {
        measured.iter_mut().zip(more).for_each(|(all, more)| all.samples.extend(more.samples));
    }
}
