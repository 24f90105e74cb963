//! `tfo check`.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    check::{Report, Status, fix::Fix},
    cli::args::Check,
    config::{Config, Fault, Invalid},
    dataplane::{check_answers, pins::Bpffs},
    kernel::interface::Interface,
    util::output::print,
};

/// Result of the check of a configuration file.
#[derive(Serialize)]
struct Verdict<'a> {
    file: &'a Path,
    faults: Vec<Fault>,
    /// Summary of the services; `None` if there are faults.
    summary: Option<String>,
}

/// Prints the changes of `--fix`, then every check. The exit status is 1 if a check fails.
pub(super) async fn run(args: &Check, bpffs: &Bpffs) -> Result<ExitCode> {
    if let Some(file) = &args.config {
        return config(file, args.json).await;
    }
    let mut changes = None;
    if args.fix {
        let fix = Fix::plan(&args.sysctl_dir)?;
        // Printed before anything is changed. With --json, standard output is for JSON alone.
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

/// Prints the faults of a configuration file, or a summary of it. The exit status is 1 if there are faults.
async fn config(file: &Path, json: bool) -> Result<ExitCode> {
    let config = Config::read(file).map_err(|error| error.downcast::<Invalid>());
    let (text, verdict) = match config {
        Ok(Config { services, interfaces, .. }) => {
            for name in &interfaces {
                // An interface may come later.
                if let Ok(interface) = Interface::find(name).await {
                    let context = || format!("{}: {name}", file.display());
                    check_answers(&services, interface.link_layer).with_context(context)?;
                }
            }
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
