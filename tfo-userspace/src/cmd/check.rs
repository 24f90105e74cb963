//! `tfo check`.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    check::{Report, Status, fix::Fix},
    cli::Check,
    output::print,
    pins::Bpffs,
};

/// Prints every check, behind what `--fix` changes. Exit status 1 where one of them fails.
pub(super) async fn run(args: &Check, bpffs: &Bpffs) -> Result<ExitCode> {
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
