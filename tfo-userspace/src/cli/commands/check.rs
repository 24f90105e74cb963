//! `tfo check`.

use std::{path::Path, process::ExitCode};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::{
    check::{Report, Status, fix::Fix},
    cli::args::Check,
    config::{Config, Fault, Invalid},
    daemon::special::own_keys_warning,
    dataplane::{check_answers, pins::Bpffs},
    kernel::{
        interface::Interface,
        listeners::{Listener, Listeners},
        route,
    },
    model::services::{Named, Services},
    util::output::{json, print},
};

/// Result of the check of a configuration file.
#[derive(Serialize)]
struct Verdict<'a> {
    file: &'a Path,
    faults: Vec<Fault>,
    /// Summary of the services; `None` if there are faults.
    summary: Option<String>,
    /// Warnings about listeners of this host, as `tfo run` would log them.
    warnings: Vec<String>,
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
    print(&if args.json { json(&report)? } else { report.text() })?;
    Ok(if report.worst == Status::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints the faults of a configuration file, or a summary of it. The exit status is 1 if there are faults.
async fn config(file: &Path, as_json: bool) -> Result<ExitCode> {
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
            let (summary, warnings) = (services.summary(), warnings(&services).await);
            let mut text = format!("{}: ok: {summary}", file.display());
            warnings.iter().for_each(|warning| text += &format!("\nwarning: {warning}"));
            (text, Verdict { file, faults: Vec::new(), summary: Some(summary), warnings })
        }
        Err(Ok(invalid)) => {
            let text = invalid.to_string();
            (text, Verdict { file, faults: invalid.faults, summary: None, warnings: Vec::new() })
        }
        Err(Err(error)) => return Err(error),
    };
    print(&if as_json { json(&verdict)? } else { text })?;
    Ok(if verdict.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns warnings about listeners of this host that concern `services`. What can't be read is left out: the file may be for
/// another host.
async fn warnings(services: &Services) -> Vec<String> {
    if services.is_empty() {
        return Vec::new();
    }
    let Ok(listeners) = Listeners::read_with_queues() else { return Vec::new() };
    let mut warnings: Vec<_> =
        services.named().iter().flat_map(|named| without_fast_open(named, &listeners.listeners)).collect();
    if !services.named().iter().any(|named| named.guards.dry_runs().next().is_some()) {
        return warnings;
    }
    warnings.extend(services.named().iter().filter_map(|named| {
        let its = listeners.listeners.iter().filter(|listener| has_own_keys(named, listener));
        own_keys_warning(
            &named.name,
            named.guards.shed?.own_keys,
            &its.map(Listener::name).collect::<Vec<_>>(),
        )
    }));
    let no_cookie = listeners.without_cookie(&route::without_cookie().await.unwrap_or_default());
    warnings.extend(no_cookie.text().map(|text| format!("{text}: {}", no_cookie.advice())));
    warnings
}

/// Returns hints about the listeners of the service `named` that have no Fast Open, or hardly any, while nothing turns it on.
fn without_fast_open(named: &Named, listeners: &[Listener]) -> Vec<String> {
    let its = |queue: u32| {
        let has = move |listener: &&Listener| {
            is_its(named, listener) && listener.fast_open.as_ref().is_some_and(|it| it.queue == queue)
        };
        listeners.iter().filter(has).map(Listener::name).collect::<Vec<_>>().join(", ")
    };
    let hint = |what: &str, at: String| {
        let advice = "let the server ask for a longer queue, or write fast_open = 256 into the service";
        (!at.is_empty()).then(|| format!("service {}: {what} on {at}: {advice}", named.name))
    };
    if named.fast_open.is_some() {
        return Vec::new();
    }
    let few = "only one Fast Open connection may be in its handshake";
    [hint("no Fast Open", its(0)), hint(few, its(1))].into_iter().flatten().collect()
}

/// Whether `listener` is one of the service `named`, and has Fast Open with keys of its own.
fn has_own_keys(named: &Named, listener: &Listener) -> bool {
    listener.fast_open.as_ref().is_some_and(|it| it.queue > 0 && it.has_own_keys && it.own_keys.is_empty())
        && is_its(named, listener)
}

/// Whether `listener` is one of the service `named`.
fn is_its(named: &Named, listener: &Listener) -> bool {
    let address = Some(listener.address.ip()).filter(|address| !address.is_unspecified());
    named.is_at(address, listener.address.port())
}
