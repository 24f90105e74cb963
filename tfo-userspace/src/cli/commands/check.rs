//! `tfo check`.

use std::{path::Path, process::ExitCode};

use anyhow::Result;
use serde::Serialize;

use crate::{
    check::{Report, Status, fix::Fix},
    cli::args::Check,
    config::{Config, Fault, Invalid},
    dataplane::pins::Bpffs,
    util::output::print,
};

/// What is wrong with a configuration file.
#[derive(Serialize)]
struct Verdict<'a> {
    file: &'a Path,
    faults: Vec<Fault>,
    /// What is in it, where nothing is wrong.
    summary: Option<String>,
}

/// Prints every check, behind what `--fix` changes. Exit status 1 where one of them fails.
pub(super) async fn run(args: &Check, bpffs: &Bpffs) -> Result<ExitCode> {
    if let Some(file) = &args.config {
        return config(file, args.json);
    }
    let mut changes = None;
    if args.fix {
        let fix = Fix::plan(&args.sysctl_dir)?;
        // Before anything is changed. Standard output is for JSON alone.
        if args.json {
            eprint!("{}", fix.text())
        } else {
            print(&fix.text())?
        }
        fix.apply()?;
        changes = Some(fix.changes());
    }
    let report = Report { changes, ..Report::new(args.interface.as_deref(), bpffs).await };
    print(&if args.json { serde_json::to_string(&report)? } else { report.text() })?;
    Ok(if report.worst == Status::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints what is wrong with a configuration file, or what is in it. Exit status 1 where something is wrong.
fn config(file: &Path, json: bool) -> Result<ExitCode> {
    let config = Config::read(file).map_err(|error| error.downcast::<Invalid>());
    let (text, verdict) = match config {
        Ok(Config { services, .. }) => {
            let summary = services.summary();
            let text = format!("{}: ok: {summary}", file.display());
            (text, Verdict { file, faults: Vec::new(), summary: Some(summary) })
        }
        Err(Ok(invalid)) => (invalid.to_string(), Verdict { file, faults: invalid.faults, summary: None }),
        Err(Err(error)) => return Err(error),
    };
    print(&if json { serde_json::to_string(&verdict)? } else { text })?;
    Ok(if verdict.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
